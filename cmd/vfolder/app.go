package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/launcher"
)

// version is set by the linker.
var version string

// commands is the registration table: each file of this package that has
// commands adds a maker to it from an init function. Help lists them in the
// order of commandOrder.
var commands []func() []*cli.Command

// commandOrder is the order of the top-level commands in the help text; what is
// not named follows.
var commandOrder = []string{"folder", "ls", "cat", "cp", "session", "image", "daemon", "version"}

// folderSource is what sessions need of the daemon, for the time of a command.
type folderSource interface {
	launcher.Folders
	io.Closer
}

// openFolders gives sessions the folders of the user's daemon. Nothing is sent
// before the first use; its error's Kind is KindDaemon when no daemon answers.
func openFolders() (folderSource, error) {
	client, err := dialDaemon()
	if err != nil {
		return nil, err
	}
	return client, nil
}

// newApp puts the commands together.
func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:                   "vfolder",
		Usage:                  "persistent folders for throw-away containers",
		Writer:                 stdout,
		ErrWriter:              stderr,
		HideVersion:            true,
		EnableBashCompletion:   true,
		UseShortOptionHandling: false,
		// Errors are printed, and turned into exit codes, by run alone.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   usageError,
	}
	made := map[string]*cli.Command{}
	var names []string
	for _, maker := range commands {
		for _, c := range maker() {
			made[c.Name] = c
			names = append(names, c.Name)
		}
	}
	for _, name := range append(append([]string{}, commandOrder...), names...) {
		if c := made[name]; c != nil {
			app.Commands = append(app.Commands, c)
			delete(made, name)
		}
	}
	app.Action = func(c *cli.Context) error {
		if c.Args().Present() {
			return unknownCommand(c)
		}
		return cli.ShowAppHelp(c)
	}
	finish(app.Commands)
	return app
}

// finish gives every command what they all share.
func finish(list []*cli.Command) {
	for _, c := range list {
		c.OnUsageError = usageError
		if len(c.Subcommands) > 0 {
			if c.Action == nil {
				c.Action = func(c *cli.Context) error {
					if c.Args().Present() {
						return unknownCommand(c)
					}
					return cli.ShowSubcommandHelp(c)
				}
			}
			finish(c.Subcommands)
		}
	}
}

func usageError(c *cli.Context, err error, _ bool) error {
	return &vfolder.Error{
		Op: strings.TrimSpace(c.App.Name + " " + c.Command.Name), Kind: vfolder.KindInvalid, Err: err,
		Fix: strings.TrimSpace(c.App.Name+" "+c.Command.Name) + " --help",
	}
}

func unknownCommand(c *cli.Context) error {
	return &vfolder.Error{
		Op: "command", Kind: vfolder.KindInvalid, Path: c.Args().First(),
		Err: errors.New("there is no such command"), Fix: c.App.Name + " --help",
	}
}

// wrongUsage is the error of a command that got the wrong arguments.
func wrongUsage(c *cli.Context, format string, args ...any) error {
	name := c.Command.HelpName
	return &vfolder.Error{
		Op: name, Kind: vfolder.KindInvalid, Err: fmt.Errorf(format, args...), Fix: name + " --help",
	}
}

func init() {
	commands = append(commands, func() []*cli.Command {
		return []*cli.Command{{
			Name:  "version",
			Usage: "print the version of this program",
			Flags: []cli.Flag{formatFlag()},
			Action: func(c *cli.Context) error {
				return printVersion(c)
			},
		}}
	})
}

func printVersion(c *cli.Context) error {
	about := struct {
		Version string `json:"version"`
		Format  int    `json:"format"`
		Go      string `json:"go"`
	}{version, vfolder.FormatVersion, ""}
	if info, ok := debug.ReadBuildInfo(); ok {
		about.Go = info.GoVersion
		if about.Version == "" {
			about.Version = info.Main.Version
		}
	}
	if about.Version == "" {
		about.Version = "development"
	}
	return listing{
		head:  []string{"VERSION", "BUCKET FORMAT", "GO"},
		rows:  [][]string{{about.Version, fmt.Sprint(about.Format), about.Go}},
		names: []string{about.Version},
		value: about,
	}.print(c)
}

// isTerminal reports whether f is a terminal.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && terminalAttributes(f)
}
