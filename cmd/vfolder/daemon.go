package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/config"
	"github.com/vfolder/vfolder/control"
	"github.com/vfolder/vfolder/launcher"
)

const (
	// startTimeout bounds a start: the first one makes the index, the store and
	// the mount.
	startTimeout = 60 * time.Second
	// endTimeout bounds the end of the processes after the daemon agreed to stop.
	endTimeout = 30 * time.Second
	pollEvery  = 50 * time.Millisecond
	// statusTimeout bounds the question whether the daemon is well.
	statusTimeout = 15 * time.Second
)

func init() {
	commands = append(commands, func() []*cli.Command { return []*cli.Command{daemonCommand()} })
}

func daemonCommand() *cli.Command {
	return &cli.Command{
		Name:  "daemon",
		Usage: "start, stop and look after the storage daemon, vfolderd",
		Subcommands: []*cli.Command{
			{
				Name:        "start",
				Usage:       "start the daemon and wait until its mount is live",
				Description: "It goes on after the terminal is closed. Where systemd looks after users' services, prefer\nsystemctl --user start vfolderd.",
				Action:      startDaemon,
			},
			{
				Name:  "stop",
				Usage: "bring what is left into the bucket, unmount and end the daemon",
				Description: "It refuses while sessions use folders, and names them. What is not in the bucket after --timeout stays\n" +
					"on disk, goes on at the next start, and the exit code is 3.",
				Flags: []cli.Flag{
					&cli.DurationFlag{Name: "timeout", Usage: "how long to wait for the bucket (setting daemon.drain if not given)"},
					&cli.BoolFlag{Name: "no-wait", Usage: "do not wait for the bucket"},
				},
				Action: withDaemon(stopDaemon),
			},
			{
				Name:        "restart",
				Usage:       "hand the mount over to a new worker, e.g. after an upgrade",
				Description: "Sessions and open files do not notice.",
				Action:      withDaemon(restartDaemon),
			},
			{
				Name:   "status",
				Usage:  "show what the daemon does",
				Flags:  []cli.Flag{formatFlag()},
				Action: withDaemon(daemonStatus),
			},
			{
				Name:   "logs",
				Usage:  "print the daemon's log",
				Flags:  logFlags(),
				Action: daemonLogs,
			},
		},
	}
}

func daemonStatus(c *cli.Context, client *control.Client) error {
	if c.Args().Present() {
		return wrongUsage(c, "it takes no argument")
	}
	ctx, cancel := context.WithTimeout(c.Context, statusTimeout)
	defer cancel()
	st, err := client.Status(ctx)
	if vfolder.KindOf(err) == vfolder.KindTimeout && err != nil {
		return &vfolder.Error{
			Op: "daemon status", Kind: vfolder.KindDaemon, Path: client.Socket(),
			Err: errors.New("its socket is there, but no worker answers"), Fix: "vfolder daemon logs",
		}
	}
	if err != nil {
		return err
	}
	if err := statusOf(st).print(c); err != nil {
		return err
	}
	return warn(c, st)
}

// warn shows what the daemon found wrong with the host.
func warn(c *cli.Context, st control.DaemonStatus) error {
	for _, text := range st.Warnings {
		if _, err := fmt.Fprintf(c.App.ErrWriter, "warning: %s\n", text); err != nil {
			return err
		}
	}
	return nil
}

func statusOf(st control.DaemonStatus) listing {
	mount := st.Mountpoint
	if !st.Mounted {
		mount += " (not live)"
	}
	store := fmt.Sprintf("%s, bucket %s", st.Store.Endpoint, st.Store.Bucket)
	if st.Store.Embedded {
		store += " (embedded)"
	}
	health := "reachable"
	if !st.Store.Reachable {
		health = "unreachable"
		if st.Store.Error != "" {
			health += ": " + st.Store.Error
		}
	}
	logs := st.LogDir
	if logs == "" {
		logs = "the journal"
	}
	return listing{
		head: []string{"FIELD", "VALUE"},
		rows: [][]string{
			{"pid", strconv.Itoa(st.PID)},
			{"worker", fmt.Sprintf("%d, since %s", st.Worker, timeText(st.Started))},
			{"version", st.Program},
			{"mount", mount},
			{"store", store},
			{"store health", health},
			{"not in the bucket yet", pendingText(st.Pending)},
			{"local content", fmt.Sprintf("%d files, %s", st.CacheFiles, bytesText(st.CacheBytes))},
			{"state", st.StateDir},
			{"logs", logs},
		},
		value: st,
	}
}

func pendingText(p control.Pending) string {
	return fmt.Sprintf("%d files, %s", p.Files, bytesText(p.Bytes))
}

func stopDaemon(c *cli.Context, client *control.Client) error {
	if c.Args().Present() {
		return wrongUsage(c, "it takes no argument")
	}
	users, err := usersOf(c.Context, "")
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return usedBy("daemon stop", "", users)
	}
	st, err := client.Status(c.Context)
	if err != nil {
		return err
	}
	wait := c.Duration("timeout")
	if !c.IsSet("timeout") {
		cfg, err := config.Load(nil)
		if err != nil {
			return err
		}
		wait = cfg.Daemon.Drain
	}
	if c.Bool("no-wait") {
		wait = 0
	}
	bar := newProgress(c.App.ErrWriter)
	result, err := client.Stop(c.Context, control.StopOptions{DrainMillis: wait.Milliseconds()}, func(p control.Pending) {
		bar.left(launcher.Left{Files: p.Files, Bytes: p.Bytes})
	})
	bar.end()
	if err != nil {
		return err
	}
	if err := waitGone(c.Context, st.PID); err != nil {
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "stopped vfolderd (pid %d), unmounted %s\n", st.PID, st.Mountpoint)
	if result.Left.Files > 0 {
		return &vfolder.Error{
			Op: "daemon stop", Kind: vfolder.KindPartial,
			Err: fmt.Errorf("%s are not in the bucket yet; they are kept on disk", pendingText(result.Left)), Fix: "vfolder daemon start",
		}
	}
	return nil
}

// waitGone waits for the end of a process that is not our child.
func waitGone(ctx context.Context, pid int) error {
	return poll(ctx, endTimeout, func() (bool, error) {
		return errors.Is(unix.Kill(pid, 0), unix.ESRCH), nil
	}, &vfolder.Error{
		Op: "daemon stop", Kind: vfolder.KindTimeout, Err: fmt.Errorf("vfolderd (pid %d) does not end", pid), Fix: "vfolder daemon logs",
	})
}

// poll asks until done or an error; late is the error when that takes too long.
func poll(ctx context.Context, limit time.Duration, done func() (bool, error), late error) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return late
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func restartDaemon(c *cli.Context, client *control.Client) error {
	if c.Args().Present() {
		return wrongUsage(c, "it takes no argument")
	}
	before, err := client.Status(c.Context)
	if err != nil {
		return err
	}
	if err := client.Restart(c.Context); err != nil {
		return err
	}
	after := before
	err = poll(c.Context, startTimeout, func() (bool, error) {
		// Between two workers the socket is there and nobody answers.
		ctx, cancel := context.WithTimeout(c.Context, startTimeout)
		defer cancel()
		st, err := client.Status(ctx)
		if err != nil {
			return false, nil
		}
		after = st
		return st.Worker != before.Worker && st.Mounted, nil
	}, &vfolder.Error{
		Op: "daemon restart", Kind: vfolder.KindTimeout, Err: errors.New("no new worker answers"), Fix: "vfolder daemon logs",
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "worker %d took over from %d; the mount at %s stayed\n", after.Worker, before.Worker, after.Mountpoint)
	return nil
}

// lastLine is the last line of a text that has something in it.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// programBeside finds a program in the directory of this one, else in PATH.
func programBeside(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := self[:strings.LastIndex(self, "/")+1] + name
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	return lookPath(name)
}
