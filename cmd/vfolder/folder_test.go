package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/control"
	"github.com/vfolder/vfolder/launcher"
)

var updateGolden = flag.Bool("update-golden", false, "write testdata/folder.txt anew")

// fakeDaemon has one folder, "data", with a few entries.
type fakeDaemon struct {
	control.Files
	control.Daemon
}

var dataFolder = control.Folder{
	Folder: vfolder.Folder{ID: "0123456789abcdef", Name: "data", Prefix: "data/", State: vfolder.FolderReady, Created: 1_600_000_000e9},
	Path:   "/mnt/data", ReadOnly: true, Reason: "host-b writes it",
}

func (fakeDaemon) Folders(context.Context) ([]control.Folder, error) {
	return []control.Folder{dataFolder}, nil
}

func (fakeDaemon) CreateFolder(_ context.Context, name string) (control.Folder, error) {
	if name == "data" {
		return control.Folder{}, &vfolder.Error{Op: "create folder", Kind: vfolder.KindExists, Path: name, Fix: "choose another name"}
	}
	return control.Folder{Folder: vfolder.Folder{Name: name}}, nil
}

func (fakeDaemon) Folder(_ context.Context, name string) (control.Folder, error) {
	if name != "data" {
		return control.Folder{}, &vfolder.Error{Op: "folder", Kind: vfolder.KindNotFound, Path: name, Fix: "vfolder folder create " + name}
	}
	return dataFolder, nil
}

func (fakeDaemon) DeleteFolder(context.Context, string) error { return nil }

func (f fakeDaemon) FolderStatus(ctx context.Context, name string) (control.FolderStatus, error) {
	folder, err := f.Folder(ctx, name)
	return control.FolderStatus{
		Folder: folder, Pending: control.Pending{Files: 3, Bytes: 5 << 20}, Holder: "host-a", Unreachable: "no route",
		Problems:  []control.FileProblem{{Path: "a\x1b[31m", Kind: "too-large", Error: "put: too-large", Tries: 2, Next: 1_600_000_000e9}},
		Conflicts: []control.Conflict{{Path: "n.txt", Copy: "n (conflict).txt"}},
	}, err
}

func (fakeDaemon) SyncFolder(ctx context.Context, _ string, progress func(control.Pending)) error {
	progress(control.Pending{Files: 3, Bytes: 2048})
	<-ctx.Done()
	return ctx.Err()
}

func (fakeDaemon) PrepareFolder(context.Context, string) (control.Prepared, error) {
	return control.Prepared{Path: "/mnt/data"}, nil
}

func (fakeDaemon) List(_ context.Context, _, _ string, yield func(control.Entry) error) error {
	link := control.Entry{Name: "link", Type: control.TypeSymlink, Mode: 0o777, UID: 1000, GID: 1000, Size: 3, Mtime: 1_600_000_000e9}
	link.SetTarget("dir")
	raw := control.Entry{Type: control.TypeFile, Mode: 0o4755, UID: 1000, GID: 1000, Size: 12345, Mtime: 1_600_000_000e9}
	raw.SetName("bad\xff\nname")
	for _, e := range []control.Entry{
		{Name: "dir", Type: control.TypeDir, Mode: 0o1777, UID: 1000, GID: 1000, Mtime: 1_600_000_000e9},
		link, raw,
	} {
		if err := yield(e); err != nil {
			return err
		}
	}
	return nil
}

// TestFolderOutput compares what people and scripts see with testdata.
func TestFolderOutput(t *testing.T) {
	time.Local = time.UTC
	socket := filepath.Join(t.TempDir(), "s")
	l, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	fake := fakeDaemon{}
	server := control.NewServer(control.Services{Folders: fake, Files: fake, Daemon: fake, Program: "test"}, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
		<-done
	}()
	t.Setenv("VFOLDER_SOCKET", socket)
	was := liveSessions
	liveSessions = func(context.Context) ([]launcher.Session, error) {
		return []launcher.Session{{Name: "s1", State: "running", Mounts: []launcher.Mount{{Folder: "data", Target: "/home/work/data"}}}}, nil
	}
	defer func() { liveSessions = was }()

	var got strings.Builder
	for _, line := range []string{
		"folder list -q",
		"folder list --format json",
		"folder show data",
		"folder path data",
		"folder create new data other",
		"folder show none",
		"folder delete data",
		"folder delete data --yes",
		"folder delete unused --yes",
		"folder sync data --timeout 50ms",
		"folder status data",
		"folder status -q",
		"folder status none",
		"ls data:",
		"ls -q data",
		"ls data:../x",
		"cat local-file",
		"cp a b",
		"daemon stop",
	} {
		out, talk, code := runCommand(t, strings.Fields(line)...)
		fmt.Fprintf(&got, "$ vfolder %s\n%s", line, out)
		for l := range strings.Lines(talk) {
			got.WriteString("2> " + l)
		}
		fmt.Fprintf(&got, "exit %d\n\n", code)
	}
	golden := filepath.Join("testdata", "folder.txt")
	if *updateGolden {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the output changed; if that is meant, run with -update-golden. Got:\n%s", got.String())
	}
}

// runCommand runs the command line in this process, without a terminal.
func runCommand(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(t.TempDir(), "out")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	code = run(t.Context(), append([]string{"vfolder"}, args...), files[0], files[1])
	var text [2]string
	for i, f := range files {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		text[i] = string(b)
	}
	return text[0], text[1], code
}

func TestParsePlace(t *testing.T) {
	for arg, want := range map[string]place{
		"-":        {stdio: true},
		"data:":    {folder: "data"},
		"data:a":   {folder: "data", path: "a"},
		"data:a:b": {folder: "data", path: "a:b"},
		"./a:b":    {path: "./a:b"},
		"/x/a:b":   {path: "/x/a:b"},
		"-x:a":     {path: "-x:a"},
		"plain":    {path: "plain"},
		".local:x": {folder: ".local", path: "x"},
	} {
		if got := parsePlace(arg); got != want {
			t.Errorf("%q: %+v", arg, got)
		}
	}
}

func TestSeekLines(t *testing.T) {
	for _, test := range []struct {
		text string
		n    int
		want string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc", 2, "b\nc"},
		{"a\nb\n", 5, "a\nb\n"},
		{"a\nb\n", 0, ""},
		{"", 3, ""},
		{strings.Repeat("x\n", 100_000) + "last\n", 1, "last\n"},
		{"first\n" + strings.Repeat("y", 200_000) + "\n", 1, strings.Repeat("y", 200_000) + "\n"},
	} {
		f, err := os.CreateTemp(t.TempDir(), "log")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(test.text); err != nil {
			t.Fatal(err)
		}
		if err := seekLines(f, test.n); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		f.Close()
		if err != nil || string(got) != test.want {
			t.Errorf("last %d of %d bytes: got %d bytes, %v", test.n, len(test.text), len(got), err)
		}
	}
}
