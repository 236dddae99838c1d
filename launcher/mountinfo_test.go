package launcher

import (
	"strings"
	"testing"
)

const mountinfoSample = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:21 / /proc rw,nosuid - proc proc rw
40 22 0:50 / /run/user/1000/vfolder/mnt rw,nosuid,nodev shared:7 master:2 - fuse.vfolder vfolder rw,user_id=1000
41 22 0:50 /data /home/work/my\040data ro,nosuid - fuse.vfolder vfolder rw
42 22 0:60 / /home/work/covered rw - ext4 /dev/x rw
43 22 0:50 /covered/a\134b /home/work/covered rw - fuse.vfolder vfolder rw
`

func TestParseMountinfo(t *testing.T) {
	entries, err := parseMountinfo(strings.NewReader(mountinfoSample))
	if err != nil || len(entries) != 6 {
		t.Fatal(len(entries), err)
	}
	if root, ok := mountAt(entries, "/"); !ok || !root.shared || root.fstype != "ext4" {
		t.Errorf("root: %+v %v", root, ok)
	}
	if e, ok := mountAt(entries, "/home/work/my data"); !ok || !e.readOnly || !e.isFUSE() || e.root != "/data" {
		t.Errorf("data: %+v %v", e, ok)
	}
	if e, ok := mountAt(entries, "/home/work/covered"); !ok || e.root != `/covered/a\b` || e.readOnly {
		t.Errorf("the later mount covers the earlier: %+v %v", e, ok)
	}
	if _, ok := mountAt(entries, "/home/work"); ok {
		t.Error("a directory above mountpoints was taken for one")
	}
	e, ok := mountOf(entries, "/run/user/1000/vfolder/mnt/data/sub")
	if !ok || e.device != "0:50" || rootOf(e, "/run/user/1000/vfolder/mnt/data/sub") != "/data/sub" {
		t.Errorf("below the live mount: %+v %v", e, ok)
	}
	if e, _ := mountOf(entries, "/run/user/1000/vfolder/mntx"); e.point != "/" {
		t.Errorf("a name that begins like a mountpoint: %+v", e)
	}
	for _, bad := range []string{"x", "1 2 3 4 5 6", "1 2 0:1 / /a rw -"} {
		if _, err := parseMountinfo(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestCompare(t *testing.T) {
	entries, err := parseMountinfo(strings.NewReader(mountinfoSample))
	if err != nil {
		t.Fatal(err)
	}
	src := func(target, device, root string, ro bool) source {
		return source{mount: Mount{Folder: "data", Target: target, ReadOnly: ro}, device: device, root: root}
	}
	cases := []struct {
		name string
		src  source
		bad  string
	}{
		{"as asked", src("/home/work/my data", "0:50", "/data", true), ""},
		{"nothing there", src("/home/work", "0:50", "/data", false), "nothing is mounted"},
		{"not FUSE", src("/proc", "0:21", "/", false), "is proc"},
		{"another daemon's", src("/home/work/my data", "0:51", "/data", true), "another FUSE mount"},
		{"another folder", src("/home/work/my data", "0:50", "/date", true), "instead of /date"},
		{"writable though asked read-only", src("/home/work/covered", "0:50", `/covered/a\b`, true), "can be written"},
		{"read-only though asked writable", src("/home/work/my data", "0:50", "/data", false), "read-only"},
	}
	for _, c := range cases {
		err := compare(entries, c.src)
		if c.bad == "" && err != nil || c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.bad)
		}
	}
}

func FuzzMountinfo(f *testing.F) {
	for line := range strings.Lines(mountinfoSample) {
		f.Add(strings.TrimSpace(line))
	}
	f.Add(`1 2 0:1 /\777 /\0 rw - a`)
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := parseMountinfo(strings.NewReader(text))
		if err == nil {
			mountOf(entries, "/home/work/x")
		}
	})
}
