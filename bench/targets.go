package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// target is a place where workloads run: a *directory, a *folder or a
// *bucket.
type target interface {
	name() string
	close() error
}

// directory is a target that has a path.
type directory struct {
	label string
	path  string
	// sync returns once everything below path is on the object store; nil
	// where there is none.
	sync func(ctx context.Context) error
	stop func() error // nil: nothing to stop
}

func (d *directory) name() string      { return d.label }
func (d *directory) place() *directory { return d }

func (d *directory) close() error {
	if d.stop == nil {
		return nil
	}
	return d.stop()
}

// cold drops what the kernel caches of the files below dir. Root can drop all
// of it, names included; others drop the files' data.
func (d *directory) cold(_ context.Context, dir string) error {
	if err := syncTree(dir); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
	})
}

// syncTree writes back the file system that dir is on: dirty pages cannot be
// dropped.
func syncTree(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// openTarget makes a target with its files below dir; open are those made
// before it.
func openTarget(ctx context.Context, name, dir string, o options, open []target) (target, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	switch name {
	case "plain":
		return &directory{label: name, path: dir}, nil
	case "loopback":
		return openLoopback(ctx, name, dir)
	case "vfolder":
		return openFolder(ctx, name, dir, o.bin)
	case "store":
		for _, t := range open {
			if d, ok := t.(*folder); ok {
				return openBucket(ctx, name, d)
			}
		}
		return nil, errors.New("it is the store of the target vfolder, which has to come before it")
	}
	return nil, errors.New("unknown; known are plain, loopback, vfolder, store")
}

// openLoopback serves dir/backing at dir/mount from a process of its own, as
// vfolderd is one.
func openLoopback(ctx context.Context, name, dir string) (target, error) {
	backing, mount := filepath.Join(dir, "backing"), filepath.Join(dir, "mount")
	for _, d := range []string{backing, mount} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := exec.Command(self, loopbackArg, backing, mount)
	c.Stderr = os.Stderr
	// The terminal's interrupt must not unmount it under a workload.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		return nil, err
	}
	gone := make(chan error, 1)
	go func() { gone <- c.Wait() }()
	stop := func() error {
		if err := c.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		select {
		case err := <-gone:
			return err
		case <-time.After(20 * time.Second):
			return errors.Join(fmt.Errorf("the loopback at %s does not end", mount), c.Process.Kill())
		}
	}
	if err := waitMounted(ctx, mount, gone); err != nil {
		return nil, errors.Join(err, stop())
	}
	return &directory{label: name, path: mount, stop: stop}, nil
}

// waitMounted waits until mount is a file system of its own; gone says that
// its server ended.
func waitMounted(ctx context.Context, mount string, gone <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var own, parent unix.Stat_t
		err := errors.Join(unix.Stat(mount, &own), unix.Stat(filepath.Dir(mount), &parent))
		if err == nil && own.Dev != parent.Dev {
			return nil
		}
		select {
		case err := <-gone:
			return fmt.Errorf("the server of %s ended: %w", mount, err)
		case <-ctx.Done():
			return fmt.Errorf("%s is not mounted: %w", mount, ctx.Err())
		case <-tick.C:
		}
	}
}
