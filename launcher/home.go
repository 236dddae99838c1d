package launcher

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containers/podman/v5/pkg/bindings/containers"
	"github.com/containers/podman/v5/pkg/copy"

	"github.com/vfolder/vfolder"
)

// makeHome gives the created container the directories that its image lacks: the
// home, and in the home those above a target, owned by the session's user.
// They lie in the container's own layer, so they go when it goes.
func (l *Launcher) makeHome(ctx context.Context, s Session) error {
	var missing []string
	for _, dir := range homeDirs(s.Mounts) {
		_, err := containers.Stat(l.with(ctx), s.ID, dir)
		switch {
		case err == nil:
		case errors.Is(err, copy.ErrENOENT):
			missing = append(missing, dir)
		default:
			return podmanError("session", s.Name, err)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	archive, err := dirArchive(missing)
	if err != nil {
		return err
	}
	// The owners are those of the archive, not Podman's guess.
	keep := new(containers.CopyOptions).WithChown(false)
	put, err := containers.CopyFromArchiveWithOptions(l.with(ctx), s.ID, "/", archive, keep)
	if err == nil {
		err = put()
	}
	if err != nil {
		return podmanError("session", s.Name, err)
	}
	return nil
}

// homeDirs lists the directories to make sure of, parents first. One
// that exists is left out by the caller, and so keeps its owner and mode.
func homeDirs(mounts []Mount) []string {
	dirs := []string{"/home", Home}
	for _, m := range mounts {
		if !below(m.Target, Home) {
			continue
		}
		for dir := path.Dir(m.Target); dir != Home; dir = path.Dir(dir) {
			if !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	slices.Sort(dirs)
	return dirs
}

func dirArchive(dirs []string) (*bytes.Buffer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range dirs {
		h := &tar.Header{
			Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755, ModTime: time.Now(),
			Uid: vfolder.SessionUID, Gid: vfolder.SessionGID, Format: tar.FormatPAX,
		}
		if dir == "/home" {
			h.Uid, h.Gid = 0, 0
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	return &buf, w.Close()
}
