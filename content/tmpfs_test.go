package content

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// asRoot runs the calling test again as root of a user namespace, unless we are
// root already; it says whether the caller is to go on.
func asRoot(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() == 0 {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("in a user namespace: %v\n%s", err, out)
	}
	return false
}

// tinyFS mounts a tmpfs of that many KiB; see asRoot.
func tinyFS(t *testing.T, kib int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%dk,mode=0700", kib)); err != nil {
		t.Fatalf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return filepath.Join(dir, "store")
}

// hog takes all but that much of the free space.
func hog(t *testing.T, s *Store, leave int64) *File {
	t.Helper()
	f := s.File(ID{Ino: 0xffff})
	must(t, f.Create())
	var off int64
	for {
		avail, err := s.statfs()
		must(t, err)
		if avail <= leave {
			return f
		}
		if _, err := f.WriteAt(make([]byte, min(avail-leave, 64<<10)), off); err != nil {
			t.Fatal(err)
		}
		off += 64 << 10
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever the step at which space runs out, what was acknowledged is there,
// nothing is known that was not stored, and a restart sees the same.
func TestNoSpaceAtEveryStep(t *testing.T) {
	if !asRoot(t) {
		return
	}
	s := openStore(t, Options{Dir: tinyFS(t, 1024)})
	defer func() { must(t, s.Close()) }()
	const blocks = 12
	remote := randomBytes(1, blocks*blockBytes-100)
	for free := int64(0); free <= 3*blocks; free++ {
		id := ID{Ino: 7, Gen: uint32(free)}
		f := s.File(id)
		must(t, f.CreatePartial(int64(len(remote))))
		hogged := hog(t, s, free*blockBytes)
		want := bytes.Clone(remote)

		full := func(err error) bool {
			t.Helper()
			if err != nil && !errors.Is(err, vfolder.KindNoSpace) {
				t.Fatalf("with %d blocks free: %v", free, err)
			}
			return err != nil
		}
		failed := full(f.Fill(0, remote[:5*blockBytes]))
		write := func(off, n int64) {
			t.Helper()
			for _, r := range f.MissingForWrite(off, n) {
				if full(f.Fill(r.Off, remote[r.Off:r.End()])) {
					failed = true
					return
				}
			}
			p := randomBytes(uint64(off), n)
			done, err := f.WriteAt(p, off)
			failed = full(err) || failed
			if done < len(p) && err == nil {
				t.Fatal("short write without an error")
			}
			if end := off + int64(done); end > int64(len(want)) {
				want = append(want, make([]byte, end-int64(len(want)))...)
			}
			copy(want[off:], p[:done])
		}
		write(7*blockBytes, 3*blockBytes)
		write(100, 200)
		v, err := f.Freeze()
		must(t, err)
		frozen := bytes.Clone(want)
		write(2*blockBytes+1, 4*blockBytes)
		write(int64(len(want))-10, 3*blockBytes)
		failed = full(f.ZeroRange(blocks*blockBytes*2, 2*blockBytes, true)) || failed
		failed = full(f.Allocate(blocks*blockBytes*2, 4*blockBytes, true)) || failed
		// All of it takes 5+3+4+2+4 blocks, those set aside and page tables.
		if failed && free > 34 || !failed && free < 14 {
			t.Errorf("with %d blocks free: failed %v", free, failed)
		}

		must(t, hogged.Truncate(0))
		checkAgainst(t, "file", f, f.Missing, f, want, remote)
		checkAgainst(t, "view", v, nil, f, frozen, remote)
		must(t, v.Close())
		// What a restart finds must agree even without the persisted ranges.
		known := f.Known()
		f.Close()
		f = s.File(id)
		must(t, f.Recover(true, nil))
		if again := f.Known(); fmt.Sprint(again) != fmt.Sprint(known) {
			t.Fatalf("with %d blocks free: recovered %v, known %v", free, again, known)
		}
		checkAgainst(t, "recovered", f, f.Missing, f, want, remote)
		must(t, s.Remove(id))
		must(t, f.Close())
		must(t, s.Remove(hogged.ID()))
		must(t, hogged.Close())
	}
}

func checkAgainst(t *testing.T, what string, r interface {
	ReadAt([]byte, int64) (int, error)
	Size() int64
}, missing func(off, n int64) []Range, f *File, want, remote []byte,
) {
	t.Helper()
	if r.Size() != int64(len(want)) {
		t.Fatalf("%s: %d bytes, want %d", what, r.Size(), len(want))
	}
	var list []Range
	if v, ok := r.(*View); ok {
		list = v.Missing()
	} else {
		list = missing(0, int64(len(want)))
	}
	for _, m := range list {
		must(t, f.Fill(m.Off, remote[m.Off:m.End()]))
	}
	got := make([]byte, len(want))
	if _, err := r.ReadAt(got, 0); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("%s: differs at %d", what, i)
			}
		}
	}
}

// The reserve is kept free, and overwriting in place does not need it.
func TestReserve(t *testing.T) {
	if !asRoot(t) {
		return
	}
	const reserve = 256 << 10
	s := openStore(t, Options{Dir: tinyFS(t, 1024), ReserveBytes: reserve})
	defer func() { must(t, s.Close()) }()
	f := s.File(ID{Ino: 2})
	defer func() { must(t, f.Close()) }()
	must(t, f.Create())
	var off int64
	for {
		n, err := f.WriteAt(randomBytes(1, 16<<10), off)
		off += int64(n)
		if err != nil {
			if !errors.Is(err, vfolder.KindNoSpace) {
				t.Fatal(err)
			}
			break
		}
	}
	avail, err := s.statfs()
	must(t, err)
	if avail < reserve-(64<<10) || avail > reserve+(64<<10) {
		t.Errorf("%d bytes free, want about %d", avail, reserve)
	}
	if left, err := s.Free(); err != nil || left > 64<<10 {
		t.Errorf("free %d, %v", left, err)
	}
	_, err = f.WriteAt([]byte("in place"), 100)
	must(t, err)
	other := s.File(ID{Ino: 3})
	defer func() { must(t, other.Close()) }()
	if err := other.Create(); err != nil && !errors.Is(err, vfolder.KindNoSpace) {
		t.Error(err)
	}
	must(t, f.Truncate(0))
	_, err = f.WriteAt(make([]byte, 128<<10), 0)
	must(t, err)
}
