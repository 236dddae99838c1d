package fusefs_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/fusefs/fusetest"
)

// Drain ends readers that wait for a request on an idle mount.
func TestDrainWhileIdle(t *testing.T) {
	tree, err := fusetest.OpenTree(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mnt, device, init := fusetest.Mount(t)
	server, err := fusefs.New(fusefs.Config{FD: int(device.Fd()), Init: init}, tree)
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- server.Serve() }()
	fusetest.PrimePoll(t, mnt)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := server.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, fusefs.ErrDrained) {
		t.Errorf("serve: %v", err)
	}
	if err := tree.Close(); err != nil {
		t.Error(err)
	}
}
