package daemon

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/control"
)

// The supervisor keeps two files open for its children, and for its own program
// when it runs that anew: the control socket, so that clients wait over a
// restart instead of being refused, and the locks. Their numbers are high, out
// of the way of the files that a child is given by position.
const (
	envControl   = "VFOLDER_CONTROL_FD"
	envStateLock = "VFOLDER_STATE_LOCK_FD"
	envRunLock   = "VFOLDER_RUN_LOCK_FD"
	envLogDir    = "VFOLDER_LOG_DIR" // "" where the journal has the log
	firstKept    = 100
)

// keep makes a file survive exec under a number that env tells.
func keep(env string, fd int) (kept int, err error) {
	kept, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD, firstKept)
	if err != nil {
		return -1, &vfolder.Error{Op: "keep open", Path: env, Err: err}
	}
	return kept, os.Setenv(env, strconv.Itoa(kept))
}

// kept finds a file that keep kept, -1 for none.
func kept(env string) int {
	fd, err := strconv.Atoi(os.Getenv(env))
	if err != nil || fd < firstKept {
		return -1
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return -1
	}
	return fd
}

// dropKept closes what a child has no business with.
func dropKept(envs ...string) {
	for _, env := range envs {
		if fd := kept(env); fd >= 0 {
			_ = unix.Close(fd)
		}
		_ = os.Unsetenv(env)
	}
}

// keepControl makes the control socket and keeps it open, unless it is.
func keepControl(path string) error {
	if fd := kept(envControl); fd >= 0 && listensAt(fd, path) {
		return nil
	}
	l, err := control.Listen(path)
	if err != nil {
		return err
	}
	defer l.Close() // the kept copy goes on listening
	raw, err := l.SyscallConn()
	if err != nil {
		return &vfolder.Error{Op: "control socket", Path: path, Err: err}
	}
	var kerr error
	if err := raw.Control(func(fd uintptr) { _, kerr = keep(envControl, int(fd)) }); err != nil {
		return &vfolder.Error{Op: "control socket", Path: path, Err: err}
	}
	return kerr
}

// listensAt reports whether fd is a socket bound to path, and path still is
// that socket's name.
func listensAt(fd int, path string) bool {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	u, ok := name.(*unix.SockaddrUnix)
	if !ok || u.Name != path {
		return false
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode()&os.ModeSocket != 0
}

// controlListener is the kept control socket in a worker.
func controlListener() (net.Listener, error) {
	fd := kept(envControl)
	if fd < 0 {
		return nil, vfolder.Errorf(vfolder.KindInvalid, "control socket", envControl, "the supervisor gave none")
	}
	f := os.NewFile(uintptr(fd), "control socket")
	defer f.Close() // FileListener has a copy
	_ = os.Unsetenv(envControl)
	l, err := net.FileListener(f)
	if err != nil {
		return nil, &vfolder.Error{Op: "control socket", Kind: vfolder.KindInvalid, Err: err}
	}
	return l, nil
}

// keepLock takes a lock for as long as this process, its children or its
// successors by exec live. KindBusy names the process that has it.
func keepLock(env, path string) error {
	if kept(env) >= 0 {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return &vfolder.Error{Op: "lock", Kind: vfolder.KindOf(err), Path: path, Err: err}
	}
	defer f.Close() // the kept copy holds the lock
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return &vfolder.Error{Op: "lock", Kind: vfolder.KindOf(err), Path: path, Err: err}
		}
		text, _ := io.ReadAll(io.LimitReader(f, 32))
		return &vfolder.Error{
			Op: "start", Kind: vfolder.KindBusy, Path: filepath.Dir(path),
			Err: fmt.Errorf("vfolderd is already running, pid %s", strings.TrimSpace(string(text))), Fix: "vfolder daemon status",
		}
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return &vfolder.Error{Op: "lock", Kind: vfolder.KindOf(err), Path: path, Err: err}
	}
	_, err = keep(env, int(f.Fd()))
	return err
}
