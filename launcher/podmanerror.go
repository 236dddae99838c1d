package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/containers/podman/v5/pkg/errorhandling"

	"github.com/vfolder/vfolder"
)

// podmanError gives an error of Podman's API its Kind.
func podmanError(op, path string, err error) *vfolder.Error {
	var own *vfolder.Error
	if errors.As(err, &own) {
		return own
	}
	e := &vfolder.Error{Op: op, Path: path, Err: err}
	var model *errorhandling.ErrorModel
	var network net.Error
	switch {
	case errors.As(err, &model):
		switch model.Code() {
		case http.StatusNotFound:
			e.Kind = vfolder.KindNotFound
		case http.StatusConflict:
			e.Kind = vfolder.KindConflict
		case http.StatusBadRequest:
			e.Kind = vfolder.KindInvalid
		}
	case errors.Is(err, context.Canceled):
		e.Kind = vfolder.KindInterrupted
	case errors.Is(err, context.DeadlineExceeded):
		e.Kind = vfolder.KindTimeout
	case errors.As(err, &network):
		e.Fix = "podman info"
	}
	return e
}

// isNotFound reports whether Podman said that the container is gone.
func isNotFound(err error) bool {
	var model *errorhandling.ErrorModel
	return errors.As(err, &model) && model.Code() == http.StatusNotFound
}

// createError explains why a container could not be made or started: the two
// things of a host that rootless Podman itself explains badly come first.
func createError(name string, err error) error {
	e := podmanError("session", name, err)
	if e.Kind == vfolder.KindInterrupted || e.Kind == vfolder.KindTimeout || e.Fix != "" {
		return e
	}
	if fix, why := diagnose(); why != nil {
		e.Err, e.Fix = fmt.Errorf("%w (%w)", why, err), fix
		return e
	}
	if !rootIsShared() {
		e.Err = fmt.Errorf("'/' is not a shared mount, so Podman may not see the folders: %w", err)
		e.Fix = "sudo mount --make-rshared / && podman system migrate"
	}
	return e
}

// rootIsShared reports whether mounts made in this process's namespace reach
// the namespace in which the user's Podman lives.
func rootIsShared() bool {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	entries, err := parseMountinfo(f)
	if err != nil {
		return false
	}
	root, ok := mountAt(entries, "/")
	return ok && root.shared
}
