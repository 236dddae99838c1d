package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// loopbackArg as first argument makes this program a loopback server.
const loopbackArg = "loopback-server"

// serveLoopback serves backing at mount until SIGTERM, with the options that
// vfolder's own mount has where they matter for speed.
func serveLoopback(backing, mount string) error {
	root, err := fs.NewLoopbackRoot(backing)
	if err != nil {
		return err
	}
	timeout := time.Second
	server, err := fs.Mount(mount, root, &fs.Options{
		AttrTimeout:     &timeout,
		EntryTimeout:    &timeout,
		NullPermissions: true,
		MountOptions: fuse.MountOptions{
			FsName:   "bench",
			Name:     "loopback",
			MaxWrite: 1 << 20,
		},
	})
	if err != nil {
		return err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		for range term {
			// Busy for a moment after the last close: asked again on the next signal.
			for server.Unmount() != nil {
				time.Sleep(50 * time.Millisecond)
			}
		}
	}()
	server.Wait()
	return nil
}
