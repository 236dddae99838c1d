package vfs_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
)

func random(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func (b *bed) ino(path string) vfolder.Ino {
	b.t.Helper()
	a, err := b.lookup(path)
	check(b.t, err)
	return a.Ino
}

func TestListAndHydrate(t *testing.T) {
	b := newBed(t, map[string][]byte{"a": []byte("A"), "d/b": []byte("B"), "d/e/c": []byte("C")})
	if got := b.names(b.root); !slices.Equal(got, []string{"a", "d"}) {
		t.Fatalf("names %q", got)
	}
	var modes []uint32
	check(t, b.fs.ReadDirPlus(b.req(), b.root, 2, func(e fusefs.DirEntry, a fusefs.Attr) bool {
		if e.Type != a.Mode&unix.S_IFMT || e.Ino != a.Ino {
			t.Errorf("%+v %+v", e, a)
		}
		modes = append(modes, a.Mode&0o777)
		return true
	}))
	if !slices.Equal(modes, []uint32{0o755, 0o755}) {
		t.Fatalf("modes %o", modes)
	}
	if got := b.read(b.ino("d/e/c")); got != "C" {
		t.Fatalf("read %q", got)
	}
	// A name that only the bucket has is taken.
	_, err := b.fs.Mkdir(b.req(), b.ino("d"), "b", 0o755, 0)
	wantKind(t, err, vfolder.KindExists)
	wantKind(t, b.fs.Rmdir(b.req(), b.root, "d"), vfolder.KindNotEmpty)
	wantKind(t, b.fs.Unlink(b.req(), b.root, "nothing"), vfolder.KindNotFound)
}

func TestRmdirAsksTheBucket(t *testing.T) {
	b := newBed(t, map[string][]byte{"d/b": []byte("B")})
	wantKind(t, b.fs.Rmdir(b.req(), b.root, "d"), vfolder.KindNotEmpty)
}

func TestRemoteRead(t *testing.T) {
	big := random(9<<20 + 123)
	b := newBed(t, map[string][]byte{"big": big})
	b.bucket.set(func() { b.bucket.piece = 100_000 }) // not whole blocks
	ino := b.ino("big")
	buf := make([]byte, 3000)
	n, err := b.fs.Read(b.req(), ino, buf, 5<<20+77)
	check(t, err)
	if !bytes.Equal(buf[:n], big[5<<20+77:][:3000]) {
		t.Fatal("wrong bytes")
	}
	if got := b.bucket.fetched.Load(); got > 1<<20 {
		t.Fatalf("%d bytes were fetched for a small read", got)
	}
	if got := b.read(ino); got != string(big) {
		t.Fatal("wrong bytes")
	}
	eventually(t, "the index knows that it is complete", func() bool { return b.record(ino).Data == meta.DataComplete })
	if got := b.bucket.fetched.Load(); got != int64(len(big)) {
		t.Fatalf("%d bytes were fetched of %d", got, len(big))
	}
	b.restart(false)
	if b.read(ino) != string(big) || b.bucket.fetched.Load() != int64(len(big)) {
		t.Fatal("fetched again after a restart")
	}
}

func TestSequentialReadIsFetchedAhead(t *testing.T) {
	big := random(24 << 20)
	b := newBed(t, map[string][]byte{"big": big})
	ino := b.ino("big")
	buf := make([]byte, 128<<10)
	for off := int64(0); off < 8<<20; off += int64(len(buf)) {
		n, err := b.fs.Read(b.req(), ino, buf, off)
		check(t, err)
		if !bytes.Equal(buf[:n], big[off:off+int64(n)]) {
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	eventually(t, "bytes beyond the reader come", func() bool { return b.bucket.fetched.Load() >= 11<<20 })
}

func TestConcurrentReadsShareFetches(t *testing.T) {
	big := random(2 << 20)
	b := newBed(t, map[string][]byte{"big": big})
	ino := b.ino("big")
	var wg sync.WaitGroup
	for range 8 {
		r := b.req()
		wg.Go(func() {
			buf := make([]byte, len(big))
			if n, err := b.fs.Read(r, ino, buf, 0); err != nil || !bytes.Equal(buf[:n], big) {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
	}
	wg.Wait()
	if got := b.bucket.fetched.Load(); got != int64(len(big)) {
		t.Fatalf("%d bytes were fetched", got)
	}
}

func TestReadIsInterrupted(t *testing.T) {
	b := newBed(t, map[string][]byte{"a": random(100_000)})
	ino := b.ino("a")
	gate := make(chan struct{})
	b.bucket.set(func() { b.bucket.gate = gate })
	r := b.req()
	ctx, cancel := context.WithCancel(t.Context())
	r.Context = ctx
	blocked := make(chan struct{})
	r.Block = func() { close(blocked) }
	done := make(chan error)
	go func() {
		_, err := b.fs.Read(r, ino, make([]byte, 10), 0)
		done <- err
	}()
	<-blocked
	cancel()
	wantKind(t, <-done, vfolder.KindInterrupted)
	close(gate)
	if got := b.read(ino); len(got) != 100_000 {
		t.Fatalf("%d bytes", len(got))
	}
}

func TestFetchFails(t *testing.T) {
	b := newBed(t, map[string][]byte{"a": random(100_000)})
	ino := b.ino("a")
	b.bucket.set(func() { b.bucket.broken = vfolder.KindUnreachable })
	_, err := b.fs.Read(b.req(), ino, make([]byte, 10), 0)
	wantKind(t, err, vfolder.KindUnreachable)
	_, err = b.fs.Write(b.req(), ino, []byte("x"), 10, false)
	wantKind(t, err, vfolder.KindUnreachable)
	// Whole blocks need nothing of the bucket.
	_, err = b.fs.Write(b.req(), ino, random(8192), 4096, false)
	check(t, err)
	b.bucket.set(func() { b.bucket.broken = vfolder.KindStale })
	_, err = b.fs.Read(b.req(), ino, make([]byte, 10), 0)
	wantKind(t, err, vfolder.KindStale)
}

// TestPartialChanges changes a remote file in every way, with kills between.
func TestPartialChanges(t *testing.T) {
	base := random(100_000)
	for name, step := range map[string]func(*bed, vfolder.Ino, []byte) []byte{
		"write inside a block": func(b *bed, ino vfolder.Ino, m []byte) []byte {
			b.write(ino, 5000, "inside")
			copy(m[5000:], "inside")
			return m
		},
		"write whole blocks": func(b *bed, ino vfolder.Ino, m []byte) []byte {
			data := random(3 * 4096)
			b.write(ino, 8192, string(data))
			copy(m[8192:], data)
			return m
		},
		"append": func(b *bed, ino vfolder.Ino, m []byte) []byte {
			b.write(ino, int64(len(m)), "more")
			return append(m, "more"...)
		},
		"write behind the end": func(b *bed, ino vfolder.Ino, m []byte) []byte {
			b.write(ino, 200_000, "far")
			return append(append(m, make([]byte, 200_000-len(m))...), "far"...)
		},
		"shrink and grow": func(b *bed, ino vfolder.Ino, m []byte) []byte {
			b.truncate(ino, 50_001)
			b.restart(false)
			b.truncate(ino, 90_000)
			return append(m[:50_001], make([]byte, 90_000-50_001)...)
		},
		"empty and grow": func(b *bed, ino vfolder.Ino, m []byte) []byte {
			b.truncate(ino, 0)
			b.restart(false)
			b.truncate(ino, 9000)
			return make([]byte, 9000)
		},
		"open with O_TRUNC": func(b *bed, ino vfolder.Ino, _ []byte) []byte {
			check(b.t, b.fs.Open(b.req(), ino, unix.O_WRONLY|unix.O_TRUNC))
			if got := b.bucket.fetched.Load(); got != 0 {
				b.t.Errorf("%d bytes were fetched", got)
			}
			return nil
		},
		"punch": func(b *bed, ino vfolder.Ino, m []byte) []byte {
			check(b.t, b.fs.Fallocate(b.req(), ino, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5000, 30_000))
			clear(m[5000:35_000])
			return m
		},
		"zero": func(b *bed, ino vfolder.Ino, m []byte) []byte {
			check(b.t, b.fs.Fallocate(b.req(), ino, unix.FALLOC_FL_ZERO_RANGE, 95_000, 10_000))
			clear(m[95_000:])
			return append(m, make([]byte, 5000)...)
		},
		"allocate": func(b *bed, ino vfolder.Ino, m []byte) []byte {
			check(b.t, b.fs.Fallocate(b.req(), ino, 0, 0, 110_000))
			return append(m, make([]byte, 10_000)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, map[string][]byte{"a": base})
			ino := b.ino("a")
			want := step(b, ino, bytes.Clone(base))
			b.restart(false)
			if a := b.stat(ino); a.Size != int64(len(want)) {
				t.Fatalf("size %d, want %d", a.Size, len(want))
			}
			if got := b.read(ino); got != string(want) {
				t.Fatalf("wrong bytes at %d", diff([]byte(got), want))
			}
			if n := b.record(ino); !n.Dirty {
				t.Fatal("not dirty")
			}
		})
	}
}

func (b *bed) truncate(ino vfolder.Ino, size int64) {
	b.t.Helper()
	_, err := b.fs.SetAttr(b.req(), ino, fusefs.SetAttr{Size: &size})
	check(b.t, err)
}

func diff(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// TestForeignVersion replaces the bytes of a file that is open.
func TestForeignVersion(t *testing.T) {
	b := newBed(t, map[string][]byte{"a": []byte("first"), "d": []byte("x")})
	ino := b.ino("a")
	if got := b.read(ino); got != "first" {
		t.Fatalf("read %q", got)
	}
	b.bucket.set(func() { b.bucket.objects["a"] = []byte("the second version") })
	check(t, b.db.Update(func(tx *meta.Tx) error {
		n, err := tx.Inode(ino)
		if err != nil {
			return err
		}
		n.Size, n.Data, n.Known = 18, meta.DataRemote, nil
		n.Gen++
		return tx.PutInode(n)
	}))
	b.fs.Changed(ino)
	if got := b.read(ino); got != "the second version" {
		t.Fatalf("read %q", got)
	}
	b.write(ino, 0, "THE")
	if got := b.read(ino); got != "THE second version" {
		t.Fatalf("read %q", got)
	}
}

func TestReconcilerFreesInode(t *testing.T) {
	b := newBed(t, nil)
	ino := b.file("a", "bytes")
	var known sync.Map
	known.Store(ino, true)
	b.fs.SetProbe(func(i vfolder.Ino) bool { _, ok := known.Load(i); return ok })
	var gone *meta.Inode
	check(t, b.db.Update(func(tx *meta.Tx) (err error) {
		gone, err = tx.Unlink(b.root, "a")
		return err
	}))
	b.fs.Freed(gone)
	b.fs.EntryChanged(b.root, "a")
	if got := b.read(ino); got != "bytes" {
		t.Fatalf("an open file reads %q", got)
	}
	known.Delete(ino)
	b.fs.Forget(ino)
	eventually(t, "it is freed", func() bool {
		_, err := b.fs.GetAttr(b.req(), ino)
		return errors.Is(err, vfolder.KindStale) && b.dataFiles() == 0
	})
}

func TestReadDirContinues(t *testing.T) {
	b := newBed(t, nil)
	var want []string
	for i := range 600 {
		name := strings.Repeat("n", 1+i%3) + string(rune('a'+i%26)) + string(rune('0'+i/26))
		b.file(name, "")
		want = append(want, name)
	}
	slices.Sort(want)
	var got []string
	after, last := uint64(2), uint64(2)
	for {
		more := false
		check(t, b.fs.ReadDir(b.req(), b.root, after, func(e fusefs.DirEntry) bool {
			if e.Cookie <= last {
				t.Fatalf("cookie %d after %d", e.Cookie, last)
			}
			last, more = e.Cookie, true
			got = append(got, e.Name)
			return len(got)%7 != 0
		}))
		if !more {
			break
		}
		after = last
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Fatalf("%d names, want %d", len(got), len(want))
	}
}

func TestEvict(t *testing.T) {
	b := newBed(t, nil)
	ino := b.file("a", strings.Repeat("x", 10_000))
	_, err := b.fs.Evict(ino)
	wantKind(t, err, vfolder.KindBusy)
	b.publish(ino)
	freed, err := b.fs.Evict(ino)
	check(t, err)
	if freed < 10_000 || b.dataFiles() != 0 {
		t.Fatalf("%d bytes were freed, %d files are left", freed, b.dataFiles())
	}
	_, err = b.fs.Evict(ino)
	wantKind(t, err, vfolder.KindBusy)
	if got := b.read(ino); got != strings.Repeat("x", 10_000) {
		t.Fatalf("read %d bytes", len(got))
	}
}

// TestCacheIsCleared removes the local bytes behind the program's back.
func TestCacheIsCleared(t *testing.T) {
	b := newBed(t, nil)
	ino := b.file("a", "published")
	b.publish(ino)
	changed := b.file("b", "published too")
	b.publish(changed)
	b.write(changed, 0, "LOST")
	b.close(true)
	check(t, os.RemoveAll(filepath.Join(b.dir, "content")))
	b.open()
	if got := b.read(ino); got != "published" {
		t.Fatalf("read %q", got)
	}
	if got := b.read(changed); got != "published too" {
		t.Fatalf("read %q", got)
	}
}
