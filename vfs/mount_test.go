package vfs_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/fusefs/fusetest"
)

// mount serves the bed's tree and returns the folder's directory.
func (b *bed) mount() string {
	b.t.Helper()
	mnt, device, init := fusetest.Mount(b.t)
	server, err := fusefs.New(fusefs.Config{
		FD: int(device.Fd()), Init: init, Logger: slog.New(slog.NewTextHandler(b.t.Output(), nil)),
	}, b.fs)
	check(b.t, err)
	b.fs.SetInvalidator(server.Invalidator())
	b.fs.SetProbe(server.Probe)
	result := make(chan error, 1)
	go func() { result <- server.Serve() }()
	fusetest.PrimePoll(b.t, filepath.Join(mnt, "data"))
	b.t.Cleanup(func() {
		_ = unix.Unmount(mnt, unix.MNT_DETACH)
		if err := <-result; err != nil {
			b.t.Errorf("serve: %v", err)
		}
	})
	return filepath.Join(mnt, "data")
}

// posixLeftOut are the conformance cases that ask for something else than a
// local disk does, and why. Package fusefs checks that they still fail.
var posixLeftOut = map[string]string{
	"FcntlFlockLocksFile": "locks are the kernel's, as on a local disk: two of one process do not conflict, the case wants them to",
}

func TestPosix(t *testing.T) {
	for name, test := range posixtest.All {
		if _, ok := posixLeftOut[name]; ok {
			continue
		}
		t.Run(name, func(t *testing.T) {
			b := newBed(t, nil)
			test(t, b.mount())
		})
	}
}

func TestMountedFile(t *testing.T) {
	b := newBed(t, map[string][]byte{"remote": random(3 << 20)})
	dir := b.mount()
	got, err := os.ReadFile(filepath.Join(dir, "remote"))
	check(t, err)
	if string(got) != string(random(3<<20)) {
		t.Fatal("wrong bytes")
	}
	path := filepath.Join(dir, "sync")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_SYNC, 0o600)
	check(t, err)
	_, err = f.WriteString("synchronous")
	check(t, err)
	a, err := b.lookup("sync")
	check(t, err)
	if n := b.record(a.Ino); n.Boot != 0 || n.Size != 11 {
		t.Fatalf("O_SYNC wrote without a flush: %+v", n)
	}
	check(t, f.Close())
	check(t, os.Remove(path))
	eventually(t, "the removed file is freed", func() bool { return len(b.fs.Orphans()) == 0 })
}

// TestChangesFromElsewhereShow changes the tree beside the kernel.
func TestChangesFromElsewhereShow(t *testing.T) {
	b := newBed(t, nil)
	ino := b.file("a", "one")
	dir := b.mount()
	got, err := os.ReadFile(filepath.Join(dir, "a"))
	check(t, err)
	if string(got) != "one" {
		t.Fatalf("read %q", got)
	}
	own := b.req()
	own.Unique = 0
	_, err = b.fs.Write(own, ino, []byte("two and more"), 0, false)
	check(t, err)
	eventually(t, "the new bytes show", func() bool {
		got, err := os.ReadFile(filepath.Join(dir, "a"))
		return err == nil && string(got) == "two and more"
	})
	check(t, b.fs.Rename(own, b.root, "a", b.root, "b", 0))
	eventually(t, "the new name shows", func() bool {
		_, err1 := os.Stat(filepath.Join(dir, "a"))
		_, err2 := os.Stat(filepath.Join(dir, "b"))
		return os.IsNotExist(err1) && err2 == nil
	})
	check(t, b.fs.Unlink(own, b.root, "b"))
	eventually(t, "it is gone and freed", func() bool {
		_, err := os.Stat(filepath.Join(dir, "b"))
		return os.IsNotExist(err) && len(b.fs.Orphans()) == 0
	})
}
