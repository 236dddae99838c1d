package launcher

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vfolder/vfolder"
)

func init() {
	sessionTests["Exec"] = testExec
	sessionTests["ExecTerminal"] = testExecTerminal
	sessionTests["ExecCancelled"] = testExecCancelled
}

func testExec(t *testing.T, b *bed) {
	s := b.create(t, nil, "exec")
	cases := []struct {
		name    string
		command []string
		code    int
		out     string
		errOut  string // part of it
	}{
		{"code", []string{"sh", "-c", "exit 7"}, 7, "", ""},
		{"streams", []string{"sh", "-c", "echo out; echo err >&2"}, 0, "out\n", "err\n"},
		{"not there", []string{"no-such-program"}, 127, "", "no-such-program"},
		{"no program", []string{"/etc/plain"}, 126, "", ""},
		{"directory", []string{"/etc"}, 126, "", ""},
		{"killed", []string{"sh", "-c", "kill -9 $$"}, 137, "", ""},
		{"arguments", []string{"printf", "%s|", "a b", "", "$HOME", "--"}, 0, "a b||$HOME|--|", ""},
	}
	for _, c := range cases {
		var out, errOut bytes.Buffer
		code, err := b.Exec(t.Context(), "exec", ExecOptions{Command: c.command, Stdout: &out, Stderr: &errOut})
		if err != nil || code != c.code || out.String() != c.out || !strings.Contains(errOut.String(), c.errOut) {
			t.Errorf("%s: code %d, %v; out %q; err %q", c.name, code, err, out.String(), errOut.String())
		}
	}
	// Input of every byte value, its end seen by the command, and output larger
	// than any buffer on the way.
	in := make([]byte, 3<<20)
	for i := range in {
		in[i] = byte(i)
	}
	var out bytes.Buffer
	code, err := b.Exec(t.Context(), s.ID, ExecOptions{
		Command: []string{"sh", "-c", `cat; printf %s "$WHERE"; pwd`}, Stdin: bytes.NewReader(in), Stdout: &out,
		Env: []string{"WHERE=env"}, WorkDir: "/tmp",
	})
	if err != nil || code != 0 || !bytes.Equal(out.Bytes(), append(in, "env/tmp\n"...)) {
		t.Errorf("cat of %d bytes: code %d, %v, %d bytes back", len(in), code, err, out.Len())
	}
	if _, err := b.Exec(t.Context(), s.ID, ExecOptions{}); !errors.Is(err, vfolder.KindInvalid) {
		t.Errorf("no command: %v", err)
	}
	if _, err := b.Exec(t.Context(), "nobody", ExecOptions{Command: []string{"true"}}); !errors.Is(err, vfolder.KindNotFound) {
		t.Errorf("no session: %v", err)
	}
}

// lines lets a test wait for text on a stream.
type lines struct {
	w    *io.PipeWriter
	r    *io.PipeReader
	seen strings.Builder
}

func newLines() *lines {
	r, w := io.Pipe()
	return &lines{w: w, r: r}
}

// until reads up to and with text, and keeps what follows.
func (l *lines) until(t *testing.T, text string) {
	t.Helper()
	buf := make([]byte, 256)
	for !strings.Contains(l.seen.String(), text) {
		n, err := l.r.Read(buf)
		l.seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("waiting for %q: %v after %q", text, err, l.seen.String())
		}
	}
	// What came behind it in one piece is for the next call.
	_, rest, _ := strings.Cut(l.seen.String(), text)
	l.seen.Reset()
	l.seen.WriteString(rest)
}

// A terminal has the size that the caller's has, also after a change.
func testExecTerminal(t *testing.T, b *bed) {
	s := b.create(t, nil, "terminal")
	in, feed := io.Pipe()
	out := newLines()
	sizes := make(chan WindowSize, 1)
	sizes <- WindowSize{Rows: 31, Columns: 101}
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		code, err := b.Exec(t.Context(), s.ID, ExecOptions{
			Command: []string{"sh", "-c", `tty -s && echo is-tty; stty -echo; stty size; trap 'stty size; exit 9' WINCH; echo ready; while :; do read x; echo "got $x"; done`},
			Stdin:   in, Stdout: out.w, TTY: true, Resize: sizes,
		})
		out.w.Close()
		done <- result{code, err}
	}()
	out.until(t, "is-tty")
	out.until(t, "31 101")
	out.until(t, "ready")
	if _, err := io.WriteString(feed, "hello\n"); err != nil {
		t.Fatal(err)
	}
	out.until(t, "got hello")
	sizes <- WindowSize{Rows: 41, Columns: 121}
	if _, err := io.WriteString(feed, "again\n"); err != nil {
		t.Fatal(err)
	}
	out.until(t, "41 121")
	go func() { _, _ = io.Copy(io.Discard, out.r) }()
	_ = feed.Close()
	if got := <-done; got.err != nil || got.code != 9 {
		t.Errorf("%+v", got)
	}
}

// When the caller goes, so does the command.
func testExecCancelled(t *testing.T, b *bed) {
	s := b.create(t, nil, "cancelled")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := newLines()
	done := make(chan error, 1)
	go func() {
		_, err := b.Exec(ctx, s.ID, ExecOptions{Command: []string{"sh", "-c", "echo started; exec sleep 1000"}, Stdout: out.w})
		done <- err
	}()
	out.until(t, "started")
	cancel()
	if err := <-done; !errors.Is(err, vfolder.KindInterrupted) {
		t.Errorf("%v", err)
	}
	eventually(t, "the command ends", func() bool {
		text, _ := b.run(t, s, "ps")
		return !strings.Contains(text, "sleep 1000")
	})
}

func TestDemultiplex(t *testing.T) {
	frame := func(stream byte, text string) []byte {
		head := make([]byte, 8)
		head[0] = stream
		binary.BigEndian.PutUint32(head[4:], uint32(len(text)))
		return append(head, text...)
	}
	cases := []struct {
		name     string
		in       []byte
		out, err string
		bad      string
	}{
		{name: "nothing"},
		{name: "both", in: append(append(frame(1, "a"), frame(2, "b")...), frame(1, "c")...), out: "ac", err: "b"},
		{name: "empty frame", in: append(frame(1, ""), frame(1, "x")...), out: "x"},
		{name: "error", in: append(frame(1, "a"), frame(3, "broken")...), out: "a", bad: "broken"},
		{name: "cut head", in: frame(1, "abc")[:5], bad: "unexpected EOF"},
		{name: "cut body", in: frame(1, "abc")[:10], out: "ab", bad: "EOF"},
		{name: "unknown stream", in: frame(9, "x"), bad: "stream 9"},
		{name: "huge", in: []byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, bad: "4294967295"},
	}
	for _, c := range cases {
		var out, errOut bytes.Buffer
		err := demultiplex(bytes.NewReader(c.in), &out, &errOut)
		if out.String() != c.out || errOut.String() != c.err {
			t.Errorf("%s: %q %q", c.name, out.String(), errOut.String())
		}
		if c.bad == "" && err != nil || c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.bad)
		}
	}
}

func TestLimitedBuffer(t *testing.T) {
	var b limitedBuffer
	n, err := io.Copy(&b, io.LimitReader(zeroes{}, 3<<20))
	if err != nil || n != 3<<20 || len(b.String()) != 1<<20 {
		t.Errorf("took %d, kept %d, %v", n, len(b.String()), err)
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// stopProcess ends a process that a test started and waits for its end.
func stopProcess(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "process "+pid+" ends", func() bool {
		data, err := os.ReadFile("/proc/" + pid + "/cmdline")
		return err != nil || len(data) == 0
	})
}
