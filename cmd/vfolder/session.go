package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/launcher"
)

func init() {
	passThrough["session run"] = 0
	passThrough["session exec"] = 1
	commands = append(commands, func() []*cli.Command { return []*cli.Command{sessionCommand()} })
}

func sessionCommand() *cli.Command {
	return &cli.Command{
		Name:  "session",
		Usage: "run containers with folders in them",
		Subcommands: []*cli.Command{
			{
				Name:      "run",
				Usage:     "create a session and run a command in it (a login shell if none is given)",
				ArgsUsage: "[COMMAND [ARG...]]",
				Description: "The session stays when the command ends, unless --rm is given. Flags go before COMMAND;\n" +
					"all that follows is COMMAND's. The exit code is COMMAND's.",
				Flags: append(createFlags(),
					&cli.BoolFlag{Name: "rm", Usage: "delete the session after the command, as \"session delete\" does"},
					timeoutFlag(), ttyFlag(), noTTYFlag()),
				Action: withLauncher(runSession),
			},
			{
				Name:   "create",
				Usage:  "create and start a session",
				Flags:  append(createFlags(), formatFlag()),
				Action: withLauncher(createSession),
			},
			{
				Name:    "list",
				Aliases: []string{"ls", "ps"},
				Usage:   "list sessions",
				Flags:   []cli.Flag{formatFlag(), quietFlag()},
				Action:  withLauncher(listSessions),
			},
			{
				Name:      "exec",
				Usage:     "run a command in a session (a login shell if none is given)",
				ArgsUsage: "SESSION [COMMAND [ARG...]]",
				Description: "Flags go before COMMAND; all that follows SESSION is COMMAND's. The exit code is COMMAND's;\n" +
					"125 if it could not be started, 126 if it cannot be run, 127 if it is not there.",
				Flags:  append(execFlags(), ttyFlag(), noTTYFlag()),
				Action: withLauncher(execSession),
			},
			{
				Name:      "start",
				Usage:     "start stopped sessions again",
				ArgsUsage: "SESSION...",
				Action:    withLauncher(startSessions),
			},
			{
				Name:      "stop",
				Usage:     "end what runs in sessions; their homes stay until they are deleted",
				ArgsUsage: "SESSION...",
				Action:    withLauncher(stopSessions),
			},
			{
				Name:      "delete",
				Aliases:   []string{"rm"},
				Usage:     "stop sessions, wait until what they wrote is in the bucket, and remove them",
				ArgsUsage: "SESSION...",
				Description: "What a session wrote outside of its folders is gone afterwards. When the bucket takes longer than\n" +
					"--timeout, the session stays stopped, what is left is listed, and the exit code is 3.",
				Flags: []cli.Flag{
					timeoutFlag(),
					&cli.BoolFlag{Name: "no-wait", Usage: "remove at once; the daemon goes on bringing files into the bucket"},
					yesFlag(),
				},
				Action: withLauncher(deleteSessions),
			},
		},
	}
}

func createFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "name", Aliases: []string{"n"}, Usage: "`NAME` of the session (made up if not given)"},
		&cli.StringFlag{
			Name: "image", Aliases: []string{"i"}, Usage: "`IMAGE` to run", Value: launcher.DefaultImage,
			EnvVars: []string{"VFOLDER_IMAGE"},
		},
		&cli.StringSliceFlag{
			Name: "mount", Aliases: []string{"v"}, Usage: "folder to mount: `SPEC` is NAME[/SUB][:TARGET][:ro]; may be repeated",
		},
		&cli.StringFlag{Name: "network", Usage: "`WHICH`: none for a session without network, else default", Value: "default"},
	}, execFlags()...)
}

func execFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "variable to set: `KEY=VALUE`; may be repeated"},
	}
}

func timeoutFlag() cli.Flag {
	return &cli.DurationFlag{Name: "timeout", Usage: "`DURATION` to wait for the bucket", Value: launcher.DefaultSyncTimeout}
}

func ttyFlag() cli.Flag {
	return &cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the command a terminal (the default on one)"}
}

func noTTYFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-tty", Aliases: []string{"T"}, Usage: "give the command no terminal"}
}

// withLauncher connects to Podman for the time of a command.
func withLauncher(do func(*cli.Context, *launcher.Launcher) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		l, err := launcher.Connect(c.Context)
		if err != nil {
			return err
		}
		defer l.Close()
		return do(c, l)
	}
}

// create makes the session that a command's flags describe.
func create(c *cli.Context, l *launcher.Launcher) (launcher.Session, error) {
	mounts, err := launcher.ParseMounts(c.StringSlice("mount"))
	if err != nil {
		return launcher.Session{}, err
	}
	env, err := parseEnv(c)
	if err != nil {
		return launcher.Session{}, err
	}
	network := c.String("network")
	if network != "default" && network != "none" {
		return launcher.Session{}, wrongUsage(c, "unknown network %q: use default or none", network)
	}
	var folders launcher.Folders
	if len(mounts) > 0 {
		source, err := openFolders()
		if err != nil {
			return launcher.Session{}, err
		}
		defer source.Close()
		folders = source
	}
	return l.Create(c.Context, folders, launcher.Options{
		Name: c.String("name"), Image: c.String("image"), Mounts: mounts, Env: env, Network: network,
	})
}

func parseEnv(c *cli.Context) (map[string]string, error) {
	env := map[string]string{}
	for _, pair := range c.StringSlice("env") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, wrongUsage(c, "%q is not KEY=VALUE", pair)
		}
		env[key] = value
	}
	return env, nil
}

func createSession(c *cli.Context, l *launcher.Launcher) error {
	if err := checkFormat(c); err != nil {
		return err
	}
	if c.Args().Present() {
		return wrongUsage(c, "it takes no argument; to run a command use: vfolder session run")
	}
	s, err := create(c, l)
	if err != nil {
		return err
	}
	if c.String("format") == "json" {
		return listing{value: s}.print(c)
	}
	_, err = fmt.Fprintln(c.App.Writer, s.Name)
	return err
}

func listSessions(c *cli.Context, l *launcher.Launcher) error {
	if c.Args().Present() {
		return wrongUsage(c, "it takes no argument")
	}
	sessions, err := l.List(c.Context)
	if err != nil {
		return err
	}
	return sessionListing(sessions, time.Now()).print(c)
}

func sessionListing(sessions []launcher.Session, now time.Time) listing {
	out := listing{head: []string{"NAME", "ID", "STATE", "IMAGE", "AGE", "FOLDERS"}, value: sessions}
	for _, s := range sessions {
		var mounts []string
		for _, m := range s.Mounts {
			mounts = append(mounts, m.String())
		}
		id := s.ID
		if len(id) > 12 {
			id = id[:12]
		}
		out.rows = append(out.rows, []string{s.Name, id, s.State, s.Image, ageText(now.Sub(s.Created)), strings.Join(mounts, " ")})
		out.names = append(out.names, s.Name)
	}
	return out
}

// ageText shows a duration in its largest unit.
func ageText(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func startSessions(c *cli.Context, l *launcher.Launcher) error {
	return eachSession(c, func(ref string) error {
		s, err := l.Find(c.Context, ref)
		if err != nil {
			return err
		}
		var folders launcher.Folders
		if len(s.Mounts) > 0 {
			source, err := openFolders()
			if err != nil {
				return err
			}
			defer source.Close()
			folders = source
		}
		if _, err := l.Start(c.Context, folders, s.ID); err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.App.Writer, s.Name)
		return err
	})
}

func stopSessions(c *cli.Context, l *launcher.Launcher) error {
	return eachSession(c, func(ref string) error {
		s, err := l.Stop(c.Context, ref)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.App.Writer, s.Name)
		return err
	})
}

func deleteSessions(c *cli.Context, l *launcher.Launcher) error {
	// Sessions are made to be thrown away: scripts need not say so twice.
	if c.Args().Present() && isTerminal(os.Stdin) {
		question := fmt.Sprintf("Delete %s, and all that is not in a folder?", strings.Join(c.Args().Slice(), ", "))
		if err := confirm(c, question); err != nil {
			return err
		}
	}
	return eachSession(c, func(ref string) error {
		name, err := deleteSession(c, l, ref)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.App.Writer, name)
		return err
	})
}

// deleteSession is shared by "delete" and by "run --rm".
func deleteSession(c *cli.Context, l *launcher.Launcher, ref string) (string, error) {
	s, err := l.Find(c.Context, ref)
	if err != nil {
		return "", err
	}
	var folders launcher.Folders
	if len(s.Writable()) > 0 && !c.Bool("no-wait") {
		source, err := openFolders()
		if err != nil {
			return "", err
		}
		defer source.Close()
		folders = source
	}
	bar := newProgress(c.App.ErrWriter)
	defer bar.end()
	_, err = l.Delete(c.Context, folders, s.ID, launcher.DeleteOptions{
		NoWait: c.Bool("no-wait"), Timeout: c.Duration("timeout"), Progress: bar.left,
	})
	return s.Name, err
}

// eachSession runs a command for each of its arguments. It goes on after a
// failure, reports each, and returns the last.
func eachSession(c *cli.Context, do func(ref string) error) error {
	if !c.Args().Present() {
		return wrongUsage(c, "which session?")
	}
	var last error
	for _, ref := range c.Args().Slice() {
		if last != nil {
			printError(c.App.ErrWriter, last)
		}
		if c.Context.Err() != nil {
			return context.Cause(c.Context)
		}
		last = keepWorst(last, do(ref))
	}
	return last
}

// keepWorst returns err, or the earlier failure as a plain partial one if err is
// none, so that the exit code still tells of it.
func keepWorst(earlier, err error) error {
	if err != nil || earlier == nil {
		return err
	}
	return &vfolder.Error{Op: "sessions", Kind: vfolder.KindPartial, Err: fmt.Errorf("not all of them were dealt with")}
}
