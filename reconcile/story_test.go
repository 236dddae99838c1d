package reconcile

import (
	"strings"
	"testing"

	"github.com/vfolder/vfolder/meta"
)

func TestPublishAndRead(t *testing.T) {
	s := newMemStore()
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	h.mkdir("d")
	h.write("d/a.txt", "hello")
	h.write("empty", "")
	big := strings.Repeat("0123456789abcdef", 80000)
	h.write("big", big)
	h.must(h.tryMknod("s", &meta.Inode{Mode: 0o120777, Target: "d/a.txt"}))
	h.sync()
	h.check()
	want := map[string]string{"d/": "", "d/a.txt": "hello", "empty": "", "big": big, "s": "d/a.txt"}
	sameTree(t, "bucket", s.tree("f/"), want)
	h.close()

	h2 := newHost(t, "host-b", s, fast())
	h2.useFolder("f")
	want["s"] = "-> d/a.txt"
	sameTree(t, "second host", h2.tree(), want)
	h2.check()
}
