package launcher

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/vfolder/vfolder"
)

func TestParseMount(t *testing.T) {
	long := strings.Repeat("x", 256)
	cases := []struct {
		spec string
		want Mount
		bad  string // part of the error; "" means that it must parse
	}{
		{spec: "data", want: Mount{Folder: "data", Target: "/home/work/data"}},
		{spec: "data:ro", want: Mount{Folder: "data", Target: "/home/work/data", ReadOnly: true}},
		{spec: "data:rw", want: Mount{Folder: "data", Target: "/home/work/data"}},
		{spec: "data:alias", want: Mount{Folder: "data", Target: "/home/work/alias"}},
		{spec: "data:alias:ro", want: Mount{Folder: "data", Target: "/home/work/alias", ReadOnly: true}},
		{spec: "data:./ro", want: Mount{Folder: "data", Target: "/home/work/ro"}},
		{spec: "data:a/./b//c/../d/", want: Mount{Folder: "data", Target: "/home/work/a/b/d"}},
		{spec: "data:/data", want: Mount{Folder: "data", Target: "/data"}},
		{spec: "data:/home/work/x", want: Mount{Folder: "data", Target: "/home/work/x"}},
		{spec: "data:/home/linuxbrew/.linuxbrew", want: Mount{Folder: "data", Target: "/home/linuxbrew/.linuxbrew"}},
		{spec: ".local", want: Mount{Folder: ".local", Target: "/home/work/.local"}},
		{spec: "data/sub/dir:x", want: Mount{Folder: "data", Sub: "sub/dir", Target: "/home/work/x"}},
		{spec: "data/", want: Mount{Folder: "data", Target: "/home/work/data"}},
		{spec: "data/./a//b/", want: Mount{Folder: "data", Sub: "a/b", Target: "/home/work/data"}},
		{spec: "data:ün ïcode", want: Mount{Folder: "data", Target: "/home/work/ün ïcode"}},
		{spec: "data:/binary", want: Mount{Folder: "data", Target: "/binary"}},
		{spec: "data:.sshx", want: Mount{Folder: "data", Target: "/home/work/.sshx"}},

		{spec: "", bad: "empty"},
		{spec: ":x", bad: "empty"},
		{spec: "a b", bad: "letters"},
		{spec: ".vfolder", bad: "reserved"},
		{spec: "data:", bad: "target is empty"},
		{spec: "data::ro", bad: "target is empty"},
		{spec: "data:a:b", bad: "only ro or rw"},
		{spec: "data:a:b:ro", bad: "only ro or rw"},
		{spec: "data:/", bad: "as a whole"},
		{spec: "data:.", bad: "leaves"},
		{spec: "data:..", bad: "leaves"},
		{spec: "data:../other", bad: "leaves"},
		{spec: "data:a/../../../etc", bad: "leaves"},
		{spec: "data:/home", bad: "as a whole"},
		{spec: "data:/home/work", bad: "as a whole"},
		{spec: "data:/home/work/", bad: "as a whole"},
		{spec: "data:/home/work/a/..", bad: "as a whole"},
		{spec: "data:/etc", bad: "reserved"},
		{spec: "data:/etc/", bad: "reserved"},
		{spec: "data://etc", bad: "reserved"},
		{spec: "data:/tmp/../etc", bad: "reserved"},
		{spec: "data:/usr/local/bin", bad: "reserved"},
		{spec: "data:/lib64/x", bad: "reserved"},
		{spec: "data:/run/vfolder/pause", bad: "reserved"},
		{spec: "data:/proc/1", bad: "reserved"},
		{spec: "data:.bashrc", bad: "reserved"},
		{spec: ".ssh", bad: "reserved"},
		{spec: "data:.ssh/keys", bad: "reserved"},
		{spec: "data:/home/work/.bash_profile", bad: "reserved"},
		{spec: "data/../x", bad: "'..'"},
		{spec: "data//x", bad: "relative"},
		{spec: "data:a\x00b", bad: "control"},
		{spec: "data:a\nb", bad: "control"},
		{spec: "data:a\xff", bad: "UTF-8"},
		{spec: "data:" + long, bad: "too long"},
		{spec: "data:" + strings.Repeat("x/", 2100), bad: "too long"},
	}
	for _, c := range cases {
		got, err := ParseMount(c.spec)
		switch {
		case c.bad == "" && err != nil:
			t.Errorf("%q: %v", c.spec, err)
		case c.bad == "" && got != c.want:
			t.Errorf("%q: got %+v, want %+v", c.spec, got, c.want)
		case c.bad != "" && err == nil:
			t.Errorf("%q was taken, as %+v", c.spec, got)
		case c.bad != "" && !strings.Contains(err.Error(), c.bad):
			t.Errorf("%q: the error is %q, want %q in it", c.spec, err, c.bad)
		case c.bad != "" && !errors.Is(err, vfolder.KindInvalid):
			t.Errorf("%q: the error's kind is %v", c.spec, vfolder.KindOf(err))
		}
	}
}

func TestParseMountsTogether(t *testing.T) {
	cases := []struct {
		specs string // separated by blanks
		bad   string
	}{
		{specs: ""},
		{specs: "a b"},
		{specs: "a:x b:y"},
		{specs: "a a:again:ro"},
		{specs: "a/x:one a/y:two"},
		{specs: "a:x b:xy"},
		{specs: "a a", bad: "already"},
		{specs: "a:x b:/home/work/x", bad: "already"},
		{specs: "a:x b:y/../x", bad: "already"},
		{specs: "a/x a/y", bad: "already"},
		{specs: "a b:a/b", bad: "within"},
		{specs: "b:a/b a", bad: "within"},
		{specs: "a:/data b:/data/deep/er", bad: "within"},
		{specs: "a:/data b:a", bad: "name of another"},
		{specs: "a:b b:/data", bad: "this folder's name"},
	}
	for _, c := range cases {
		specs := strings.Fields(c.specs)
		got, err := ParseMounts(specs)
		switch {
		case c.bad == "" && err != nil:
			t.Errorf("%q: %v", c.specs, err)
		case c.bad == "" && len(got) != len(specs):
			t.Errorf("%q: %d mounts", c.specs, len(got))
		case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
			t.Errorf("%q: the error is %v, want %q in it", c.specs, err, c.bad)
		}
	}
	many := make([]string, maxMounts+1)
	for i := range many {
		many[i] = "a:" + strings.Repeat("x", i+1)
	}
	if _, err := ParseMounts(many); !errors.Is(err, vfolder.KindInvalid) {
		t.Errorf("%d mounts: %v", len(many), err)
	}
	if _, err := ParseMounts(many[:maxMounts]); err != nil {
		t.Errorf("%d mounts: %v", maxMounts, err)
	}
}

// FuzzParseMount: whatever is taken is normal, outside of what is reserved, and
// is the same again when read from its own text.
func FuzzParseMount(f *testing.F) {
	for _, seed := range []string{"a", "a:b:ro", "a/b:c", "a:/tmp/../etc", "a://etc", "a:../..", "a:.", "a::", "é:x", "a:\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		m, err := ParseMount(spec)
		if err != nil {
			if !errors.Is(err, vfolder.KindInvalid) {
				t.Fatalf("%q: kind %v", spec, vfolder.KindOf(err))
			}
			return
		}
		if m.Target != path.Clean(m.Target) || !path.IsAbs(m.Target) {
			t.Fatalf("%q: target %q is not normal", spec, m.Target)
		}
		first, _, _ := strings.Cut(m.Target[1:], "/")
		for _, dir := range reserved {
			if "/"+first == dir {
				t.Fatalf("%q: target %q is reserved", spec, m.Target)
			}
		}
		if m.Target == Home || below(Home, m.Target) {
			t.Fatalf("%q: target %q covers the home", spec, m.Target)
		}
		if m.Sub != "" && (path.Join("/", m.Sub) != "/"+m.Sub || path.IsAbs(m.Sub)) {
			t.Fatalf("%q: sub %q is not normal", spec, m.Sub)
		}
		again, err := ParseMount(m.String())
		if err != nil || again != m {
			t.Fatalf("%q: %+v became %+v (%v)", spec, m, again, err)
		}
	})
}
