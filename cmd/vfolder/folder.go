package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/control"
	"github.com/vfolder/vfolder/launcher"
)

func init() {
	commands = append(commands, func() []*cli.Command { return []*cli.Command{folderCommand()} })
}

func folderCommand() *cli.Command {
	return &cli.Command{
		Name:  "folder",
		Usage: "make and look after folders",
		Subcommands: []*cli.Command{
			{
				Name:      "create",
				Aliases:   []string{"new"},
				Usage:     "make folders",
				ArgsUsage: "NAME...",
				Action:    withDaemon(createFolders),
			},
			{
				Name:    "list",
				Aliases: []string{"ls"},
				Usage:   "list folders",
				Flags:   []cli.Flag{formatFlag(), quietFlag()},
				Action:  withDaemon(listFolders),
			},
			{
				Name:      "show",
				Usage:     "show one folder",
				ArgsUsage: "NAME",
				Flags:     []cli.Flag{formatFlag()},
				Action:    withDaemon(showFolder),
			},
			{
				Name:        "path",
				Usage:       "print where a folder is mounted",
				ArgsUsage:   "NAME",
				Description: "Fails when the mount is not live: what is printed is never an empty directory below it.",
				Action:      withDaemon(folderPath),
			},
			{
				Name:        "delete",
				Aliases:     []string{"rm"},
				Usage:       "put folders into the trash",
				ArgsUsage:   "NAME...",
				Description: "The objects stay in the bucket. A folder that a session uses is not deleted.",
				Flags:       []cli.Flag{yesFlag()},
				Action:      withDaemon(deleteFolders),
			},
			{
				Name:      "sync",
				Usage:     "wait until what was written in folders is in the bucket",
				ArgsUsage: "NAME...",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "all folders"},
					&cli.DurationFlag{Name: "timeout", Usage: "give up after `TIME` (the daemon goes on)"},
				},
				Action: withDaemon(syncFolders),
			},
			{
				Name:      "status",
				Usage:     "show what is not in the bucket yet, and why",
				ArgsUsage: "[NAME...]",
				Flags:     []cli.Flag{formatFlag(), quietFlag()},
				Action:    withDaemon(folderStatus),
			},
		},
	}
}

func yesFlag() cli.Flag {
	return &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}
}

// withDaemon connects to the daemon for the time of a command.
func withDaemon(do func(*cli.Context, *control.Client) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		client, err := dialDaemon()
		if err != nil {
			return err
		}
		defer client.Close()
		return do(c, client)
	}
}

// oneFolder is the argument of a command that takes one folder.
func oneFolder(c *cli.Context) (string, error) {
	if c.NArg() != 1 {
		return "", wrongUsage(c, "it takes one folder's name")
	}
	return strings.TrimSuffix(c.Args().First(), ":"), nil
}

// eachFolder runs a command for each of its arguments, goes on after a failure,
// reports each, and returns the last.
func eachFolder(c *cli.Context, names []string, do func(name string) error) error {
	if len(names) == 0 {
		return wrongUsage(c, "which folder?")
	}
	var last error
	for _, name := range names {
		if last != nil {
			printError(c.App.ErrWriter, last)
		}
		if c.Context.Err() != nil {
			return context.Cause(c.Context)
		}
		if err := do(strings.TrimSuffix(name, ":")); err != nil {
			last = err
		} else if last != nil {
			last = vfolder.Errorf(vfolder.KindPartial, "folders", "", "not all of them were dealt with")
		}
	}
	return last
}

func createFolders(c *cli.Context, client *control.Client) error {
	return eachFolder(c, c.Args().Slice(), func(name string) error {
		f, err := client.CreateFolder(c.Context, name)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.App.Writer, f.Name)
		return err
	})
}

func listFolders(c *cli.Context, client *control.Client) error {
	if c.Args().Present() {
		return wrongUsage(c, "it takes no argument; to list a folder's files use: vfolder ls NAME:")
	}
	folders, err := client.Folders(c.Context)
	if err != nil {
		return err
	}
	return folderListing(folders, time.Now()).print(c)
}

func folderListing(folders []control.Folder, now time.Time) listing {
	out := listing{head: []string{"NAME", "ACCESS", "AGE", "PATH"}, value: folders}
	for _, f := range folders {
		out.rows = append(out.rows, []string{f.Name, accessText(f), ageText(now.Sub(time.Unix(0, f.Created))), orDash(f.Path)})
		out.names = append(out.names, f.Name)
	}
	return out
}

func accessText(f control.Folder) string {
	if f.ReadOnly {
		return "read-only"
	}
	return "read-write"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func showFolder(c *cli.Context, client *control.Client) error {
	name, err := oneFolder(c)
	if err != nil {
		return err
	}
	f, err := client.Folder(c.Context, name)
	if err != nil {
		return err
	}
	access := accessText(f)
	if f.Reason != "" {
		access += " (" + f.Reason + ")"
	}
	return listing{
		head: []string{"FIELD", "VALUE"},
		rows: [][]string{
			{"name", f.Name},
			{"id", f.ID},
			{"state", string(f.State)},
			{"access", access},
			{"prefix", f.Prefix},
			{"path", orDash(f.Path)},
			{"created", timeText(f.Created)},
		},
		value: f,
	}.print(c)
}

func timeText(unixNano int64) string {
	return time.Unix(0, unixNano).Format("2006-01-02 15:04:05")
}

func folderPath(c *cli.Context, client *control.Client) error {
	name, err := oneFolder(c)
	if err != nil {
		return err
	}
	f, err := client.Folder(c.Context, name)
	if err != nil {
		return err
	}
	if f.Path == "" {
		return &vfolder.Error{
			Op: "folder path", Kind: vfolder.KindDaemon, Path: name,
			Err: errors.New("the daemon's mount is not live"), Fix: "vfolder daemon restart",
		}
	}
	_, err = fmt.Fprintln(c.App.Writer, f.Path)
	return err
}

func deleteFolders(c *cli.Context, client *control.Client) error {
	names := c.Args().Slice()
	if len(names) > 0 {
		if err := confirm(c, fmt.Sprintf("Put %s into the trash?", strings.Join(names, ", "))); err != nil {
			return err
		}
	}
	return eachFolder(c, names, func(name string) error {
		users, err := usersOf(c.Context, name)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return usedBy("delete folder", name, users)
		}
		if err := client.DeleteFolder(c.Context, name); err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.App.Writer, name)
		return err
	})
}

// liveSessions finds the sessions that run with folders; tests replace it. Root
// has none: sessions are rootless.
var liveSessions = func(ctx context.Context) ([]launcher.Session, error) {
	if os.Geteuid() == 0 {
		return nil, nil
	}
	return launcher.Live(ctx)
}

// usersOf names the sessions that use a folder, or any folder for "".
func usersOf(ctx context.Context, folder string) ([]string, error) {
	sessions, err := liveSessions(ctx)
	if err != nil {
		return nil, &vfolder.Error{Op: "look for sessions that use folders", Kind: vfolder.KindOf(err), Err: err}
	}
	var names []string
	for _, s := range sessions {
		if folder == "" || slices.ContainsFunc(s.Mounts, func(m launcher.Mount) bool { return m.Folder == folder }) {
			names = append(names, s.Name)
		}
	}
	return names, nil
}

func usedBy(op, path string, sessions []string) error {
	word := "session"
	if len(sessions) > 1 {
		word = "sessions"
	}
	return &vfolder.Error{
		Op: op, Kind: vfolder.KindBusy, Path: path,
		Err: fmt.Errorf("in use by %s %s", word, strings.Join(sessions, ", ")),
		Fix: "vfolder session stop " + strings.Join(sessions, " "),
	}
}

// confirm asks on a terminal and demands --yes without one.
func confirm(c *cli.Context, question string) error {
	if c.Bool("yes") {
		return nil
	}
	in, ok := c.App.Reader.(*os.File)
	if !ok || !isTerminal(in) {
		return &vfolder.Error{
			Op: c.Command.HelpName, Kind: vfolder.KindInvalid, Err: errors.New("there is no terminal to ask on"),
			Fix: "add --yes",
		}
	}
	fmt.Fprintf(c.App.ErrWriter, "%s [y/N] ", question)
	answer, _ := bufio.NewReader(in).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return &vfolder.Error{Op: c.Command.HelpName, Kind: vfolder.KindInterrupted, Err: errors.New("not done")}
}

func syncFolders(c *cli.Context, client *control.Client) error {
	names := c.Args().Slice()
	if c.Bool("all") {
		folders, err := client.Folders(c.Context)
		if err != nil || len(folders) == 0 {
			return err
		}
		names = nil
		for _, f := range folders {
			names = append(names, f.Name)
		}
	}
	ctx := c.Context
	if d := c.Duration("timeout"); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	bar := newProgress(c.App.ErrWriter)
	defer bar.end()
	return eachFolder(c, names, func(name string) error {
		left := control.Pending{Files: -1}
		err := client.Sync(ctx, name, func(files int, bytes int64) {
			left = control.Pending{Files: files, Bytes: bytes}
			bar.left(launcher.Left{Folder: name, Files: files, Bytes: bytes})
		})
		if vfolder.KindOf(err) == vfolder.KindTimeout && c.Context.Err() == nil {
			why := "the bucket takes longer"
			if left.Files >= 0 {
				why = fmt.Sprintf("%d files, %s are not in the bucket yet", left.Files, bytesText(left.Bytes))
			}
			return &vfolder.Error{
				Op: "sync", Kind: vfolder.KindPartial, Path: name, Err: errors.New(why), Fix: "vfolder folder status " + name,
			}
		}
		return err
	})
}

func folderStatus(c *cli.Context, client *control.Client) error {
	names := c.Args().Slice()
	chosen := len(names) > 0
	if !chosen {
		folders, err := client.Folders(c.Context)
		if err != nil {
			return err
		}
		for _, f := range folders {
			names = append(names, f.Name)
		}
	}
	list := []control.FolderStatus{}
	for _, name := range names {
		st, err := client.FolderStatus(c.Context, strings.TrimSuffix(name, ":"))
		if err != nil {
			if !chosen && vfolder.KindOf(err) == vfolder.KindNotFound {
				continue // deleted since it was listed
			}
			return err
		}
		list = append(list, st)
	}
	if err := statusListing(list).print(c); err != nil {
		return err
	}
	if c.Bool("quiet") || c.String("format") == "json" {
		return nil
	}
	for _, st := range list {
		for _, p := range st.Problems {
			fmt.Fprintf(c.App.ErrWriter, "%s:%s: %s (tried %d times, again at %s)\n", st.Name, printable(p.Path), p.Error, p.Tries, timeText(p.Next))
		}
		for _, x := range st.Conflicts {
			fmt.Fprintf(c.App.ErrWriter, "%s:%s: both sides changed it; the other version is kept as %s\n", st.Name, printable(x.Path), printable(x.Copy))
		}
		if st.Unreachable != "" {
			fmt.Fprintf(c.App.ErrWriter, "%s: the object store is not reachable: %s\n", st.Name, st.Unreachable)
		}
	}
	return nil
}

func statusListing(list []control.FolderStatus) listing {
	out := listing{head: []string{"NAME", "LEFT", "BYTES", "PROBLEMS", "CONFLICTS", "ACCESS", "WRITER"}, value: list}
	for _, st := range list {
		out.rows = append(out.rows, []string{
			st.Name, strconv.Itoa(st.Pending.Files), bytesText(st.Pending.Bytes),
			strconv.Itoa(len(st.Problems)), strconv.Itoa(len(st.Conflicts)), accessText(st.Folder), orDash(st.Holder),
		})
		out.names = append(out.names, st.Name)
	}
	return out
}
