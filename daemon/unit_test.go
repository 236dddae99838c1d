package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/objstore"
	"github.com/vfolder/vfolder/vfs"
)

func TestLogRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log", LogName)
	l, err := openLog(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := l.pipe()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		if _, err := fmt.Fprintf(pipe, "line %02d of a child\n", i); err != nil {
			t.Fatal(err)
		}
	}
	pipe.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(path)
		if err == nil && strings.HasSuffix(string(text), "line 39 of a child\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the last line is missing: %q, %v", text, err)
		}
	}
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(names) != 1+keptLogs {
		t.Errorf("%v, %v", names, err)
	}
	for _, name := range names {
		info, err := name.Info()
		if err != nil || info.Size() > 100 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name.Name(), info, err)
		}
	}
}

func TestLateRemote(t *testing.T) {
	l := newLateRemote(20 * time.Millisecond)
	l.note(errors.New("no route"))
	err := l.Writable(t.Context(), 5)
	if vfolder.KindOf(err) != vfolder.KindUnreachable || !strings.Contains(err.Error(), "no route") {
		t.Errorf("nothing there: %v", err)
	}
	l.Settle(5) // is not lost and does not wait
	l = newLateRemote(time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.List(ctx, 5); vfolder.KindOf(err) != vfolder.KindInterrupted {
		t.Errorf("canceled: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Writable(t.Context(), 7) }()
	l.set(&locked{})
	if err := <-done; vfolder.KindOf(err) != vfolder.KindLocked {
		t.Errorf("after it came: %v", err)
	}
}

type locked struct{ vfs.Remote }

func (locked) Writable(context.Context, vfolder.Ino) error {
	return &vfolder.Error{Op: "lease", Kind: vfolder.KindLocked}
}

func TestLateStore(t *testing.T) {
	l := newLateStore(objstore.Capabilities{PutIfAbsent: true})
	if !l.Capabilities().PutIfAbsent {
		t.Error("capabilities are not those given")
	}
	l.note(errors.New("no route"))
	if _, err := l.Head(t.Context(), "k"); vfolder.KindOf(err) != vfolder.KindUnreachable {
		t.Errorf("head: %v", err)
	}
	for _, err := range l.List(t.Context(), "", "", false) {
		if vfolder.KindOf(err) != vfolder.KindUnreachable {
			t.Errorf("list: %v", err)
		}
	}
}

func TestHostID(t *testing.T) {
	dir := t.TempDir()
	first, err := hostID(dir)
	if err != nil || first == "" {
		t.Fatal(first, err)
	}
	if again, err := hostID(dir); err != nil || again != first {
		t.Errorf("%s then %s, %v", first, again, err)
	}
	if other, err := hostID(t.TempDir()); err != nil || other == first {
		t.Errorf("two state directories share %s, %v", other, err)
	}
}
