package content

import (
	"errors"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// Modes of fallocate(2).
const (
	fallocKeep  = unix.FALLOC_FL_KEEP_SIZE
	fallocPunch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	fallocZero  = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
)

// fail wraps an error of the operating system; its errno decides the Kind.
func fail(op string, path string, err error) error {
	if err == nil {
		return nil
	}
	var e *vfolder.Error
	if errors.As(err, &e) {
		return err
	}
	return &vfolder.Error{Op: "content " + op, Kind: vfolder.KindOf(err), Path: path, Err: err}
}

// again repeats a system call that a signal interrupted.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// preadFull reads until p is full or the file ends (io.EOF).
func preadFull(fd int, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		m, err := unix.Pread(fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, err
		case m == 0:
			return n, io.EOF
		default:
			n += m
		}
	}
	return n, nil
}

// pwriteFull writes all of p, or says how much it wrote and why it stopped.
func pwriteFull(fd int, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		m, err := unix.Pwrite(fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, err
		case m == 0:
			return n, unix.EIO
		default:
			n += m
		}
	}
	return n, nil
}

func fallocate(fd int, mode uint32, off, n int64) error {
	if n <= 0 {
		return nil
	}
	return again(func() error { return unix.Fallocate(fd, mode, off, n) })
}

func ftruncate(fd int, size int64) error {
	return again(func() error { return unix.Ftruncate(fd, size) })
}

// setMtime is futimens(3), utimensat(2) without a path: it sets only the
// modification time, in Unix nanoseconds.
func setMtime(fd int, mtime int64) error {
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(mtime)}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func fstat(fd int) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := again(func() error { return unix.Fstat(fd, &st) })
	return st, err
}

// unsupportedXattr says that this file system or this file has no room for
// extended attributes, which vfolder can do without.
func unsupportedXattr(err error) bool {
	return err == unix.ENOTSUP || err == unix.EPERM || err == unix.E2BIG || err == unix.ERANGE
}
