package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/config"
)

// followEvery is how often a log is looked at again.
const followEvery = 250 * time.Millisecond

func logFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on as the log grows"},
		&cli.IntFlag{Name: "lines", Aliases: []string{"n"}, Usage: "how many `LINES` of the end", Value: 200},
		&cli.BoolFlag{Name: "path", Usage: "print only where the log is"},
	}
}

func daemonLogs(c *cli.Context) error {
	if c.Args().Present() {
		return wrongUsage(c, "it takes no argument")
	}
	if c.Int("lines") < 0 {
		return wrongUsage(c, "a number of lines is not negative")
	}
	cfg, err := config.Load(nil)
	if err != nil {
		return err
	}
	name := filepath.Join(cfg.Daemon.LogDir(), "vfolderd.log")
	if c.Bool("path") {
		_, err := fmt.Fprintln(c.App.Writer, name)
		return err
	}
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return &vfolder.Error{
			Op: "daemon logs", Kind: vfolder.KindNotFound, Path: name,
			Err: errors.New("the daemon has not logged here; under systemd it logs to the journal"), Fix: "journalctl --user -u vfolderd",
		}
	}
	if err != nil {
		return localError("daemon logs", name, err)
	}
	defer func() { f.Close() }()
	if err := seekLines(f, c.Int("lines")); err != nil {
		return localError("daemon logs", name, err)
	}
	for {
		if _, err := io.Copy(c.App.Writer, f); err != nil || !c.Bool("follow") {
			return err
		}
		if next := follow(c.Context, f, name); next == nil {
			return nil
		} else if next != f {
			f.Close()
			f = next
		}
	}
}

// follow waits a moment and returns the file to read on from: a new one after
// the log was rotated, nil when the user had enough.
func follow(ctx context.Context, f *os.File, name string) *os.File {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(followEvery):
	}
	now, err := os.Stat(name)
	if err != nil {
		return f
	}
	if old, err := f.Stat(); err == nil && os.SameFile(old, now) {
		return f
	}
	// The rest of the old file first: it may have grown before it was renamed.
	if n, _ := io.Copy(io.Discard, io.NewSectionReader(f, position(f), 1)); n > 0 {
		return f
	}
	if next, err := os.Open(name); err == nil {
		return next
	}
	return f
}

func position(f *os.File) int64 {
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0
	}
	return at
}

// seekLines moves to where the last n lines begin.
func seekLines(f *os.File, n int) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return err
	}
	const block = 64 << 10
	buf := make([]byte, block)
	left := n + 1 // the newline before the first of them
	if at := end; at > 0 {
		if _, err := f.ReadAt(buf[:1], at-1); err != nil {
			return err
		}
		if buf[0] != '\n' {
			left--
		}
	}
	for at := end; at > 0; {
		size := min(block, at)
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil {
			return err
		}
		for i := bytes.LastIndexByte(buf[:size], '\n'); i >= 0; i = bytes.LastIndexByte(buf[:i], '\n') {
			if left--; left == 0 {
				_, err := f.Seek(at+int64(i)+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
