package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vfolder/vfolder/launcher"
)

func init() {
	commands = append(commands, func() []*cli.Command { return []*cli.Command{imageCommand()} })
}

func imageCommand() *cli.Command {
	return &cli.Command{
		Name:  "image",
		Usage: "make, import and list images for sessions",
		Subcommands: []*cli.Command{
			{
				Name:  "build",
				Usage: "make a session image of Debian packages (needs mmdebstrap, takes a few minutes)",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "name", Aliases: []string{"n"}, Usage: "`NAME` of the image", Value: launcher.DefaultImage},
					&cli.StringSliceFlag{Name: "package", Aliases: []string{"p"}, Usage: "`PACKAGE` to add; may be repeated"},
					&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print the name only, not what the tools say"},
				},
				Action: withLauncher(buildImage),
			},
			{
				Name:      "import",
				Usage:     "make an image of an image archive, a root file system's tar, or a directory with one",
				ArgsUsage: "FILE|DIRECTORY",
				Flags:     []cli.Flag{&cli.StringFlag{Name: "name", Aliases: []string{"n"}, Usage: "`NAME` of the image"}},
				Action:    withLauncher(importImage),
			},
			{
				Name:    "list",
				Aliases: []string{"ls"},
				Usage:   "list images",
				Flags:   []cli.Flag{formatFlag(), quietFlag()},
				Action:  withLauncher(listImages),
			},
		},
	}
}

func buildImage(c *cli.Context, l *launcher.Launcher) error {
	if c.Args().Present() {
		return wrongUsage(c, "it takes no argument")
	}
	o := launcher.BuildOptions{Name: c.String("name"), Packages: c.StringSlice("package")}
	if !c.Bool("quiet") {
		o.Output = c.App.ErrWriter
	}
	name, err := l.BuildImage(c.Context, o)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, name)
	return err
}

func importImage(c *cli.Context, l *launcher.Launcher) error {
	if c.NArg() != 1 {
		return wrongUsage(c, "it takes one file or directory")
	}
	name, err := l.ImportImage(c.Context, c.Args().First(), c.String("name"))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, name)
	return err
}

func listImages(c *cli.Context, l *launcher.Launcher) error {
	if c.Args().Present() {
		return wrongUsage(c, "it takes no argument")
	}
	images, err := l.Images(c.Context)
	if err != nil {
		return err
	}
	return imageListing(images, time.Now()).print(c)
}

func imageListing(images []launcher.Image, now time.Time) listing {
	out := listing{head: []string{"NAME", "ID", "SIZE", "AGE"}, value: images}
	for _, i := range images {
		id := strings.TrimPrefix(i.ID, "sha256:")
		out.rows = append(out.rows, []string{
			strings.Join(i.Names, " "), id[:min(12, len(id))], bytesText(i.Size), ageText(now.Sub(i.Created)),
		})
		out.names = append(out.names, i.Names[0])
	}
	return out
}
