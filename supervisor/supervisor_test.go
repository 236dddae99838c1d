package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/fusefs/fusetest"
)

const patience = 30 * time.Second // of tests, on a slow machine

// host is a supervisor process with its mount.
type host struct {
	t        *testing.T
	cmd      *exec.Cmd
	dir, mnt string
	log      string
	env      []string
}

func newHost(t *testing.T, env ...string) *host {
	dir := t.TempDir()
	h := &host{t: t, dir: dir, mnt: filepath.Join(dir, "mnt"), log: filepath.Join(dir, "log"), env: env}
	for _, d := range []string{h.mnt, filepath.Join(dir, "tree")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_ = unix.Unmount(h.mnt, unix.MNT_DETACH)
		if t.Failed() {
			text, _ := os.ReadFile(h.log)
			t.Logf("log:\n%s", text)
		}
	})
	return h
}

// start runs the supervisor and waits until its worker serves.
func (h *host) start(files ...*os.File) {
	h.t.Helper()
	log, err := os.OpenFile(h.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	_, before := readPid(filepath.Join(h.dir, "worker"))
	h.cmd = exec.Command("/proc/self/exe", h.mnt)
	h.cmd.Args[0], err = os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	h.cmd.Env = append(append(os.Environ(), envRole+"=supervisor", envDir+"="+h.dir), h.env...)
	h.cmd.Stdout, h.cmd.Stderr, h.cmd.ExtraFiles = log, log, files
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	cmd := h.cmd
	h.t.Cleanup(func() { _ = cmd.Process.Kill() })
	h.await("worker", before+1)
	if before == 0 {
		fusetest.PrimePoll(h.t, h.mnt)
	}
}

// await waits for an instance of a role and returns its pid.
func (h *host) await(role string, instance int) int {
	h.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		pid, n := readPid(filepath.Join(h.dir, role))
		if n >= instance {
			return pid
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%s %d did not start", role, instance)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (h *host) signal(role string, s syscall.Signal) (instance int) {
	h.t.Helper()
	pid, instance := readPid(filepath.Join(h.dir, role))
	if err := syscall.Kill(pid, s); err != nil {
		h.t.Fatalf("%s: %v", role, err)
	}
	return instance
}

// stop is the real end: the worker says so.
func (h *host) stop() {
	h.t.Helper()
	h.signal("worker", syscall.SIGUSR1)
	h.wait()
	if kind, err := mounted(h.mnt); kind != "" || err != nil {
		h.t.Errorf("still mounted: %s, %v", kind, err)
	}
}

func (h *host) wait() {
	h.t.Helper()
	done := make(chan error, 1)
	go func() { done <- h.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			h.t.Errorf("supervisor: %v", err)
		}
	case <-time.After(patience):
		h.t.Fatal("the supervisor does not end")
	}
}

// One mount through everything that happens to daemons: kills of the worker and
// of a helper, planned restarts, replacement of the supervisor. The programs
// that use it see no error, and open files live on.
func TestMountOutlivesItsProcesses(t *testing.T) {
	h := newHost(t)
	h.start()
	helper := h.await("helper", 1)
	churns := []*fusetest.Client{
		fusetest.StartClient(t, "churn", filepath.Join(h.mnt, "a")),
		fusetest.StartClient(t, "churn", filepath.Join(h.mnt, "b")),
	}
	held := fusetest.StartClient(t, "hold", h.mnt)
	held.Line()
	for _, step := range []struct {
		name string
		do   func() (instance int)
	}{
		{"kill", func() int { return h.signal("worker", syscall.SIGKILL) }},
		{"planned restart", func() int {
			_, n := readPid(filepath.Join(h.dir, "worker"))
			if err := h.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			return n
		}},
		{"replacement", func() int {
			_, n := readPid(filepath.Join(h.dir, "worker"))
			if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			return n
		}},
		{"kill of the new one's", func() int { return h.signal("worker", syscall.SIGKILL) }},
		{"second replacement", func() int {
			_, n := readPid(filepath.Join(h.dir, "worker"))
			if err := h.cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			return n
		}},
	} {
		<-time.After(100 * time.Millisecond) // some work in between
		t.Log(step.name)
		h.await("worker", step.do()+1)
	}
	if err := syscall.Kill(h.await("helper", 3), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if h.await("helper", 4) == helper {
		t.Error("the helper was not started again")
	}
	held.Next()
	held.Line()
	held.Next()
	for _, c := range churns {
		if err := c.Stop(); err != nil {
			t.Error("workload: ", err)
		}
	}
	if err := held.Wait(); err != nil {
		t.Error("open files: ", err)
	}
	h.stop()
}

// store is a stand-in for systemd: it keeps the files it is sent.
type store struct {
	fd    int
	files map[string]int
	ready bool
}

func newStore(t *testing.T, path string) *store {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil { // a queue of 10 is too short for a reader that comes later
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &store{fd: fd, files: make(map[string]int)}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return s
}

// receive takes messages until done says so.
func (s *store) receive(done func() bool) error {
	for !done() {
		text, rights := make([]byte, 4096), make([]byte, 256)
		n, rn, _, _, err := unix.Recvmsg(s.fd, text, rights, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			return fmt.Errorf("systemd's socket: %w", err)
		}
		message := string(text[:n])
		_, name, _ := strings.Cut(message, "FDNAME=")
		switch {
		case strings.HasPrefix(message, "FDSTOREREMOVE=1"):
			if fd, ok := s.files[name]; ok {
				_ = unix.Close(fd)
				delete(s.files, name)
			}
		case strings.HasPrefix(message, "FDSTORE=1"):
			messages, err := unix.ParseSocketControlMessage(rights[:rn])
			if err != nil {
				return err
			}
			fds, err := unix.ParseUnixRights(&messages[0])
			if err != nil {
				return err
			}
			s.files[name] = fds[0]
		case strings.HasPrefix(message, "READY=1"):
			s.ready = true
		}
	}
	return nil
}

// With systemd's store the supervisor ends on SIGTERM, or is killed, and the
// next one goes on with the mount.
func TestMountOutlivesSupervisorInStore(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	systemd := newStore(t, socket)
	h := newHost(t, "NOTIFY_SOCKET="+socket)
	received := make(chan error, 1)
	go func() { received <- systemd.receive(func() bool { return systemd.ready }) }()
	h.start()
	if err := <-received; err != nil {
		t.Fatal(err)
	}
	churn := fusetest.StartClient(t, "churn", filepath.Join(h.mnt, "a"))
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := h.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if s == syscall.SIGTERM {
			ended := make(chan struct{})
			go func() { defer close(ended); _ = h.cmd.Wait() }()
			delete(systemd.files, stateName)
			if err := systemd.receive(func() bool { return len(systemd.files) == 1+filesPerMount }); err != nil {
				t.Fatal(err)
			}
			<-ended
		} else {
			_ = h.cmd.Wait()
		}
		var files []*os.File
		var names []string
		for name, fd := range systemd.files {
			files = append(files, os.NewFile(uintptr(fd), name))
			names = append(names, name)
		}
		// LISTEN_PID is the new process itself.
		h.env = []string{
			"NOTIFY_SOCKET=" + socket, fmt.Sprint("LISTEN_FDS=", len(files)), "LISTEN_FDNAMES=" + strings.Join(names, ":"), envListenSelf + "=1",
		}
		systemd.ready, systemd.files = false, make(map[string]int)
		go func() { received <- systemd.receive(func() bool { return systemd.ready }) }()
		h.start(files...)
		if err := <-received; err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			_ = f.Close()
		}
	}
	if err := churn.Stop(); err != nil {
		t.Error("workload: ", err)
	}
	go func() { received <- systemd.receive(func() bool { return len(systemd.files) == 0 }) }()
	h.stop()
	if err := <-received; err != nil {
		t.Error(err)
	}
}

// A mount whose daemon is gone for good is cleared away; a live one, and one of
// somebody else, are not touched.
func TestStaleMountIsCleared(t *testing.T) {
	point := t.TempDir()
	m, err := NewMount(point)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.device.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := NewMount(point)
	if err != nil {
		t.Fatal("over a stale mount: ", err)
	}
	for _, f := range []*os.File{m.inFlight, m.init} {
		_ = f.Close()
	}
	if err := again.Unmount(); err != nil {
		t.Error(err)
	}
	if err := unix.Mount("none", point, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := NewMount(point); !errors.Is(err, vfolder.KindBusy) {
		t.Errorf("over a tmpfs: %v", err)
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Error(err)
	}
}

// What fusermount3 says becomes a kind and the next command.
func TestFusermountErrors(t *testing.T) {
	for talk, want := range map[string]struct {
		kind vfolder.Kind
		fix  string
	}{
		"fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf": {vfolder.KindPermission, "/etc/fuse.conf"},
		"fusermount3: fuse device not found, try 'modprobe fuse' first":                               {vfolder.KindUnsupported, "modprobe fuse"},
		"fusermount3: failed to open /dev/fuse: Permission denied":                                    {vfolder.KindAccess, "/dev/fuse"},
		"fusermount3: mount failed: Operation not permitted":                                          {vfolder.KindPermission, ""},
		"something new": {vfolder.KindIO, ""},
	} {
		err := fusermountError("/p", talk, errors.New("exit 1"))
		var e *vfolder.Error
		if !errors.As(err, &e) || e.Kind != want.kind || !strings.Contains(e.Fix, want.fix) {
			t.Errorf("%q: %#v", talk, err)
		}
	}
}

func TestBackoff(t *testing.T) {
	status := func(script string) *os.ProcessState {
		c := exec.Command("sh", "-c", script)
		_ = c.Run()
		return c.ProcessState
	}
	for script, want := range map[string]fusefs.Resume{
		"exit 0": fusefs.HandedOver, "exit 2": fusefs.Crashed, "kill -9 $$": fusefs.Killed, "kill -11 $$": fusefs.Crashed,
	} {
		if got := outcome(status(script)); got != want {
			t.Errorf("%s: %v, want %v", script, got, want)
		}
	}
	c, crash := &child{}, status("exit 2")
	last := time.Duration(-1)
	for i := range 12 {
		c.started = time.Now()
		pause := c.ended(crash)
		if i == 0 && pause != 0 || pause < last || pause > mostBackoff {
			t.Errorf("pause %d is %v after %v", i, pause, last)
		}
		last = pause
	}
	if last != mostBackoff {
		t.Errorf("the longest pause is %v", last)
	}
	c.started = time.Now().Add(-2 * steady)
	if pause := c.ended(crash); pause != 0 {
		t.Errorf("pause after a steady life: %v", pause)
	}
}
