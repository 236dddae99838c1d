package launcher

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vfolder/vfolder"
)

func init() { sessionTests["Images"] = testImages }

// A root file system comes as a directory or a tar, an image as what podman or
// docker save; each can be listed, and run, afterwards.
func testImages(t *testing.T, b *bed) {
	dir := t.TempDir()
	saved := filepath.Join(dir, "saved.tar")
	podman(t, "save", "-q", "-o", saved, b.image)
	oci := filepath.Join(dir, "oci.tar")
	podman(t, "save", "-q", "--format", "oci-archive", "-o", oci, b.image)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(tarOf(t, map[string]string{"./bin/sh": string(busybox(t)), "./etc/group": "root:x:0:\n"})); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root.tar.gz")
	write(t, root, zipped.Bytes(), 0o644)

	for name, from := range map[string]string{
		"localhost/vfolder-test-saved:v1": saved, "localhost/vfolder-test-oci:v1": oci, "localhost/vfolder-test-root:v1": root,
	} {
		got, err := b.ImportImage(t.Context(), from, name)
		if err != nil || got != name {
			t.Errorf("%s: %q, %v", from, got, err)
			continue
		}
		t.Cleanup(func() { podman(t, "rmi", "-f", name) })
		s, err := b.Create(t.Context(), nil, Options{Name: "from-image", Image: name, Network: "none"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		code, err := b.Exec(t.Context(), s.ID, ExecOptions{Command: []string{"/bin/sh", "-c", "exit 3"}})
		if err != nil || code != 3 {
			t.Errorf("%s: exit %d, %v", name, code, err)
		}
		if err := b.remove(t.Context(), s.ID); err != nil {
			t.Error(err)
		}
	}
	list, err := b.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range list {
		names = append(names, i.Names...)
		if i.Size <= 0 || i.ID == "" || i.Created.IsZero() {
			t.Errorf("%+v", i)
		}
	}
	if !slices.Contains(names, "localhost/vfolder-test-root:v1") || !slices.Contains(names, b.image) {
		t.Errorf("listed: %v", names)
	}

	text := filepath.Join(dir, "text")
	write(t, text, []byte(strings.Repeat("no archive\n", 100)), 0o644)
	for from, kind := range map[string]vfolder.Kind{
		text: vfolder.KindInvalid, filepath.Join(dir, "none"): vfolder.KindNotFound, t.TempDir(): vfolder.KindInvalid,
	} {
		if _, err := b.ImportImage(t.Context(), from, "localhost/x"); !errors.Is(err, kind) {
			t.Errorf("%s: %v, want kind %v", from, err, kind)
		}
	}
}

func TestSplitTag(t *testing.T) {
	for name, want := range map[string][2]string{
		"a": {"a", "latest"}, "a:b": {"a", "b"}, "host:5000/a": {"host:5000/a", "latest"}, "host:5000/a:b": {"host:5000/a", "b"},
	} {
		if ref, tag := splitTag(name); ref != want[0] || tag != want[1] {
			t.Errorf("%s: %s %s", name, ref, tag)
		}
	}
}

func TestIsSavedImage(t *testing.T) {
	cases := map[string]struct {
		files map[string]string
		saved bool
	}{
		"oci":    {map[string]string{"blobs/x": "", "oci-layout": "{}"}, true},
		"docker": {map[string]string{"./abc.tar": "", "./manifest.json": "[]"}, true},
		"root":   {map[string]string{"bin": "", "manifest.json": ""}, false},
		"small":  {map[string]string{"app": "x"}, false},
	}
	for name, c := range cases {
		file := filepath.Join(t.TempDir(), name)
		write(t, file, tarOf(t, c.files), 0o644)
		if saved, err := isSavedImage(file); err != nil || saved != c.saved {
			t.Errorf("%s: %v, %v", name, saved, err)
		}
	}
	empty := filepath.Join(t.TempDir(), "empty")
	write(t, empty, nil, 0o644)
	if _, err := isSavedImage(empty); err == nil {
		t.Error("an empty file was taken for an archive")
	}
}

func TestDebianSources(t *testing.T) {
	cases := map[string]struct {
		files   map[string]string
		release string
		mirrors []string
	}{
		"nothing": {nil, buildRelease, nil},
		"ubuntu":  {map[string]string{"os-release": "ID=ubuntu\nVERSION_CODENAME=noble\n", "apt/sources.list": "deb http://m noble main\n"}, buildRelease, nil},
		"deb822": {
			map[string]string{"os-release": "ID=debian\nVERSION_CODENAME=trixie\n", "apt/sources.list.d/debian.sources": "Types: deb\nURIs: http://m\nSuites: trixie trixie-updates\n"},
			"trixie",
			[]string{"apt/sources.list.d/debian.sources"},
		},
		"old style": {
			map[string]string{"os-release": "ID=\"debian\"\nVERSION_CODENAME='bookworm'\n", "apt/sources.list": "# deb http://x\ndeb http://m bookworm main\n"},
			"bookworm",
			[]string{"apt/sources.list"},
		},
		"commented out": {
			map[string]string{"os-release": "ID=debian\nVERSION_CODENAME=bookworm\n", "apt/sources.list": "# deb http://m bookworm main\n"},
			"bookworm", nil,
		},
	}
	for name, c := range cases {
		etc := t.TempDir()
		if err := os.MkdirAll(filepath.Join(etc, "apt/sources.list.d"), 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range c.files {
			write(t, filepath.Join(etc, file), []byte(text), 0o644)
		}
		var want []string
		for _, m := range c.mirrors {
			want = append(want, filepath.Join(etc, m))
		}
		if release, mirrors := debianSources(etc); release != c.release || !slices.Equal(mirrors, want) {
			t.Errorf("%s: %s %v", name, release, mirrors)
		}
	}
}

func TestPassable(t *testing.T) {
	if !passable("/usr/bin") {
		t.Error("/usr/bin")
	}
	if dir := t.TempDir(); os.Chmod(dir, 0o700) != nil || passable(dir) {
		t.Error("a private directory")
	}
}
