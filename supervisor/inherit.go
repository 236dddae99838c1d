package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
)

// Environment of a worker.
const (
	envMounts = "VFOLDER_MOUNTS" // JSON: []inheritedMount
	envResume = "VFOLDER_RESUME" // a fusefs.Resume
	envReady  = "VFOLDER_READY"  // file number to write to once requests are served
)

// ExitStop is a worker's exit code for "done for good": it has drained, the
// supervisor unmounts and ends. 0 after SIGTERM is "handed over".
const ExitStop = 64

// inheritedMount tells file numbers.
type inheritedMount struct {
	Point    string `json:"point"`
	Device   int    `json:"device"`
	InFlight int    `json:"inFlight"`
	Init     int    `json:"init"`
}

// Served is one mount that a worker is to serve.
type Served struct {
	Point    string
	Device   *os.File
	InFlight *fusefs.InFlight
	Init     []byte
}

// Inherited is what the supervisor gives a worker.
type Inherited struct {
	Mounts []Served
	Resume fusefs.Resume
	ready  *os.File
}

// FromEnviron takes over what the supervisor of this process gives. It is
// called once; KindNotFound means that there is no supervisor.
func FromEnviron() (*Inherited, error) {
	text := os.Getenv(envMounts)
	if text == "" {
		return nil, vfolder.Errorf(vfolder.KindNotFound, "worker", "", "not started by a supervisor: %s is not set", envMounts)
	}
	var list []inheritedMount
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, &vfolder.Error{Op: "worker", Kind: vfolder.KindInvalid, Path: envMounts, Err: err}
	}
	resume, err1 := strconv.Atoi(os.Getenv(envResume))
	ready, err2 := strconv.Atoi(os.Getenv(envReady))
	if err := errors.Join(err1, err2); err != nil {
		return nil, &vfolder.Error{Op: "worker", Kind: vfolder.KindInvalid, Err: err}
	}
	in := &Inherited{Resume: fusefs.Resume(resume), ready: inherit(ready, "ready")}
	for _, m := range list {
		s := Served{Point: m.Point, Device: inherit(m.Device, "/dev/fuse")}
		memory, init := inherit(m.InFlight, "in-flight"), inherit(m.Init, "init")
		var err error
		if s.InFlight, err = fusefs.OpenInFlight(memory); err == nil {
			s.Init, err = content(init)
		}
		if err := errors.Join(err, memory.Close(), init.Close()); err != nil {
			return nil, &vfolder.Error{Op: "worker", Kind: vfolder.KindOf(err), Path: m.Point, Err: err}
		}
		in.Mounts = append(in.Mounts, s)
	}
	for _, name := range []string{envMounts, envResume, envReady} {
		_ = os.Unsetenv(name)
	}
	return in, nil
}

// Ready tells the supervisor that requests are served.
func (in *Inherited) Ready() error {
	_, err := in.ready.Write([]byte{1})
	return errors.Join(err, in.ready.Close())
}

func inherit(fd int, name string) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

// content reads a memory file, whose offset other processes share.
func content(f *os.File) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	const most = 1 << 20
	if st.Size() > most {
		return nil, fmt.Errorf("%s has %d bytes", f.Name(), st.Size())
	}
	return io.ReadAll(io.NewSectionReader(f, 0, st.Size()))
}
