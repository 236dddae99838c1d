package fusetest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder/fusefs"
)

// Mount mounts a new device for a test, as root, and answers the kernel's
// handshake. The test's end unmounts and closes it.
func Mount(t testing.TB) (mountpoint string, device *os.File, handshake []byte) {
	t.Helper()
	mountpoint = filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(mountpoint, 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal("open /dev/fuse: ", err)
	}
	device = os.NewFile(uintptr(fd), "/dev/fuse")
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, fusefs.MaxWrite)
	if err := unix.Mount("fusetest", mountpoint, "fuse.fusetest", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatal("mount: ", err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(mountpoint, unix.MNT_DETACH)
		_ = device.Close()
	})
	handshake, err = fusefs.Handshake(fd)
	if err != nil {
		t.Fatal(err)
	}
	return mountpoint, device, handshake
}

// PrimePoll makes the kernel learn that the mount's files need no poll(2). The
// Go runtime polls what it opens, in a system call that it believes not to
// block: with the server in the same process, or restarted by it, that could
// stop both. It is called once the mount is served, before any os.Open there.
func PrimePoll(t testing.TB, mountpoint string) {
	t.Helper()
	path := filepath.Join(mountpoint, ".poll")
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal("prime poll: ", err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil {
		t.Fatal("prime poll: ", err)
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal("prime poll: ", err)
	}
	if err := unix.Unlink(path); err != nil {
		t.Fatal("prime poll: ", err)
	}
}
