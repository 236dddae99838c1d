package supervisor

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/vfolder/vfolder/fusefs"
)

const (
	// A child that dies soon after its start is started again later and later;
	// one that had lived for steady at once.
	steady       = 10 * time.Second
	firstBackoff = 100 * time.Millisecond
	mostBackoff  = 5 * time.Second
	// afterKill is the pause after a kill from outside, which says nothing
	// about the program.
	afterKill = 10 * time.Millisecond
)

// Program is a child's command line. Its standard error is the supervisor's
// log.
type Program struct {
	Name string   // in messages
	Argv []string // Argv[0] is the path
	Env  []string // besides the supervisor's own
}

// child is one program that is kept running.
type child struct {
	Program
	worker   bool
	cmd      *exec.Cmd // nil while it does not run
	started  time.Time
	quick    int  // starts in a row that did not last
	leaving  bool // it was told to end
	killer   *time.Timer
	restarts *time.Timer
}

// event is something that happened to a child.
type event struct {
	child *child
	kind  eventKind
	state *os.ProcessState
}

type eventKind uint8

const (
	eventExit eventKind = iota
	eventReady
	eventRestart // a backoff is over
	eventLate    // it did not end in time
)

// start runs the child. The calling thread must live as long as the supervisor:
// the kernel kills the child when it ends.
func (c *child) start(r *runner) error {
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = r.log, r.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var ready, theirs *os.File
	if c.worker {
		var err error
		if ready, theirs, err = os.Pipe(); err != nil {
			return err
		}
		const first = 3
		cmd.ExtraFiles = []*os.File{theirs}
		var list []inheritedMount
		for _, m := range r.mounts {
			at := first + len(cmd.ExtraFiles)
			list = append(list, inheritedMount{Point: m.Point, Device: at, InFlight: at + 1, Init: at + 2})
			files := m.files()
			cmd.ExtraFiles = append(cmd.ExtraFiles, files[:]...)
		}
		text, err := json.Marshal(list)
		if err != nil {
			return err
		}
		cmd.Env = append(cmd.Env, envMounts+"="+string(text), fmt.Sprintf("%s=%d", envResume, r.resume), fmt.Sprintf("%s=%d", envReady, first))
	}
	err := cmd.Start()
	if theirs != nil {
		_ = theirs.Close()
	}
	if err != nil {
		if ready != nil {
			_ = ready.Close()
		}
		return err
	}
	c.cmd, c.started, c.leaving = cmd, time.Now(), false
	r.running.Add(1)
	go func() {
		defer r.running.Done()
		if ready != nil {
			if n, _ := ready.Read(make([]byte, 1)); n == 1 {
				r.events <- event{child: c, kind: eventReady}
			}
			_ = ready.Close()
		}
		_ = cmd.Wait()
		r.events <- event{child: c, kind: eventExit, state: cmd.ProcessState}
	}()
	return nil
}

// leave tells the child to end, and kills it when it takes too long.
func (c *child) leave(r *runner, patience time.Duration) {
	if c.restarts != nil {
		c.restarts.Stop()
		c.restarts = nil
	}
	if c.cmd == nil || c.leaving {
		return
	}
	c.leaving = true
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	cmd := c.cmd
	c.killer = time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
}

// ended notes the end and says when to start it again.
func (c *child) ended(state *os.ProcessState) (pause time.Duration) {
	if c.killer != nil {
		c.killer.Stop()
		c.killer = nil
	}
	lived := time.Since(c.started)
	asked := c.leaving
	c.cmd, c.leaving = nil, false
	switch {
	case asked:
		return 0
	case outcome(state) == fusefs.Killed:
		return afterKill
	case lived >= steady:
		c.quick = 0
	default:
		c.quick++
	}
	if c.quick <= 1 {
		return 0
	}
	return min(mostBackoff, firstBackoff<<min(c.quick-2, 10))
}

// outcome says what a process's end means for the requests it had.
func outcome(state *os.ProcessState) fusefs.Resume {
	status, ok := state.Sys().(syscall.WaitStatus)
	switch {
	case ok && status.Exited() && status.ExitStatus() == 0:
		return fusefs.HandedOver
	case ok && status.Signaled() && (status.Signal() == syscall.SIGKILL || status.Signal() == syscall.SIGTERM):
		return fusefs.Killed
	}
	return fusefs.Crashed
}
