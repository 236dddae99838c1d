// Package supervisor owns what must not die with the program that serves a
// mount: the FUSE device, the handshake with the kernel, the memory of requests
// in flight. It starts that program, the worker, and others besides it, starts
// them again when they die, and hands a mount from one worker to the next
// without anybody noticing. It knows neither what the children do nor what they
// need: a child is a command line.
package supervisor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
)

const (
	fsName = "vfolder"      // in the first column of /proc/mounts
	fsType = "fuse.vfolder" // in the third

	// statTimeout bounds the look at a mount point: the daemon behind an old
	// mount may hang, and a look at it with it.
	statTimeout = 5 * time.Second
)

// Mount is one mounted device. All of it is inherited from one supervisor to
// the next. It is not safe for concurrent use.
type Mount struct {
	Point    string
	device   *os.File
	inFlight *os.File // memory shared with workers, see fusefs.InFlight
	init     *os.File // a memfd with fusefs.Handshake's bytes
}

// NewMount mounts a new device on an existing empty directory, as root by
// mount(2), else with fusermount3, for all users (the kernel checks modes). A
// mount of ours that lost its daemon is cleared away first; a live one is
// KindBusy.
func NewMount(point string) (*Mount, error) {
	point, err := filepath.Abs(point)
	if err != nil {
		return nil, mountError(point, vfolder.KindInvalid, err, "")
	}
	if err := clearStale(point); err != nil {
		return nil, err
	}
	var device *os.File
	if os.Geteuid() == 0 {
		device, err = mountAsRoot(point)
	} else {
		device, err = mountAsUser(point)
	}
	if err != nil {
		return nil, err
	}
	m := &Mount{Point: point, device: device}
	handshake, err := fusefs.Handshake(int(device.Fd()))
	if err == nil {
		m.inFlight, err = fusefs.CreateInFlight()
	}
	if err == nil {
		m.init, err = memoryFile("vfolder-init", handshake)
	}
	if err != nil {
		return nil, errors.Join(err, m.Unmount())
	}
	return m, nil
}

func mountError(point string, kind vfolder.Kind, err error, fix string) error {
	return &vfolder.Error{Op: "mount", Kind: kind, Path: point, Err: err, Fix: fix}
}

// memoryFile makes a file that exists only as long as somebody has it open.
func memoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, &vfolder.Error{Op: "memory file", Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(content, 0); err != nil {
		return nil, errors.Join(&vfolder.Error{Op: "memory file", Err: err}, f.Close())
	}
	return f, nil
}

func mountAsRoot(point string) (*os.File, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, deviceError(point, err)
	}
	device := os.NewFile(uintptr(fd), "/dev/fuse")
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, fusefs.MaxWrite)
	if err := unix.Mount(fsName, point, fsType, unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return nil, errors.Join(mountError(point, vfolder.KindOf(err), err, ""), device.Close())
	}
	return device, nil
}

func deviceError(point string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return mountError(point, vfolder.KindUnsupported, fmt.Errorf("/dev/fuse: %w", err), "sudo modprobe fuse")
	case errors.Is(err, fs.ErrPermission):
		return mountError(point, vfolder.KindAccess, fmt.Errorf("/dev/fuse: %w", err), "sudo chmod 0666 /dev/fuse")
	}
	return mountError(point, vfolder.KindOf(err), fmt.Errorf("/dev/fuse: %w", err), "")
}

// fusermount finds the setuid program that mounts for users.
func fusermount(point string) (string, error) {
	path, err := exec.LookPath("fusermount3")
	if err != nil {
		if path, err = exec.LookPath("/usr/bin/fusermount3"); err != nil {
			return "", mountError(point, vfolder.KindUnsupported, errors.New("fusermount3 is not installed"), "sudo apt-get install fuse3")
		}
	}
	return path, nil
}

// mountAsUser has fusermount3 open the device and mount it; it sends the device
// over a socket.
func mountAsUser(point string) (*os.File, error) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return nil, deviceError(point, err)
	}
	program, err := fusermount(point)
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, mountError(point, vfolder.KindIO, err, "")
	}
	theirs := os.NewFile(uintptr(pair[1]), "fusermount3")
	defer func() { _ = unix.Close(pair[0]) }()
	var talk bytes.Buffer
	c := exec.Command(program, "-o", fmt.Sprintf("allow_other,default_permissions,nosuid,nodev,max_read=%d,fsname=%s,subtype=%s",
		fusefs.MaxWrite, fsName, strings.TrimPrefix(fsType, "fuse.")), "--", point)
	c.Env = append(os.Environ(), "_FUSE_COMMFD=3", "LC_ALL=C")
	c.ExtraFiles = []*os.File{theirs}
	c.Stderr = &talk
	err = c.Run()
	_ = theirs.Close()
	if err != nil {
		return nil, fusermountError(point, strings.TrimSpace(talk.String()), err)
	}
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 8), control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, mountError(point, vfolder.KindIO, err, "")
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil, mountError(point, vfolder.KindIO, fmt.Errorf("fusermount3 sent no device: %w", err), "")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, mountError(point, vfolder.KindIO, fmt.Errorf("fusermount3 sent no device: %w", err), "")
	}
	return os.NewFile(uintptr(fds[0]), "/dev/fuse"), nil
}

// fusermountError turns what fusermount3 says into the next command to type.
// Its words are stable since 2005; unknown ones are passed on.
func fusermountError(point, talk string, err error) error {
	if talk == "" {
		talk = err.Error()
	}
	kind, fix := vfolder.KindIO, ""
	switch {
	case strings.Contains(talk, "user_allow_other"):
		kind, fix = vfolder.KindPermission, "echo user_allow_other | sudo tee -a /etc/fuse.conf"
	case strings.Contains(talk, "device not found"):
		kind, fix = vfolder.KindUnsupported, "sudo modprobe fuse"
	case strings.Contains(talk, "/dev/fuse") && strings.Contains(talk, "ermission"):
		kind, fix = vfolder.KindAccess, "sudo chmod 0666 /dev/fuse"
	case strings.Contains(talk, "ermission") || strings.Contains(talk, "not permitted"):
		kind = vfolder.KindPermission
	case strings.Contains(talk, "too many"):
		kind, fix = vfolder.KindBusy, "echo mount_max = 10000 | sudo tee -a /etc/fuse.conf"
	}
	return mountError(point, kind, errors.New(talk), fix)
}

// mounted says what is mounted on top of a point, "" for nothing. It reads the
// table only: looking at the point itself may hang.
func mounted(point string) (kind string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(left)
		types := strings.Fields(right)
		if ok && len(fields) > 4 && len(types) > 0 && unescape.Replace(fields[4]) == point {
			kind = types[0] // the last line is the topmost
		}
	}
	return kind, lines.Err()
}

// clearStale makes sure that nothing is mounted on a point: a mount of ours
// whose device nobody holds any more is taken away.
func clearStale(point string) error {
	kind, err := mounted(point)
	if err != nil {
		return mountError(point, vfolder.KindIO, err, "")
	}
	if kind == "" {
		return nil
	}
	if kind != fsType {
		return mountError(point, vfolder.KindBusy, fmt.Errorf("something else is mounted there: %s", kind), "")
	}
	looked := make(chan error, 1)
	go func() {
		var st unix.Stat_t
		looked <- unix.Stat(point, &st)
	}()
	timer := time.NewTimer(statTimeout)
	defer timer.Stop()
	select {
	case err = <-looked:
	case <-timer.C:
		err = nil // it hangs: somebody holds the device
	}
	if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		return mountError(point, vfolder.KindBusy, errors.New("another vfolder daemon serves it"), "vfolder daemon status")
	}
	return unmount(point)
}

// Unmount takes the mount away and closes the device. Programs that still use
// it get errors from then on.
func (m *Mount) Unmount() error {
	err := unmount(m.Point)
	for _, f := range []*os.File{m.device, m.inFlight, m.init} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// unmount takes a mount away, at once for new users and, when it is busy, later
// for those that have it open. No mount is no error.
func unmount(point string) error {
	if kind, err := mounted(point); err == nil && kind != fsType {
		return nil
	}
	if os.Geteuid() == 0 {
		err := unix.Unmount(point, 0)
		if err == unix.EBUSY {
			err = unix.Unmount(point, unix.MNT_DETACH)
		}
		if err != nil {
			return &vfolder.Error{Op: "unmount", Kind: vfolder.KindOf(err), Path: point, Err: err}
		}
		return nil
	}
	program, err := fusermount(point)
	if err != nil {
		return err
	}
	if out, err := exec.Command(program, "-u", "-z", "--", point).CombinedOutput(); err != nil {
		return &vfolder.Error{Op: "unmount", Path: point, Err: fmt.Errorf("%s: %w", bytes.TrimSpace(out), err)}
	}
	return nil
}
