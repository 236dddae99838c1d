package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestReorder(t *testing.T) {
	app := &cli.App{Name: "vf", Commands: []*cli.Command{
		{
			Name: "folder", Aliases: []string{"f"},
			Subcommands: []*cli.Command{{
				Name: "delete", Aliases: []string{"rm"},
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}},
					&cli.StringFlag{Name: "format"}, &cli.DurationFlag{Name: "timeout"}, &cli.StringSliceFlag{Name: "mount", Aliases: []string{"v"}},
				},
			}},
		},
		{Name: "cp", Flags: []cli.Flag{&cli.BoolFlag{Name: "r"}}},
		{Name: "session", Subcommands: []*cli.Command{
			{Name: "run", Flags: []cli.Flag{&cli.BoolFlag{Name: "rm"}, &cli.StringFlag{Name: "name"}}},
			{Name: "exec", Flags: []cli.Flag{&cli.BoolFlag{Name: "t"}}},
		}},
	}}
	cases := []struct{ in, want string }{
		{"vf", "vf"},
		{"vf --help", "vf --help"},
		{"vf nosuch --flag x", "vf nosuch --flag x"},
		{"vf folder", "vf folder"},
		{"vf folder nosuch -y", "vf folder nosuch -y"},
		{"vf folder delete", "vf folder delete"},
		{"vf folder delete a", "vf folder delete -- a"},
		{"vf folder delete a --yes", "vf folder delete --yes -- a"},
		{"vf f rm a -y b", "vf f rm -y -- a b"},
		{"vf folder delete a --format json b", "vf folder delete --format json -- a b"},
		{"vf folder delete a --format=json b", "vf folder delete --format=json -- a b"},
		{"vf folder delete a --timeout 3s --yes", "vf folder delete --timeout 3s --yes -- a"},
		{"vf folder delete -v x a -v y", "vf folder delete -v x -v y -- a"},
		{"vf folder delete a -- --yes", "vf folder delete -- a --yes"},
		{"vf folder delete -- -y", "vf folder delete -- -y"},
		{"vf folder delete a --unknown b", "vf folder delete --unknown -- a b"},
		{"vf folder delete a --format", "vf folder delete --format -- a"},
		{"vf folder delete a --help", "vf folder delete --help -- a"},
		{"vf cp - a:x -r", "vf cp -r -- - a:x"},
		{"vf session run --name x ls -l --rm", "vf session run --name x -- ls -l --rm"},
		{"vf session run --name x -- ls -- y", "vf session run --name x -- ls -- y"},
		{"vf session run --rm", "vf session run --rm"},
		{"vf session exec s -t ls -t", "vf session exec -t -- s ls -t"},
		{"vf session exec -t s ls -t -- x", "vf session exec -t -- s ls -t -- x"},
		{"vf session exec s -- -t", "vf session exec -- s -t"},
		{"vf session exec s", "vf session exec -- s"},
		{"vf cp a --generate-bash-completion", "vf cp a --generate-bash-completion"},
	}
	for _, c := range cases {
		if got := strings.Join(reorder(app, strings.Fields(c.in)), " "); got != c.want {
			t.Errorf("%q:\n got %q\nwant %q", c.in, got, c.want)
		}
	}
	if got := reorder(app, nil); len(got) != 0 {
		t.Errorf("no words: %q", got)
	}
}

// TestPassThroughNames: each name in the table is a command that exists.
func TestPassThroughNames(t *testing.T) {
	app := newApp(&bytes.Buffer{}, &bytes.Buffer{})
	for name := range passThrough {
		list := app.Commands
		for word := range strings.FieldsSeq(name) {
			c := find(list, word)
			if c == nil {
				t.Fatalf("%s is no command", name)
			}
			list = c.Subcommands
		}
	}
}

// TestArgumentsArriveUntouched runs a command line through the parser: what
// follows the session is the program's, whatever it looks like.
func TestArgumentsArriveUntouched(t *testing.T) {
	for _, c := range []struct {
		words []string
		args  []string
	}{
		{[]string{"session", "exec", "s", "ls", "--help"}, []string{"s", "ls", "--help"}},
		{[]string{"session", "exec", "s", "--", "sh", "-c", "a; b"}, []string{"s", "sh", "-c", "a; b"}},
		{[]string{"session", "exec", "s", "x", "--", "-y", ""}, []string{"s", "x", "--", "-y", ""}},
		{[]string{"session", "run", "--name", "n", "ls", "--name", "m"}, []string{"ls", "--name", "m"}},
	} {
		app := newApp(&bytes.Buffer{}, &bytes.Buffer{})
		var got []string
		command := find(find(app.Commands, c.words[0]).Subcommands, c.words[1])
		command.Action = func(c *cli.Context) error {
			got = c.Args().Slice()
			return nil
		}
		err := app.Run(reorder(app, append([]string{"vfolder"}, c.words...)))
		if err != nil || !slices.Equal(got, c.args) {
			t.Errorf("%q: %q, %v", c.words, got, err)
		}
	}
}
