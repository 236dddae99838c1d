package control

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

var update = flag.Bool("update", false, "write testdata anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts a server on a fake daemon and returns a client of it.
func serve(t *testing.T) (*fake, *Client) {
	t.Helper()
	f := newFake()
	socket := filepath.Join(t.TempDir(), "control.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(f.services(), slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	c := Dial(socket)
	t.Cleanup(func() {
		_ = c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f, c
}

// raw sends a request as any HTTP client would.
func raw(t *testing.T, c *Client, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://daemon"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestShapes pins what other clients see: testdata holds request and answer.
func TestShapes(t *testing.T) {
	f, c := serve(t)
	f.sync = func(_ context.Context, progress func(Pending)) error {
		progress(Pending{3, 300})
		progress(Pending{0, 0})
		return nil
	}
	f.stop = func(_ context.Context, _ StopOptions, progress func(Pending)) (StopResult, error) {
		progress(Pending{1, 5})
		return StopResult{Left: Pending{1, 5}}, nil
	}
	var got strings.Builder
	for _, call := range []struct{ method, path, body string }{
		{"GET", "/api/v1/version", ""},
		{"GET", "/api/v1/folders", ""},
		{"POST", "/api/v1/folders", `{"name":"data"}`},
		{"POST", "/api/v1/folders", `{"name":"data"}`},
		{"POST", "/api/v1/folders", `{"name":"a/b"}`},
		{"POST", "/api/v1/folders", `{"name":"data","color":"red"}`},
		{"GET", "/api/v1/folders", ""},
		{"GET", "/api/v1/folders/data", ""},
		{"GET", "/api/v1/folders/none", ""},
		{"GET", "/api/v1/folders/data/status", ""},
		{"POST", "/api/v1/folders/data/sync", ""},
		{"POST", "/api/v1/folders/none/sync", ""},
		{"POST", "/api/v1/folders/data/prepare", ""},
		{"PUT", "/api/v1/folders/data/content?path=a.txt&mode=640", "hello"},
		{"PUT", "/api/v1/folders/data/content?path=bad%FFname", "x"},
		{"GET", "/api/v1/folders/data/entries?path=", ""},
		{"GET", "/api/v1/folders/data/stat?path=a.txt", ""},
		{"GET", "/api/v1/folders/data/stat?path=../x", ""},
		{"GET", "/api/v1/folders/data/content?path=a.txt", ""},
		{"POST", "/api/v1/folders/data/mkdir?path=d&mode=700", ""},
		{"POST", "/api/v1/folders/data/symlink?path=l", `{"target":"YS50eHQ="}`},
		{"GET", "/api/v1/daemon", ""},
		{"POST", "/api/v1/daemon/restart", ""},
		{"POST", "/api/v1/daemon/stop", `{"drain_ms":1000}`},
		{"DELETE", "/api/v1/folders/data", ""},
		{"GET", "/api/v2/folders", ""},
	} {
		status, body := raw(t, c, call.method, call.path, call.body)
		fmt.Fprintf(&got, "> %s %s %s\n< %d\n%s\n\n", call.method, call.path, call.body, status, strings.TrimRight(body, "\n"))
	}
	golden := filepath.Join("testdata", "api.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the API's shapes changed; if that is meant, run with -update. Got:\n%s", got.String())
	}
}

func TestErrorsCrossTheSocket(t *testing.T) {
	f, c := serve(t)
	ctx := t.Context()
	if _, err := c.CreateFolder(ctx, "data"); err != nil {
		t.Fatal(err)
	}
	for _, kind := range vfolder.Kinds() {
		f.sync = func(context.Context, func(Pending)) error {
			return &vfolder.Error{Op: "sync", Kind: kind, Path: "data", Err: errors.New("for a reason"), Fix: "do something"}
		}
		err := c.Sync(ctx, "data", nil)
		var e *vfolder.Error
		if !errors.As(err, &e) || e.Kind != kind || e.Op != "sync" || e.Path != "data" || e.Fix != "do something" || err.Error() != "sync data: for a reason" {
			t.Errorf("%v arrived as %#v", kind, err)
		}
	}
	// After progress was sent the status is out: the error is in the stream.
	f.sync = func(_ context.Context, progress func(Pending)) error {
		progress(Pending{Files: 7})
		return fmt.Errorf("wrapped: %w", &vfolder.Error{Op: "put", Kind: vfolder.KindUnreachable, Fix: "wait"})
	}
	left := 0
	err := c.Sync(ctx, "data", func(n int, _ int64) { left = n })
	var e *vfolder.Error
	if !errors.As(err, &e) || e.Kind != vfolder.KindUnreachable || e.Fix != "wait" || left != 7 {
		t.Errorf("got %#v after %d", err, left)
	}
}

func TestFiles(t *testing.T) {
	f, c := serve(t)
	ctx := t.Context()
	if _, err := c.CreateFolder(ctx, "data"); err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	names := []string{"a b/c+d?.txt", "x%2Fy", "\xff\xfe raw", "ünïcode", "-dash"}
	for _, name := range names {
		o := WriteOptions{Mode: 0o4755, Mtime: -5}
		e, err := c.Write(ctx, "data", name, bytes.NewReader(big), int64(len(big)), o)
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		if want := name[strings.LastIndex(name, "/")+1:]; e.Bytes() != want || e.Size != int64(len(big)) || f.last != o {
			t.Errorf("%q came back as %+v with %+v", name, e, f.last)
		}
	}
	seen := 0
	err := c.List(ctx, "data", "", func(e Entry) error {
		if e.Bytes() != e.Name && e.NameRaw == nil {
			t.Errorf("entry %+v", e)
		}
		seen++
		return nil
	})
	if err != nil || seen != len(names)-1 {
		t.Errorf("%d entries, %v", seen, err)
	}
	for _, r := range []struct{ off, length int64 }{
		{0, -1},
		{5, -1},
		{0, 10},
		{123, 456_789},
		{int64(len(big)) - 1, 1},
		{0, 0},
		{100, int64(len(big))},
	} {
		body, err := c.Read(ctx, "data", names[0], r.off, r.length)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		body.Close()
		want := big[r.off:]
		if r.length >= 0 && r.length < int64(len(want)) {
			want = want[:r.length]
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("range %+v: %d bytes of %d, %v", r, len(got), len(want), err)
		}
	}
	if _, err := c.Read(ctx, "data", names[0], int64(len(big)), -1); vfolder.KindOf(err) != vfolder.KindNoData {
		t.Errorf("beyond the end: %v", err)
	}
	// A body of unknown length, and one whose reader fails half way.
	if e, err := c.Write(ctx, "data", "piped", io.MultiReader(strings.NewReader("ab"), strings.NewReader("cd")), -1, WriteOptions{}); err != nil || e.Size != 4 {
		t.Errorf("piped: %+v, %v", e, err)
	}
	broken := errors.New("disk on fire")
	if _, err := c.Write(ctx, "data", "broken", io.MultiReader(bytes.NewReader(big), errReader{broken}), -1, WriteOptions{}); !errors.Is(err, broken) {
		t.Errorf("broken source: %v", err)
	}
	if _, err := c.Write(ctx, "data", "short", strings.NewReader("abc"), 10, WriteOptions{}); err == nil {
		t.Error("a body shorter than announced was taken")
	}
	for _, name := range []string{"broken", "short"} {
		if _, err := c.Stat(ctx, "data", name); vfolder.KindOf(err) != vfolder.KindNotFound {
			t.Errorf("%s was published: %v", name, err)
		}
	}
	if _, err := c.Write(ctx, "data", "piped", strings.NewReader("other"), 5, WriteOptions{Exclusive: true}); vfolder.KindOf(err) != vfolder.KindExists {
		t.Errorf("exclusive: %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// A failure at the first byte is an answer with its Kind, a later one must not
// look like a whole file.
func TestReadFailures(t *testing.T) {
	f, c := serve(t)
	ctx := t.Context()
	f.folders["data"] = Folder{}
	f.files["data/breaks-early"] = make([]byte, 1<<20)
	f.files["data/breaks-late"] = make([]byte, 1<<20)
	f.readErr = &vfolder.Error{Op: "read", Kind: vfolder.KindUnreachable, Fix: "wait"}
	if _, err := c.Read(ctx, "data", "breaks-early", 0, -1); vfolder.KindOf(err) != vfolder.KindUnreachable {
		t.Errorf("early: %v", err)
	}
	body, err := c.Read(ctx, "data", "breaks-late", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if n, err := io.Copy(io.Discard, body); err == nil || vfolder.KindOf(err) != vfolder.KindDaemon {
		t.Errorf("late: %d bytes, %v", n, err)
	}
	// A listing that fails half way does not look complete either.
	if err := c.List(ctx, "data", "", func(Entry) error { return nil }); vfolder.KindOf(err) != vfolder.KindUnreachable {
		t.Errorf("list: %v", err)
	}
}

func TestCancel(t *testing.T) {
	f, c := serve(t)
	f.folders["data"] = Folder{}
	ended := make(chan error, 1)
	f.sync = func(ctx context.Context, progress func(Pending)) error {
		progress(Pending{Files: 1})
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := c.Sync(ctx, "data", func(int, int64) { cancel() })
	if vfolder.KindOf(err) != vfolder.KindInterrupted {
		t.Errorf("canceled: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the daemon goes on after its client left")
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	for name, make := range map[string]func(string){
		"nothing": func(string) {},
		"dead": func(path string) {
			l, err := Listen(path)
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
		},
	} {
		path := filepath.Join(dir, name)
		make(path)
		c := Dial(path)
		_, err := c.Version(t.Context())
		var e *vfolder.Error
		if !errors.As(err, &e) || e.Kind != vfolder.KindDaemon || e.Fix != "vfolder daemon start" || !strings.Contains(err.Error(), "not running") {
			t.Errorf("%s: %#v", name, err)
		}
		c.Close()
	}
}

// An answer of something that is not our daemon is an error, not a hang or a
// half-filled value.
func TestForeignServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/sync"):
			io.WriteString(w, `{"progress":{"files":1,"bytes":1}}`+"\n") // and then nothing more
		case strings.HasSuffix(r.URL.Path, "/version"):
			w.WriteHeader(http.StatusTeapot)
		default:
			io.WriteString(w, "<html>")
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	defer func() { srv.Close(); <-done }()
	c := Dial(path)
	defer c.Close()
	if err := c.Sync(t.Context(), "data", nil); vfolder.KindOf(err) != vfolder.KindDaemon {
		t.Errorf("cut off: %v", err)
	}
	if _, err := c.Version(t.Context()); vfolder.KindOf(err) != vfolder.KindDaemon {
		t.Errorf("teapot: %v", err)
	}
	if _, err := c.Folders(t.Context()); vfolder.KindOf(err) != vfolder.KindDaemon {
		t.Errorf("html: %v", err)
	}
}

func TestGuard(t *testing.T) {
	s := NewServer(newFake().services(), slog.New(slog.DiscardHandler))
	for _, test := range []struct {
		peer    any
		allowed bool
	}{
		{s.uid, true},
		{0, true},
		{s.uid + 12345, false},
		{-1, false},
		{nil, false},
	} {
		w := &recorder{header: http.Header{}}
		r, err := http.NewRequestWithContext(context.WithValue(t.Context(), peerKey{}, test.peer), "GET", "/api/v1/version", nil)
		if err != nil {
			t.Fatal(err)
		}
		s.http.Handler.ServeHTTP(w, r)
		if got := w.status == http.StatusOK; got != test.allowed {
			t.Errorf("peer %v: status %d", test.peer, w.status)
		}
	}
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
func (r *recorder) WriteHeader(status int)      { r.status = status }

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	for range 2 { // the second time over a dead socket
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		l.Close()
	}
	_, err := Listen("/" + strings.Repeat("x", 120))
	if vfolder.KindOf(err) != vfolder.KindNameTooLong {
		t.Errorf("long path: %v", err)
	}
	a, b := socketPair(t)
	if uid := peerUID(a); uid != os.Geteuid() {
		t.Errorf("peer %d", uid)
	}
	a.Close()
	b.Close()
}

func socketPair(t *testing.T) (net.Conn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "a")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	return c, os.NewFile(uintptr(fds[1]), "b")
}

func TestCleanPath(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "/": "", ".": "", "a": "a", "/a/b/": "a/b", "a//b": "a/b", "./a/./b": "a/b", "..a": "..a", "a/...": "a/...",
	} {
		if got, err := CleanPath(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"..", "a/..", "../a", "a/../b", "a\x00", strings.Repeat("n", 256), strings.Repeat("a/", 2100)} {
		if got, err := CleanPath(in); err == nil {
			t.Errorf("%q was taken as %q", in, got)
		}
	}
}

func TestParseRange(t *testing.T) {
	for _, test := range []struct {
		header      string
		off, length int64
		status      int
	}{
		{"", 0, 100, 200},
		{"bytes=0-9", 0, 10, 206},
		{"bytes=90-", 90, 10, 206},
		{"bytes=90-1000", 90, 10, 206},
		{"bytes=-5", 95, 5, 206},
		{"bytes=-500", 0, 100, 206},
		{"bytes=9-3", 0, 100, 200},
		{"bytes=0-1,5-6", 0, 100, 200},
		{"lines=1-2", 0, 100, 200},
		{"bytes=x-y", 0, 100, 200},
	} {
		off, length, status, err := parseRange(test.header, 100)
		if err != nil || off != test.off || length != test.length || status != test.status {
			t.Errorf("%q: %d+%d, %d, %v", test.header, off, length, status, err)
		}
	}
	for _, header := range []string{"bytes=100-", "bytes=100-200", "bytes=-0"} {
		if _, _, _, err := parseRange(header, 100); vfolder.KindOf(err) != vfolder.KindNoData {
			t.Errorf("%q: %v", header, err)
		}
	}
}
