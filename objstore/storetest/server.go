// Package storetest proves that a Store keeps its contract, and starts the
// real servers that it is proven against. Import it from tests only: its init
// turns the test binary into a server when the environment says so.
package storetest

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vfolder/vfolder/objstore"
	"github.com/vfolder/vfolder/objstore/embedded"
)

const (
	// roleEnv makes a test binary run as a server instead of running tests.
	roleEnv = "VFOLDER_STORETEST_ROLE"
	addrEnv = "VFOLDER_STORETEST_ADDR"
	dirEnv  = "VFOLDER_STORETEST_DIR"
	// keepEnv leaves the directory when the server ends.
	keepEnv = "VFOLDER_STORETEST_KEEP"
	// minioEnv names the MinIO binary.
	minioEnv = "VFOLDER_MINIO"

	roleEmbedded = "embedded"
	roleMinIO    = "minio"

	accessKey = "storetest"
	secretKey = "storetest-secret"

	startTimeout  = 60 * time.Second
	startAttempts = 3
)

// init serves when this process was started by start. It must be an init: the
// packages whose tests need a store then need no TestMain of their own.
func init() {
	role := os.Getenv(roleEnv)
	if role == "" {
		return
	}
	dir, addr := os.Getenv(dirEnv), os.Getenv(addrEnv)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	ctx, gone := context.WithCancel(ctx)
	go func() {
		// The pipe ends with the process that started us, however that ends.
		_, _ = io.Copy(io.Discard, os.Stdin)
		gone()
	}()
	var err error
	switch role {
	case roleEmbedded:
		err = embedded.Serve(ctx, embedded.Config{Dir: dir, Addr: addr, AccessKey: accessKey, SecretKey: secretKey})
	case roleMinIO:
		err = runMinIO(ctx, dir, addr)
	}
	stop()
	if os.Getenv(keepEnv) == "" {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "storetest server:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runMinIO(ctx context.Context, dir, addr string) error {
	cmd := exec.CommandContext(ctx, os.Getenv(minioEnv), "server", "--quiet", "--address", addr, dir)
	cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+accessKey, "MINIO_ROOT_PASSWORD="+secretKey,
		"MINIO_BROWSER=off", "HOME="+dir)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	// Dies with us even when we are killed; the thread that starts it is the
	// main one, which stays.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Server is a real object store in a process of its own.
type Server struct {
	Addr string
	Dir  string // its data; kept over Kill and Start

	role  string
	minio string
	keep  bool
	cmd   *exec.Cmd
	stdin io.Closer
	done  chan struct{} // closed when the process has been waited for
	log   lineBuffer
}

// NewEmbedded starts an embedded store on dir that belongs to this test alone,
// for tests that kill it. It is stopped when the test ends.
func NewEmbedded(t testing.TB, dir string) *Server {
	t.Helper()
	s := &Server{role: roleEmbedded, Dir: dir, keep: true}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// Start starts the server, again at the same address if it ran before.
func (s *Server) Start() error {
	var err error
	for range startAttempts {
		if s.Addr == "" {
			if s.Addr, err = embedded.FreeAddr(); err != nil {
				return err
			}
		}
		if err = s.startOnce(); err == nil {
			return nil
		}
	}
	return err
}

func (s *Server) startOnce() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleEnv+"="+s.role, addrEnv+"="+s.Addr, dirEnv+"="+s.Dir, minioEnv+"="+s.minio)
	if s.keep {
		cmd.Env = append(cmd.Env, keepEnv+"=1")
	}
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	cmd.Dir = s.Dir
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd, s.done = cmd, make(chan struct{})
	go func() {
		defer close(s.done)
		_ = cmd.Wait()
	}()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	go func() {
		select {
		case <-s.done:
			cancel() // no use in waiting for a server that has ended
		case <-ctx.Done():
		}
	}()
	if err := embedded.WaitReady(ctx, s.Addr); err != nil {
		s.Kill()
		return fmt.Errorf("the %s server did not start: %w\n%s", s.role, err, s.log.String())
	}
	return nil
}

// Kill ends the server with SIGKILL and waits for its end.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.done
	_ = s.stdin.Close()
}

// Stop ends the server in order and waits for its end.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.stdin.Close()
	select {
	case <-s.done:
	case <-time.After(startTimeout):
		s.Kill()
	}
}

// Config reaches a new bucket of the server; Open makes it.
func (s *Server) Config() objstore.Config {
	var r [6]byte
	_, _ = rand.Read(r[:])
	return objstore.Config{
		Endpoint: s.Addr, Bucket: "t-" + hex.EncodeToString(r[:]), AccessKey: accessKey, SecretKey: secretKey,
		PathStyle: true, CreateBucket: true,
	}
}

// shared are the servers of this test process, one of a role.
var shared struct {
	sync.Mutex
	servers map[string]*Server
	errs    map[string]error
}

func sharedServer(role, minio string) (*Server, error) {
	shared.Lock()
	defer shared.Unlock()
	if s, ok := shared.servers[role]; ok {
		return s, shared.errs[role]
	}
	if shared.servers == nil {
		shared.servers, shared.errs = make(map[string]*Server), make(map[string]error)
	}
	dir, err := os.MkdirTemp("", "vfolder-storetest-")
	s := &Server{role: role, Dir: dir, minio: minio}
	if err == nil {
		err = s.Start()
	}
	shared.servers[role], shared.errs[role] = s, err
	return s, err
}

// Embedded returns how to reach a fresh bucket of the embedded store, which
// runs as one child per test process and ends with it.
func Embedded(t testing.TB) objstore.Config {
	t.Helper()
	s, err := sharedServer(roleEmbedded, "")
	if err != nil {
		t.Fatal(err)
	}
	return s.Config()
}

// MinIO is Embedded with a MinIO server: the binary that VFOLDER_MINIO names,
// else .build/bin/minio of the source tree, else the one in PATH.
func MinIO(t testing.TB) objstore.Config {
	t.Helper()
	bin, err := findMinIO()
	if err != nil {
		t.Fatal(err)
	}
	s, err := sharedServer(roleMinIO, bin)
	if err != nil {
		t.Fatal(err)
	}
	return s.Config()
}

// Open opens a store of cfg with retries, for tests that just need one.
func Open(t testing.TB, cfg objstore.Config) objstore.Store {
	t.Helper()
	s, err := objstore.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func findMinIO() (string, error) {
	if bin := os.Getenv(minioEnv); bin != "" {
		return bin, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; len(dir) > 1; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
			continue
		}
		bin := filepath.Join(dir, ".build", "bin", "minio")
		if _, err := os.Stat(bin); err == nil {
			return bin, nil
		}
		break
	}
	bin, err := exec.LookPath("minio")
	if err != nil {
		return "", errors.New("these tests run against MinIO too, and it is not there; get it with: make tools")
	}
	return bin, nil
}

// lineBuffer keeps the last lines of a server's output for a failure report.
type lineBuffer struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

const maxLogLines = 50

func (b *lineBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	sc := bufio.NewScanner(strings.NewReader(string(p)))
	for sc.Scan() {
		b.lines = append(b.lines, sc.Text())
	}
	if extra := len(b.lines) - maxLogLines; extra > 0 {
		b.lines = b.lines[extra:]
	}
	return len(p), nil
}

func (b *lineBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.lines, "\n")
}
