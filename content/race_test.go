package content

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vfolder/vfolder"
)

// Every block always holds one value throughout, and a writer raises all of
// them together: a View in which two blocks differ, or a torn block, is not one
// point in time.
func TestViewIsOnePointInTime(t *testing.T) {
	s := newStore(t)
	s.fds.max = 1 // descriptors come and go meanwhile
	const blocks = 16
	fillWith := func(b byte) []byte { return bytes.Repeat([]byte{b}, blocks*int(blockBytes)) }
	f := newFile(t, s, 1, fillWith(0))
	other := newFile(t, s, 2, []byte("other"))
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := byte(1); !stop.Load(); i++ {
			if _, err := f.WriteAt(fillWith(i), 0); err != nil {
				t.Error(err)
				return
			}
			if i%8 == 0 { // shrinking and emptying, then growing in one write
				if err := f.Truncate(int64(i%3) * 7777); err != nil {
					t.Error(err)
				}
			}
		}
	})
	wg.Go(func() {
		for !stop.Load() {
			if _, err := other.ReadAt(make([]byte, 5), 0); err != nil {
				t.Error(err)
			}
			if err := f.Sync(); err != nil {
				t.Error(err)
			}
		}
	})
	for range 60 {
		v, err := f.Freeze()
		must(t, err)
		var readers sync.WaitGroup
		first := make([]byte, v.Size())
		if len(first) > 0 {
			_, err = v.ReadAt(first, 0)
			must(t, err)
		}
		for range 2 {
			readers.Go(func() {
				for range 4 {
					p := make([]byte, v.Size())
					if _, err := v.ReadAt(p, 0); err != nil && len(p) > 0 {
						t.Error(err)
					}
					if !bytes.Equal(p, first) || len(p) > 0 && bytes.Count(p, p[:1]) != len(p) {
						t.Error("the view changed or is torn")
					}
				}
			})
		}
		readers.Wait()
		must(t, v.Close())
	}
	stop.Store(true)
	wg.Wait()
}

// Readers fetch, a writer overwrites, an uploader freezes and fills: nobody may
// see a byte that is neither the object's nor the writer's newest.
func TestPartialFileUnderConcurrency(t *testing.T) {
	s := newStore(t)
	s.fds.max = 2
	const blocks = 64
	remote := bytes.Repeat([]byte{1}, blocks*int(blockBytes))
	f := s.File(ID{Ino: 1})
	defer func() { must(t, f.Close()) }()
	must(t, f.CreatePartial(int64(len(remote))))
	fetch := func(list []Range) {
		for _, r := range list {
			if err := f.Fill(r.Off, remote[r.Off:r.End()]); err != nil {
				t.Error(err)
			}
		}
	}
	var wg sync.WaitGroup
	var written [blocks]atomic.Bool
	wg.Go(func() {
		for _, b := range rand.Perm(blocks) {
			off, n := int64(b)*blockBytes, blockBytes
			if b%3 == 0 {
				n = 100
				fetch(f.MissingForWrite(off, n))
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte{2}, int(n)), off); err != nil {
				t.Error(err)
			}
			written[b].Store(true)
		}
	})
	for range 2 {
		wg.Go(func() {
			p := make([]byte, blockBytes)
			for _, b := range rand.Perm(blocks) {
				off := int64(b) * blockBytes
				fetch(f.Missing(off, blockBytes))
				was := written[b].Load()
				if _, err := f.ReadAt(p, off); err != nil {
					t.Error(err)
				}
				if was && p[0] != 2 || p[0] != 1 && p[0] != 2 || b%3 != 0 && p[0] != p[4095] {
					t.Errorf("block %d starts with %d", b, p[0])
				}
			}
		})
	}
	wg.Go(func() {
		for range 5 {
			v, err := f.Freeze()
			if err != nil {
				t.Error(err)
				return
			}
			fetch(v.Missing())
			first, again := make([]byte, v.Size()), make([]byte, v.Size())
			for _, p := range [][]byte{first, again} {
				if _, err := v.ReadAt(p, 0); err != nil {
					t.Error(err)
				}
			}
			if !bytes.Equal(first, again) {
				t.Error("the view changed")
			}
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if !f.Complete() {
		t.Errorf("still missing %v", f.Missing(0, f.Size()))
	}
}

// Handles come and go, files are made and removed, and the descriptors are few.
func TestManyHandles(t *testing.T) {
	s := openStore(t, Options{Dir: filepath.Join(t.TempDir(), "store"), MaxOpen: 3})
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := range 150 {
				id := ID{Ino: vfolder.Ino(w*1000 + i%10), Gen: uint32(i / 10)}
				f := s.File(id)
				if err := f.Create(); err != nil {
					t.Error(err)
				}
				data := []byte(id.String())
				if _, err := f.WriteAt(data, 0); err != nil {
					t.Error(err)
				}
				g := s.File(id)
				if err := f.Close(); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := s.Remove(id); err != nil {
						t.Error(err)
					}
				}
				p := make([]byte, len(data))
				if _, err := g.ReadAt(p, 0); err != nil || !bytes.Equal(p, data) {
					t.Errorf("read %q, %v", p, err)
				}
				if err := g.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			if err := s.List(func(ID) bool { return true }); err != nil {
				t.Error(err)
			}
			s.Usage()
		}
	})
	wg.Wait()
	if _, files := s.Usage(); files != 6*75 {
		t.Errorf("%d files", files)
	}
	must(t, s.Close())
	wantKind(t, s.Remove(ID{Ino: 1001}), vfolder.KindStale)
	_, err := s.Free()
	wantKind(t, err, vfolder.KindStale)
}
