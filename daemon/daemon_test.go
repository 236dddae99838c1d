package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/config"
	"github.com/vfolder/vfolder/control"
)

const bindingTags = "remote containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper"

// bin holds the real programs, built once.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "vfolder-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	for _, name := range []string{"vfolderd", "vfolder"} {
		build := exec.Command("go", "build", "-tags", bindingTags, "-o", filepath.Join(bin, name), "../cmd/"+name)
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", name, err, out)
			return 1
		}
	}
	return m.Run()
}

// host is a home of its own with a daemon in it.
type host struct {
	t    *testing.T
	home string
	env  []string
	api  *control.Client
}

// newHost makes the directories; env adds settings. The daemon is stopped, or
// killed, at the end of the test.
func newHost(t *testing.T, env ...string) *host {
	t.Helper()
	h := &host{t: t, home: t.TempDir()}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "XDG_") && !strings.HasPrefix(kv, "VFOLDER_") && !strings.HasPrefix(kv, "HOME=") {
			h.env = append(h.env, kv)
		}
	}
	h.env = append(h.env, "HOME="+h.home, "XDG_RUNTIME_DIR="+h.home+"/run")
	h.env = append(h.env, env...)
	h.api = control.Dial(filepath.Join(h.home, "run", "vfolder", "control.sock"))
	t.Cleanup(h.destroy)
	return h
}

func (h *host) state(name string) string {
	return filepath.Join(h.home, ".local", "state", "vfolder", name)
}

func (h *host) mount(name ...string) string {
	return filepath.Join(append([]string{h.home, "run", "vfolder", "mnt"}, name...)...)
}

func (h *host) destroy() {
	if h.t.Failed() {
		log, _ := os.ReadFile(h.state("log/vfolderd.log"))
		h.t.Logf("log of %s:\n%s", h.home, log)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if st, err := h.api.Status(ctx); err == nil {
		_, err = h.api.Stop(ctx, control.StopOptions{}, nil)
		if err == nil {
			err = gone(st.PID)
		}
		if err != nil {
			h.t.Errorf("stop: %v", err)
			_ = unix.Kill(st.PID, unix.SIGKILL)
		}
	}
	_ = h.api.Close()
	_ = unix.Unmount(h.mount(), unix.MNT_DETACH)
}

func gone(pid int) error {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", pid)
}

// try runs the command line and returns output and exit code.
func (h *host) try(args ...string) (stdout, stderr string, code int) {
	h.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "vfolder"), args...)
	cmd.Env = h.env
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	return out.String(), talk.String(), cmd.ProcessState.ExitCode()
}

func (h *host) must(args ...string) string {
	h.t.Helper()
	out, talk, code := h.try(args...)
	if code != 0 {
		h.t.Fatalf("vfolder %s: exit code %d: %s", strings.Join(args, " "), code, talk)
	}
	return out
}

func (h *host) status() control.DaemonStatus {
	h.t.Helper()
	var st control.DaemonStatus
	if err := json.Unmarshal([]byte(h.must("daemon", "status", "--format", "json")), &st); err != nil {
		h.t.Fatal(err)
	}
	return st
}

// bucket is a plain S3 client of the host's store.
func (h *host) bucket() *minio.Client {
	h.t.Helper()
	keys, err := config.ReadCredentials(h.state("credentials.toml"))
	if err != nil {
		h.t.Fatal(err)
	}
	addr, err := os.ReadFile(h.state("store.addr"))
	if err != nil {
		h.t.Fatal(err)
	}
	c, err := minio.New(strings.TrimSpace(string(addr)), &minio.Options{
		Creds: credentials.NewStaticV4(keys.AccessKey, keys.SecretKey, ""), BucketLookup: minio.BucketLookupPath,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *host) object(key string) []byte {
	h.t.Helper()
	o, err := h.bucket().GetObject(h.t.Context(), config.DefaultBucket, key, minio.GetObjectOptions{})
	if err != nil {
		h.t.Fatal(err)
	}
	defer o.Close()
	b, err := io.ReadAll(o)
	if err != nil {
		h.t.Fatalf("object %s: %v", key, err)
	}
	return b
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestStory is what a user does: start, folders, files through the mount and
// the command line, the bucket seen by another program, a second host, stop.
func TestStory(t *testing.T) {
	h := newHost(t)
	if _, talk, code := h.try("folder", "list"); code != vfolder.KindDaemon.Info().Exit || !strings.Contains(talk, "fix: vfolder daemon start") {
		t.Errorf("without a daemon: %d, %s", code, talk)
	}
	if _, _, code := h.try("daemon", "status"); code != vfolder.KindDaemon.Info().Exit {
		t.Errorf("status without a daemon: %d", code)
	}
	h.must("daemon", "start")
	if _, talk, code := h.try("daemon", "start"); code != 0 || !strings.Contains(talk, "already running") {
		t.Errorf("second start: %d, %s", code, talk)
	}
	if out := h.must("folder", "create", "data", "more"); out != "data\nmore\n" {
		t.Errorf("create said %q", out)
	}
	if out := h.must("folder", "list", "-q"); out != "data\nmore\n" {
		t.Errorf("list said %q", out)
	}
	if out := h.must("folder", "path", "data"); out != h.mount("data")+"\n" {
		t.Errorf("path said %q", out)
	}
	write(t, h.mount("data", "test_file"), "file inside data")
	if err := os.Mkdir(h.mount("data", "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	local := filepath.Join(h.home, "local")
	write(t, local, "from a local file")
	h.must("cp", local, "data:dir/copied")
	if got := read(t, h.mount("data", "dir", "copied")); got != "from a local file" {
		t.Errorf("copied file has %q", got)
	}
	if err := os.Mkdir(h.mount("made-here"), 0o755); !errors.Is(err, unix.EPERM) {
		t.Errorf("mkdir at the root: %v", err)
	}
	h.must("folder", "sync", "data")
	if got := h.object("data/test_file"); string(got) != "file inside data" {
		t.Errorf("object has %q", got)
	}
	if got := h.object("data/dir/copied"); string(got) != "from a local file" {
		t.Errorf("object has %q", got)
	}
	if got := h.must("cat", "data:test_file"); got != "file inside data" {
		t.Errorf("cat said %q", got)
	}
	h.must("cp", "-r", "data:", filepath.Join(h.home, "out"))
	if got := read(t, filepath.Join(h.home, "out", "dir", "copied")); got != "from a local file" {
		t.Errorf("downloaded %q", got)
	}
	for args, want := range map[string]vfolder.Kind{
		"folder create data":     vfolder.KindExists,
		"folder create a/b":      vfolder.KindInvalid,
		"folder show none":       vfolder.KindNotFound,
		"cat data:none":          vfolder.KindNotFound,
		"cat data:dir":           vfolder.KindIsDir,
		"folder delete data":     vfolder.KindInvalid, // no terminal, no --yes
		"cp data:dir " + h.home:  vfolder.KindIsDir,
		"ls data:../more":        vfolder.KindInvalid,
		"cp a-local-file b-file": vfolder.KindInvalid,
	} {
		if _, talk, code := h.try(strings.Fields(args)...); code != want.Info().Exit {
			t.Errorf("%s: exit code %d, want %d: %s", args, code, want.Info().Exit, talk)
		}
	}

	// The bucket alone is enough: another host, nothing but the bucket.
	keys := h.state("credentials.toml")
	addr := strings.TrimSpace(read(t, h.state("store.addr")))
	second := newHost(t, "VFOLDER_STORE_ENDPOINT=http://"+addr, "VFOLDER_STORE_PATH_STYLE=true", "VFOLDER_STORE_CREDENTIALS_FILE="+keys)
	second.must("daemon", "start")
	if got := second.must("cat", "data:dir/copied"); got != "from a local file" {
		t.Errorf("second host reads %q", got)
	}
	if got := read(t, second.mount("data", "test_file")); got != "file inside data" {
		t.Errorf("second host's mount reads %q", got)
	}
	second.must("daemon", "stop")

	h.must("folder", "delete", "more", "--yes")
	if out := h.must("folder", "list", "-q"); out != "data\n" {
		t.Errorf("after the deletion: %q", out)
	}
	st := h.status()
	_, talk, code := h.try("daemon", "stop")
	if code != 0 || !strings.Contains(talk, "unmounted "+h.mount()) {
		t.Errorf("stop: %d, %s", code, talk)
	}
	if err := gone(st.PID); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(h.mount()); err != nil || len(names) != 0 {
		t.Errorf("still mounted: %v, %v", names, err)
	}
	h.must("daemon", "start")
	if got := read(t, h.mount("data", "test_file")); got != "file inside data" {
		t.Errorf("after a restart: %q", got)
	}
}

// TestKilledWorker writes while the worker is killed: nobody sees an error, and
// every byte is there, in the mount and in the bucket.
func TestKilledWorker(t *testing.T) {
	h := newHost(t)
	h.must("daemon", "start")
	h.must("folder", "create", "data")
	var stop atomic.Bool
	var count atomic.Int64
	// some waits until the writer got on.
	some := func() {
		t.Helper()
		for from, deadline := count.Load(), time.Now().Add(20*time.Second); count.Load() < from+20; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the writer does not get on")
			}
		}
	}
	type result struct {
		written int
		err     error
	}
	done := make(chan result, 1)
	go func() {
		n := 0
		for ; !stop.Load(); n++ {
			if err := os.WriteFile(h.mount("data", fmt.Sprintf("f%05d", n)), []byte(fmt.Sprintf("content of %d", n)), 0o644); err != nil {
				done <- result{n, err}
				return
			}
			count.Add(1)
		}
		done <- result{n, nil}
	}()
	seen := h.status().Worker
	for range 3 {
		some()
		if err := unix.Kill(seen, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		was := seen
		for deadline := time.Now().Add(20 * time.Second); seen == was; {
			if time.Now().After(deadline) {
				t.Fatal("no new worker")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if st, err := h.api.Status(ctx); err == nil {
				seen = st.Worker
			}
			cancel()
		}
	}
	// A planned restart and a restart of the whole daemon are no different.
	h.must("daemon", "restart")
	before := h.status()
	if err := unix.Kill(before.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		st, err := h.api.Status(ctx)
		cancel()
		if err == nil && st.Worker != before.Worker {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no worker after SIGTERM: %v", err)
		}
	}
	some()
	stop.Store(true)
	r := <-done
	if r.err != nil {
		t.Fatalf("the writer saw an error at file %d: %v", r.written, r.err)
	}
	for n := range r.written {
		if got := read(t, h.mount("data", fmt.Sprintf("f%05d", n))); got != fmt.Sprintf("content of %d", n) {
			t.Fatalf("file %d has %q", n, got)
		}
	}
	h.must("folder", "sync", "data")
	for _, n := range []int{0, r.written / 2, r.written - 1} {
		if got := h.object(fmt.Sprintf("data/f%05d", n)); string(got) != fmt.Sprintf("content of %d", n) {
			t.Errorf("object %d has %q", n, got)
		}
	}
	t.Logf("%d files", r.written)
}

// TestStoreDown kills the store: what is local goes on, and what was written
// meanwhile gets to the bucket when it is back.
func TestStoreDown(t *testing.T) {
	h := newHost(t, "VFOLDER_DAEMON_LOG_LEVEL=debug")
	// The first life makes the store; the second uses it as a foreign one, which
	// can be taken away.
	h.must("daemon", "start")
	h.must("folder", "create", "data")
	write(t, h.mount("data", "old"), "old")
	h.must("folder", "sync", "data")
	addr := strings.TrimSpace(read(t, h.state("store.addr")))

	second := newHost(t, "VFOLDER_STORE_ENDPOINT=http://"+addr, "VFOLDER_STORE_PATH_STYLE=true", "VFOLDER_STORE_CREDENTIALS_FILE="+h.state("credentials.toml"))
	second.must("daemon", "start")
	second.must("folder", "create", "mine")
	write(t, second.mount("mine", "first"), "1")
	second.must("folder", "sync", "mine")
	h.must("daemon", "stop")

	write(t, second.mount("mine", "second"), "2")
	if st := second.status(); st.Store.Reachable || st.Store.Error == "" || !st.Mounted {
		t.Errorf("status with the store down: %+v", st)
	}
	if _, _, code := second.try("folder", "sync", "mine", "--timeout=1s"); code != vfolder.KindPartial.Info().Exit {
		t.Errorf("sync with the store down: exit code %d", code)
	}
	// A worker that starts meanwhile serves what is local, and goes on writing
	// where it may.
	second.must("daemon", "restart")
	if got := read(t, second.mount("mine", "first")); got != "1" {
		t.Errorf("local file has %q", got)
	}
	write(t, second.mount("mine", "third"), "3")
	h.must("daemon", "start")
	second.must("folder", "sync", "mine", "--timeout=60s")
	for name, want := range map[string]string{"first": "1", "second": "2", "third": "3"} {
		if got := h.object("mine/" + name); string(got) != want {
			t.Errorf("object %s has %q", name, got)
		}
	}
}

// TestRefusals are starts that cannot work: each says why and what to do.
func TestRefusals(t *testing.T) {
	h := newHost(t)
	h.must("daemon", "start")
	other := newHost(t, "VFOLDER_DAEMON_STATE_DIR="+h.state(""))
	_, talk, code := other.try("daemon", "start")
	if want := fmt.Sprintf("already running, pid %d", h.status().PID); code != vfolder.KindBusy.Info().Exit || !strings.Contains(talk, want) {
		t.Errorf("same state directory: %d, %s", code, talk)
	}
	bad := newHost(t, "VFOLDER_STORE_ENDPOINT=http://127.0.0.1:1", "VFOLDER_STORE_CREDENTIALS_FILE=/nowhere/keys.toml")
	_, talk, code = bad.try("daemon", "start")
	if code != vfolder.KindNotFound.Info().Exit || !strings.Contains(talk, "/nowhere/keys.toml") {
		t.Errorf("no credentials: %d, %s", code, talk)
	}
	broken := newHost(t)
	if err := os.MkdirAll(broken.state("index"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(broken.state("index"), "MANIFEST"), "this is no manifest at all")
	_, talk, code = broken.try("daemon", "start")
	if code != vfolder.KindCorrupt.Info().Exit || !strings.Contains(talk, "open index") {
		t.Errorf("broken index: %d, %s", code, talk)
	}
	if names, err := os.ReadDir(broken.mount()); err != nil || len(names) != 0 {
		t.Errorf("a failed start left a mount: %v, %v", names, err)
	}
}
