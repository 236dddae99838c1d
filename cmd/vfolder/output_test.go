package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/launcher"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing")

// golden compares got with testdata/NAME.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it):\n%s", file, got)
	}
}

// TestHelp: what sessions and images say of themselves.
func TestHelp(t *testing.T) {
	t.Setenv("VFOLDER_IMAGE", "")
	for _, words := range []string{
		"session", "session run", "session create", "session list", "session exec", "session start", "session stop",
		"session delete", "image", "image build", "image import", "image list", "version",
	} {
		var out bytes.Buffer
		app := newApp(&out, &out)
		line := append(append([]string{"vfolder"}, strings.Fields(words)...), "--help")
		if err := app.Run(reorder(app, line)); err != nil {
			t.Errorf("%s: %v", words, err)
		}
		golden(t, "help-"+strings.ReplaceAll(words, " ", "-")+".txt", out.String())
	}
}

// runListing prints a listing as a command with the usual flags would.
func runListing(t *testing.T, l listing, flags ...string) string {
	t.Helper()
	var out bytes.Buffer
	app := &cli.App{
		Name: "x", Writer: &out, Flags: []cli.Flag{formatFlag(), quietFlag()},
		ExitErrHandler: func(*cli.Context, error) {},
		Action:         l.print,
	}
	if err := app.Run(append([]string{"x"}, flags...)); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestListings(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	sessions := []launcher.Session{
		{
			ID: "0123456789abcdef0123", Name: "train", Image: "localhost/vfolder-session:latest", State: "running",
			Created: now.Add(-90 * time.Second),
			Mounts: []launcher.Mount{
				{Folder: "data", Target: "/home/work/data"},
				{Folder: "models", Sub: "a&b", Target: "/models", ReadOnly: true},
			},
		},
		{ID: "ab", Name: "s", Image: "x", State: "exited", Created: now.Add(-72 * time.Hour), Mounts: []launcher.Mount{}},
	}
	images := []launcher.Image{{
		ID: "sha256:0123456789abcdef", Names: []string{"localhost/vfolder-session:latest", "localhost/mine:1"}, Size: 259 << 20,
		Created: now.Add(-3 * time.Hour),
	}}
	for name, l := range map[string]listing{
		"sessions": sessionListing(sessions, now), "no-sessions": sessionListing([]launcher.Session{}, now), "images": imageListing(images, now),
	} {
		golden(t, "list-"+name+".txt", runListing(t, l))
		golden(t, "list-"+name+".json", runListing(t, l, "--format", "json"))
		golden(t, "list-"+name+"-quiet.txt", runListing(t, l, "-q"))
	}
}

func TestErrors(t *testing.T) {
	wrapped := fmt.Errorf("while looking: %w", &vfolder.Error{
		Op: "session", Path: "s1", Kind: vfolder.KindBusy, Err: errors.New("it uses the folder"), Fix: "vfolder session stop s1",
	})
	inner := &vfolder.Error{Op: "outer", Kind: vfolder.KindTimeout, Err: &vfolder.Error{Op: "inner", Err: errors.New("slow"), Fix: "wait"}}
	cases := []struct {
		err  error
		text string
		code int
	}{
		{wrapped, "vfolder: while looking: session s1: it uses the folder; fix: vfolder session stop s1\n", 5},
		{inner, "vfolder: outer: inner: slow; fix: wait\n", 3},
		{errors.New("plain"), "vfolder: plain\n", 1},
		{vfolder.Errorf(vfolder.KindDaemon, "daemon", "", "away"), "vfolder: daemon: away\n", 10},
		{context.Canceled, "vfolder: context canceled\n", 130},
	}
	for _, c := range cases {
		var out bytes.Buffer
		printError(&out, c.err)
		if code := exitCode(t.Context(), c.err); out.String() != c.text || code != c.code {
			t.Errorf("%q, exit %d; want %q, %d", out.String(), code, c.text, c.code)
		}
	}
}

// TestRun: the exit codes and streams of whole command lines that need neither
// daemon nor Podman.
func TestRun(t *testing.T) {
	cases := []struct {
		words  string
		code   int
		out    string // part of standard output
		errOut string // part of standard error
	}{
		{"", 0, "persistent folders", ""},
		{"--help", 0, "COMMANDS", ""},
		{"version", 0, "BUCKET FORMAT", ""},
		{"version --format json", 0, `"format": 1`, ""},
		{"version --format xml", 2, "", "use table or json; fix: vfolder version --help"},
		{"nosuch", 2, "", "nosuch: there is no such command; fix: vfolder --help"},
		{"session nosuch", 2, "", "there is no such command"},
		{"version --nosuch", 2, "", "not defined: -nosuch; fix: vfolder version --help"},
	}
	for _, c := range cases {
		out, errOut := capture(t), capture(t)
		code := run(t.Context(), append([]string{"vfolder"}, strings.Fields(c.words)...), out, errOut)
		gotOut, gotErr := content(t, out), content(t, errOut)
		if code != c.code || !strings.Contains(gotOut, c.out) || !strings.Contains(gotErr, c.errOut) {
			t.Errorf("%q: exit %d\nstdout: %s\nstderr: %s", c.words, code, gotOut, gotErr)
		}
		if c.code != 0 && gotOut != "" {
			t.Errorf("%q: a failure talks on standard output: %s", c.words, gotOut)
		}
	}
}

func capture(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func content(t *testing.T, f *os.File) string {
	t.Helper()
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestTexts(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536 << 10: "1.5 MiB", 5 << 40: "5.0 TiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 59 * time.Second: "59s", 59 * time.Minute: "59m", 47 * time.Hour: "47h", 50 * time.Hour: "2d",
	} {
		if got := ageText(d); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
}

func TestProgressWithoutTerminal(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	p.left(launcher.Left{Folder: "a", Files: 1, Bytes: 10})
	if out.Len() != 0 {
		t.Errorf("a line at once: %q", out.String())
	}
	p.last = time.Now().Add(-2 * progressEvery)
	p.left(launcher.Left{Folder: "b", Files: 2, Bytes: 2048})
	p.end()
	if want := "bringing into the bucket: 3 files, 2.0 KiB left\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
