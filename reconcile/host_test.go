package reconcile

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
}

// host is one machine: an index, local bytes, a Reconciler, and just enough of
// the serving side to play stories.
type host struct {
	t    fataler
	dir  string
	db   *meta.DB
	data *content.Store
	r    *Reconciler
	root vfolder.Ino // of the folder in use

	mu      sync.Mutex
	act     map[vfolder.Ino]Activity
	open    map[vfolder.Ino]bool // dirty periods
	entries []string             // names whose kernel cache was dropped
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func testLog() *slog.Logger {
	if os.Getenv("VFOLDER_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return quiet
}

// fast are the settings of stories: nothing waits longer than it must.
func fast() Config {
	return Config{
		Settle: time.Millisecond, OpenSettle: 50 * time.Millisecond, DirSettle: 20 * time.Millisecond,
		RefreshEvery: 30 * time.Millisecond, RescanEvery: time.Hour, RegistryEvery: time.Hour, SegmentEvery: time.Hour,
		LeaseTTL: 30 * time.Second, LeaseIdle: time.Hour,
	}
}

func startHost(t fataler, dir, id string, s objstore.Store, cfg Config) *host {
	t.Helper()
	h := &host{t: t, dir: dir, act: map[vfolder.Ino]Activity{}, open: map[vfolder.Ino]bool{}}
	var err error
	if h.db, err = meta.Open(meta.Options{Dir: filepath.Join(dir, "index"), BootID: "boot", Log: quiet}); err != nil {
		t.Fatalf("index: %v", err)
	}
	if h.data, err = content.Open(content.Options{Dir: filepath.Join(dir, "data"), ReserveBytes: -1, Log: quiet}); err != nil {
		t.Fatalf("content: %v", err)
	}
	cfg.DB, cfg.Content, cfg.Store, cfg.HostID, cfg.Log = h.db, h.data, s, id, testLog()
	if h.r, err = New(cfg); err != nil {
		t.Fatalf("new: %v", err)
	}
	h.r.SetLocal(h)
	if err := h.r.Start(context.Background()); err != nil {
		t.Fatalf("start: %v", err)
	}
	return h
}

func newHost(t *testing.T, id string, s objstore.Store, cfg Config) *host {
	t.Helper()
	h := startHost(t, t.TempDir(), id, s, cfg)
	t.Cleanup(h.close)
	return h
}

func (h *host) close() {
	if h.r == nil {
		return
	}
	if err := h.r.Close(); err != nil {
		h.t.Fatalf("close: %v", err)
	}
	h.r = nil
	_ = h.data.Close()
	if err := h.db.Close(); err != nil {
		h.t.Fatalf("close index: %v", err)
	}
}

// die ends the host as a crash would: nothing is finished, sent or released.
func (h *host) die() {
	h.r.cancel()
	for _, f := range h.r.all() {
		f.stop()
	}
	h.r.wg.Wait()
	h.r = nil
	_ = h.data.Close()
	_ = h.db.Close()
}

// Local.

func (h *host) Freeze(ctx context.Context, ino vfolder.Ino) (*Frozen, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	z := &Frozen{Close: func() {}}
	err := h.db.View(func(tx *meta.Tx) (err error) {
		if z.Inode, err = tx.Inode(ino); err != nil {
			return err
		}
		z.Xattrs, err = tx.Xattrs(ino)
		return err
	})
	if err != nil {
		return nil, err
	}
	if z.Inode.IsRegular() && z.Inode.Data != meta.DataRemote {
		file := h.file(z.Inode)
		defer file.Close()
		if z.View, err = file.Freeze(); err != nil {
			return nil, err
		}
		z.Close = func() { z.View.Close() }
	}
	delete(h.open, ino)
	return z, nil
}

func (h *host) Activity(ino vfolder.Ino) Activity {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.act[ino]
}

func (h *host) Changed(vfolder.Ino) {}

func (h *host) EntryChanged(parent vfolder.Ino, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.entries = append(h.entries, name)
}

func (h *host) Freed(n *meta.Inode) {
	_ = h.db.Update(func(tx *meta.Tx) error { _, _, err := tx.Free(n.Ino); return err })
	_ = h.data.Remove(content.ID{Ino: n.Ino, Gen: n.DataGen})
}

// Stories.

func (h *host) file(n *meta.Inode) *content.File {
	file := h.data.File(content.ID{Ino: n.Ino, Gen: n.DataGen})
	known := make([]content.Range, 0, len(n.Known))
	for _, k := range n.Known {
		known = append(known, content.Range{Off: k[0], Len: k[1]})
	}
	_ = file.Recover(n.Data == meta.DataPartial, known)
	return file
}

func (h *host) must(err error, what ...any) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("%v: %v", what, err)
	}
}

func (h *host) mkfolder(name string) {
	h.t.Helper()
	m, _, err := h.r.CreateFolder(context.Background(), name)
	h.must(err, "create folder", name)
	h.root = m.Root
}

func (h *host) useFolder(name string) {
	h.t.Helper()
	m, err := h.r.FolderByName(context.Background(), name)
	h.must(err, "folder", name)
	h.root = m.Root
}

func ctxFor(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// walk finds the directory and last name of a path, listing on the way.
func (h *host) walk(p string) (vfolder.Ino, string, error) {
	ctx := context.Background()
	dir := h.root
	parts := strings.Split(p, "/")
	for i, part := range parts {
		if err := h.r.List(ctx, dir); err != nil {
			return 0, "", err
		}
		if i == len(parts)-1 {
			return dir, part, nil
		}
		if err := h.r.Hydrate(ctx, dir, part); err != nil {
			return 0, "", err
		}
		var e meta.Entry
		err := h.db.View(func(tx *meta.Tx) (err error) { e, err = tx.Entry(dir, part); return err })
		if err != nil {
			return 0, "", err
		}
		dir = e.Ino
	}
	return 0, "", errors.New("no path")
}

func (h *host) stat(p string) (*meta.Inode, error) {
	dir, name, err := h.walk(p)
	if err != nil {
		return nil, err
	}
	if err := h.r.Hydrate(context.Background(), dir, name); err != nil {
		return nil, err
	}
	var n *meta.Inode
	err = h.db.View(func(tx *meta.Tx) error {
		e, err := tx.Entry(dir, name)
		if err != nil {
			return err
		}
		n, err = tx.Inode(e.Ino)
		return err
	})
	return n, err
}

func (h *host) write(p, body string) {
	h.t.Helper()
	h.must(h.tryWrite(p, body), "write", p)
}

// tryWrite makes or replaces the bytes of a file, in one dirty period.
func (h *host) tryWrite(p, body string) error {
	if err := h.r.Writable(context.Background(), h.root); err != nil {
		return err
	}
	dir, name, err := h.walk(p)
	if err != nil {
		return err
	}
	if err := h.r.Hydrate(context.Background(), dir, name); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var n *meta.Inode
	err = h.db.Update(func(tx *meta.Tx) error {
		e, err := tx.Entry(dir, name)
		if errors.Is(err, vfolder.KindNotFound) {
			n = &meta.Inode{Mode: 0o100644, UID: 1000, GID: 1000}
			return tx.Create(dir, name, n)
		}
		if err != nil {
			return err
		}
		if n, err = tx.Inode(e.Ino); err != nil {
			return err
		}
		if !n.IsRegular() {
			return vfolder.Errorf(vfolder.KindIsDir, "write", p, "is a directory")
		}
		if n.Data != meta.DataComplete {
			n.Data, n.DataGen, n.Known = meta.DataComplete, n.DataGen+1, nil
		}
		if h.open[n.Ino] {
			return tx.PutInode(n)
		}
		return tx.MarkDirty(n)
	})
	if err != nil {
		return err
	}
	h.open[n.Ino] = true
	file := h.file(n)
	defer file.Close()
	if err := file.Create(); err != nil && !errors.Is(err, vfolder.KindExists) {
		return err
	}
	if err := file.Truncate(0); err != nil {
		return err
	}
	if _, err := file.WriteAt([]byte(body), 0); err != nil && len(body) > 0 {
		return err
	}
	return h.db.Update(func(tx *meta.Tx) error {
		now, err := tx.Inode(n.Ino)
		if err != nil {
			return err
		}
		now.Size, now.Mtime = int64(len(body)), tx.Now()
		return tx.PutInode(now)
	})
}

// patch overwrites bytes of a file that may be remote.
func (h *host) patch(p string, off int64, body string) {
	h.t.Helper()
	dir, name, err := h.walk(p)
	h.must(err, "walk", p)
	h.must(h.r.Hydrate(context.Background(), dir, name), "hydrate", p)
	var n *meta.Inode
	h.must(h.db.Update(func(tx *meta.Tx) error {
		e, err := tx.Entry(dir, name)
		if err != nil {
			return err
		}
		if n, err = tx.Inode(e.Ino); err != nil {
			return err
		}
		if n.Data == meta.DataRemote {
			n.Data, n.DataGen = meta.DataPartial, n.DataGen+1
			file := h.data.File(content.ID{Ino: n.Ino, Gen: n.DataGen})
			if err := file.CreatePartial(n.Size); err != nil {
				return err
			}
			defer file.Close()
		}
		return tx.MarkDirty(n)
	}), "dirty", p)
	file := h.file(n)
	defer file.Close()
	for _, m := range file.MissingForWrite(off, int64(len(body))) {
		h.must(h.r.Fetch(context.Background(), n.Ino, m.Off, m.Len, file.Fill), "fetch", p)
	}
	_, err = file.WriteAt([]byte(body), off)
	h.must(err, "write", p)
}

func (h *host) mkdir(p string) {
	h.t.Helper()
	h.must(h.tryMknod(p, &meta.Inode{Mode: 0o040755, UID: 1000, GID: 1000}), "mkdir", p)
}

func (h *host) tryMknod(p string, n *meta.Inode) error {
	if err := h.r.Writable(context.Background(), h.root); err != nil {
		return err
	}
	dir, name, err := h.walk(p)
	if err != nil {
		return err
	}
	return h.db.Update(func(tx *meta.Tx) error { return tx.Create(dir, name, n) })
}

func (h *host) rename(from, to string) {
	h.t.Helper()
	h.must(h.tryRename(from, to), "rename", from, to)
}

func (h *host) tryRename(from, to string) error {
	d1, n1, err := h.walk(from)
	if err != nil {
		return err
	}
	d2, n2, err := h.walk(to)
	if err != nil {
		return err
	}
	if err := h.r.Hydrate(context.Background(), d1, n1); err != nil {
		return err
	}
	if err := h.r.Hydrate(context.Background(), d2, n2); err != nil {
		return err
	}
	if n, err := h.stat(to); err == nil && n.IsDir() {
		if err := h.r.List(context.Background(), n.Ino); err != nil {
			return err
		}
	}
	var gone *meta.Inode
	err = h.db.Update(func(tx *meta.Tx) (err error) { _, gone, err = tx.Rename(d1, n1, d2, n2, false); return err })
	if err == nil && gone != nil && gone.Nlink == 0 {
		h.Freed(gone)
	}
	return err
}

func (h *host) exchange(a, b string) {
	h.t.Helper()
	d1, n1, err := h.walk(a)
	h.must(err)
	d2, n2, err := h.walk(b)
	h.must(err)
	h.must(h.db.Update(func(tx *meta.Tx) error { return tx.Exchange(d1, n1, d2, n2) }), "exchange", a, b)
}

func (h *host) link(from, to string) {
	h.t.Helper()
	n, err := h.stat(from)
	h.must(err, "stat", from)
	dir, name, err := h.walk(to)
	h.must(err, "walk", to)
	h.must(h.db.Update(func(tx *meta.Tx) error { _, err := tx.Link(n.Ino, dir, name, randomHex(8)); return err }), "link", from, to)
}

func (h *host) remove(p string) {
	h.t.Helper()
	h.must(h.tryRemove(p), "remove", p)
}

func (h *host) tryRemove(p string) error {
	n, err := h.stat(p)
	if err != nil {
		return err
	}
	if n.IsDir() {
		if err := h.r.List(context.Background(), n.Ino); err != nil {
			return err
		}
	}
	dir, name, err := h.walk(p)
	if err != nil {
		return err
	}
	err = h.db.Update(func(tx *meta.Tx) (err error) {
		if n.IsDir() {
			n, err = tx.Rmdir(dir, name)
		} else {
			n, err = tx.Unlink(dir, name)
		}
		return err
	})
	if err == nil && n.Nlink == 0 {
		h.Freed(n)
	}
	return err
}

func (h *host) sync() {
	h.t.Helper()
	h.must(h.trySync(), "sync")
}

func (h *host) trySync() error {
	ctx, cancel := ctxFor(syncPatience)
	defer cancel()
	err := h.r.Sync(ctx, h.root, nil)
	if err != nil {
		h.dump()
	}
	return err
}

// readIno returns a file's bytes, local or remote.
func (h *host) readIno(n *meta.Inode) (string, error) {
	if !n.IsRegular() || n.Size == 0 {
		return "", nil
	}
	b := make([]byte, n.Size)
	if n.Data == meta.DataRemote {
		err := h.r.Fetch(context.Background(), n.Ino, 0, n.Size, func(off int64, data []byte) error { copy(b[off:], data); return nil })
		return string(b), err
	}
	file := h.file(n)
	defer file.Close()
	for _, m := range file.Missing(0, n.Size) {
		if err := h.r.Fetch(context.Background(), n.Ino, m.Off, m.Len, file.Fill); err != nil {
			return "", err
		}
	}
	_, err := file.ReadAt(b, 0)
	if err == io.EOF {
		err = nil
	}
	return string(b), err
}

const syncPatience = 20 * time.Second

// tree shows the folder: path to type and body.
func (h *host) tree() map[string]string {
	h.t.Helper()
	var err error
	for range 20 { // a refresh may take names away meanwhile
		out := map[string]string{}
		if err = h.collect(h.root, "", out); err == nil {
			return out
		}
	}
	h.t.Fatalf("tree: %v", err)
	return nil
}

func (h *host) collect(dir vfolder.Ino, at string, out map[string]string) error {
	ctx := context.Background()
	if err := h.r.List(ctx, dir); err != nil {
		return err
	}
	var names []string
	err := h.db.View(func(tx *meta.Tx) error {
		return tx.Entries(dir, 0, func(e meta.DirEntry) bool { names = append(names, e.Name); return true })
	})
	if err != nil {
		return err
	}
	if err := h.r.Hydrate(ctx, dir, names...); err != nil {
		return err
	}
	for _, name := range names {
		p := path.Join(at, name)
		n, err := h.stat(p)
		if err != nil {
			return err
		}
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			out[p+"/"] = ""
			err = h.collect(n.Ino, p, out)
		case unix.S_IFLNK:
			out[p] = "-> " + n.Target
		default:
			out[p], err = h.readIno(n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *host) check() {
	h.t.Helper()
	h.must(h.db.View(func(tx *meta.Tx) error {
		faults, err := tx.Check(h.root)
		if err == nil && len(faults) > 0 {
			err = errors.New(strings.Join(faults, "\n"))
		}
		return err
	}), "check of the index")
}

// eventually polls until fn is true.
func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if fn() {
			return
		}
	}
	t.Fatalf("%s did not come true", what)
}

func sameTree(t fataler, what string, got, want map[string]string) {
	t.Helper()
	var diff bytes.Buffer
	for k, v := range want {
		if g, ok := got[k]; !ok {
			diff.WriteString("missing " + k + "\n")
		} else if g != v {
			diff.WriteString("differs " + k + ": " + short(g) + " is not " + short(v) + "\n")
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			diff.WriteString("too much " + k + "\n")
		}
	}
	if diff.Len() > 0 {
		t.Fatalf("%s:\n%s", what, diff.String())
	}
}

func short(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}

// counting counts HEADs.
type counting struct {
	*memStore
	heads atomic.Int64
}

func (c *counting) Head(ctx context.Context, key string) (objstore.Info, error) {
	c.heads.Add(1)
	return c.memStore.Head(ctx, key)
}

func vfolderKind(err error) string {
	if err == nil {
		return ""
	}
	return vfolder.KindOf(err).String()
}
