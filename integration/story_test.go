package integration

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// sessionImage makes a small image of Debian's static busybox with the user
// work, once per run, and imports it as localhost/vfolder-test.
var sessionImage = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "image")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	tar := filepath.Join(dir, "image.tar")
	script := `
mkdir -p root/bin root/etc root/home/work root/tmp root/proc root/sys root/dev root/run
cp /bin/busybox root/bin/
for a in sh ls cat echo mkdir rm sleep test stat touch head sync ps id mount df wc; do ln -s busybox root/bin/$a; done
echo 'root:x:0:0:root:/root:/bin/sh
work:x:1000:1000:work:/home/work:/bin/sh' >root/etc/passwd
echo 'root:x:0:
work:x:1000:' >root/etc/group
tar --owner=0 --group=0 -C root --exclude=./home/work -cf image.tar .
tar --owner=1000 --group=1000 -C root -rf image.tar ./home/work`
	cmd := exec.Command("bash", "-euc", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return string(out), err
	}
	out, err := exec.Command("podman", "import", "-q", tar, "localhost/vfolder-test:latest").CombinedOutput()
	return string(out), err
})

func image(t *testing.T) string {
	t.Helper()
	if out, err := sessionImage(); err != nil {
		t.Fatalf("session image: %v\n%s", err, out)
	}
	return "localhost/vfolder-test:latest"
}

func podman(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	out, err := exec.CommandContext(ctx, "podman", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestStory is the user's story, each step checked from outside.
func TestStory(t *testing.T) {
	img := image(t)
	h := newHost(t, nil).start()
	h.vf("folder", "create", "user1-ml-test")
	h.vf("folder", "create", "user2-vfolder")

	h.vf("session", "create", "--name", "first", "--image", img, "--mount", "user1-ml-test", "--mount", "user2-vfolder")
	t.Cleanup(func() { h.try("session", "delete", "--no-wait", "--yes", "second") })
	t.Cleanup(func() { h.try("session", "delete", "--no-wait", "--yes", "first") })
	ls := h.vf("session", "exec", "first", "--", "ls", "/home/work")
	for _, name := range []string{"user1-ml-test", "user2-vfolder"} {
		if !strings.Contains(ls, name) {
			t.Errorf("ls in the session does not show %s: %q", name, ls)
		}
	}
	mounts := podman(t, "exec", "first", "cat", "/proc/self/mountinfo")
	for _, target := range []string{"/home/work/user1-ml-test", "/home/work/user2-vfolder"} {
		if !strings.Contains(mounts, target+" ") {
			t.Errorf("%s is no mount in the session:\n%s", target, mounts)
		}
	}
	if id := strings.TrimSpace(h.vf("session", "exec", "first", "--", "id", "-u")); id != "1000" {
		t.Errorf("the session's user is %s, want 1000", id)
	}
	h.vf("session", "exec", "first", "--", "sh", "-c",
		"echo 'file inside user2-vfolder' >user2-vfolder/test_file && echo gone >/home/work/in_the_home && stat -c '%u:%g' user2-vfolder/test_file")
	if got, err := os.ReadFile(filepath.Join(h.path("user2-vfolder"), "test_file")); err != nil || string(got) != "file inside user2-vfolder\n" {
		t.Errorf("on the host the file holds %q (%v)", got, err)
	}

	h.vf("session", "delete", "--yes", "first")
	if out, err := exec.Command("podman", "container", "exists", "first").CombinedOutput(); err == nil {
		t.Errorf("the container is still there: %s", out)
	}
	// "Deleted" means in the bucket: no sync in between.
	cfg := h.embedded()
	c := client(t, cfg)
	objs := objects(t, c, cfg.Bucket, "user2-vfolder/")
	if _, ok := objs["test_file"]; !ok {
		t.Fatalf("the bucket has %v", objs)
	}
	plain := object(t, c, cfg.Bucket, "user2-vfolder/test_file")
	ours := h.vf("cat", "user2-vfolder:test_file")
	if string(plain) != "file inside user2-vfolder\n" || ours != string(plain) {
		t.Errorf("the S3 client reads %q, vfolder cat %q", plain, ours)
	}
	h.vf("cp", "user2-vfolder:test_file", filepath.Join(h.dir, "download"))
	if got, _ := os.ReadFile(filepath.Join(h.dir, "download")); !bytes.Equal(got, plain) {
		t.Errorf("vfolder cp wrote %q", got)
	}
	if out := h.vf("ls", "user2-vfolder:"); strings.TrimSpace(out) == "" || !strings.Contains(out, "test_file") {
		t.Errorf("vfolder ls says %q", out)
	}

	h.vf("session", "create", "--name", "second", "--image", img, "--mount", "user2-vfolder:/workspace:ro")
	if got := h.vf("session", "exec", "second", "--", "cat", "/workspace/test_file"); got != string(plain) {
		t.Errorf("the second session reads %q", got)
	}
	if out, _, code := h.try("session", "exec", "second", "--", "touch", "/workspace/new"); code == 0 {
		t.Errorf("a read-only mount was written: %s", out)
	}
	if out := h.vf("session", "exec", "second", "--", "ls", "/home/work"); strings.Contains(out, "in_the_home") {
		t.Errorf("the home outlived its session: %q", out)
	}

	// The daemon is not stopped under a session, and may die without one noticing.
	_, stderr, code := h.try("daemon", "stop")
	if code != 5 || !strings.Contains(stderr, "second") {
		t.Errorf("daemon stop under a session: exit %d, %q", code, stderr)
	}
	for _, pid := range h.processes("worker") {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if got := h.vf("session", "exec", "second", "--", "cat", "/workspace/test_file"); got != string(plain) {
		t.Errorf("after the worker died the session reads %q", got)
	}
	h.vf("daemon", "restart")
	if got := h.vf("session", "exec", "second", "--", "cat", "/workspace/test_file"); got != string(plain) {
		t.Errorf("after a restart the session reads %q", got)
	}
	h.vf("session", "delete", "--yes", "second")
}

// TestSessionNeverStartsHalf: what is missing is named, and no container stays.
func TestSessionNeverStartsHalf(t *testing.T) {
	img := image(t)
	h := newHost(t, nil)
	none := func(what string) {
		t.Helper()
		if out := strings.TrimSpace(podman(t, "ps", "-aq")); out != "" {
			t.Errorf("%s left a container: %s", what, out)
		}
	}
	_, stderr, code := h.try("session", "create", "--name", "x", "--image", img, "--mount", "nope")
	if code != 10 || !strings.Contains(stderr, "vfolder daemon start") {
		t.Errorf("without a daemon: exit %d, %q", code, stderr)
	}
	none("a missing daemon")
	h.start()
	_, stderr, code = h.try("session", "create", "--name", "x", "--image", img, "--mount", "nope")
	if code != 4 || !strings.Contains(stderr, "vfolder folder create nope") {
		t.Errorf("unknown folder: exit %d, %q", code, stderr)
	}
	none("an unknown folder")
	h.vf("folder", "create", "here")
	_, stderr, code = h.try("session", "create", "--name", "x", "--image", "localhost/no-such-image", "--mount", "here")
	if code == 0 || !strings.Contains(stderr, "no-such-image") {
		t.Errorf("unknown image: exit %d, %q", code, stderr)
	}
	none("an unknown image")
	for _, target := range []string{"here:/etc", "here:/usr/local/bin", "here://etc/", "here:/tmp/../etc"} {
		if _, stderr, code = h.try("session", "create", "--name", "x", "--image", img, "--mount", target); code != 2 {
			t.Errorf("--mount %s: exit %d, %q", target, code, stderr)
		}
	}
	none("a reserved target")
}
