package launcher

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containers/podman/v5/pkg/bindings/images"

	"github.com/vfolder/vfolder"
)

// sessionPackages names the Debian packages of the session image, one a line.
//
//go:embed session-image/packages
var sessionPackages string

// sessionSetup runs as root in the new root file system, whose path it gets.
//
//go:embed session-image/setup.sh
var sessionSetup string

// buildRelease is the Debian release of the image on hosts that are no Debian.
const buildRelease = "bookworm"

// BuildOptions say how the session image is made.
type BuildOptions struct {
	Name     string    // DefaultImage if empty
	Packages []string  // in addition
	Output   io.Writer // gets the tools' own words; may be nil
}

// BuildImage makes a session image of Debian packages, without root: a minimal
// system, what people expect in a terminal, and the user of sessions. It needs
// mmdebstrap and Debian's mirror, and takes a few minutes.
func (l *Launcher) BuildImage(ctx context.Context, o BuildOptions) (string, error) {
	name := o.Name
	if name == "" {
		name = DefaultImage
	}
	fail := func(err error, fix string) (string, error) {
		return "", &vfolder.Error{Op: "image", Kind: kindOrIO(err), Path: name, Err: err, Fix: fix}
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return "", &vfolder.Error{
			Op: "image", Kind: vfolder.KindUnsupported, Path: name, Err: errors.New("mmdebstrap is not installed"),
			Fix: "sudo apt-get install mmdebstrap uidmap",
		}
	}
	dir, err := buildDir()
	if err != nil {
		return fail(err, "")
	}
	defer os.RemoveAll(dir)
	setup := filepath.Join(dir, "setup.sh")
	if err := os.WriteFile(setup, []byte(sessionSetup), 0o755); err != nil {
		return fail(err, "")
	}
	archive := filepath.Join(dir, "root.tar")
	if err := bootstrap(ctx, o, archive, setup); err != nil {
		return fail(err, "vfolder image build (read the messages above: a mirror that does not answer is the usual reason)")
	}
	f, err := os.Open(archive)
	if err != nil {
		return fail(err, "")
	}
	defer f.Close()
	changes := []string{"USER work", "WORKDIR " + Home, "ENV LANG=C.UTF-8", `CMD ["/bin/bash", "-l"]`}
	opts := new(images.ImportOptions).WithReference(name).WithChanges(changes)
	if _, err := images.Import(l.with(ctx), f, opts); err != nil {
		return "", podmanError("image", name, err)
	}
	return name, nil
}

// buildDir makes a scratch directory that other ids of the user's can reach:
// mmdebstrap works as root of a user namespace, who is none of the owners of the
// directories above.
func buildDir() (string, error) {
	for _, base := range []string{os.Getenv("TMPDIR"), "/var/tmp", "/tmp"} {
		if !filepath.IsAbs(base) || !passable(base) {
			continue
		}
		dir, err := os.MkdirTemp(base, "vfolder-image-")
		if err != nil {
			continue
		}
		if err := os.Chmod(dir, 0o711); err != nil {
			return "", errors.Join(err, os.RemoveAll(dir))
		}
		return dir, nil
	}
	return "", errors.New("no directory for temporary files that all users can pass through: set TMPDIR")
}

// passable reports whether everyone may go through a directory and all above it.
func passable(dir string) bool {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&1 == 0 {
			return false
		}
		if dir == "/" {
			return true
		}
	}
}

// bootstrap runs mmdebstrap into a tar.
func bootstrap(ctx context.Context, o BuildOptions, archive, setup string) error {
	packages := append(strings.Fields(sessionPackages), o.Packages...)
	args := []string{
		"--mode=unshare", "--variant=minbase", "--format=tar", "--include=" + strings.Join(packages, ","),
		`--aptopt=Apt::Install-Recommends "false"`, `--aptopt=Acquire::Languages "none"`, `--aptopt=Acquire::Retries "3"`,
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/info/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--customize-hook=" + setup,
	}
	release, mirrors := debianSources("/etc")
	args = append(append(args, release, archive), mirrors...)
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Dir(archive))
	var last bytes.Buffer
	out := io.Writer(&last)
	if o.Output != nil {
		out = io.MultiWriter(&last, o.Output)
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		text := last.Bytes()
		if len(text) > 600 {
			text = text[len(text)-600:]
		}
		return fmt.Errorf("mmdebstrap: %w: %s", err, strings.TrimSpace(string(text)))
	}
	return nil
}

// debianSources returns the release to make, and the host's own package sources
// for it, so that a mirror configured on the host is used. etc is the host's
// /etc.
func debianSources(etc string) (release string, mirrors []string) {
	data, err := os.ReadFile(filepath.Join(etc, "os-release"))
	if err != nil {
		return buildRelease, nil
	}
	isDebian := false
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			isDebian = value == "debian"
		case "VERSION_CODENAME":
			release = value
		}
	}
	if !isDebian || release == "" {
		return buildRelease, nil
	}
	for _, file := range []string{"apt/sources.list", "apt/sources.list.d/debian.sources"} {
		file = filepath.Join(etc, file)
		if text, err := os.ReadFile(file); err == nil && hasSource(string(text), release) {
			mirrors = append(mirrors, file)
		}
	}
	return release, mirrors
}

// hasSource reports whether a sources file speaks of a release.
func hasSource(text, release string) bool {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		for word := range strings.FieldsSeq(line) {
			if word == release {
				return true
			}
		}
	}
	return false
}
