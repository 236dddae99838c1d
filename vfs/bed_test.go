package vfs_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/vfs"
)

// bucket is a Remote over a map. It adopts into the index as the reconciler does.
type bucket struct {
	mu      sync.Mutex
	db      *meta.DB
	objects map[string][]byte // by path in the one folder
	refuse  error             // of Writable
	broken  error             // of Fetch
	piece   int               // length of the pieces of Fetch
	gate    chan struct{}     // when set, Fetch takes one from it before each piece

	fetched atomic.Int64 // bytes
	settled atomic.Int64
	listed  atomic.Int64
}

func (b *bucket) index() *meta.DB {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.db
}

func (b *bucket) List(_ context.Context, dir vfolder.Ino) error {
	b.listed.Add(1)
	return b.index().Update(func(tx *meta.Tx) error {
		n, err := tx.Inode(dir)
		if err != nil || n.Listed {
			return err
		}
		path, err := tx.Path(n)
		if err != nil {
			return err
		}
		prefix := ""
		if len(path) > 0 {
			prefix = strings.Join(path, "/") + "/"
		}
		id, err := tx.MakePrefix("f/" + prefix)
		if err != nil {
			return err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		seen := map[string]bool{}
		for key, data := range b.objects {
			rest, ok := strings.CutPrefix(key, prefix)
			if !ok || rest == "" {
				continue
			}
			name, _, isDir := strings.Cut(rest, "/")
			if seen[name] {
				continue
			}
			seen[name] = true
			n := &meta.Inode{Mode: unix.S_IFREG | 0o600, Size: int64(len(data)), Unhydrated: true, Mtime: 5e9, Atime: 5e9, Ctime: 5e9}
			k := meta.RowKey{Dir: id, Name: name}
			row := &meta.Row{ETag: "e", Size: int64(len(data)), LastModified: 7e9, Gen: 1, AttrGen: 1}
			if isDir {
				n.Mode, n.Size, row = unix.S_IFDIR|0o755, 0, nil
			} else {
				n.Base = k
			}
			if err := tx.Adopt(dir, name, n, k, row); err != nil {
				return err
			}
		}
		if n, err = tx.Inode(dir); err != nil {
			return err
		}
		n.Listed = true
		return tx.PutInode(n)
	})
}

func (b *bucket) Hydrate(_ context.Context, parent vfolder.Ino, names ...string) error {
	return b.index().Update(func(tx *meta.Tx) error {
		for _, name := range names {
			e, err := tx.Entry(parent, name)
			if err != nil {
				return err
			}
			n, err := tx.Inode(e.Ino)
			if err != nil {
				return err
			}
			n.Unhydrated = false
			n.Mode = n.Mode&unix.S_IFMT | 0o755
			if err := tx.PutInode(n); err != nil {
				return err
			}
			if err := tx.SetEntry(parent, name, e.Ino, n.Mode&unix.S_IFMT); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *bucket) Fetch(ctx context.Context, ino vfolder.Ino, off, length int64, fill func(int64, []byte) error) error {
	var key string
	err := b.index().View(func(tx *meta.Tx) error {
		n, err := tx.Inode(ino)
		if err != nil {
			return err
		}
		prefix, err := tx.Prefix(n.Base.Dir)
		key = strings.TrimPrefix(prefix, "f/") + n.Base.Name
		return err
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	data, ok := b.objects[key]
	broken, piece, gate := b.broken, b.piece, b.gate
	b.mu.Unlock()
	switch {
	case broken != nil:
		return broken
	case !ok:
		return vfolder.KindStale
	case off+length > int64(len(data)):
		return vfolder.Errorf(vfolder.KindInvalid, "fetch", key, "%d+%d of %d", off, length, len(data))
	}
	if piece == 0 {
		piece = 64 << 10
	}
	for length > 0 {
		if gate != nil {
			select {
			case <-gate:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		n := min(length, int64(piece))
		if err := fill(off, data[off:off+n]); err != nil {
			return err
		}
		b.fetched.Add(n)
		off, length = off+n, length-n
	}
	return nil
}

func (b *bucket) Writable(context.Context, vfolder.Ino) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refuse
}

func (b *bucket) Touch(vfolder.Ino)  {}
func (b *bucket) Settle(vfolder.Ino) { b.settled.Add(1) }

func (b *bucket) set(do func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	do()
}

// bed is an FS with one folder "data" on a fresh index.
type bed struct {
	t        testing.TB
	dir      string
	boot     string
	maxNodes int
	db       *meta.DB
	content  *content.Store
	bucket   *bucket
	fs       *vfs.FS
	root     vfolder.Ino
	unique   uint64
}

func newBed(t testing.TB, objects map[string][]byte) *bed {
	t.Helper()
	b := &bed{t: t, dir: t.TempDir(), boot: "boot 1", bucket: &bucket{objects: objects}, unique: 2}
	b.open()
	check(t, b.db.Update(func(tx *meta.Tx) error {
		n := &meta.Inode{Mode: unix.S_IFDIR | 0o777, UID: 1000, GID: 1000}
		if err := tx.Create(vfolder.RootIno, "data", n); err != nil {
			return err
		}
		b.root = n.Ino
		n.Listed = objects == nil
		if err := tx.PutInode(n); err != nil {
			return err
		}
		return tx.PutFolder(&meta.Folder{Root: n.Ino, Record: vfolder.Folder{ID: "0123456789abcdef", Name: "data", Prefix: "f/", State: vfolder.FolderReady}})
	}))
	t.Cleanup(func() { b.close(true) })
	return b
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bed) open() {
	b.t.Helper()
	log := slog.New(slog.NewTextHandler(b.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	var err error
	b.db, err = meta.Open(meta.Options{Dir: filepath.Join(b.dir, "index"), BootID: b.boot, Log: log})
	check(b.t, err)
	b.content, err = content.Open(content.Options{Dir: filepath.Join(b.dir, "content"), ReserveBytes: -1, Log: log})
	check(b.t, err)
	b.bucket.set(func() { b.bucket.db = b.db })
	b.fs, err = vfs.New(vfs.Config{
		DB: b.db, Content: b.content, Remote: b.bucket, RecoveryDir: filepath.Join(b.dir, "recovered"),
		MaxNodes: b.maxNodes, Log: log,
	})
	check(b.t, err)
}

// close ends the FS; not clean is what is left by kill -9.
func (b *bed) close(clean bool) {
	b.t.Helper()
	if b.fs == nil {
		return
	}
	if clean {
		check(b.t, b.fs.Close())
	} else {
		b.fs.Abandon()
	}
	b.fs = nil
	check(b.t, b.content.Close())
	check(b.t, b.db.Close())
}

func (b *bed) restart(clean bool) {
	b.t.Helper()
	b.close(clean)
	b.open()
}

// req is a new request of the session's user.
func (b *bed) req() *fusefs.Request {
	b.unique += 2
	return &fusefs.Request{Context: b.t.Context(), Unique: b.unique, UID: 1000, GID: 1000}
}

// resent is the same request again.
func resent(r *fusefs.Request) *fusefs.Request {
	c := *r
	c.Resent = true
	return &c
}

// at finds the directory and the last name of a path.
func (b *bed) at(path string) (vfolder.Ino, string) {
	b.t.Helper()
	dir, name := filepath.Split(path)
	a, err := b.fs.Resolve(b.t.Context(), "data", dir, true)
	check(b.t, err)
	return a.Ino, name
}

func (b *bed) create(path string) vfolder.Ino {
	b.t.Helper()
	dir, name := b.at(path)
	a, err := b.fs.Create(b.req(), dir, name, 0o644, 0, unix.O_RDWR)
	check(b.t, err)
	return a.Ino
}

func (b *bed) mkdir(path string) vfolder.Ino {
	b.t.Helper()
	dir, name := b.at(path)
	a, err := b.fs.Mkdir(b.req(), dir, name, 0o755, 0)
	check(b.t, err)
	return a.Ino
}

func (b *bed) write(ino vfolder.Ino, off int64, data string) {
	b.t.Helper()
	n, err := b.fs.Write(b.req(), ino, []byte(data), off, false)
	check(b.t, err)
	if n != len(data) {
		b.t.Fatalf("wrote %d of %d bytes", n, len(data))
	}
}

func (b *bed) file(path, data string) vfolder.Ino {
	b.t.Helper()
	ino := b.create(path)
	if data != "" {
		b.write(ino, 0, data)
	}
	check(b.t, b.fs.Flush(b.req(), ino))
	b.fs.Release(ino, unix.O_RDWR)
	return ino
}

func (b *bed) read(ino vfolder.Ino) string {
	b.t.Helper()
	a := b.stat(ino)
	buf := make([]byte, a.Size+100)
	n, err := b.fs.Read(b.req(), ino, buf, 0)
	check(b.t, err)
	return string(buf[:n])
}

func (b *bed) stat(ino vfolder.Ino) fusefs.Attr {
	b.t.Helper()
	a, err := b.fs.GetAttr(b.req(), ino)
	check(b.t, err)
	return a
}

func (b *bed) lookup(path string) (fusefs.Attr, error) {
	b.t.Helper()
	return b.fs.Resolve(b.t.Context(), "data", path, false)
}

func (b *bed) record(ino vfolder.Ino) *meta.Inode {
	b.t.Helper()
	var n *meta.Inode
	check(b.t, b.db.View(func(tx *meta.Tx) (err error) {
		n, err = tx.Inode(ino)
		return err
	}))
	return n
}

// publish does to the index what a successful upload does.
func (b *bed) publish(ino vfolder.Ino) {
	b.t.Helper()
	b.read(ino) // makes every byte local
	fr, err := b.fs.Freeze(b.t.Context(), ino)
	check(b.t, err)
	defer fr.Close()
	if fr.View == nil {
		return // as published
	}
	data := make([]byte, fr.View.Size())
	if len(data) > 0 {
		if _, err := fr.View.ReadAt(data, 0); err != nil && err.Error() != "EOF" {
			b.t.Fatal(err)
		}
	}
	check(b.t, b.db.Update(func(tx *meta.Tx) error {
		n, err := tx.Inode(ino)
		if err != nil {
			return err
		}
		path, err := tx.Path(n)
		if err != nil {
			return err
		}
		dir, name := filepath.Split(strings.Join(path, "/"))
		id, err := tx.MakePrefix("f/" + dir)
		if err != nil {
			return err
		}
		k := meta.RowKey{Dir: id, Name: name}
		if o, err := tx.Row(k); err != nil || o != nil && o.Parent != 0 && (o.Parent != n.Parent || o.Name != n.Name) {
			return err // another file's object has to move away first
		}
		b.bucket.set(func() {
			if b.bucket.objects == nil {
				b.bucket.objects = map[string][]byte{}
			}
			b.bucket.objects[dir+name] = data
		})
		row := &meta.Row{Ino: ino, ETag: "p", Size: int64(len(data)), LastModified: 9e9, Gen: fr.Inode.Gen, AttrGen: fr.Inode.AttrGen}
		if err := tx.BindRow(n.Folder, n.Parent, n.Name, k, row); err != nil {
			return err
		}
		n.Base, n.Dirty = k, false
		return tx.PutInode(n)
	}))
	b.fs.Changed(ino)
}

func wantKind(t testing.TB, err error, kind vfolder.Kind) {
	t.Helper()
	if err == nil || vfolder.KindOf(err) != kind {
		t.Fatalf("got %v, want kind %v", err, kind)
	}
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func (b *bed) names(dir vfolder.Ino) []string {
	b.t.Helper()
	var list []string
	check(b.t, b.fs.ReadDir(b.req(), dir, 2, func(e fusefs.DirEntry) bool {
		list = append(list, e.Name)
		return true
	}))
	slices.Sort(list)
	return list
}

func errnoOf(err error) syscall.Errno {
	var no syscall.Errno
	if err == nil {
		return 0
	}
	if errors.As(err, &no) {
		var e *vfolder.Error
		if !errors.As(err, &e) {
			return no
		}
	}
	return vfolder.KindOf(err).Info().Errno
}
