package launcher

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
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

func init() {
	for name, test := range map[string]func(*testing.T, *bed){
		"Story": testStory, "Confined": testConfined, "ReadOnly": testReadOnly, "NotLive": testNotLive,
		"HungDaemon": testHungDaemon, "DeadMount": testDeadMount, "Subdirectories": testSubdirectories,
		"Replaced": testReplaced, "BehindOurBack": testBehindOurBack, "NoShell": testNoShell, "Names": testNames, "StartAgain": testStartAgain, "DeleteWaits": testDeleteWaits,
		"DeleteTimeout": testDeleteTimeout, "OneService": testOneService, "Refusals": testRefusals,
	} {
		sessionTests[name] = test
	}
}

// The user's story: what is written in a folder stays, what is written in the
// home goes with the session.
func testStory(t *testing.T, b *bed) {
	b.folder(t, "ml-test")
	dir := b.folder(t, "data")
	f := &folders{bed: b}
	s := b.create(t, f, "story-1", "ml-test", "data")
	if got := strings.Fields(b.must(t, s, "ls")); !slices.Equal(got, []string{"data", "ml-test"}) {
		t.Errorf("ls in the home: %v", got)
	}
	b.must(t, s, "printf 'from inside' > data/test_file; echo x > home_file")
	got, err := os.ReadFile(filepath.Join(dir, "test_file"))
	if err != nil || string(got) != "from inside" {
		t.Errorf("outside: %q, %v", got, err)
	}
	info, err := os.Stat(filepath.Join(dir, "test_file"))
	if err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != os.Getuid() {
		t.Errorf("its owner outside is not the user: %+v, %v", info, err)
	}
	out := podman(t, "ps", "--filter", "label=io.vfolder.session=1", "--format", "{{.Names}}")
	if strings.TrimSpace(out) != "story-1" {
		t.Errorf("podman ps: %s", out)
	}
	if _, err := b.Delete(t.Context(), f, "story-1", DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(f.synced)
	if !slices.Equal(f.synced, []string{"data", "ml-test"}) {
		t.Errorf("synced %v", f.synced)
	}
	if out := podman(t, "ps", "-a", "--format", "{{.Names}}"); strings.Contains(out, "story-1") {
		t.Errorf("podman still has it: %s", out)
	}
	s = b.create(t, f, "story-2", "data")
	if got := b.must(t, s, "cat data/test_file"); got != "from inside" {
		t.Errorf("in the second session: %q", got)
	}
	if out, code := b.run(t, s, "cat home_file"); code == 0 {
		t.Errorf("the home's file is still there: %q", out)
	}
}

// A session's user is work, owns the home, and can become nobody else.
func testConfined(t *testing.T, b *bed) {
	b.folder(t, "data")
	s := b.create(t, &folders{bed: b}, "confined", "data:deep/er/data")
	for script, want := range map[string]string{
		"id -u; id -g; id -un":          "1000\n1000\nwork\n",
		"pwd; echo $HOME $USER":         "/home/work\n/home/work work\n",
		"stat -c %u:%g . deep deep/er":  "1000:1000\n1000:1000\n1000:1000\n",
		"stat -c %u:%g /home":           "0:0\n",
		"touch home deep/x && echo yes": "yes\n",
		"echo $VFOLDER_SESSION":         "confined\n",
		"grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs)' /proc/self/status | tr -d '\\t ' | sort": "CapBnd:0000000000000000\nCapEff:0000000000000000\nCapPrm:0000000000000000\nNoNewPrivs:1\n",
		"mount -t tmpfs x /tmp 2>/dev/null || echo refused":                                    "refused\n",
		"chown 0 home 2>/dev/null || echo refused":                                             "refused\n",
		"touch /etc/x 2>/dev/null || echo refused":                                             "refused\n",
	} {
		if got := b.must(t, s, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	var seen []struct {
		EffectiveCaps []string
		HostConfig    struct {
			CapAdd, SecurityOpt []string
			Privileged          bool
		}
	}
	if err := json.Unmarshal([]byte(podman(t, "inspect", "confined")), &seen); err != nil || len(seen) != 1 {
		t.Fatal(err, len(seen))
	}
	c := seen[0]
	if len(c.EffectiveCaps) != 0 || len(c.HostConfig.CapAdd) != 0 || c.HostConfig.Privileged ||
		!slices.Contains(c.HostConfig.SecurityOpt, "no-new-privileges") {
		t.Errorf("podman inspect: %+v", c)
	}
}

func testReadOnly(t *testing.T, b *bed) {
	dir := b.folder(t, "shared")
	b.folder(t, "own")
	write(t, filepath.Join(dir, "x"), []byte("x"), 0o644)
	f := &folders{bed: b, readOnly: map[string]bool{"shared": true}}
	err := b.refused(t, f, "ro-refused", vfolder.KindReadOnly, "shared")
	var e *vfolder.Error
	if !errors.As(err, &e) || !strings.Contains(e.Fix, "shared:/home/work/shared:ro") {
		t.Errorf("no fix in %v", err)
	}
	s := b.create(t, f, "ro-taken", "shared:ro", "own:also:ro", "own:writable")
	if got := b.must(t, s, "cat shared/x"); got != "x" {
		t.Errorf("read %q", got)
	}
	for _, file := range []string{"shared/y", "also/y"} {
		if out, code := b.run(t, s, "touch "+file); code == 0 || !strings.Contains(out, "Read-only") {
			t.Errorf("touch %s: %d %s", file, code, out)
		}
	}
	b.must(t, s, "touch writable/y && test -e also/y")
	if got := s.Writable(); !slices.Equal(got, []string{"own"}) {
		t.Errorf("writable: %v", got)
	}
}

// A directory that is no live mount is never given to a session.
func testNotLive(t *testing.T, b *bed) {
	b.refused(t, &folders{bed: b}, "no-folder", vfolder.KindNotFound, "missing")
	b.refused(t, nil, "no-daemon", vfolder.KindDaemon, "missing")
	plain := &folders{bed: b, elsewhere: t.TempDir()}
	err := b.refused(t, plain, "plain-dir", vfolder.KindDaemon, "data")
	if !strings.Contains(err.Error(), "no FUSE mount") {
		t.Error(err)
	}
	b.refused(t, &folders{bed: b, elsewhere: filepath.Join(b.mnt, "gone")}, "gone-dir", vfolder.KindDaemon, "data")
	if _, err := b.Create(t.Context(), nil, Options{Name: "no-image", Image: "localhost/none"}); !errors.Is(err, vfolder.KindNotFound) {
		t.Errorf("without an image: %v", err)
	}
}

// slowRoot answers no statfs until it is let go, as a daemon that hangs.
type slowRoot struct {
	fs.LoopbackNode
	release <-chan struct{}
}

func (r *slowRoot) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	<-r.release
	return 0
}

// A daemon that hangs must not hang the launcher.
func testHungDaemon(t *testing.T, b *bed) {
	release := make(chan struct{})
	mnt, backing := mountLoopback(t, func(data *fs.LoopbackRoot) fs.InodeEmbedder {
		return &slowRoot{LoopbackNode: fs.LoopbackNode{RootData: data}, release: release}
	})
	t.Cleanup(func() { close(release) })
	write(t, filepath.Join(backing, "x"), nil, 0o644)
	old := probeTimeout
	probeTimeout = time.Second
	t.Cleanup(func() { probeTimeout = old })
	err := b.refused(t, &folders{bed: b, elsewhere: mnt}, "hung", vfolder.KindDaemon, "data")
	if !strings.Contains(err.Error(), "did not answer within") {
		t.Error(err)
	}
}

// A mount whose daemon was killed answers ENOTCONN: no session starts with it, a
// stopped one neither.
func testDeadMount(t *testing.T, b *bed) {
	mnt, backing := mountpoint(t), t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	server := exec.Command(self)
	server.Env = append(os.Environ(), "VFOLDER_TEST_SERVE="+mnt, "VFOLDER_TEST_BACKING="+backing)
	out, err := server.StdoutPipe()
	if err == nil {
		err = server.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		if text, err := exec.Command("fusermount3", "-u", "-z", mnt).CombinedOutput(); err != nil {
			t.Errorf("unmount: %v: %s", err, text)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "mounted\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := os.Mkdir(filepath.Join(backing, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	f := &folders{bed: b, elsewhere: filepath.Join(mnt, "data")}
	s := b.create(t, f, "dead-stopped", "data")
	b.must(t, s, "touch data/x")
	if _, err := b.Stop(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
	b.refused(t, f, "dead-new", vfolder.KindDaemon, "data")
	if _, err := b.Start(t.Context(), f, s.ID); !errors.Is(err, vfolder.KindDaemon) {
		t.Errorf("a stopped session started: %v", err)
	}
	if out := podman(t, "ps", "--format", "{{.Names}}"); strings.Contains(out, "dead-stopped") {
		t.Error("it runs")
	}
}

// A folder that was replaced below a running proof is noticed: the container
// gets a directory that is not the one that was found live.
func testReplaced(t *testing.T, b *bed) {
	b.folder(t, "data")
	b.folder(t, "other")
	f := &folders{bed: b}
	s := b.create(t, f, "replaced", "data")
	sources, err := prepare(t.Context(), f, s.Mounts)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.prove(t.Context(), s, sources); err != nil {
		t.Fatal(err)
	}
	wrong := sources[0]
	wrong.root = "/other"
	if err := b.prove(t.Context(), s, []source{wrong}); !errors.Is(err, vfolder.KindDaemon) {
		t.Errorf("another directory was taken for the folder: %v", err)
	}
	missing := sources[0]
	missing.mount.Target = "/home/work/nothing"
	if err := b.prove(t.Context(), s, []source{missing}); err == nil || !strings.Contains(err.Error(), "nothing is mounted") {
		t.Errorf("a missing mount: %v", err)
	}
}

// A container that carries our labels, but was started behind our back without
// its folders, runs nothing of the user.
func testBehindOurBack(t *testing.T, b *bed) {
	podman(t, "run", "-d", "--name", "behind", "--network", "none", "--label", "io.vfolder.session=1",
		"--label", `io.vfolder.mounts=[{"folder":"data","target":"/home/work/data"}]`, b.image, "sleep", "1000")
	t.Cleanup(func() { podman(t, "rm", "-f", "-t", "0", "behind") })
	if _, err := b.Exec(t.Context(), "behind", ExecOptions{Command: []string{"true"}}); !errors.Is(err, vfolder.KindDaemon) {
		t.Errorf("a command ran without its folder: %v", err)
	}
}

func testSubdirectories(t *testing.T, b *bed) {
	dir := b.folder(t, "data")
	if err := os.MkdirAll(filepath.Join(dir, "a b/c"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "a b/c/file"), []byte("deep"), 0o644)
	for name, target := range map[string]string{"out": "/etc", "up": "..", "in": "a b"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	f := &folders{bed: b}
	s := b.create(t, f, "sub", "data/a b/c:x", "data:/data:ro")
	if got := b.must(t, s, "cat /home/work/x/file; cat '/data/a b/c/file'"); got != "deepdeep" {
		t.Errorf("read %q", got)
	}
	b.refused(t, f, "sub-missing", vfolder.KindNotFound, "data/nosuch:x")
	b.refused(t, f, "sub-file", vfolder.KindNotDir, "data/a b/c/file:x")
	for _, link := range []string{"out", "up", "in", "in/c"} {
		b.refused(t, f, "sub-link", vfolder.KindLoop, "data/"+link+":x")
	}
}

// An image of one program, without a shell: the proof looks from outside.
func testNoShell(t *testing.T, b *bed) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "busybox"), busybox(t), 0o755)
	image := "localhost/vfolder-test-noshell:1"
	if _, err := b.ImportImage(t.Context(), root, image); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { podman(t, "rmi", "-f", image) })
	b.folder(t, "data")
	small := *b
	small.image = image
	s := small.create(t, &folders{bed: b}, "noshell", "data")
	code, err := b.Exec(t.Context(), s.ID, ExecOptions{Command: []string{"/busybox", "touch", "/home/work/data/f", "/home/work/g"}})
	if err != nil || code != 0 {
		t.Errorf("touch: %d, %v", code, err)
	}
	if _, err := os.Stat(filepath.Join(b.backing, "data/f")); err != nil {
		t.Error(err)
	}
}

// Sessions are named by name or id; other containers are none of our business.
func testNames(t *testing.T, b *bed) {
	podman(t, "create", "--name", "foreign", b.image, "true")
	t.Cleanup(func() { podman(t, "rm", "-f", "foreign") })
	s := b.create(t, nil, "named")
	for _, ref := range []string{"named", s.ID, s.ID[:12], s.ID[:4]} {
		if got, err := b.Find(t.Context(), ref); err != nil || got.ID != s.ID {
			t.Errorf("%s: %v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"foreign", "name", s.ID[:3], ""} {
		if got, err := b.Find(t.Context(), ref); !errors.Is(err, vfolder.KindNotFound) {
			t.Errorf("%q: %v, %v", ref, got, err)
		}
	}
	if _, err := b.Delete(t.Context(), nil, "foreign", DeleteOptions{}); !errors.Is(err, vfolder.KindNotFound) {
		t.Errorf("deleting a foreign container: %v", err)
	}
	for _, name := range []string{"named", "foreign"} {
		if _, err := b.Create(t.Context(), nil, Options{Name: name, Image: b.image}); !errors.Is(err, vfolder.KindExists) {
			t.Errorf("a second %s: %v", name, err)
		}
	}
	for _, name := range []string{"-x", "a b", "a/b", strings.Repeat("x", 64)} {
		if _, err := b.Create(t.Context(), nil, Options{Name: name, Image: b.image}); !errors.Is(err, vfolder.KindInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	list, err := b.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "named" {
		t.Errorf("list: %+v, %v", list, err)
	}
}

func testStartAgain(t *testing.T, b *bed) {
	b.folder(t, "data")
	f := &folders{bed: b}
	s := b.create(t, f, "again", "data")
	b.must(t, s, "echo kept > home_file")
	live, err := Live(t.Context())
	if err != nil || len(live) != 1 || live[0].Name != "again" || !slices.Equal(live[0].Mounts, s.Mounts) {
		t.Errorf("live: %+v, %v", live, err)
	}
	for range 2 {
		if _, err := b.Stop(t.Context(), "again"); err != nil {
			t.Fatal(err)
		}
	}
	if live, err := Live(t.Context()); err != nil || len(live) != 0 {
		t.Errorf("live when stopped: %+v, %v", live, err)
	}
	if _, err := b.Exec(t.Context(), "again", ExecOptions{Command: []string{"true"}}); !errors.Is(err, vfolder.KindConflict) {
		t.Errorf("exec when stopped: %v", err)
	}
	for range 2 {
		if s, err = b.Start(t.Context(), f, "again"); err != nil || !s.Running() {
			t.Fatalf("%+v, %v", s, err)
		}
	}
	if got := b.must(t, s, "cat home_file"); got != "kept\n" {
		t.Errorf("the home after stop and start: %q", got)
	}
}

// While Delete waits for the bucket the container is stopped and still there.
func testDeleteWaits(t *testing.T, b *bed) {
	b.folder(t, "data")
	f := &folders{bed: b}
	s := b.create(t, f, "waits", "data", "data:again:ro")
	f.sync = func(_ context.Context, _ string, progress func(int, int64)) error {
		if got := strings.TrimSpace(podman(t, "inspect", "--format", "{{.State.Status}}", s.ID)); got != "exited" {
			t.Errorf("during the wait it is %s", got)
		}
		progress(2, 2000)
		progress(0, 0)
		return nil
	}
	var seen []Left
	if _, err := b.Delete(t.Context(), f, "waits", DeleteOptions{Progress: func(l Left) { seen = append(seen, l) }}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(seen, []Left{{"data", 2, 2000}, {"data", 0, 0}}) || !slices.Equal(f.synced, []string{"data"}) {
		t.Errorf("progress %v, synced %v", seen, f.synced)
	}
}

func testDeleteTimeout(t *testing.T, b *bed) {
	b.folder(t, "slow")
	b.folder(t, "quick")
	b.folder(t, "broken")
	f := &folders{bed: b, sync: func(ctx context.Context, name string, progress func(int, int64)) error {
		switch name {
		case "slow":
			progress(7, 4096)
			<-ctx.Done()
			return ctx.Err()
		case "broken":
			return vfolder.Errorf(vfolder.KindUnreachable, "sync", name, "the store is away")
		}
		return nil
	}}
	b.create(t, f, "late", "slow", "quick")
	_, err := b.Delete(t.Context(), f, "late", DeleteOptions{Timeout: 300 * time.Millisecond})
	if !errors.Is(err, vfolder.KindTimeout) || vfolder.KindOf(err).Info().Exit != 3 {
		t.Errorf("kind %v: %v", vfolder.KindOf(err), err)
	}
	if text := err.Error(); !strings.Contains(text, `7 files (4096 bytes) of folder "slow"`) || strings.Contains(text, "quick") {
		t.Error(text)
	}
	if s, err := b.Find(t.Context(), "late"); err != nil || s.State != "exited" {
		t.Errorf("afterwards: %+v, %v", s, err)
	}
	if _, err := b.Delete(t.Context(), nil, "late", DeleteOptions{}); !errors.Is(err, vfolder.KindDaemon) {
		t.Errorf("without a daemon: %v", err)
	}
	if _, err := b.Delete(t.Context(), nil, "late", DeleteOptions{NoWait: true}); err != nil {
		t.Error(err)
	}
	b.create(t, f, "failing", "broken")
	if _, err := b.Delete(t.Context(), f, "failing", DeleteOptions{}); !errors.Is(err, vfolder.KindUnreachable) {
		t.Errorf("a failing store: %v", err)
	}
	if _, err := b.Find(t.Context(), "failing"); err != nil {
		t.Error(err)
	}
}

// Callers at the same time start one service, and a left-over socket is in
// nobody's way.
func testOneService(t *testing.T, _ *bed) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	write(t, socket, nil, 0o600)
	var wait sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wait.Go(func() { errs[i] = startService(t.Context(), socket) })
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	var pids []string
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range entries {
		if data, err := os.ReadFile(name); err == nil && strings.Contains(string(data), "unix://"+socket) {
			pids = append(pids, filepath.Base(filepath.Dir(name)))
		}
	}
	if len(pids) != 1 {
		t.Errorf("services: %v", pids)
	}
	for _, pid := range pids {
		stopProcess(t, pid)
	}
	l, err := dial(t.Context(), socket)
	if err == nil {
		l.Close()
		t.Error("a service that is gone was connected")
	}
}
