package launcher

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/vfolder/vfolder"
)

// Home is the home directory of the user inside every session.
const Home = "/home/work"

// maxMounts bounds the folders of one session.
const maxMounts = 64

// Mount is one folder, or a directory of it, in a session.
type Mount struct {
	Folder   string `json:"folder"`
	Sub      string `json:"sub,omitempty"` // relative and clean, "" for the whole folder
	Target   string `json:"target"`        // absolute and clean
	ReadOnly bool   `json:"ro,omitempty"`
}

// String is the mount's specification in full; ParseMount takes it back.
func (m Mount) String() string {
	s := m.Folder
	if m.Sub != "" {
		s += "/" + m.Sub
	}
	s += ":" + m.Target
	if m.ReadOnly {
		s += ":ro"
	}
	return s
}

// reserved lists the directories of an image that its programs need: no folder
// may cover one, or lie anywhere below it.
var reserved = []string{
	"/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/media", "/mnt", "/opt", "/proc",
	"/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var",
}

// reservedInHome matches what a shell or a tool in the session expects to be a
// file of its own in the home.
var reservedInHome = regexp.MustCompile(`^(\.terminfo|\.jupyter|\.tmux\.conf|\.ssh|\.[a-z0-9]+rc|\.[a-z0-9]+_profile|\.profile)$`)

// ParseMount reads NAME[/SUB][:TARGET][:ro|:rw]. Without TARGET the folder
// appears as /home/work/NAME; a relative TARGET lies under /home/work. The target
// is normalised before it is judged. Errors are KindInvalid.
func ParseMount(spec string) (Mount, error) {
	fail := func(format string, args ...any) (Mount, error) {
		return Mount{}, &vfolder.Error{
			Op: "mount", Kind: vfolder.KindInvalid, Path: spec, Err: fmt.Errorf(format, args...),
			Fix: "--mount NAME[/SUB][:TARGET][:ro]",
		}
	}
	parts := strings.Split(spec, ":")
	var m Mount
	if last := parts[len(parts)-1]; len(parts) > 1 && (last == "ro" || last == "rw") {
		m.ReadOnly = last == "ro"
		parts = parts[:len(parts)-1]
	}
	if len(parts) > 2 {
		return fail("a target cannot contain ':'; after the target only ro or rw may follow")
	}
	name, sub, _ := strings.Cut(parts[0], "/")
	if err := vfolder.CheckFolderName(name); err != nil {
		return Mount{}, err
	}
	m.Folder = name
	sub, err := cleanSub(sub)
	if err != nil {
		return fail("%w", err)
	}
	m.Sub = sub
	target := name
	if len(parts) == 2 {
		target = parts[1]
	}
	if m.Target, err = cleanTarget(target); err != nil {
		return fail("%w", err)
	}
	return m, nil
}

func cleanSub(sub string) (string, error) {
	if sub == "" {
		return "", nil
	}
	if err := checkPath(sub); err != nil {
		return "", fmt.Errorf("the directory in the folder: %w", err)
	}
	for part := range strings.SplitSeq(sub, "/") {
		if part == ".." {
			return "", errors.New("the directory in the folder must not contain '..'")
		}
	}
	if strings.HasPrefix(sub, "/") {
		return "", errors.New("the directory in the folder must be relative to it")
	}
	sub = path.Clean(sub)
	if sub == "." {
		return "", nil
	}
	return sub, nil
}

// cleanTarget normalises a target and refuses places that are not for folders.
func cleanTarget(target string) (string, error) {
	if target == "" {
		return "", errors.New("the target is empty")
	}
	if err := checkPath(target); err != nil {
		return "", fmt.Errorf("the target: %w", err)
	}
	if !path.IsAbs(target) {
		clean := path.Join(Home, target)
		if !below(clean, Home) {
			return "", fmt.Errorf("the target %s leaves %s: give an absolute path if that is meant", target, Home)
		}
		target = clean
	}
	target = path.Clean(target)
	switch target {
	case "/", "/home", Home:
		return "", fmt.Errorf("%s as a whole cannot be a folder", target)
	}
	for _, dir := range reserved {
		if target == dir || below(target, dir) {
			return "", fmt.Errorf("%s is reserved: %s belongs to the image", target, dir)
		}
	}
	if rest, ok := strings.CutPrefix(target, Home+"/"); ok {
		first, _, _ := strings.Cut(rest, "/")
		if reservedInHome.MatchString(first) {
			return "", fmt.Errorf("%s is reserved: tools in the session keep a file of their own there", path.Join(Home, first))
		}
	}
	return target, nil
}

// checkPath refuses what no path can be, or what would be hard to show.
func checkPath(p string) error {
	switch {
	case len(p) > vfolder.MaxPathBytes-len(Home)-2:
		return errors.New("the path is too long")
	case !utf8.ValidString(p):
		return errors.New("the path is not UTF-8")
	case strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return errors.New("the path has a control character")
	}
	for part := range strings.SplitSeq(p, "/") {
		if len(part) > vfolder.MaxNameBytes {
			return errors.New("a part of the path is too long")
		}
	}
	return nil
}

// below reports whether p, which is clean, lies strictly below dir.
func below(p, dir string) bool {
	return strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// ParseMounts reads the specifications of one session and refuses targets that
// are equal or nested, and aliases that hide the name of another mounted folder.
func ParseMounts(specs []string) ([]Mount, error) {
	if len(specs) > maxMounts {
		return nil, vfolder.Errorf(vfolder.KindInvalid, "mount", "", "%d folders are too many: a session takes %d", len(specs), maxMounts)
	}
	mounts := make([]Mount, 0, len(specs))
	for _, spec := range specs {
		m, err := ParseMount(spec)
		if err != nil {
			return nil, err
		}
		for _, other := range mounts {
			if err := collide(other, m); err != nil {
				return nil, &vfolder.Error{
					Op: "mount", Kind: vfolder.KindInvalid, Path: spec, Err: err,
					Fix: "--mount " + m.Folder + ":ANOTHER_TARGET",
				}
			}
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

func collide(a, b Mount) error {
	switch {
	case a.Target == b.Target:
		return fmt.Errorf("%s is already the target of %q", b.Target, a.Folder)
	case below(a.Target, b.Target), below(b.Target, a.Target):
		return fmt.Errorf("%s and %s lie within each other", a.Target, b.Target)
	case a.Folder == b.Folder:
		return nil
	case b.Target == path.Join(Home, a.Folder):
		return fmt.Errorf("%s is the name of another mounted folder", b.Target)
	case a.Target == path.Join(Home, b.Folder):
		return fmt.Errorf("%s, the target of %q, is this folder's name", a.Target, a.Folder)
	}
	return nil
}
