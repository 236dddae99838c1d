package vfolder

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func errnoName(e syscall.Errno) string { return unix.ErrnoName(e) }

func TestKindOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Kind
	}{
		{Errorf(KindBusy, "op", "p", "why"), KindBusy},
		{fmt.Errorf("outer: %w", Errorf(KindLocked, "op", "p", "why")), KindLocked},
		{&fs.PathError{Op: "open", Path: "x", Err: syscall.ENOSPC}, KindNoSpace},
		{syscall.ENOTDIR, KindNotDir},
		{KindStale, KindStale},
		{errors.New("anything"), KindIO},
		{syscall.EBADF, KindIO},
	} {
		if got := KindOf(c.err); got != c.want {
			t.Errorf("KindOf(%v) = %v, want %v", c.err, got, c.want)
		}
	}
	if !errors.Is(fmt.Errorf("outer: %w", Errorf(KindBusy, "op", "", "why")), KindBusy) {
		t.Error("errors.Is does not see the kind")
	}
}

func TestCheckFolderName(t *testing.T) {
	for _, good := range []string{"a", "user1-ml-test", ".local", "A_b.c-9", strings.Repeat("x", MaxFolderName)} {
		if err := CheckFolderName(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", ".", "..", ".vfolder", "-x", "a/b", "a b", "é", "a\x00", "a:b", "a~b", strings.Repeat("x", MaxFolderName+1)} {
		if err := CheckFolderName(bad); !errors.Is(err, KindInvalid) {
			t.Errorf("%q was allowed: %v", bad, err)
		}
	}
}
