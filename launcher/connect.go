// Package launcher runs sessions: containers in the user's own rootless Podman,
// with folders that are proven live inside before anything of the user runs.
//
// It knows folders only through the Folders interface, and Podman only through
// its REST API on a Unix socket of this host.
package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containers/podman/v5/pkg/bindings"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// Folders is what the launcher needs of the daemon. Methods may be called
// concurrently.
type Folders interface {
	// Prepare makes a folder ready for a session and returns its directory
	// below the live mount. readOnly says that this host may not write it. A
	// folder that does not exist is KindNotFound. Idempotent.
	Prepare(ctx context.Context, name string) (hostPath string, readOnly bool, err error)
	// Sync returns when all that was written in the folder before the call is in
	// the bucket, verified. It calls progress now and then with the files and
	// bytes that are left, and gives up when ctx ends. Idempotent.
	Sync(ctx context.Context, name string, progress func(left int, bytes int64)) error
}

const (
	// serviceIdle is how long, in seconds, a Podman service that we started
	// stays without a client.
	serviceIdle = 300
	// serviceStart bounds the wait for that service; the first start of a
	// user's Podman migrates its storage.
	serviceStart = 30 * time.Second
	dialTimeout  = 5 * time.Second
)

// Launcher talks to one Podman service. Its methods may be called concurrently.
type Launcher struct {
	socket string
	conn   context.Context // holds the bindings' client, is never done
}

// Connect finds the user's Podman service: $CONTAINER_HOST if set, else
// $XDG_RUNTIME_DIR/podman/podman.sock, else one of our own, which it starts. Its
// errors name the command that mends them. Close the Launcher after use.
func Connect(ctx context.Context) (*Launcher, error) {
	if os.Geteuid() == 0 {
		return nil, &vfolder.Error{
			Op: "podman", Kind: vfolder.KindPermission, Err: errors.New("sessions run in rootless Podman, not as root"),
			Fix: "run vfolder as an ordinary user",
		}
	}
	if host := os.Getenv("CONTAINER_HOST"); host != "" {
		socket, ok := strings.CutPrefix(host, "unix://")
		if !ok {
			return nil, &vfolder.Error{
				Op: "podman", Kind: vfolder.KindUnsupported, Path: host,
				Err: errors.New("folders are mounted on this host, so Podman has to be here as well"),
				Fix: "unset CONTAINER_HOST",
			}
		}
		return dial(ctx, socket)
	}
	dir, err := runtimeDir()
	if err != nil {
		return nil, err
	}
	own := filepath.Join(dir, "vfolder", "podman.sock")
	for _, socket := range []string{filepath.Join(dir, "podman", "podman.sock"), own} {
		if answers(ctx, socket) {
			return dial(ctx, socket)
		}
	}
	if err := startService(ctx, own); err != nil {
		return nil, err
	}
	return dial(ctx, own)
}

// Close drops idle connections. The service stays.
func (l *Launcher) Close() {
	if c, err := bindings.GetClient(l.conn); err == nil {
		c.Client.CloseIdleConnections()
	}
}

// with joins the caller's deadline and the bindings' client.
func (l *Launcher) with(ctx context.Context) context.Context {
	return bound{ctx, l.conn}
}

type bound struct {
	context.Context
	conn context.Context
}

func (b bound) Value(key any) any {
	if v := b.conn.Value(key); v != nil {
		return v
	}
	return b.Context.Value(key)
}

// runtimeDir is $XDG_RUNTIME_DIR, or where it would be.
func runtimeDir() (string, error) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = "/run/user/" + strconv.Itoa(os.Getuid())
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return "", &vfolder.Error{
			Op: "podman", Kind: vfolder.KindUnsupported, Path: dir, Err: errors.New("there is no runtime directory for this user"),
			Fix: "sudo loginctl enable-linger " + userName(),
		}
	}
	return dir, nil
}

func answers(ctx context.Context, socket string) bool {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

func dial(ctx context.Context, socket string) (*Launcher, error) {
	limited, cancel := context.WithTimeout(ctx, serviceStart)
	defer cancel()
	conn, err := bindings.NewConnection(limited, "unix://"+socket)
	if err != nil {
		return nil, &vfolder.Error{
			Op: "podman", Kind: vfolder.KindUnsupported, Path: socket, Err: fmt.Errorf("the service does not answer: %w", err),
			Fix: "podman info",
		}
	}
	// User namespaces that map the user to a chosen id came with 4.3.
	if v := bindings.ServiceVersion(conn); v.Major < 4 || v.Major == 4 && v.Minor < 3 {
		return nil, &vfolder.Error{
			Op: "podman", Kind: vfolder.KindUnsupported, Path: socket,
			Err: fmt.Errorf("version %s is too old: 4.3 is needed", v), Fix: "sudo apt-get install podman",
		}
	}
	return &Launcher{socket: socket, conn: context.WithoutCancel(conn)}, nil
}

// startService starts a Podman service of our own and waits until it answers.
// Of callers at the same time one starts it.
func startService(ctx context.Context, socket string) error {
	fail := func(err error, fix string) error {
		return &vfolder.Error{Op: "podman", Kind: vfolder.KindUnsupported, Err: err, Fix: fix}
	}
	program, err := exec.LookPath("podman")
	if err != nil {
		return fail(errors.New("it is not installed"), "sudo apt-get install podman uidmap slirp4netns catatonit")
	}
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err, "")
	}
	lock, err := lockFile(ctx, filepath.Join(dir, "podman.lock"))
	if err != nil {
		return fail(err, "")
	}
	defer lock.Close()
	if answers(ctx, socket) {
		return nil
	}
	// A socket that nobody answers is left over; binding it again would fail.
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fail(err, "")
	}
	logName := filepath.Join(dir, "podman.log")
	log, err := os.OpenFile(logName, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fail(err, "")
	}
	defer log.Close()
	cmd := exec.Command(program, "system", "service", "--time", strconv.Itoa(serviceIdle), "unix://"+socket)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fail(err, "")
	}
	// The service outlives this process; while we live it must not become a
	// zombie.
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	if err := awaitService(ctx, socket, exited); err != nil {
		fix, why := diagnose()
		if why == nil {
			why, fix = fmt.Errorf("its service did not start: %w: %s", err, tail(logName)), "podman info"
		}
		return fail(why, fix)
	}
	return nil
}

func awaitService(ctx context.Context, socket string, exited <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, serviceStart)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !answers(ctx, socket) {
		select {
		case err := <-exited:
			return fmt.Errorf("it ended (%v)", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// lockFile waits for an exclusive lock; closing the file releases it.
func lockFile(ctx context.Context, name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// tail returns the end of a log file, on one line.
func tail(name string) string {
	data, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	if len(data) > 500 {
		data = data[len(data)-500:]
	}
	return strings.Join(strings.Fields(string(data)), " ")
}

// diagnose looks for what a host most often lacks for rootless Podman. Without a
// finding the error is nil.
func diagnose() (fix string, why error) {
	if _, err := exec.LookPath("newuidmap"); err != nil {
		return "sudo apt-get install uidmap", errors.New("newuidmap is not installed, so user namespaces cannot have more than one id")
	}
	name := userName()
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		if !hasSubordinate(file, name) {
			return "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 " + name + " && podman system migrate",
				fmt.Errorf("user %s has no subordinate ids in %s", name, file)
		}
	}
	return "", nil
}

func hasSubordinate(file, name string) bool {
	data, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		owner, _, ok := strings.Cut(line, ":")
		if ok && (owner == name || owner == strconv.Itoa(os.Getuid())) {
			return true
		}
	}
	return false
}

func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Getuid())
}
