package content

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// Long runs are set aside in pieces, or cloned, and without their holes.
func TestLargeChangesUnderView(t *testing.T) {
	const size, unit = 8 << 20, 1 << 20
	for name, change := range map[string]func(*File) error{
		"punch":    func(f *File) error { return f.Punch(100, size-200) },
		"zero":     func(f *File) error { return f.ZeroRange(unit/2, 4*unit, true) },
		"cut tail": func(f *File) error { return f.Truncate(size/2 + 77) },
		"cut most": func(f *File) error { return f.Truncate(3*unit + 77) },
		"cut all":  func(f *File) error { return f.Truncate(0) },
		"write": func(f *File) error {
			_, err := f.WriteAt(randomBytes(9, 2*unit), unit+5)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			f := newFile(t, s, 1, nil)
			want := make([]byte, size)
			for _, off := range []int64{0, 3 * unit, 7*unit + 10} {
				p := randomBytes(uint64(off), unit/2)
				copy(want[off:], p)
				_, err := f.WriteAt(p, off)
				must(t, err)
			}
			must(t, f.Truncate(size))
			v, err := f.Freeze()
			must(t, err)
			must(t, change(f))
			if !bytes.Equal(readAll(t, v, v.Size()), want) {
				t.Error("the view changed")
			}
			if v.side >= 0 {
				st, err := fstat(v.side)
				must(t, err)
				if st.Blocks*512 > 2*unit {
					t.Errorf("%d bytes aside of 1.5 MiB of data", st.Blocks*512)
				}
			}
			if keep := f.Size(); name[:3] == "cut" && !bytes.Equal(readAll(t, f, keep), want[:keep]) {
				t.Error("what the truncation kept has changed")
			}
			must(t, v.Close())
		})
	}
}

// A block that was overwritten before anybody fetched it is fetched for the
// View alone.
func TestViewOfUnfetchedBlock(t *testing.T) {
	s := newStore(t)
	remote := randomBytes(1, 3*blockBytes-7)
	for name, change := range map[string]func(*File) error{
		"write":    func(f *File) error { _, err := f.WriteAt(make([]byte, blockBytes), blockBytes); return err },
		"truncate": func(f *File) error { return f.Truncate(blockBytes + 5) },
		"empty":    func(f *File) error { return f.Truncate(0) },
	} {
		f := s.File(ID{Ino: vfolder.Ino(name[0])})
		must(t, f.CreatePartial(int64(len(remote))))
		v, err := f.Freeze()
		must(t, err)
		must(t, change(f))
		_, err = v.ReadAt(make([]byte, 1), blockBytes)
		wantKind(t, err, vfolder.KindInvalid)
		if got := v.Missing(); len(got) != 1 || got[0] != (Range{0, int64(len(remote))}) || v.Complete() {
			t.Errorf("%s: missing %v", name, got)
		}
		must(t, f.Fill(0, remote))
		if !v.Complete() || !bytes.Equal(readAll(t, v, v.Size()), remote) {
			t.Errorf("%s: the view is not the object", name)
		}
		must(t, v.Close())
		must(t, f.Close())
	}
}

// What a write into an unknown block left when the disk was full must not look
// like a known block after a restart.
func TestPartBlockIsTakenBack(t *testing.T) {
	s := newStore(t)
	f := s.File(ID{Ino: 1})
	defer func() { must(t, f.Close()) }()
	must(t, f.CreatePartial(4*blockBytes))
	fd, err := f.lock()
	must(t, err)
	defer f.mu.Unlock()
	_, err = pwriteFull(fd, make([]byte, blockBytes+500), blockBytes)
	must(t, err)
	if got := f.undoPartBlock(fd, blockBytes, 2*blockBytes+500); got != 2*blockBytes {
		t.Errorf("whole blocks end at %d", got)
	}
	if hole, err := unix.Seek(fd, blockBytes, unix.SEEK_HOLE); err != nil || hole != 2*blockBytes {
		t.Errorf("data up to %d, %v", hole, err)
	}
}

func TestAllocate(t *testing.T) {
	s := newStore(t)
	f := newFile(t, s, 1, []byte("x"))
	must(t, f.Allocate(0, 1<<20, true))
	if f.Size() != 1 || f.Blocks() < 2048 {
		t.Errorf("size %d, %d blocks", f.Size(), f.Blocks())
	}
	must(t, f.Allocate(0, 1<<20, false))
	if f.Size() != 1<<20 {
		t.Errorf("size %d", f.Size())
	}
	if b, _ := s.Usage(); b < 1<<20 {
		t.Errorf("usage %d", b)
	}
	g := s.File(ID{Ino: 2})
	defer func() { must(t, g.Close()) }()
	must(t, g.CreatePartial(4*blockBytes))
	must(t, g.Allocate(blockBytes, 7*blockBytes, false))
	if got := g.Missing(0, 8*blockBytes); len(got) != 1 || got[0] != (Range{0, 4 * blockBytes}) {
		t.Errorf("missing %v", got)
	}
	if b := g.Blocks(); b < 32 || b > 48 {
		t.Errorf("%d blocks for 4 blocks of 4 KiB", b)
	}
}
