package fusetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Programs that use a mount must be other processes than the one that starts
// workers: a child closes inherited files before it runs its own program, and
// closing a file of a mount waits for the worker.
const envClient = "FUSETEST_CLIENT"

// RunClient is called first by TestMain: in a process started by StartClient it
// does that process's work and exits.
func RunClient() {
	mode := os.Getenv(envClient)
	if mode == "" {
		return
	}
	err := client(mode, os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, mode+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Client is a program that uses a mount.
type Client struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Reader
}

// StartClient starts a client below dir. Modes are "churn": Churn until Stop;
// "hold": one file without a name and one with; "read": one uncached read.
func StartClient(t testing.TB, mode, dir string) *Client {
	t.Helper()
	c := &Client{t: t, cmd: exec.Command("/proc/self/exe", dir)}
	c.cmd.Env = append(os.Environ(), envClient+"="+mode)
	c.cmd.Stderr = t.Output()
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := c.cmd.StdoutPipe()
	if err == nil {
		c.lines = bufio.NewReader(stdout)
		c.stdin, err = c.cmd.StdinPipe()
	}
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		t.Fatal("client: ", err)
	}
	return c
}

// Line waits for what the client says next.
func (c *Client) Line() string {
	c.t.Helper()
	line, err := c.lines.ReadString('\n')
	if err != nil {
		c.t.Fatalf("client said nothing more: %v, %v", err, c.cmd.Wait())
	}
	return line[:len(line)-1]
}

// Next lets the client go on.
func (c *Client) Next() {
	c.t.Helper()
	if _, err := io.WriteString(c.stdin, "\n"); err != nil {
		c.t.Fatal("client: ", err)
	}
}

// Stop ends a churn and returns its error.
func (c *Client) Stop() error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	return c.Wait()
}

// Wait waits for the client's end.
func (c *Client) Wait() error {
	_, _ = io.Copy(io.Discard, c.lines)
	return c.cmd.Wait()
}

func client(mode, dir string) error {
	next := bufio.NewReader(os.Stdin)
	pause := func(say string) error {
		fmt.Println(say)
		_, err := next.ReadString('\n')
		return err
	}
	switch mode {
	case "churn":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		rounds, err := Churn(ctx, dir, uint64(os.Getpid()))
		fmt.Fprintln(os.Stderr, rounds, "rounds")
		return err
	case "hold":
		return hold(dir, pause)
	case "read":
		f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			return err
		}
		_, err = f.Read(make([]byte, 4096))
		var errno syscall.Errno
		_ = errors.As(err, &errno)
		fmt.Println(errno == syscall.EIO)
		return f.Close()
	}
	return fmt.Errorf("no mode %q", mode)
}

// hold keeps two files without a name, closes one at the first pause and checks
// the other after the second.
func hold(dir string, pause func(string) error) error {
	var files [2]*os.File
	for i := range files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint("held", i)))
		if err != nil {
			return err
		}
		if err := os.Remove(f.Name()); err != nil {
			return err
		}
		files[i] = f
	}
	if err := pause("open"); err != nil {
		return err
	}
	if err := files[0].Close(); err != nil {
		return err
	}
	if _, err := files[1].WriteString("kept"); err != nil {
		return err
	}
	if err := pause("closed"); err != nil {
		return err
	}
	if err := same(files[1], []byte("kept")); err != nil {
		return err
	}
	return files[1].Close()
}
