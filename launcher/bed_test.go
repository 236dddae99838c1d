package launcher

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vfolder/vfolder"
)

// sessionTests need a rootless Podman and FUSE. They run one after another, in
// the order of their names.
var sessionTests = map[string]func(*testing.T, *bed){}

// TestSessions runs sessionTests as an unprivileged user: as root it runs this
// test binary again in the bed of scripts/bed-a.sh, where HOME and the mounts
// are others; as a user it takes the host as it is.
func TestSessions(t *testing.T) {
	if os.Getuid() == 0 {
		runInBed(t)
		return
	}
	b := newBed(t)
	for _, name := range slices.Sorted(maps.Keys(sessionTests)) {
		t.Run(name, func(t *testing.T) { sessionTests[name](t, b) })
	}
}

func runInBed(t *testing.T) {
	script, err := filepath.Abs("../scripts/bed-a.sh")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The user of the bed cannot reach the directories of root's build.
	dir, err := os.MkdirTemp("/var/tmp", "vfolder-launcher-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "launcher.test")
	data, err := os.ReadFile(self)
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(program, data, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), script, program, "-test.run", "^TestSessions$", "-test.v", "-test.timeout", "5m")
	cmd.Dir = dir
	cmd.WaitDelay = 20 * time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.CombinedOutput()
	t.Logf("in the bed:\n%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// bed is what all tests of sessions share: a connection, a small image, and a
// FUSE mount with folders as its top-level directories.
type bed struct {
	*Launcher
	mnt, backing string
	image        string
}

// folders is the daemon's stand-in: a loopback mount.
type folders struct {
	bed       *bed
	readOnly  map[string]bool
	elsewhere string // Prepare returns this, if set
	mu        sync.Mutex
	synced    []string
	sync      func(ctx context.Context, name string, progress func(int, int64)) error
}

func (f *folders) Prepare(_ context.Context, name string) (string, bool, error) {
	if f.elsewhere != "" {
		return f.elsewhere, false, nil
	}
	if _, err := os.Stat(filepath.Join(f.bed.backing, name)); err != nil {
		return "", false, vfolder.Errorf(vfolder.KindNotFound, "folder", name, "there is no such folder")
	}
	return filepath.Join(f.bed.mnt, name), f.readOnly[name], nil
}

func (f *folders) Sync(ctx context.Context, name string, progress func(int, int64)) error {
	f.mu.Lock()
	f.synced = append(f.synced, name)
	f.mu.Unlock()
	if f.sync != nil {
		return f.sync(ctx, name, progress)
	}
	return nil
}

func newBed(t *testing.T) *bed {
	t.Helper()
	l, err := Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	b := &bed{Launcher: l, image: "localhost/vfolder-test-busybox:latest"}
	b.mnt, b.backing = mountLoopback(t, nil)
	if _, err := l.ImportImage(t.Context(), busyboxRoot(t), b.image); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { podman(t, "rmi", "-f", b.image) })
	return b
}

// TestMain turns the test binary into a server of one loopback mount where a
// test needs one to kill.
func TestMain(m *testing.M) {
	if mnt := os.Getenv("VFOLDER_TEST_SERVE"); mnt != "" {
		server, err := serveLoopback(mnt, os.Getenv("VFOLDER_TEST_BACKING"), nil)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("mounted")
		server.Wait()
		return
	}
	os.Exit(m.Run())
}

// serveLoopback mounts backing on mnt, open to other users as the daemon's mount
// is. wrap may replace the root node.
func serveLoopback(mnt, backing string, wrap func(*fs.LoopbackRoot) fs.InodeEmbedder) (*fuse.Server, error) {
	data := &fs.LoopbackRoot{Path: backing}
	var st syscall.Stat_t
	if err := syscall.Stat(backing, &st); err != nil {
		return nil, err
	}
	data.Dev = st.Dev
	var root fs.InodeEmbedder = &fs.LoopbackNode{RootData: data}
	if wrap != nil {
		root = wrap(data)
	}
	data.RootNode = root
	second := time.Second
	server, err := fs.Mount(mnt, root, &fs.Options{
		EntryTimeout: &second, AttrTimeout: &second,
		MountOptions: fuse.MountOptions{AllowOther: true, FsName: "loopback", Name: "vfoldertest", Options: []string{"default_permissions"}},
	})
	if err != nil {
		return nil, fmt.Errorf("mounting (is user_allow_other in /etc/fuse.conf?): %w", err)
	}
	return server, nil
}

// mountLoopback mounts a fresh directory for the time of the test.
func mountLoopback(t *testing.T, wrap func(*fs.LoopbackRoot) fs.InodeEmbedder) (mnt, backing string) {
	t.Helper()
	mnt, backing = mountpoint(t), t.TempDir()
	server, err := serveLoopback(mnt, backing, wrap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		deadline := time.Now().Add(20 * time.Second)
		for err := server.Unmount(); err != nil; err = server.Unmount() {
			if time.Now().After(deadline) {
				t.Errorf("unmount: %v", err)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	return mnt, backing
}

// mountpoint makes a directory in the runtime directory, where the daemon's is.
func mountpoint(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv("XDG_RUNTIME_DIR"), "live-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	return mnt
}

// folder makes an empty folder and returns the directory behind it.
func (b *bed) folder(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(b.backing, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// create makes a session that is removed at the end of the test.
func (b *bed) create(t *testing.T, f Folders, name string, specs ...string) Session {
	t.Helper()
	mounts, err := ParseMounts(specs)
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.Create(t.Context(), f, Options{Name: name, Image: b.image, Mounts: mounts, Network: "none"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := b.remove(ctx, s.ID); err != nil {
			t.Error(err)
		}
	})
	return s
}

// refused asserts that no session comes of the options, and returns the error.
func (b *bed) refused(t *testing.T, f Folders, name string, kind vfolder.Kind, specs ...string) error {
	t.Helper()
	mounts, err := ParseMounts(specs)
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.Create(t.Context(), f, Options{Name: name, Image: b.image, Mounts: mounts, Network: "none"})
	if err == nil {
		_ = b.remove(t.Context(), s.ID)
		t.Fatalf("session %s was created", name)
	}
	if got := vfolder.KindOf(err); got != kind {
		t.Errorf("kind %v, want %v: %v", got, kind, err)
	}
	if out := podman(t, "ps", "-a", "--format", "{{.Names}}"); strings.Contains(out, name) {
		t.Errorf("its container stays: %s", out)
	}
	return err
}

// run runs a shell command in a session; it returns what it printed.
func (b *bed) run(t *testing.T, s Session, script string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	code, err := b.Exec(t.Context(), s.ID, ExecOptions{Command: []string{"sh", "-c", script}, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out.String(), code
}

// must is run for commands that must go well.
func (b *bed) must(t *testing.T, s Session, script string) string {
	t.Helper()
	out, code := b.run(t, s, script)
	if code != 0 {
		t.Fatalf("%s: exit %d: %s", script, code, out)
	}
	return out
}

// podman runs the podman program, the witness that shares no code with us.
func podman(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "podman", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("podman %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// busyboxRoot makes a root file system of one static program, like the small
// images that people bring: no user with id 1000, no home.
func busyboxRoot(t *testing.T) string {
	t.Helper()
	program := busybox(t)
	root := filepath.Join(t.TempDir(), "root")
	for _, dir := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "run", "opt/tool"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(root, "bin/busybox"), program, 0o755)
	names, err := exec.Command("busybox", "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(names)) {
		if name != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(t, filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644)
	write(t, filepath.Join(root, "etc/group"), []byte("root:x:0:\n"), 0o644)
	write(t, filepath.Join(root, "etc/plain"), []byte("no program\n"), 0o644)
	return root
}

// busybox reads the host's static busybox.
func busybox(t *testing.T) []byte {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is needed to make a small image; install it with: apt-get install busybox-static")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, name string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name, data, mode); err != nil {
		t.Fatal(err)
	}
}

// tarOf packs files by name into a tar.
func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name])), Typeflag: tar.TypeReg})
		if err == nil {
			_, err = io.WriteString(w, files[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// eventually polls until ok or the deadline.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
