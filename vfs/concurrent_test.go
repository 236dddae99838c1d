package vfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
)

// TestConcurrentChanges writes to one remote file from several sides while it
// is read, frozen, flushed and evicted, and names come and go.
func TestConcurrentChanges(t *testing.T) {
	const writers, rounds, stripe = 4, 60, 64 << 10
	base := random(writers * stripe)
	b := newBed(t, map[string][]byte{"a": base})
	b.close(true)
	b.maxNodes = 8
	b.open()
	ino := b.ino("a")
	var unique atomic.Uint64
	unique.Store(1 << 20)
	req := func() *fusefs.Request {
		return &fusefs.Request{Context: t.Context(), Unique: unique.Add(2), UID: 1000, GID: 1000}
	}
	var work, others sync.WaitGroup
	for w := range writers {
		work.Go(func() {
			own := bytes.Clone(base[w*stripe:][:stripe])
			for i := range rounds {
				at := (i * 997) % (stripe - 500)
				piece := bytes.Repeat([]byte{byte(i)}, 500)
				copy(own[at:], piece)
				if _, err := b.fs.Write(req(), ino, piece, int64(w*stripe+at), true); err != nil {
					t.Error(err)
					return
				}
				got := make([]byte, stripe)
				if n, err := b.fs.Read(req(), ino, got, int64(w*stripe)); err != nil || !bytes.Equal(got[:n], own) {
					t.Errorf("writer %d, round %d: %v, differs at %d", w, i, err, diff(got[:n], own))
					return
				}
				name := fmt.Sprint("n", w, "-", i)
				a, err := b.fs.Create(req(), b.root, name, 0o600, 0, unix.O_RDWR)
				if err == nil {
					_, err = b.fs.Write(req(), a.Ino, []byte(name), 0, false)
				}
				if err == nil {
					err = b.fs.Rename(req(), b.root, name, b.root, fmt.Sprint("kept", w), 0)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	loop := func(do func() error) {
		others.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := do(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	loop(func() error {
		fr, err := b.fs.Freeze(t.Context(), ino)
		if err == nil {
			fr.Close()
		}
		return err
	})
	loop(func() error { return b.fs.Fsync(req(), ino, false) })
	loop(func() error {
		_, err := b.fs.Evict(ino)
		if errors.Is(err, vfolder.KindBusy) {
			return nil
		}
		return err
	})
	loop(func() error {
		mode := uint32(0o644)
		_, err := b.fs.SetAttr(req(), ino, fusefs.SetAttr{Mode: &mode})
		b.fs.Changed(ino)
		return err
	})
	loop(func() error {
		return b.fs.ReadDirPlus(req(), b.root, 2, func(fusefs.DirEntry, fusefs.Attr) bool { return true })
	})
	work.Wait()
	close(done)
	others.Wait()
	a, err := b.lookup("kept0")
	check(t, err)
	if got := b.read(a.Ino); got != fmt.Sprint("n0-", rounds-1) {
		t.Fatalf("read %q", got)
	}
	if n := b.record(ino); n.Data == meta.DataRemote || !n.Dirty {
		t.Fatalf("%+v", n)
	}
}
