package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// childExit is the error of a command whose own work went well and whose exit
// code is that of the program it ran.
type childExit int

func (e childExit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// formatFlag and quietFlag are shared by all commands that print lists.
func formatFlag() cli.Flag {
	return &cli.StringFlag{Name: "format", Usage: "`FORMAT` of the output: table or json", Value: "table"}
}

func quietFlag() cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print names only"}
}

// listing is what a command has to show: a table, the names that -q prints, and
// the value behind both for --format json.
type listing struct {
	head  []string
	rows  [][]string
	names []string
	value any
}

// print writes the listing to the command's standard output as its flags ask.
func (l listing) print(c *cli.Context) error {
	if err := checkFormat(c); err != nil {
		return err
	}
	w := c.App.Writer
	switch {
	case c.String("format") == "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(l.value)
	case c.Bool("quiet"):
		for _, name := range l.names {
			if _, err := fmt.Fprintln(w, name); err != nil {
				return err
			}
		}
		return nil
	}
	return writeTable(w, l.head, l.rows)
}

// checkFormat refuses an unknown --format. Commands that change something call
// it first.
func checkFormat(c *cli.Context) error {
	switch f := c.String("format"); f {
	case "", "table", "json":
		return nil
	default:
		return wrongUsage(c, "unknown format %q: use table or json", f)
	}
}

func writeTable(w io.Writer, head []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range append([][]string{head}, rows...) {
		line := strings.Join(row, "\t")
		if _, err := fmt.Fprintln(tw, strings.TrimRight(line, "\t ")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// printError writes an error in three parts: what failed, why, and the command
// that mends it.
func printError(w io.Writer, err error) {
	text := "vfolder: " + strings.TrimSpace(err.Error())
	if fix := fixOf(err); fix != "" {
		text += "; fix: " + fix
	}
	if colored(w) {
		text = strings.Replace(text, "vfolder:", "\x1b[31mvfolder:\x1b[0m", 1)
	}
	fmt.Fprintln(w, text)
}

// fixOf finds the first Fix in an error's chain.
func fixOf(err error) string {
	for err != nil {
		var e *vfolder.Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Fix != "" {
			return e.Fix
		}
		err = e.Err
	}
	return ""
}

// exitCode is the table of errors' code, or 130 after an interrupt.
func exitCode(ctx context.Context, err error) int {
	if ctx.Err() != nil || errors.Is(err, context.Canceled) {
		return vfolder.KindInterrupted.Info().Exit
	}
	return vfolder.KindOf(err).Info().Exit
}

// colored reports whether w is a terminal whose user did not ask for no color.
func colored(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(f)
}

func terminalAttributes(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// bytesText shows a number of bytes in binary units.
func bytesText(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1024 && unit < 4 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[unit])
}
