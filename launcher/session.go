package launcher

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containers/podman/v5/pkg/bindings/containers"
	"github.com/containers/podman/v5/pkg/bindings/images"
	"github.com/containers/podman/v5/pkg/bindings/system"
	"github.com/containers/podman/v5/pkg/specgen"
	spec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vfolder/vfolder"
)

// Labels by which our containers are known. Containers without labelSession are
// never touched.
const (
	labelSession = "io.vfolder.session"
	labelMounts  = "io.vfolder.mounts" // JSON of []Mount
)

// pausePath is where the process that keeps a session alive lies inside it.
const pausePath = "/run/vfolder/pause"

// stopGrace is what processes have between SIGTERM and SIGKILL, in seconds.
const stopGrace = 10

// cleanupTimeout bounds taking back a session that could not be started.
const cleanupTimeout = 30 * time.Second

var sessionName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// Session is one of our containers.
type Session struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Image   string    `json:"image"`
	State   string    `json:"state"` // Podman's word: running, exited, created, ...
	Created time.Time `json:"created"`
	Mounts  []Mount   `json:"mounts"`
	pid     int
}

// Running reports whether processes of the session may use its folders.
func (s Session) Running() bool {
	switch s.State {
	case "created", "configured", "initialized", "exited", "stopped", "removing":
		return false
	}
	return true
}

// Writable lists the folders that the session may write, each once.
func (s Session) Writable() []string {
	var names []string
	for _, m := range s.Mounts {
		if !m.ReadOnly && !slices.Contains(names, m.Folder) {
			names = append(names, m.Folder)
		}
	}
	return names
}

// Options describe a session to create. The zero value of a field is its
// default.
type Options struct {
	Name    string            // made up if empty
	Image   string            // DefaultImage if empty
	Mounts  []Mount           // of ParseMounts
	Env     map[string]string // added to the session's own
	Network string            // "none" for no network; else Podman's default
}

// Create makes a session, starts it and proves that every folder is live inside.
// On any failure nothing of it stays. folders may be nil without mounts.
func (l *Launcher) Create(ctx context.Context, folders Folders, o Options) (Session, error) {
	if o.Name == "" {
		o.Name = "s-" + strings.ToLower(rand.Text()[:8])
	}
	if o.Image == "" {
		o.Image = DefaultImage
	}
	if !sessionName.MatchString(o.Name) {
		return Session{}, vfolder.Errorf(vfolder.KindInvalid, "session", o.Name,
			"not a session name: letters, digits, '_', '.' and '-', at most 63, a letter or digit first")
	}
	if err := l.nameIsFree(ctx, o.Name); err != nil {
		return Session{}, err
	}
	path, err := l.imagePath(ctx, o.Image)
	if err != nil {
		return Session{}, err
	}
	sources, err := prepare(ctx, folders, o.Mounts)
	if err != nil {
		return Session{}, err
	}
	sg, err := containerSpec(o, path, sources)
	if err != nil {
		return Session{}, err
	}
	if err := l.fitHost(ctx, sg); err != nil {
		return Session{}, err
	}
	made, err := containers.CreateWithSpec(l.with(ctx), sg, nil)
	if err != nil {
		return Session{}, createError(o.Name, err)
	}
	session, err := l.launch(ctx, made.ID, sources)
	if err != nil {
		l.discard(ctx, made.ID)
		return Session{}, err
	}
	return session, nil
}

// launch does what is left to do after the container's creation.
func (l *Launcher) launch(ctx context.Context, id string, sources []source) (Session, error) {
	session, err := l.inspect(ctx, id)
	if err != nil {
		return Session{}, err
	}
	if err := l.makeHome(ctx, session); err != nil {
		return Session{}, err
	}
	return l.startProven(ctx, session, sources)
}

// startProven starts the container and proves its mounts.
func (l *Launcher) startProven(ctx context.Context, s Session, sources []source) (Session, error) {
	if err := containers.Start(l.with(ctx), s.ID, nil); err != nil {
		return s, createError(s.Name, err)
	}
	s, err := l.inspect(ctx, s.ID)
	if err != nil {
		return s, err
	}
	return s, l.prove(ctx, s, sources)
}

// Start starts a stopped session again, with the same proof as Create. If a
// folder is not live, the session is stopped again.
func (l *Launcher) Start(ctx context.Context, folders Folders, ref string) (Session, error) {
	s, err := l.Find(ctx, ref)
	if err != nil || s.Running() {
		return s, err
	}
	sources, err := prepare(ctx, folders, s.Mounts)
	if err != nil {
		return s, err
	}
	started, err := l.startProven(ctx, s, sources)
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		return s, errors.Join(err, l.stop(clean, s))
	}
	return started, nil
}

// discard removes a container that never became a session, also when the
// caller gave up.
func (l *Launcher) discard(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	// A failure here is told by the error that led here or by the next list.
	_ = l.remove(ctx, id)
}

func (l *Launcher) nameIsFree(ctx context.Context, name string) error {
	exists, err := containers.Exists(l.with(ctx), name, nil)
	if err != nil {
		return podmanError("session", name, err)
	}
	if !exists {
		return nil
	}
	e := &vfolder.Error{
		Op: "session", Kind: vfolder.KindExists, Path: name, Err: errors.New("a container of this name exists that is no session"),
		Fix: "choose another --name",
	}
	if s, err := l.Find(ctx, name); err == nil && s.Name == name {
		e.Err = errors.New("a session of this name exists")
		e.Fix = "vfolder session delete " + name
	}
	return e
}

// imagePath returns the PATH that an image asks for, and an error with the fix
// when there is no such image.
func (l *Launcher) imagePath(ctx context.Context, image string) (string, error) {
	report, err := images.GetImage(l.with(ctx), image, nil)
	if err != nil {
		e := podmanError("image", image, err)
		if e.Kind == vfolder.KindNotFound {
			e.Err = errors.New("this image is not here")
			e.Fix = "podman pull " + image
			if image == DefaultImage {
				e.Fix = "vfolder image build"
			}
		}
		return "", e
	}
	if report.ImageData != nil && report.Config != nil {
		for _, pair := range report.Config.Env {
			if path, ok := strings.CutPrefix(pair, "PATH="); ok && path != "" {
				return path, nil
			}
		}
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", nil
}

// containerSpec says how a session's container is made: nobody but the user
// with id 1000, who is the host's user; no capability; nothing to gain one by.
func containerSpec(o Options, path string, sources []source) (*specgen.SpecGenerator, error) {
	pause, err := pauseProgram()
	if err != nil {
		return nil, err
	}
	mounts, err := json.Marshal(o.Mounts)
	if err != nil {
		return nil, err
	}
	sg := specgen.NewSpecGenerator(o.Image, false)
	sg.Name = o.Name
	sg.Hostname = strings.ReplaceAll(o.Name, "_", "-")
	sg.Labels = map[string]string{labelSession: "1", labelMounts: string(mounts)}
	sg.Entrypoint = []string{}
	sg.Command = []string{pausePath, "-P"}
	sg.Env = sessionEnv(o, path)
	sg.WorkDir = Home
	grace := uint(stopGrace)
	sg.StopTimeout = &grace

	sg.User = fmt.Sprintf("%d:%d", vfolder.SessionUID, vfolder.SessionGID)
	// Only used where the image has no such user and group.
	sg.PasswdEntry = fmt.Sprintf("work:*:%d:%d:work:%s:/bin/sh", vfolder.SessionUID, vfolder.SessionGID, Home)
	sg.GroupEntry = fmt.Sprintf("work:x:%d:", vfolder.SessionGID)
	sg.UserNS = specgen.Namespace{
		NSMode: specgen.KeepID,
		Value:  fmt.Sprintf("uid=%d,gid=%d", vfolder.SessionUID, vfolder.SessionGID),
	}
	sg.CapDrop = []string{"all"}
	yes := true
	sg.NoNewPrivileges = &yes
	if o.Network == "none" {
		sg.NetNS = specgen.Namespace{NSMode: specgen.NoNetwork}
	}

	sg.Mounts = append(sg.Mounts, bind(pause, pausePath, true))
	for _, s := range sources {
		sg.Mounts = append(sg.Mounts, bind(s.path, s.mount.Target, s.mount.ReadOnly))
	}
	return sg, nil
}

// fitHost takes back Podman's default limit of processes where the host's user
// has no control group to enforce one: the runtime would refuse to start.
func (l *Launcher) fitHost(ctx context.Context, sg *specgen.SpecGenerator) error {
	info, err := system.Info(l.with(ctx), nil)
	if err != nil {
		return podmanError("podman", "", err)
	}
	if info.Host != nil && !slices.Contains(info.Host.CgroupControllers, "pids") {
		sg.ResourceLimits = &spec.LinuxResources{Pids: &spec.LinuxPids{Limit: 0}}
	}
	return nil
}

// bind is a private, not recursive mount: what is mounted in a folder on the
// host later is no business of the session.
func bind(from, to string, readOnly bool) spec.Mount {
	mode := "rw"
	if readOnly {
		mode = "ro"
	}
	return spec.Mount{Type: "bind", Source: from, Destination: to, Options: []string{"bind", "private", "nosuid", "nodev", mode}}
}

func sessionEnv(o Options, path string) map[string]string {
	env := map[string]string{
		"HOME": Home, "USER": "work", "LOGNAME": "work", "LANG": "C.UTF-8",
		"PATH": Home + "/.local/bin:" + path, "VFOLDER_SESSION": o.Name,
	}
	for k, v := range o.Env {
		env[k] = v
	}
	return env
}

// pauseProgram finds the static program of the host that is process 1 of every
// session: it reaps, and waits for the end. So an image needs no program at all.
func pauseProgram() (string, error) {
	for _, name := range []string{"catatonit", "/usr/libexec/podman/catatonit", "/usr/lib/podman/catatonit"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", &vfolder.Error{
		Op: "podman", Kind: vfolder.KindUnsupported, Err: errors.New("catatonit, the first process of a session, is not installed"),
		Fix: "sudo apt-get install catatonit",
	}
}

// inspect reads one container.
func (l *Launcher) inspect(ctx context.Context, id string) (Session, error) {
	data, err := containers.Inspect(l.with(ctx), id, nil)
	if err != nil {
		return Session{}, podmanError("session", id, err)
	}
	s := Session{ID: data.ID, Name: data.Name, Image: data.ImageName, Created: data.Created}
	if data.State != nil {
		s.State, s.pid = data.State.Status, data.State.Pid
	}
	if data.Config == nil || data.Config.Labels[labelSession] == "" {
		return s, vfolder.Errorf(vfolder.KindNotFound, "session", id, "this container is no session")
	}
	s.Mounts, err = decodeMounts(data.Config.Labels[labelMounts])
	return s, err
}

func decodeMounts(label string) ([]Mount, error) {
	mounts := []Mount{}
	if label == "" || label == "null" {
		return mounts, nil
	}
	if err := json.Unmarshal([]byte(label), &mounts); err != nil {
		return nil, vfolder.Errorf(vfolder.KindCorrupt, "session", "", "its label %s is not readable: %w", labelMounts, err)
	}
	return mounts, nil
}

// List returns all sessions, running or not, oldest first.
func (l *Launcher) List(ctx context.Context) ([]Session, error) {
	opts := new(containers.ListOptions).WithAll(true).WithFilters(map[string][]string{"label": {labelSession}})
	list, err := containers.List(l.with(ctx), opts)
	if err != nil {
		return nil, podmanError("session", "", err)
	}
	sessions := make([]Session, 0, len(list))
	for _, c := range list {
		s := Session{ID: c.ID, Image: c.Image, State: c.State, Created: c.Created, pid: c.Pid}
		if len(c.Names) > 0 {
			s.Name = c.Names[0]
		}
		if s.Mounts, err = decodeMounts(c.Labels[labelMounts]); err != nil {
			return nil, err
		}
		sessions = append(sessions, s)
	}
	slices.SortFunc(sessions, func(a, b Session) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return sessions, nil
}

// Find returns the session of a name, an id or an id's beginning of at least
// four digits. No session is KindNotFound, several KindConflict.
func (l *Launcher) Find(ctx context.Context, ref string) (Session, error) {
	sessions, err := l.List(ctx)
	if err != nil {
		return Session{}, err
	}
	return pick(sessions, ref)
}

func pick(sessions []Session, ref string) (Session, error) {
	var found []Session
	for _, s := range sessions {
		if s.Name == ref || s.ID == ref {
			return s, nil
		}
		if len(ref) >= 4 && strings.HasPrefix(s.ID, ref) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Session{}, &vfolder.Error{
			Op: "session", Kind: vfolder.KindNotFound, Path: ref, Err: errors.New("there is no such session"),
			Fix: "vfolder session list",
		}
	}
	return Session{}, vfolder.Errorf(vfolder.KindConflict, "session", ref, "%d sessions have ids that begin so", len(found))
}

// Live lists the sessions that use folders right now. A host without Podman has
// none, and neither has root, whose sessions are refused.
func Live(ctx context.Context) ([]Session, error) {
	if _, err := exec.LookPath("podman"); err != nil || os.Geteuid() == 0 {
		return nil, nil
	}
	l, err := Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	all, err := l.List(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(s Session) bool { return !s.Running() || len(s.Mounts) == 0 }), nil
}
