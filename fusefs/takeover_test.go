package fusefs_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/fusefs/fusetest"
)

// bed is a mount whose workers are processes that can be killed.
type bed struct {
	t         *testing.T
	dir, mnt  string
	device    *os.File
	memory    *os.File
	handshake *os.File
	extraEnv  []string
	log       lockedBuffer
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

func newBed(t *testing.T) *bed {
	b := &bed{t: t, dir: t.TempDir()}
	mnt, device, init := fusetest.Mount(t)
	b.mnt, b.device = mnt, device
	var err error
	if b.memory, err = fusefs.CreateInFlight(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(path, init, 0o600); err != nil {
		t.Fatal(err)
	}
	if b.handshake, err = os.Open(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = b.memory.Close(), b.handshake.Close() })
	return b
}

// start runs a worker and returns once it serves.
func (b *bed) start(resume fusefs.Resume) *exec.Cmd {
	b.t.Helper()
	ready, w, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = ready.Close() }()
	c := exec.Command("/proc/self/exe")
	c.Env = append(append(os.Environ(), envWorker+"="+b.dir, fmt.Sprintf("%s=%d", envResume, resume)), b.extraEnv...)
	c.ExtraFiles = []*os.File{b.device, b.memory, b.handshake, w}
	c.Stderr = &b.log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = c.Start()
	_ = w.Close()
	if err != nil {
		b.t.Fatal(err)
	}
	if n, _ := ready.Read(make([]byte, 8)); n == 0 {
		_ = c.Wait()
		b.t.Fatalf("worker did not start: %s", b.log.String())
	}
	return c
}

func kill(c *exec.Cmd) {
	_ = c.Process.Kill()
	_ = c.Wait()
}

func (b *bed) unmount() {
	b.t.Helper()
	if err := unix.Unmount(b.mnt, 0); err != nil {
		b.t.Errorf("unmount: %v", err)
	}
}

// The worker is killed again and again under a workload that checks every call
// and every byte: nobody notices, and nothing without a name is left behind.
func TestWorkloadSurvivesKills(t *testing.T) {
	const kills = 40
	b := newBed(t)
	c := b.start(fusefs.Fresh)
	fusetest.PrimePoll(t, b.mnt)
	clients := make([]*fusetest.Client, 3)
	for i := range clients {
		clients[i] = fusetest.StartClient(t, "churn", filepath.Join(b.mnt, fmt.Sprint("w", i)))
	}
	for range kills {
		<-time.After(time.Duration(30+rand.IntN(120)) * time.Millisecond)
		kill(c)
		c = b.start(fusefs.Killed)
	}
	for _, client := range clients {
		if err := client.Stop(); err != nil {
			t.Error("workload: ", err)
		}
	}
	b.unmount()
	if err := c.Wait(); err != nil {
		t.Errorf("worker after unmount: %v\n%s", err, b.log.String())
	}
	if s := b.log.String(); strings.Contains(s, "level=ERROR") {
		t.Errorf("errors were logged:\n%s", s)
	}
}

// Files without a name that are closed while no worker runs are freed by the
// next one, and those still open are kept.
func TestOrphansAfterKill(t *testing.T) {
	b := newBed(t)
	c := b.start(fusefs.Fresh)
	fusetest.PrimePoll(t, b.mnt)
	client := fusetest.StartClient(t, "hold", b.mnt)
	client.Line()
	kill(c)
	client.Next() // closes one file, which waits for the next worker
	c = b.start(fusefs.Killed)
	client.Line()
	// RELEASE and FORGET of the closed file are asynchronous: another kill and
	// take-over must not lose them either.
	kill(c)
	c = b.start(fusefs.Killed)
	deadline := time.Now().Add(20 * time.Second)
	for {
		entries, err := filepath.Glob(filepath.Join(b.dir, "[0-9]*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("data files left: %v", entries)
		}
		time.Sleep(10 * time.Millisecond)
	}
	client.Next()
	if err := client.Wait(); err != nil {
		t.Error("open file without a name: ", err)
	}
	b.unmount()
	_ = c.Wait()
}

// A request that makes every worker crash is given up instead of taking the
// mount with it.
func TestPoisonousRequestIsGivenUp(t *testing.T) {
	b := newBed(t)
	c := b.start(fusefs.Fresh)
	fusetest.PrimePoll(t, b.mnt)
	path := filepath.Join(b.mnt, "f")
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	kill(c)
	b.extraEnv = []string{envPoison + "=1"}
	c = b.start(fusefs.Killed)
	client := fusetest.StartClient(t, "read", path)
	result := make(chan string, 1)
	go func() { result <- client.Line() }()
	crashes := 0
	for {
		exited := make(chan error, 1)
		go func() { exited <- c.Wait() }()
		select {
		case eio := <-result:
			if eio != "true" {
				t.Error("the read did not end with EIO")
			}
			if crashes != 2 {
				t.Errorf("%d crashes, want 2", crashes)
			}
			// The report comes through a pipe, maybe after the answer.
			for deadline := time.Now().Add(20 * time.Second); !strings.Contains(b.log.String(), "given up"); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Errorf("not reported:\n%s", b.log.String())
					break
				}
			}
			if err := client.Wait(); err != nil {
				t.Error(err)
			}
			b.unmount()
			<-exited
			return
		case <-exited:
			crashes++
			if crashes > 5 {
				t.Fatal("the request is tried again and again")
			}
			c = b.start(fusefs.Crashed)
		}
	}
}
