package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/fusefs/fusetest"
)

// The test binary is supervisor, worker and helper too, by this variable.
const (
	envRole = "SUPERVISOR_TEST_ROLE"
	// envListenSelf: the files of LISTEN_FDS are for this very process.
	envListenSelf = "SUPERVISOR_TEST_LISTEN"

	envDir = "SUPERVISOR_TEST_DIR" // of the tree, and of files that tell pids
)

func TestMain(m *testing.M) {
	fusetest.RunClient()
	role := os.Getenv(envRole)
	var err error
	code := 0
	switch role {
	case "":
		os.Exit(m.Run())
	case "supervisor":
		if os.Getenv(envListenSelf) != "" {
			_ = os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		}
		err = Run(context.Background(), Config{
			Points:  []string{os.Args[1]},
			Worker:  Program{Name: "worker", Argv: []string{"/proc/self/exe"}, Env: []string{envRole + "=worker"}},
			Helpers: []Program{{Name: "helper", Argv: []string{"/proc/self/exe"}, Env: []string{envRole + "=helper"}}},
		})
	case "worker":
		code, err = testWorker(os.Getenv(envDir))
	case "helper":
		err = tellPid("helper")
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		<-signals
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		code = 1
	}
	os.Exit(code)
}

// tellPid says who plays a role now: "PID INSTANCE", the latter counting up.
func tellPid(role string) error {
	path := filepath.Join(os.Getenv(envDir), role)
	_, instance := readPid(path)
	temp := path + ".new"
	if err := os.WriteFile(temp, fmt.Appendf(nil, "%d %d", os.Getpid(), instance+1), 0o644); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

func readPid(path string) (pid, instance int) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, 0
	}
	a, b, _ := strings.Cut(string(text), " ")
	pid, _ = strconv.Atoi(a)
	instance, _ = strconv.Atoi(b)
	return pid, instance
}

func testWorker(dir string) (code int, err error) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
	inherited, err := FromEnviron()
	if err != nil {
		return 1, err
	}
	tree, err := fusetest.OpenTree(filepath.Join(dir, "tree"))
	if err != nil {
		return 1, err
	}
	m := inherited.Mounts[0]
	server, err := fusefs.New(fusefs.Config{
		FD: int(m.Device.Fd()), Init: m.Init, InFlight: m.InFlight, Resume: inherited.Resume,
	}, tree)
	if err != nil {
		return 1, err
	}
	go func() {
		if <-signals == syscall.SIGUSR1 {
			code = ExitStop
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := server.Drain(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "worker: drain:", err)
			os.Exit(1)
		}
	}()
	if err := tellPid("worker"); err != nil {
		return 1, err
	}
	if err := inherited.Ready(); err != nil {
		return 1, err
	}
	if err := server.Serve(); !errors.Is(err, fusefs.ErrDrained) {
		return 1, fmt.Errorf("serve: %w", err)
	}
	return code, nil
}
