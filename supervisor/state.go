package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
)

// The mounts go from one supervisor to the next in one of two ways: systemd
// keeps the files (its "file descriptor store") over the service's restart, or
// the supervisor replaces its own program and passes them on open.
const (
	envState       = "VFOLDER_SUPERVISOR_STATE" // file number of the state, after a replacement
	stateName      = "vfolder-state"
	listenFirst    = 3 // systemd's convention: its files begin there
	mostMounts     = 16
	filesPerMount  = 3
	stateVersion   = 1
	storeFilesMost = 1 + mostMounts*filesPerMount // FileDescriptorStoreMax of the unit
)

// state is what a memory file says of the mounts. Files are numbers after a
// replacement, and named by position in systemd's store.
type state struct {
	Version int              `json:"version"`
	Resume  fusefs.Resume    `json:"resume"`
	Mounts  []inheritedMount `json:"mounts"`
}

func (m *Mount) files() [filesPerMount]*os.File {
	return [filesPerMount]*os.File{m.device, m.inFlight, m.init}
}

// fileName names a file in systemd's store.
func fileName(mount, file int) string { return fmt.Sprintf("vfolder-%d-%d", mount, file) }

// stateOf describes the mounts in a memory file.
func stateOf(mounts []*Mount, resume fusefs.Resume) (*os.File, error) {
	s := state{Version: stateVersion, Resume: resume}
	for _, m := range mounts {
		s.Mounts = append(s.Mounts, inheritedMount{m.Point, int(m.device.Fd()), int(m.inFlight.Fd()), int(m.init.Fd())})
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, &vfolder.Error{Op: "supervisor state", Err: err}
	}
	return memoryFile(stateName, text)
}

// restore takes over the mounts of a former supervisor; none is no error.
func restore() ([]*Mount, fusefs.Resume, error) {
	var stateFile *os.File
	stored := make(map[string]int)
	if text := os.Getenv(envState); text != "" {
		fd, err := strconv.Atoi(text)
		if err != nil {
			return nil, 0, &vfolder.Error{Op: "supervisor state", Kind: vfolder.KindInvalid, Err: err}
		}
		_ = os.Unsetenv(envState)
		stateFile = inherit(fd, stateName)
	} else {
		stored = storedFiles()
		if fd, ok := stored[stateName]; ok {
			stateFile = inherit(fd, stateName)
		}
	}
	if stateFile == nil {
		return nil, fusefs.Fresh, nil
	}
	text, err := content(stateFile)
	err = errors.Join(err, stateFile.Close())
	var s state
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err == nil && (s.Version != stateVersion || len(s.Mounts) > mostMounts) {
		err = fmt.Errorf("version %d with %d mounts", s.Version, len(s.Mounts))
	}
	if err != nil {
		return nil, 0, &vfolder.Error{Op: "supervisor state", Kind: vfolder.KindCorrupt, Err: err}
	}
	var mounts []*Mount
	for i, m := range s.Mounts {
		fds := [filesPerMount]int{m.Device, m.InFlight, m.Init}
		if len(stored) > 0 {
			for k := range fds {
				fd, ok := stored[fileName(i, k)]
				if !ok {
					return nil, 0, vfolder.Errorf(vfolder.KindCorrupt, "supervisor state", m.Point, "systemd has not kept %s", fileName(i, k))
				}
				fds[k] = fd
			}
		}
		mounts = append(mounts, &Mount{
			Point: m.Point, device: inherit(fds[0], "/dev/fuse"),
			inFlight: inherit(fds[1], "in-flight"), init: inherit(fds[2], "init"),
		})
	}
	return mounts, s.Resume, nil
}

// storedFiles are the files that systemd gives to this process, by name.
func storedFiles() map[string]int {
	list := make(map[string]int)
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return list
	}
	count, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil {
		return list
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for i := range min(count, len(names), storeFilesMost) {
		list[names[i]] = listenFirst + i
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name)
	}
	return list
}

// service talks to systemd; without it, to nobody.
type service struct{ address string }

func newService() service {
	s := service{address: os.Getenv("NOTIFY_SOCKET")}
	_ = os.Unsetenv("NOTIFY_SOCKET") // not for children
	return s
}

func (s service) tell(message string, files ...int) error {
	if s.address == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return &vfolder.Error{Op: "notify systemd", Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	// "@" is the abstract namespace, which unix.SockaddrUnix spells so too.
	if err := unix.Sendmsg(fd, []byte(message), rights, &unix.SockaddrUnix{Name: s.address}, 0); err != nil {
		return &vfolder.Error{Op: "notify systemd", Err: err}
	}
	return nil
}

// store gives systemd the mounts to keep, replacing what it had: it keeps them
// over a kill of the supervisor too.
func (s service) store(mounts []*Mount, resume fusefs.Resume) error {
	if s.address == "" {
		return nil
	}
	err := s.drop()
	file, err2 := stateOf(mounts, resume)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	err = s.tell("FDSTORE=1\nFDNAME="+stateName, int(file.Fd()))
	for i, m := range mounts {
		for k, f := range m.files() {
			err = errors.Join(err, s.tell("FDSTORE=1\nFDPOLL=0\nFDNAME="+fileName(i, k), int(f.Fd())))
		}
	}
	return errors.Join(err, file.Close())
}

// drop has systemd forget the mounts.
func (s service) drop() error {
	err := s.tell("FDSTOREREMOVE=1\nFDNAME=" + stateName)
	for i := range mostMounts {
		for k := range filesPerMount {
			err = errors.Join(err, s.tell("FDSTOREREMOVE=1\nFDNAME="+fileName(i, k)))
		}
	}
	return err
}

// replace runs the program anew in this process, with the mounts open. It
// returns only when that fails.
func replace(program string, mounts []*Mount, resume fusefs.Resume) error {
	file, err := stateOf(mounts, resume)
	if err != nil {
		return err
	}
	keep := []int{int(file.Fd())}
	for _, m := range mounts {
		for _, f := range m.files() {
			keep = append(keep, int(f.Fd()))
		}
	}
	for _, fd := range keep {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return &vfolder.Error{Op: "hand over", Err: err}
		}
	}
	env := append(os.Environ(), fmt.Sprintf("%s=%d", envState, keep[0]))
	err = unix.Exec(program, os.Args, env)
	return &vfolder.Error{Op: "hand over", Path: program, Err: err}
}
