package launcher

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/containers/podman/v5/libpod/define"
	"github.com/containers/podman/v5/pkg/api/handlers"
	"github.com/containers/podman/v5/pkg/bindings/containers"
	"github.com/containers/podman/v5/pkg/errorhandling"
	docker "github.com/docker/docker/api/types/container"

	"github.com/vfolder/vfolder"
)

// Exit codes of commands that did not run, as podman exec gives them.
const (
	exitFailed    = 125 // Podman itself failed
	exitCannotRun = 126 // the command is there and cannot be run
	exitNotFound  = 127 // there is no such command
)

// settleTimeout bounds the wait between a command's last output and Podman's
// record of its exit code.
const settleTimeout = 10 * time.Second

// WindowSize is a terminal's size in characters.
type WindowSize struct{ Rows, Columns uint16 }

// ExecOptions describe a command to run in a session. Nil streams are closed.
type ExecOptions struct {
	Command []string
	Env     []string // KEY=VALUE
	WorkDir string
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer // unused with TTY
	// TTY gives the command a terminal of the last size that Resize yields;
	// the caller closes Resize after Exec, or never.
	TTY    bool
	Resize <-chan WindowSize
}

// LoginShell is what a session runs when nothing else is asked for: bash if the
// image has it.
func LoginShell() []string {
	return []string{"/bin/sh", "-c", `command -v bash >/dev/null 2>&1 && exec bash -l; exec sh -l`}
}

// Exec runs a command in a running session and returns its exit code: 127 and
// 126, with a nil error, for one that is not there or cannot be run. When ctx
// ends, the command is sent SIGTERM and Exec returns. A blocked read of Stdin
// may outlive Exec by one read.
func (l *Launcher) Exec(ctx context.Context, ref string, o ExecOptions) (int, error) {
	s, err := l.Find(ctx, ref)
	if err != nil {
		return exitFailed, err
	}
	if !s.Running() {
		return exitFailed, &vfolder.Error{
			Op: "session", Kind: vfolder.KindConflict, Path: s.Name, Err: fmt.Errorf("it does not run (%s)", s.State),
			Fix: "vfolder session start " + s.Name,
		}
	}
	if err := stillMounted(s); err != nil {
		return exitFailed, err
	}
	return l.exec(ctx, s, o)
}

// stillMounted refuses a session whose targets show no FUSE mount: one that
// somebody started behind our back, or whose creator was killed before the
// proof. It only reads what is mounted, so no daemon can make it wait. Where
// the session's processes are not visible it has nothing to say.
func stillMounted(s Session) error {
	if len(s.Mounts) == 0 {
		return nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", s.pid))
	if err != nil {
		return nil
	}
	defer f.Close()
	entries, err := parseMountinfo(f)
	if err != nil {
		return podmanError("session", s.Name, err)
	}
	for _, m := range s.Mounts {
		if e, ok := mountAt(entries, m.Target); !ok || !e.isFUSE() {
			return &vfolder.Error{
				Op: "session", Kind: vfolder.KindDaemon, Path: s.Name, Err: fmt.Errorf("folder %q is not mounted at %s inside", m.Folder, m.Target),
				Fix: fmt.Sprintf("vfolder session stop %s && vfolder session start %s", s.Name, s.Name),
			}
		}
	}
	return nil
}

func (l *Launcher) exec(ctx context.Context, s Session, o ExecOptions) (int, error) {
	if len(o.Command) == 0 {
		return exitFailed, vfolder.Errorf(vfolder.KindInvalid, "session", s.Name, "no command to run")
	}
	config := &handlers.ExecCreateConfig{ExecOptions: docker.ExecOptions{
		Cmd: o.Command, Env: o.Env, WorkingDir: o.WorkDir, Tty: o.TTY,
		AttachStdin: o.Stdin != nil, AttachStdout: true, AttachStderr: true,
	}}
	id, err := containers.ExecCreate(l.with(ctx), s.ID, config)
	if err != nil {
		return exitFailed, podmanError("session", s.Name, err)
	}
	if err := l.attach(ctx, id, o); err != nil {
		if code, ok := notRun(err); ok {
			if o.Stderr != nil {
				fmt.Fprintln(o.Stderr, err)
			} else if o.Stdout != nil {
				fmt.Fprintln(o.Stdout, err)
			}
			return code, nil
		}
		if ctx.Err() != nil {
			l.terminate(ctx, id)
		}
		return exitFailed, podmanError("session", s.Name, err)
	}
	code, err := l.exitCode(ctx, id)
	if err != nil {
		return exitFailed, podmanError("session", s.Name, err)
	}
	return code, nil
}

// notRun recognises Podman's answer for a command that could not be started.
func notRun(err error) (int, bool) {
	var model *errorhandling.ErrorModel
	if !errors.As(err, &model) {
		return 0, false
	}
	switch model.Because {
	case define.ErrOCIRuntimeNotFound.Error():
		return exitNotFound, true
	case define.ErrOCIRuntimePermissionDenied.Error():
		return exitCannotRun, true
	}
	return 0, false
}

// attach starts the prepared command and moves its streams until it has closed
// its output. It speaks HTTP itself: the bindings' own way takes the terminal of
// this process, and changes the shared client.
func (l *Launcher) attach(ctx context.Context, id string, o ExecOptions) error {
	conn, reader, err := l.hijack(ctx, id, o)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	if o.Stdin != nil {
		go func() {
			_, err := io.Copy(conn, o.Stdin)
			if c, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
				_ = c.CloseWrite()
			}
		}()
	}
	sizes, cancel := context.WithCancel(ctx)
	resized := make(chan struct{})
	go func() {
		defer close(resized)
		l.followSize(sizes, id, o.Resize)
	}()
	defer func() { cancel(); <-resized }()

	if o.TTY {
		_, err = io.Copy(orDiscard(o.Stdout), reader)
	} else {
		err = demultiplex(reader, orDiscard(o.Stdout), orDiscard(o.Stderr))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// hijack sends the start request on a connection of its own, which afterwards
// carries the streams.
func (l *Launcher) hijack(ctx context.Context, id string, o ExecOptions) (net.Conn, io.Reader, error) {
	start := map[string]any{"Detach": false, "Tty": o.TTY}
	if o.TTY && o.Resize != nil {
		select {
		case size := <-o.Resize:
			start["h"], start["w"] = size.Rows, size.Columns
		default:
		}
	}
	body, err := json.Marshal(start)
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://d/v4.0.0/libpod/exec/"+id+"/start", bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", l.socket)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	reader := bufio.NewReader(conn)
	resp, err := roundTrip(conn, reader, req)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols || resp.StatusCode == http.StatusOK {
		return conn, reader, nil
	}
	defer conn.Close()
	model := &errorhandling.ErrorModel{ResponseCode: resp.StatusCode}
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, nil, err
	}
	if json.Unmarshal(data, model) != nil || model.Message == "" {
		model.Message = string(data)
	}
	return nil, nil, model
}

func roundTrip(conn net.Conn, reader *bufio.Reader, req *http.Request) (*http.Response, error) {
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	return http.ReadResponse(reader, req)
}

// followSize passes sizes on until ctx ends or there are no more. A command
// that has just started or ended cannot be resized: that is no error.
func (l *Launcher) followSize(ctx context.Context, id string, sizes <-chan WindowSize) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			opts := new(containers.ResizeExecTTYOptions).WithHeight(int(size.Rows)).WithWidth(int(size.Columns))
			_ = containers.ResizeExecTTY(l.with(ctx), id, opts)
		}
	}
}

// maxFrame bounds one frame of the multiplexed streams, in bytes.
const maxFrame = 64 << 20

// demultiplex takes apart the frames in which Podman sends output without a
// terminal: a byte for the stream, three of zero, four for the length.
func demultiplex(r io.Reader, stdout, stderr io.Writer) error {
	var head [8]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		size := int64(binary.BigEndian.Uint32(head[4:]))
		if size > maxFrame {
			return fmt.Errorf("a frame of %d bytes from Podman", size)
		}
		var to io.Writer
		switch head[0] {
		case 0, 1:
			to = stdout
		case 2:
			to = stderr
		case 3:
			text, err := io.ReadAll(io.LimitReader(r, size))
			if err != nil {
				return err
			}
			return fmt.Errorf("podman: %s", text)
		default:
			return fmt.Errorf("a frame for stream %d from Podman", head[0])
		}
		if _, err := io.CopyN(to, r, size); err != nil {
			return err
		}
	}
}

// exitCode waits until Podman has recorded the end of a command.
func (l *Launcher) exitCode(ctx context.Context, id string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		data, err := containers.ExecInspect(l.with(ctx), id, nil)
		if err != nil {
			return 0, err
		}
		if !data.Running {
			return data.ExitCode, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
	}
}

// terminate asks a command to end whose caller has gone. It runs as the host's
// user, so a signal from here reaches it.
func (l *Launcher) terminate(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	if data, err := containers.ExecInspect(l.with(ctx), id, nil); err == nil && data.Running && data.Pid > 1 {
		_ = syscall.Kill(data.Pid, syscall.SIGTERM)
	}
}
