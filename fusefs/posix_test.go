package fusefs_test

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/fusefs/fusetest"
)

// served is a mount served by this process.
type served struct {
	mnt    string
	tree   *fusetest.Tree
	server *fusefs.Server
	result chan error
}

// serve mounts a tree for a test. The test's end unmounts it and checks that
// the server noticed.
func serve(t *testing.T, owners fusefs.OwnerMap) *served {
	t.Helper()
	tree, err := fusetest.OpenTree(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mnt, device, init := fusetest.Mount(t)
	memory, err := fusefs.CreateInFlight()
	if err != nil {
		t.Fatal(err)
	}
	inFlight, err := fusefs.OpenInFlight(memory)
	if err != nil {
		t.Fatal(err)
	}
	server, err := fusefs.New(fusefs.Config{
		FD: int(device.Fd()), Init: init, Owners: owners, InFlight: inFlight,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}, tree)
	if err != nil {
		t.Fatal(err)
	}
	s := &served{mnt: mnt, tree: tree, server: server, result: make(chan error, 1)}
	go func() { s.result <- server.Serve() }()
	fusetest.PrimePoll(t, mnt)
	t.Cleanup(func() {
		_ = unix.Unmount(mnt, unix.MNT_DETACH)
		if err := <-s.result; err != nil {
			t.Errorf("serve: %v", err)
		}
		for _, err := range []error{tree.Close(), inFlight.Close(), memory.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

// posixFailures are the conformance cases that are known to fail, and why. One
// that passes must be taken out.
var posixFailures = map[string]string{
	"FcntlFlockLocksFile": "locks are the kernel's, as on a local disk: two of one process do not conflict, the case wants them to",
}

// TestPosix runs go-fuse's conformance cases.
func TestPosix(t *testing.T) {
	for name, test := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			if why, ok := posixFailures[name]; ok {
				if posixPasses(t, name) {
					t.Errorf("passes, but is expected to fail: %s", why)
				}
				return
			}
			test(t, serve(t, fusefs.OwnerMap{}).mnt)
		})
	}
}

// posixPasses runs one case in a process of its own.
func posixPasses(t *testing.T, name string) bool {
	c := exec.Command("/proc/self/exe", "-test.run", "^TestPosixAlone$")
	c.Env = append(os.Environ(), envPosix+"="+name)
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	t.Logf("%s", out)
	return err == nil
}

const envPosix = "FUSEFS_TEST_POSIX"

// TestPosixAlone is what posixPasses runs; by itself it has nothing to do.
func TestPosixAlone(t *testing.T) {
	if name := os.Getenv(envPosix); name != "" {
		posixtest.All[name](t, serve(t, fusefs.OwnerMap{}).mnt)
	}
}
