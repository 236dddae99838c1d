// Command vfolderd is the storage daemon: a supervisor that owns the mount, a
// worker that serves it, and the embedded object store, all of them this
// program.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/config"
	"github.com/vfolder/vfolder/control"
	"github.com/vfolder/vfolder/daemon"
)

func main() {
	// What the daemon makes is its user's alone; the modes of files in folders
	// are not those of files on this disk.
	unix.Umask(0o077)
	app := newApp()
	if err := app.Run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "vfolderd: "+explain(err))
		os.Exit(vfolder.KindOf(err).Info().Exit)
	}
}

func explain(err error) string {
	text := err.Error()
	var e *vfolder.Error
	if errors.As(err, &e) && e.Fix != "" {
		text += "; fix: " + e.Fix
	}
	return text
}

func newApp() *cli.App {
	return &cli.App{
		Name:           "vfolderd",
		Usage:          "storage daemon of vfolder",
		HideVersion:    true,
		ExitErrHandler: func(*cli.Context, error) {},
		Commands: []*cli.Command{
			{
				Name:  "run",
				Usage: "mount and serve, in the foreground (vfolder daemon start does so in the background)",
				Flags: append(settingFlags(),
					&cli.StringFlag{Name: "log", Usage: "`WHERE` to: auto, file or stderr", Value: "auto"},
					&cli.IntFlag{Name: "report-fd", Usage: "file `NUMBER` to report the start to, as JSON", Value: -1, Hidden: true}),
				Action: run,
			},
			{Name: "worker", Usage: "serve the mounts that a supervisor gives", Hidden: true, Flags: settingFlags(), Action: worker},
			{Name: "store", Usage: "run the embedded object store", Hidden: true, Flags: settingFlags(), Action: store},
			{Name: "version", Usage: "print the version", Action: func(c *cli.Context) error {
				_, err := fmt.Fprintln(c.App.Writer, programVersion())
				return err
			}},
		},
	}
}

// version is set by the linker.
var version string

// programVersion is the linker's, else the module's, or the commit it was built from.
func programVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "development"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "development-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return "development"
}

// settingFlags is a flag for every setting of the configuration.
func settingFlags() []cli.Flag {
	var flags []cli.Flag
	for _, key := range config.Keys() {
		flags = append(flags, &cli.StringFlag{Name: config.FlagName(key), Usage: "overrides `" + key + "`"})
	}
	return flags
}

// settings reads the configuration and returns the flags, for children.
func settings(c *cli.Context) (*config.Config, []string, error) {
	values := map[string]string{}
	var again []string
	for _, key := range config.Keys() {
		name := config.FlagName(key)
		if c.IsSet(name) {
			values[key] = c.String(name)
			again = append(again, "--"+name+"="+c.String(name))
		}
	}
	cfg, err := config.Load(values)
	return cfg, again, err
}

func run(c *cli.Context) error {
	report, err := takeReport(c.Int("report-fd"))
	if err != nil {
		return err
	}
	fail := func(err error) error {
		if report != nil {
			_ = json.NewEncoder(report).Encode(control.NewReport(err))
			_ = report.Close()
		}
		return err
	}
	cfg, flags, err := settings(c)
	if err != nil {
		return fail(err)
	}
	toFile, err := logToFile(c.String("log"))
	if err != nil {
		return fail(err)
	}
	program, err := os.Executable()
	if err != nil {
		return fail(&vfolder.Error{Op: "start", Err: err})
	}
	var to io.WriteCloser
	if report != nil {
		to = report
	}
	return daemon.RunSupervisor(context.Background(), cfg, daemon.SuperviseOptions{
		Program: program, Flags: flags, LogToFile: toFile, Report: to,
	})
}

// takeReport opens the file to report to. The flag is taken off the arguments:
// the supervisor runs its program anew with them when it hands over, and that
// number is another file then.
func takeReport(fd int) (*os.File, error) {
	if fd < 0 {
		return nil, nil
	}
	os.Args = slices.DeleteFunc(slices.Clone(os.Args), func(arg string) bool {
		return strings.HasPrefix(strings.TrimLeft(arg, "-"), "report-fd=")
	})
	if fd < 3 || slices.Contains(os.Args, "--report-fd") {
		return nil, vfolder.Errorf(vfolder.KindInvalid, "report-fd", "", "write --report-fd=N, with N above 2")
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "report")
	if _, err := f.Stat(); err != nil {
		return nil, &vfolder.Error{Op: "report-fd", Kind: vfolder.KindInvalid, Err: err}
	}
	return f, nil
}

// logToFile decides where the log goes: the journal reads standard error, and
// so does whoever started the daemon on a terminal.
func logToFile(where string) (bool, error) {
	switch where {
	case "file":
		return true, nil
	case "stderr":
		return false, nil
	case "auto":
		_, err := unix.IoctlGetTermios(2, unix.TCGETS)
		return os.Getenv("JOURNAL_STREAM") == "" && err != nil, nil
	}
	return false, vfolder.Errorf(vfolder.KindInvalid, "log", where, "use auto, file or stderr")
}

func worker(c *cli.Context) error {
	cfg, _, err := settings(c)
	if err != nil {
		return err
	}
	code, err := daemon.RunWorker(context.Background(), cfg, programVersion())
	if err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

func store(c *cli.Context) error {
	cfg, _, err := settings(c)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return daemon.RunStore(ctx, cfg)
}
