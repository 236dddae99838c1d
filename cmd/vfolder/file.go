package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/control"
)

func init() {
	commands = append(commands, fileCommands)
}

func fileCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name:        "ls",
			Usage:       "list folders, or what is in one",
			ArgsUsage:   "[NAME[:PATH]...]",
			Description: "All names are shown, those with a dot in front too. -q prints names as they are, one a line.",
			Flags:       []cli.Flag{formatFlag(), quietFlag()},
			Action:      withDaemon(listFiles),
		},
		{
			Name:      "cat",
			Usage:     "print files of folders",
			ArgsUsage: "NAME:PATH...",
			Action:    withDaemon(catFiles),
		},
		{
			Name:      "cp",
			Usage:     "copy files into, out of and between folders",
			ArgsUsage: "SOURCE... TARGET",
			Description: "NAME:PATH is in a folder, - is standard input or output, everything else is a local path\n" +
				"(write ./a:b for a local name with a colon). A file appears whole at its target or not at all.",
			Flags: []cli.Flag{
				&cli.BoolFlag{Name: "recursive", Aliases: []string{"r", "R"}, Usage: "copy directories"},
				&cli.BoolFlag{Name: "preserve", Aliases: []string{"p"}, Usage: "keep modification times"},
				&cli.BoolFlag{Name: "no-clobber", Aliases: []string{"n"}, Usage: "never replace a file"},
			},
			Action: withDaemon(copyFiles),
		},
	}
}

// place is one end of a copy.
type place struct {
	folder string // "" for a local path
	path   string
	stdio  bool
}

func (p place) String() string {
	switch {
	case p.stdio:
		return "-"
	case p.folder != "":
		return p.folder + ":" + p.path
	}
	return p.path
}

// parsePlace tells NAME:PATH from local paths: what is before the colon has to
// be a folder's name, so "./a:b" and "/tmp/a:b" are local.
func parsePlace(arg string) place {
	if arg == "-" {
		return place{stdio: true}
	}
	name, path, ok := strings.Cut(arg, ":")
	if ok && vfolder.CheckFolderName(name) == nil {
		return place{folder: name, path: path}
	}
	return place{path: arg}
}

// inFolder takes NAME:PATH only, and NAME alone where bare.
func inFolder(c *cli.Context, arg string, bare bool) (place, error) {
	p := parsePlace(arg)
	if p.folder == "" && bare && vfolder.CheckFolderName(arg) == nil {
		p = place{folder: arg}
	}
	if p.folder == "" {
		return p, wrongUsage(c, "%q is not NAME:PATH", arg)
	}
	clean, err := control.CleanPath(p.path)
	p.path = clean
	return p, err
}

func listFiles(c *cli.Context, client *control.Client) error {
	if !c.Args().Present() {
		return listFolders(c, client)
	}
	if err := checkFormat(c); err != nil {
		return err
	}
	if c.NArg() > 1 && c.String("format") == "json" {
		return wrongUsage(c, "with --format json it takes one argument")
	}
	for i, arg := range c.Args().Slice() {
		p, err := inFolder(c, arg, true)
		if err != nil {
			return err
		}
		entries, err := listPlace(c, client, p)
		if err != nil {
			return err
		}
		if c.NArg() > 1 && !c.Bool("quiet") {
			if i > 0 {
				fmt.Fprintln(c.App.Writer)
			}
			fmt.Fprintf(c.App.Writer, "%s:\n", printable(p.String()))
		}
		if err := entryListing(entries).print(c); err != nil {
			return err
		}
	}
	return nil
}

func listPlace(c *cli.Context, client *control.Client, p place) ([]control.Entry, error) {
	entries := []control.Entry{}
	err := client.List(c.Context, p.folder, p.path, func(e control.Entry) error {
		entries = append(entries, e)
		return nil
	})
	if vfolder.KindOf(err) == vfolder.KindNotDir && err != nil {
		e, err := client.Stat(c.Context, p.folder, p.path)
		return []control.Entry{e}, err
	}
	return entries, err
}

func entryListing(entries []control.Entry) listing {
	out := listing{head: []string{"MODE", "OWNER", "SIZE", "MODIFIED", "NAME"}, value: entries}
	for _, e := range entries {
		name := printable(e.Bytes())
		switch e.Type {
		case control.TypeDir:
			name += "/"
		case control.TypeSymlink:
			name += " -> " + printable(e.TargetBytes())
		}
		out.rows = append(out.rows, []string{
			modeText(e), fmt.Sprintf("%d:%d", e.UID, e.GID), strconv.FormatInt(e.Size, 10),
			time.Unix(0, e.Mtime).Format("2006-01-02 15:04"), name,
		})
		out.names = append(out.names, e.Bytes())
	}
	return out
}

// modeText shows type and permissions as ls(1) does.
func modeText(e control.Entry) string {
	mode := os.FileMode(e.Mode & 0o777)
	text := []byte(mode.String()) // "-rwxrwxrwx"
	switch e.Type {
	case control.TypeDir:
		text[0] = 'd'
	case control.TypeSymlink:
		text[0] = 'l'
	case control.TypeOther:
		text[0] = '?'
	}
	for _, s := range []struct {
		bit   uint32
		at    int
		x, no byte
	}{{0o4000, 3, 's', 'S'}, {0o2000, 6, 's', 'S'}, {0o1000, 9, 't', 'T'}} {
		if e.Mode&s.bit != 0 {
			if text[s.at] == 'x' {
				text[s.at] = s.x
			} else {
				text[s.at] = s.no
			}
		}
	}
	return string(text)
}

// printable makes a name safe for terminals and tables: a folder's content is
// not trusted.
func printable(name string) string {
	for _, r := range name {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return strconv.Quote(name)
		}
	}
	return name
}

func catFiles(c *cli.Context, client *control.Client) error {
	if !c.Args().Present() {
		return wrongUsage(c, "which file?")
	}
	for _, arg := range c.Args().Slice() {
		p, err := inFolder(c, arg, false)
		if err != nil {
			return err
		}
		if err := sendTo(c, client, p, c.App.Writer); err != nil {
			return err
		}
	}
	return nil
}

// sendTo writes a folder's file to w.
func sendTo(c *cli.Context, client *control.Client, p place, w io.Writer) error {
	body, err := client.Read(c.Context, p.folder, p.path, 0, -1)
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.Copy(w, body); err != nil {
		var e *vfolder.Error
		if errors.As(err, &e) {
			return err
		}
		return &vfolder.Error{Op: "write", Kind: vfolder.KindOf(err), Path: "output", Err: err}
	}
	return nil
}
