package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/launcher"
)

// notStarted is the exit code of run and exec when the command was never
// started, as podman's.
const notStarted = 125

func runSession(c *cli.Context, l *launcher.Launcher) error {
	s, err := create(c, l)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "session %s\n", s.Name)
	code, err := execIn(c, l, s.ID, c.Args().Slice())
	if err == nil && code != 0 {
		err = childExit(code)
	}
	if !c.Bool("rm") {
		return err
	}
	// An interrupt ends the command; the deletion that was asked for is still
	// wanted. Another interrupt ends that too.
	ctx, stop := signal.NotifyContext(context.WithoutCancel(c.Context), os.Interrupt, syscall.SIGTERM)
	defer stop()
	again := *c
	again.Context = ctx
	if _, deleteErr := deleteSession(&again, l, s.ID); deleteErr != nil {
		return deleteErr
	}
	return err
}

func execSession(c *cli.Context, l *launcher.Launcher) error {
	if !c.Args().Present() {
		return wrongUsage(c, "which session?")
	}
	s, err := l.Find(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	code, err := execIn(c, l, s.ID, c.Args().Tail())
	if err == nil && code != 0 {
		err = childExit(code)
	}
	return err
}

// execIn runs a command in a session on this process's terminal or streams.
func execIn(c *cli.Context, l *launcher.Launcher, ref string, command []string) (int, error) {
	tty, err := wantsTTY(c)
	if err != nil {
		return notStarted, err
	}
	o := launcher.ExecOptions{
		Command: command, Stdin: os.Stdin, Stdout: c.App.Writer, Stderr: c.App.ErrWriter, TTY: tty,
	}
	if len(command) == 0 {
		o.Command = launcher.LoginShell()
	}
	if env, err := parseEnv(c); err != nil {
		return notStarted, err
	} else {
		for k, v := range env {
			o.Env = append(o.Env, k+"="+v)
		}
	}
	if tty {
		if name := os.Getenv("TERM"); name != "" {
			o.Env = append(o.Env, "TERM="+name)
		}
		if isTerminal(os.Stdin) {
			restore, err := rawTerminal()
			if err != nil {
				return notStarted, err
			}
			defer restore()
			sizes, stop := watchSize()
			defer stop()
			o.Resize = sizes
		}
	}
	code, err := l.Exec(c.Context, ref, o)
	if errors.Is(err, context.Canceled) {
		return vfolder.KindInterrupted.Info().Exit, err
	}
	return code, err
}

// wantsTTY is true on a terminal, unless the flags say otherwise.
func wantsTTY(c *cli.Context) (bool, error) {
	if c.Bool("tty") && c.Bool("no-tty") {
		return false, wrongUsage(c, "--tty and --no-tty exclude each other")
	}
	out, ok := c.App.Writer.(*os.File)
	return c.Bool("tty") || !c.Bool("no-tty") && isTerminal(os.Stdin) && ok && isTerminal(out), nil
}

// rawTerminal hands every key to the session. The returned function gives the
// terminal back.
func rawTerminal() (func(), error) {
	fd := int(os.Stdin.Fd())
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(fd, state) }, nil
}

// watchSize sends the terminal's size now and after each change of it. Only the
// newest size waits to be read.
func watchSize() (<-chan launcher.WindowSize, func()) {
	sizes := make(chan launcher.WindowSize, 1)
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	done := make(chan struct{})
	send := func() {
		columns, rows, err := term.GetSize(int(os.Stdin.Fd()))
		if err != nil {
			return
		}
		select {
		case <-sizes:
		default:
		}
		sizes <- launcher.WindowSize{Rows: uint16(rows), Columns: uint16(columns)}
	}
	send()
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			select {
			case <-changed:
				send()
			case <-done:
				return
			}
		}
	})
	return sizes, func() {
		signal.Stop(changed)
		close(done)
		wait.Wait()
	}
}

// progress shows what is left to bring into the bucket: one line that changes
// on a terminal, else a new line every few seconds.
type progress struct {
	w        io.Writer
	terminal bool
	last     time.Time
	shown    bool
	folders  map[string]launcher.Left
}

// progressEvery is the pause between lines where there is no terminal.
const progressEvery = 5 * time.Second

func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, terminal: ok && isTerminal(f), folders: map[string]launcher.Left{}, last: time.Now()}
}

// left takes one report; calls do not overlap.
func (p *progress) left(l launcher.Left) {
	p.folders[l.Folder] = l
	var sum launcher.Left
	for _, f := range p.folders {
		sum.Files += f.Files
		sum.Bytes += f.Bytes
	}
	text := fmt.Sprintf("bringing into the bucket: %d files, %s left", sum.Files, bytesText(sum.Bytes))
	switch {
	case p.terminal:
		fmt.Fprintf(p.w, "\r\x1b[K%s", text)
		p.shown = true
	case time.Since(p.last) >= progressEvery:
		fmt.Fprintln(p.w, text)
		p.last = time.Now()
	}
}

// end clears the line.
func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
