package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// folder is a vfolder folder on a daemon of its own.
type folder struct {
	directory
	cli   string   // the vfolder program
	env   []string // with the daemon's private directories
	state string   // the daemon's state directory
}

const benchFolder = "bench"

// openFolder starts a daemon whose whole state lies below dir and makes a
// folder in it.
func openFolder(ctx context.Context, name, dir, bin string) (target, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	f := &folder{cli: filepath.Join(bin, "vfolder"), env: os.Environ(), state: filepath.Join(dir, "state", "vfolder")}
	if _, err := os.Stat(f.cli); err != nil {
		return nil, fmt.Errorf("%w; build it with: make build", err)
	}
	// Sockets have short paths only.
	runtime, err := os.MkdirTemp("", "vfb.")
	if err != nil {
		return nil, err
	}
	for v, d := range map[string]string{
		"XDG_RUNTIME_DIR": runtime,
		"XDG_STATE_HOME":  filepath.Join(dir, "state"),
		"XDG_DATA_HOME":   filepath.Join(dir, "data"),
		"XDG_CACHE_HOME":  filepath.Join(dir, "cache"),
		"XDG_CONFIG_HOME": filepath.Join(dir, "config"),
	} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
		f.env = append(f.env, v+"="+d)
	}
	f.env = append(f.env, "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	f.label = name
	f.sync = func(ctx context.Context) error {
		_, err := f.vfolder(ctx, "folder", "sync", benchFolder)
		return err
	}
	f.stop = func() error {
		if _, err := f.vfolder(context.Background(), "daemon", "stop"); err != nil {
			return err // the mount may be live: nothing is removed
		}
		return os.RemoveAll(runtime)
	}
	if _, err := f.vfolder(ctx, "daemon", "start"); err != nil {
		return nil, err
	}
	if _, err = f.vfolder(ctx, "folder", "create", benchFolder); err == nil {
		f.path, err = f.vfolder(ctx, "folder", "path", benchFolder)
	}
	if err != nil {
		return nil, errors.Join(err, f.stop())
	}
	return f, nil
}

// vfolder runs the command line program against this daemon and returns what
// it printed.
func (f *folder) vfolder(ctx context.Context, args ...string) (string, error) {
	c := exec.CommandContext(ctx, f.cli, args...)
	var stderr bytes.Buffer
	c.Env, c.Stderr = f.env, &stderr
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("vfolder %s: %w: %s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}
