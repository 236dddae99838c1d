package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/vfolder/vfolder/config"
	"github.com/vfolder/vfolder/control"
	"github.com/vfolder/vfolder/objstore"
)

// host is a user's machine as far as vfolder can see: a home, a runtime
// directory, one daemon.
type host struct {
	t   *testing.T
	dir string
	env []string
}

// newHost makes a host whose daemon uses the bucket of cfg, or, with nil, its
// own embedded store. The daemon is not started.
func newHost(t *testing.T, cfg *objstore.Config) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, dir: dir}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "VFOLDER_") && !strings.HasPrefix(kv, "XDG_CONFIG_HOME=") {
			h.env = append(h.env, kv)
		}
	}
	h.env = append(h.env, "VFOLDER_DAEMON_STATE_DIR="+filepath.Join(dir, "state"), "VFOLDER_DAEMON_RUN_DIR="+filepath.Join(dir, "run"),
		"PATH="+os.Getenv("VFOLDER_BIN")+":"+os.Getenv("PATH"))
	file := filepath.Join(dir, "credentials.toml") // an embedded store makes it
	h.env = append(h.env, "VFOLDER_STORE_CREDENTIALS_FILE="+file)
	if cfg != nil {
		text := fmt.Sprintf("access_key = %q\nsecret_key = %q\n", cfg.AccessKey, cfg.SecretKey)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h.env = append(h.env, "VFOLDER_STORE_ENDPOINT=http://"+cfg.Endpoint, "VFOLDER_STORE_BUCKET="+cfg.Bucket, "VFOLDER_STORE_PATH_STYLE=true",
			"VFOLDER_STORE_CREATE_BUCKET=true")
	}
	t.Cleanup(func() {
		h.stopDaemon()
		if t.Failed() {
			h.showLogs()
		}
	})
	return h
}

func (h *host) showLogs() {
	logs, _ := filepath.Glob(filepath.Join(h.dir, "state", "log", "*"))
	for _, f := range logs {
		b, err := os.ReadFile(f)
		if err == nil {
			h.t.Logf("--- %s\n%s", filepath.Base(f), b[max(0, len(b)-6000):])
		}
	}
}

// start starts the daemon and fails the test when it does not come up.
func (h *host) start() *host {
	h.t.Helper()
	h.vf("daemon", "start")
	return h
}

// stopDaemon stops the daemon if it runs. A daemon that cannot drain in time
// is ended all the same: its state is temporary.
func (h *host) stopDaemon() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := h.command(ctx, "vfolder", "daemon", "stop", "--timeout", "20s")
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState != nil && cmd.ProcessState.ExitCode() != 10 {
		h.t.Logf("daemon stop: %v\n%s", err, out)
		h.killAll()
	}
}

// killAll ends what runs on this host's directories, and its mount.
func (h *host) killAll() {
	for _, pid := range h.processes("") {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	exec.Command("fusermount3", "-uz", filepath.Join(h.dir, "run", "mnt")).Run()
}

// processes finds this host's vfolderd processes whose second argument is role
// ("" for any).
func (h *host) processes(role string) []int {
	var out []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		env, err := os.ReadFile(filepath.Join(d, "environ"))
		if err != nil || !bytes.Contains(env, []byte("VFOLDER_DAEMON_STATE_DIR="+filepath.Join(h.dir, "state")+"\x00")) {
			continue
		}
		args, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		argv := strings.Split(string(args), "\x00")
		if len(argv) < 2 || filepath.Base(argv[0]) != "vfolderd" || role != "" && argv[1] != role {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(d))
		out = append(out, pid)
	}
	return out
}

func (h *host) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if name == "vfolder" || name == "vfolderd" {
		name = filepath.Join(os.Getenv("VFOLDER_BIN"), name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = h.env
	cmd.Dir = h.dir
	return cmd
}

// vf runs the command line and returns its standard output; it must succeed.
func (h *host) vf(args ...string) string {
	h.t.Helper()
	out, errOut, code := h.try(args...)
	if code != 0 {
		h.t.Fatalf("vfolder %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errOut)
	}
	return out
}

// try runs the command line.
func (h *host) try(args ...string) (stdout, stderr string, code int) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := h.command(ctx, "vfolder", args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		h.t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// sh runs a shell script in a directory; it must succeed.
func (h *host) sh(dir, script string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := h.command(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.t.Fatalf("in %s: %v\n%s\n%s", dir, err, script, out[max(0, len(out)-4000):])
	}
	return string(out)
}

// folder makes a folder and returns its path below the mount.
func (h *host) folder(name string) string {
	h.t.Helper()
	h.vf("folder", "create", name)
	return h.path(name)
}

func (h *host) path(name string) string {
	h.t.Helper()
	return strings.TrimSpace(h.vf("folder", "path", name))
}

func (h *host) sync(name string) { h.t.Helper(); h.vf("folder", "sync", name) }

// embedded tells how to reach the daemon's own object store.
func (h *host) embedded() objstore.Config {
	h.t.Helper()
	st := parse[control.DaemonStatus](h.t, h.vf("daemon", "status", "--format", "json"))
	keys, err := config.ReadCredentials(filepath.Join(h.dir, "credentials.toml"))
	if err != nil {
		h.t.Fatal(err)
	}
	endpoint := st.Store.Endpoint
	if _, rest, ok := strings.Cut(endpoint, "://"); ok {
		endpoint = rest
	}
	return objstore.Config{Endpoint: endpoint, Bucket: st.Store.Bucket, AccessKey: keys.AccessKey, SecretKey: keys.SecretKey}
}

// client is an S3 client that shares nothing with vfolder's own.
func client(t *testing.T, cfg objstore.Config) *minio.Client {
	t.Helper()
	c, err := minio.New(cfg.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, "")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// objects lists what lies below a prefix, by the key after it.
func objects(t *testing.T, c *minio.Client, bucket, prefix string) map[string]minio.ObjectInfo {
	t.Helper()
	out := map[string]minio.ObjectInfo{}
	for o := range c.ListObjects(t.Context(), bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		out[strings.TrimPrefix(o.Key, prefix)] = o
	}
	return out
}

func object(t *testing.T, c *minio.Client, bucket, key string) []byte {
	t.Helper()
	o, err := c.GetObject(t.Context(), bucket, key, minio.GetObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	b, err := io.ReadAll(o)
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return b
}

// tree describes every node below a directory: type, mode, owner, size, mtime,
// target, group of hard links and a checksum of the bytes.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	first := map[uint64]string{}
	var walk func(string)
	walk = func(rel string) {
		entries, err := os.ReadDir(filepath.Join(dir, rel))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			p := filepath.Join(rel, e.Name())
			full := filepath.Join(dir, p)
			var st syscall.Stat_t
			if err := syscall.Lstat(full, &st); err != nil {
				t.Fatal(err)
			}
			line := fmt.Sprintf("mode %o owner %d:%d", st.Mode, st.Uid, st.Gid)
			switch st.Mode & syscall.S_IFMT {
			case syscall.S_IFDIR:
				walk(p)
			case syscall.S_IFLNK:
				target, err := os.Readlink(full)
				if err != nil {
					t.Fatal(err)
				}
				line += " -> " + target
			case syscall.S_IFREG:
				line += fmt.Sprintf(" size %d mtime %d.%09d links %d sum %s", st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Nlink, sum(t, full))
				if st.Nlink > 1 {
					if f, ok := first[st.Ino]; ok {
						line += " same as " + f
					} else {
						first[st.Ino] = p
					}
				}
			}
			out[p] = line
		}
	}
	walk("")
	return out
}

// sameTree fails the test with the first differences.
func sameTree(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	var diff []string
	for p, w := range want {
		if g, ok := got[p]; !ok {
			diff = append(diff, p+": missing")
		} else if g != w {
			diff = append(diff, fmt.Sprintf("%s:\n   want %s\n   got  %s", p, w, g))
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			diff = append(diff, p+": should not be there")
		}
	}
	sort.Strings(diff)
	if len(diff) > 0 {
		t.Errorf("%s: %d differences\n%s", what, len(diff), strings.Join(diff[:min(len(diff), 20)], "\n"))
	}
}

// eventually polls until ok, and fails the test after a generous while.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen in 90 s: %s", what)
		}
	}
}

func parse[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}
