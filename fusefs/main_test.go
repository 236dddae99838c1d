package fusefs_test

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"testing"

	"go.uber.org/goleak"

	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/fusefs/fusetest"
)

// envWorker makes the test binary a worker that serves the tree in the named
// directory on inherited files.
const (
	envWorker = "FUSEFS_TEST_WORKER"
	envResume = "FUSEFS_TEST_RESUME"
	envPoison = "FUSEFS_TEST_POISON" // die in each read of a file of this size
)

func TestMain(m *testing.M) {
	fusetest.RunClient()
	if dir := os.Getenv(envWorker); dir != "" {
		if err := worker(dir); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func worker(dir string) error {
	device, memory, handshake, ready := os.NewFile(3, "fuse"), os.NewFile(4, "memory"), os.NewFile(5, "init"), os.NewFile(6, "ready")
	inFlight, err := fusefs.OpenInFlight(memory)
	if err != nil {
		return err
	}
	saved := make([]byte, 4096)
	n, err := handshake.ReadAt(saved, 0)
	if n == 0 {
		return err
	}
	tree, err := fusetest.OpenTree(dir)
	if err != nil {
		return err
	}
	if os.Getenv(envPoison) != "" {
		tree.Hook = func(_ *fusefs.Request, op string) {
			if op == "read" {
				panic("poison")
			}
		}
	}
	resume, err := strconv.Atoi(os.Getenv(envResume))
	if err != nil {
		return err
	}
	server, err := fusefs.New(fusefs.Config{
		FD: int(device.Fd()), Init: saved[:n], InFlight: inFlight, Resume: fusefs.Resume(resume),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}, tree)
	if err != nil {
		return err
	}
	if _, err := ready.WriteString("ready"); err != nil {
		return err
	}
	return server.Serve()
}
