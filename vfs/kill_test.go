package vfs_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/fusefs/fusetest"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/vfs"
)

// envWorker makes the test binary a worker that serves the state in the named
// directory on inherited files; envFresh says that it is the mount's first.
const (
	envWorker = "VFS_TEST_WORKER"
	envFresh  = "VFS_TEST_FRESH"
)

func TestMain(m *testing.M) {
	fusetest.RunClient()
	unix.Umask(0)
	if dir := os.Getenv(envWorker); dir != "" {
		if err := worker(dir); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	_ = flag.Set("rapid.checks", "30") // more with -rapid.checks
	goleak.VerifyTestMain(m)
}

// nothing is a Remote without objects.
type nothing struct{}

func (nothing) List(context.Context, vfolder.Ino) error               { return nil }
func (nothing) Hydrate(context.Context, vfolder.Ino, ...string) error { return nil }
func (nothing) Writable(context.Context, vfolder.Ino) error           { return nil }
func (nothing) Touch(vfolder.Ino)                                     {}
func (nothing) Settle(vfolder.Ino)                                    {}
func (nothing) Fetch(context.Context, vfolder.Ino, int64, int64, func(int64, []byte) error) error {
	return vfolder.KindStale
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
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	db, err := meta.Open(meta.Options{Dir: filepath.Join(dir, "index"), BootID: "boot", Log: log})
	if err != nil {
		return err
	}
	store, err := content.Open(content.Options{Dir: filepath.Join(dir, "content"), ReserveBytes: -1, Log: log})
	if err != nil {
		return err
	}
	fresh := os.Getenv(envFresh) != ""
	if fresh {
		err := db.Update(func(tx *meta.Tx) error {
			return tx.Create(vfolder.RootIno, "data", &meta.Inode{Mode: unix.S_IFDIR | 0o777})
		})
		if err != nil {
			return err
		}
	}
	fs, err := vfs.New(vfs.Config{DB: db, Content: store, Remote: nothing{}, RecoveryDir: filepath.Join(dir, "recovered"), MaxNodes: 64, Log: log})
	if err != nil {
		return err
	}
	resume := fusefs.Killed
	if fresh {
		resume = fusefs.Fresh
	}
	server, err := fusefs.New(fusefs.Config{FD: int(device.Fd()), Init: saved[:n], InFlight: inFlight, Resume: resume, Logger: log}, fs)
	if err != nil {
		return err
	}
	fs.SetInvalidator(server.Invalidator())
	fs.SetProbe(server.Probe)
	if _, err := ready.WriteString("ready"); err != nil {
		return err
	}
	if err := server.Serve(); err != nil {
		return err
	}
	if err := fs.Close(); err != nil {
		return err
	}
	if err := store.Close(); err != nil {
		return err
	}
	return db.Close()
}

// workers is a mount whose workers are processes that can be killed.
type workers struct {
	t      *testing.T
	dir    string
	mnt    string
	files  []*os.File
	log    lockedBuffer
	served bool
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newWorkers(t *testing.T) *workers {
	w := &workers{t: t, dir: t.TempDir()}
	mnt, device, init := fusetest.Mount(t)
	memory, err := fusefs.CreateInFlight()
	check(t, err)
	path := filepath.Join(t.TempDir(), "init")
	check(t, os.WriteFile(path, init, 0o600))
	handshake, err := os.Open(path)
	check(t, err)
	w.mnt, w.files = mnt, []*os.File{device, memory, handshake}
	t.Cleanup(func() { _, _ = memory.Close(), handshake.Close() })
	return w
}

// start runs a worker and returns once it serves.
func (w *workers) start() *exec.Cmd {
	w.t.Helper()
	ready, tell, err := os.Pipe()
	check(w.t, err)
	defer func() { _ = ready.Close() }()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), envWorker+"="+w.dir)
	if !w.served {
		c.Env = append(c.Env, envFresh+"=1")
	}
	w.served = true
	c.ExtraFiles = append(append([]*os.File{}, w.files...), tell)
	c.Stderr = &w.log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = c.Start()
	_ = tell.Close()
	check(w.t, err)
	if n, _ := ready.Read(make([]byte, 8)); n == 0 {
		_ = c.Wait()
		w.t.Fatalf("worker did not start: %s", w.log.String())
	}
	return c
}

// TestWorkloadSurvivesKills kills the worker again and again under a workload
// that checks every call and every byte.
func TestWorkloadSurvivesKills(t *testing.T) {
	const kills = 15
	w := newWorkers(t)
	c := w.start()
	data := filepath.Join(w.mnt, "data")
	fusetest.PrimePoll(t, data)
	clients := make([]*fusetest.Client, 2)
	for i := range clients {
		clients[i] = fusetest.StartClient(t, "churn", filepath.Join(data, fmt.Sprint("w", i)))
	}
	for range kills {
		<-time.After(time.Duration(50+rand.IntN(150)) * time.Millisecond)
		_ = c.Process.Kill()
		_ = c.Wait()
		c = w.start()
	}
	for _, client := range clients {
		if err := client.Stop(); err != nil {
			t.Error("workload: ", err)
		}
	}
	check(t, unix.Unmount(w.mnt, 0))
	if err := c.Wait(); err != nil {
		t.Errorf("worker after unmount: %v", err)
	}
	if s := w.log.String(); strings.Contains(s, "level=ERROR") {
		t.Errorf("errors were logged:\n%s", s)
	}
}
