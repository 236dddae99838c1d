package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/config"
	"github.com/vfolder/vfolder/control"
)

// maxReport bounds what vfolderd says about its start.
const maxReport = 64 << 10

// storeTimeout bounds how long a start waits for the object store.
const storeTimeout = 5 * time.Second

var errStoreLate = errors.New("the store is late")

func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &vfolder.Error{
			Op: "daemon start", Kind: vfolder.KindNotFound, Path: name,
			Err: errors.New("it is neither beside vfolder nor in PATH"), Fix: "install " + name + " in the directory of vfolder",
		}
	}
	return path, nil
}

func startDaemon(c *cli.Context) error {
	if c.Args().Present() {
		return wrongUsage(c, "it takes no argument")
	}
	cfg, err := config.Load(nil)
	if err != nil {
		return err
	}
	client := control.Dial(cfg.Daemon.Socket())
	defer client.Close()
	if st, err := client.Status(c.Context); err == nil && st.Mounted {
		fmt.Fprintf(c.App.ErrWriter, "vfolderd is already running (pid %d), mounted at %s\n", st.PID, st.Mountpoint)
		return nil
	}
	program, err := programBeside("vfolderd")
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "starting %s\n", program)
	if err := spawnDaemon(program, cfg.Daemon); err != nil {
		return err
	}
	var st control.DaemonStatus
	err = poll(c.Context, startTimeout, func() (bool, error) {
		var err error
		st, err = client.Status(c.Context)
		return err == nil && st.Mounted, nil
	}, &vfolder.Error{
		Op: "daemon start", Kind: vfolder.KindTimeout, Err: errors.New("it does not answer"), Fix: "vfolder daemon logs",
	})
	if err != nil {
		return err
	}
	// A store that answers has told its folders a moment later; one that does
	// not is no reason to fail.
	err = poll(c.Context, storeTimeout, func() (bool, error) {
		now, err := client.Status(c.Context)
		if err == nil {
			st = now
		}
		return st.Store.Reachable, nil
	}, errStoreLate)
	if err != nil && !errors.Is(err, errStoreLate) {
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "vfolderd runs (pid %d)\n", st.PID)
	fmt.Fprintf(c.App.ErrWriter, "  mount  %s\n", st.Mountpoint)
	store := fmt.Sprintf("%s, bucket %s", st.Store.Endpoint, st.Store.Bucket)
	if st.Store.Embedded {
		store += " (embedded, data below " + st.StateDir + ")"
	}
	fmt.Fprintf(c.App.ErrWriter, "  store  %s\n", store)
	if !st.Store.Reachable {
		fmt.Fprintf(c.App.ErrWriter, "  the store does not answer yet: %s; what is local works, the rest follows\n", st.Store.Error)
	}
	fmt.Fprintf(c.App.ErrWriter, "  logs   %s\n", orDash(st.LogDir))
	return warn(c, st)
}

// spawnDaemon starts vfolderd in a session of its own and waits for its report:
// it is mounted, or why not.
func spawnDaemon(program string, d config.Daemon) error {
	if err := os.MkdirAll(d.LogDir(), 0o700); err != nil {
		return localError("daemon start", d.LogDir(), err)
	}
	// What a crash prints, before there is a log or beside it.
	outName := filepath.Join(d.LogDir(), "vfolderd.out")
	out, err := os.OpenFile(outName, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return localError("daemon start", outName, err)
	}
	defer out.Close()
	report, write, err := os.Pipe()
	if err != nil {
		return localError("daemon start", program, err)
	}
	defer report.Close()
	cmd := exec.Command(program, "run", "--log=file", "--report-fd=3")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{write}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	write.Close()
	if err != nil {
		return localError("daemon start", program, err)
	}
	if err := report.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return localError("daemon start", program, err)
	}
	text, err := io.ReadAll(io.LimitReader(report, maxReport))
	if err != nil {
		return &vfolder.Error{
			Op: "daemon start", Kind: vfolder.KindTimeout, Path: program, Err: errors.New("it does not say whether it runs"), Fix: "vfolder daemon logs",
		}
	}
	var r control.Report
	if json.Unmarshal(text, &r) != nil || !r.Ready && r.Error == nil {
		_ = cmd.Wait()
		crash, _ := os.ReadFile(outName)
		return vfolder.Errorf(vfolder.KindDaemon, "daemon start", program, "it ended without saying why: %s", lastLine(string(crash)))
	}
	if !r.Ready {
		_ = cmd.Wait()
		return r.Err()
	}
	return cmd.Process.Release()
}
