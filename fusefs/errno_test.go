package fusefs

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/vfolder/vfolder"
)

func TestErrno(t *testing.T) {
	for _, kind := range vfolder.Kinds() {
		want := kind.Info().Errno
		if want == 0 {
			t.Errorf("%v has no errno", kind)
		}
		full := &vfolder.Error{Op: "test", Kind: kind, Err: syscall.ENOTTY}
		for _, err := range []error{kind, full, fmt.Errorf("wrapped: %w", full)} {
			if got := errnoOf(err); got != want {
				t.Errorf("%v (%T): errno %v, want %v", kind, err, got, want)
			}
		}
	}
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{syscall.ENOSYS, syscall.ENOSYS},
		{fmt.Errorf("wrapped: %w", syscall.ENOTTY), syscall.ENOTTY},
		{syscall.Errno(0), syscall.EIO},
		{context.Canceled, syscall.EINTR},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{errors.New("unknown"), syscall.EIO},
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("%v: errno %v, want %v", c.err, got, c.want)
		}
	}
}
