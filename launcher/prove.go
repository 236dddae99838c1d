package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// probeTimeout bounds each look at a folder. A healthy daemon answers within
// milliseconds; a busy machine may need seconds. Only tests change it.
var probeTimeout = 20 * time.Second

// fuseMagic is FUSE_SUPER_MAGIC as stat -f prints it.
const fuseMagic = "65735546"

// source is a mount whose directory on the host was found live.
type source struct {
	mount  Mount
	path   string // on the host, absolute and clean
	device string // of the live mount
	root   string // what mountinfo inside has to show
}

// prepare asks for every folder and looks at it on the host, before Podman hears
// of it. A folder that this host may not write is refused unless it is wanted
// read-only: nothing is quietly mounted otherwise than asked.
func prepare(ctx context.Context, folders Folders, mounts []Mount) ([]source, error) {
	if len(mounts) == 0 {
		return nil, nil
	}
	if folders == nil {
		return nil, vfolder.Errorf(vfolder.KindDaemon, "session", "", "folders are wanted but there is no daemon")
	}
	sources := make([]source, 0, len(mounts))
	for _, m := range mounts {
		dir, readOnly, err := folders.Prepare(ctx, m.Folder)
		if err != nil {
			return nil, folderError(m, err)
		}
		if readOnly && !m.ReadOnly {
			return nil, &vfolder.Error{
				Op: "folder", Kind: vfolder.KindReadOnly, Path: m.Folder,
				Err: errors.New("it can only be read here"), Fix: fmt.Sprintf("--mount %s:%s:ro", m.Folder, m.Target),
			}
		}
		s, err := lookOnHost(ctx, m, filepath.Clean(dir))
		if err != nil {
			return nil, err
		}
		sources = append(sources, s)
	}
	return sources, nil
}

func folderError(m Mount, err error) error {
	var e *vfolder.Error
	if errors.As(err, &e) {
		if e.Kind == vfolder.KindNotFound {
			fixed := *e
			fixed.Fix = "vfolder folder create " + m.Folder
			return &fixed
		}
		return err
	}
	return &vfolder.Error{Op: "folder", Kind: vfolder.KindOf(err), Path: m.Folder, Err: err}
}

// lookOnHost proves that dir is on a live FUSE mount and that the wanted
// directory of it is one, without following a link: what is in a folder is
// another's, and a link may point anywhere on this host.
func lookOnHost(ctx context.Context, m Mount, dir string) (source, error) {
	notLive := func(err error) (source, error) {
		return source{}, &vfolder.Error{
			Op: "folder", Kind: vfolder.KindDaemon, Path: m.Folder, Err: fmt.Errorf("it is not live at %s: %w", dir, err),
			Fix: "vfolder daemon status",
		}
	}
	if err := probe(ctx, dir); err != nil {
		return notLive(err)
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return notLive(err)
	}
	defer f.Close()
	entries, err := parseMountinfo(f)
	if err != nil {
		return notLive(err)
	}
	on, ok := mountOf(entries, dir)
	if !ok || !on.isFUSE() {
		return notLive(errors.New("no FUSE mount is there"))
	}
	full := filepath.Join(dir, m.Sub)
	if m.Sub != "" {
		if err := plainDirectory(dir, m.Sub); err != nil {
			return source{}, &vfolder.Error{
				Op: "folder", Kind: vfolder.KindOf(err), Path: m.Folder + "/" + m.Sub,
				Err: fmt.Errorf("not a directory of the folder that can be mounted: %w", err),
				Fix: "vfolder ls " + m.Folder + ":",
			}
		}
	}
	return source{mount: m, path: full, device: on.device, root: rootOf(on, full)}, nil
}

// plainDirectory checks that sub is a directory below dir, with no symbolic link
// on the way.
func plainDirectory(dir, sub string) error {
	base, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(base)
	fd, err := unix.Openat2(base, sub, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// probe asks a directory for its file system and its first entry, from a child
// process: where a daemon hangs, the question cannot be taken back, and the
// child is left behind to end when the daemon does.
func probe(ctx context.Context, dir string) error {
	const script = `stat -f -c %t -- "$1" && ls -fa -- "$1" | head -n 1`
	cmd := exec.Command("/bin/sh", "-c", script, "sh", dir)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	timer := time.NewTimer(probeTimeout)
	defer timer.Stop()
	kill := func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	select {
	case err := <-done:
		lines := strings.Fields(out.String())
		switch {
		case err != nil || len(lines) < 2:
			return fmt.Errorf("it does not answer: %s", strings.TrimSpace(errOut.String()))
		case lines[0] != fuseMagic:
			return errors.New("no FUSE mount is there")
		}
		return nil
	case <-timer.C:
		kill()
		return fmt.Errorf("it did not answer within %s", probeTimeout)
	case <-ctx.Done():
		kill()
		return ctx.Err()
	}
}

// insideScript runs in the session as its user, with nothing but a shell: it
// prints what is mounted and enters each target.
const insideScript = `while IFS= read -r line; do printf '%s\n' "$line"; done < /proc/self/mountinfo
echo --
for target; do
	if cd "$target" && [ -d . ] && [ -x . ]; then echo live; else echo dead; fi
done`

// prove shows that each target of a running session is the very mount that was
// found live on the host: the same device, the same directory of it, in the
// mode asked for, and open to the session's user.
func (l *Launcher) prove(ctx context.Context, s Session, sources []source) error {
	if len(sources) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout+time.Duration(len(sources))*time.Second)
	defer cancel()
	entries, live, err := l.lookInside(ctx, s, sources)
	if err != nil {
		return &vfolder.Error{
			Op: "session", Kind: kindOrIO(err), Path: s.Name, Err: fmt.Errorf("its folders could not be checked inside: %w", err),
			Fix: "vfolder daemon status",
		}
	}
	for i, src := range sources {
		if err := compare(entries, src); err == nil && live[i] {
			continue
		} else if err == nil {
			err = errors.New("the session's user cannot enter it")
			return proofError(s, src, err)
		} else {
			return proofError(s, src, err)
		}
	}
	return nil
}

func kindOrIO(err error) vfolder.Kind {
	if errors.Is(err, context.DeadlineExceeded) {
		return vfolder.KindTimeout
	}
	return vfolder.KindOf(err)
}

func proofError(s Session, src source, err error) error {
	fix := "vfolder daemon status"
	if !rootIsShared() {
		fix = "sudo mount --make-rshared / && podman system migrate"
	}
	return &vfolder.Error{
		Op: "session", Kind: vfolder.KindDaemon, Path: s.Name,
		Err: fmt.Errorf("folder %q is not live at %s inside: %w", src.mount.Folder, src.mount.Target, err), Fix: fix,
	}
}

// compare checks one target against the mounts inside.
func compare(entries []mountEntry, src source) error {
	e, ok := mountAt(entries, src.mount.Target)
	switch {
	case !ok:
		return errors.New("nothing is mounted there")
	case !e.isFUSE():
		return fmt.Errorf("what is mounted there is %s", e.fstype)
	case e.device != src.device:
		return errors.New("another FUSE mount is there")
	case e.root != src.root:
		return fmt.Errorf("it shows %s instead of %s", e.root, src.root)
	case src.mount.ReadOnly && !e.readOnly:
		return errors.New("it can be written although it was asked for read-only")
	case !src.mount.ReadOnly && e.readOnly:
		return errors.New("it is read-only")
	}
	return nil
}

// lookInside returns the mounts inside and whether each target can be entered.
// In an image without a shell it looks through /proc from outside.
func (l *Launcher) lookInside(ctx context.Context, s Session, sources []source) ([]mountEntry, []bool, error) {
	command := []string{"/bin/sh", "-c", insideScript, "sh"}
	for _, src := range sources {
		command = append(command, src.mount.Target)
	}
	var out, errOut limitedBuffer
	code, err := l.exec(ctx, s, ExecOptions{Command: command, Stdout: &out, Stderr: &errOut})
	if err == nil && (code == exitNotFound || code == exitCannotRun) {
		return l.lookThroughProc(ctx, s, sources)
	}
	if err != nil {
		return nil, nil, err
	}
	text, marks, ok := strings.Cut(out.String(), "--\n")
	live := strings.Fields(marks)
	if code != 0 || !ok || len(live) != len(sources) {
		return nil, nil, fmt.Errorf("the check ended with %d: %s", code, strings.TrimSpace(errOut.String()))
	}
	entries, err := parseMountinfo(strings.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	entered := make([]bool, len(sources))
	for i := range live {
		entered[i] = live[i] == "live"
	}
	return entries, entered, nil
}

func (l *Launcher) lookThroughProc(ctx context.Context, s Session, sources []source) ([]mountEntry, []bool, error) {
	proc := fmt.Sprintf("/proc/%d", s.pid)
	f, err := os.Open(proc + "/mountinfo")
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	entries, err := parseMountinfo(f)
	if err != nil {
		return nil, nil, err
	}
	entered := make([]bool, len(sources))
	for i, src := range sources {
		entered[i] = probe(ctx, proc+"/root"+src.mount.Target) == nil
	}
	return entries, entered, nil
}

// limitedBuffer keeps the first MiB that is written to it: what comes from
// inside a session is not trusted to be short. The buffer is no embedded field,
// or io.Copy would find its ReadFrom and go past Write.
type limitedBuffer struct{ kept bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := 1<<20 - b.kept.Len(); room > 0 {
		b.kept.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

func (b *limitedBuffer) String() string { return b.kept.String() }
