package fusefs

import (
	"context"
	"errors"
	"log/slog"
	"syscall"

	"github.com/vfolder/vfolder"
)

// errnoOf is the only place where an error becomes an errno.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var e *vfolder.Error
	var k vfolder.Kind
	if !errors.As(err, &e) && !errors.As(err, &k) {
		var no syscall.Errno
		switch {
		case errors.As(err, &no) && no != 0:
			return no
		case errors.Is(err, context.Canceled):
			return syscall.EINTR
		case errors.Is(err, context.DeadlineExceeded):
			return syscall.ETIMEDOUT
		}
	}
	return vfolder.KindOf(err).Info().Errno
}

// report logs what an application sees only as EIO: without it the cause
// would be lost here.
func (s *Server) report(t *task, errno syscall.Errno, err error) {
	if errno != syscall.EIO {
		return
	}
	s.log.LogAttrs(context.Background(), slog.LevelError, "operation failed",
		slog.String("op", opName(t.op)), slog.Uint64("ino", t.node), slog.Any("err", err))
}
