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

func TestRenameDeleteReplace(t *testing.T) {
	s := newMemStore()
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	h.mkdir("d")
	h.mkdir("d/sub")
	for _, n := range []string{"a", "b", "c"} {
		h.write("d/"+n, n)
		h.write("d/sub/"+n, "sub"+n)
	}
	h.sync()
	h.rename("d", "e")
	h.rename("e/a", "e/b")
	h.remove("e/c")
	h.sync()
	want := map[string]string{"e/": "", "e/b": "a", "e/sub/": "", "e/sub/a": "suba", "e/sub/b": "subb", "e/sub/c": "subc"}
	sameTree(t, "bucket", s.tree("f/"), want)
	h.check()
}

func TestSwaps(t *testing.T) {
	s := newMemStore()
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	h.write("a", "was a")
	h.write("b", "was b")
	h.mkdir("x")
	h.write("x/1", "one")
	h.write("x/2", "two")
	h.write("y", "file y")
	h.sync()
	h.exchange("a", "b")
	h.exchange("x", "y")
	h.sync()
	sameTree(t, "bucket", s.tree("f/"), map[string]string{"a": "was b", "b": "was a", "x": "file y", "y/": "", "y/1": "one", "y/2": "two"})
	h.check()
	// A file becomes a directory that holds it, and the reverse.
	h.rename("a", "t")
	h.mkdir("a")
	h.rename("t", "a/a")
	h.rename("y/1", "t")
	h.remove("y/2")
	h.remove("y")
	h.rename("t", "y")
	h.sync()
	sameTree(t, "bucket", s.tree("f/"), map[string]string{"a/": "", "a/a": "was b", "b": "was a", "x": "file y", "y": "one"})
	if left := s.tree(".vfolder/" + h.r.folder(h.root).id + "/parked/"); len(left) > 0 {
		t.Errorf("parked objects are left: %v", left)
	}
}

func TestOrder(t *testing.T) {
	s := newMemStore()
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	h.write("ref", "0")
	h.write("old", "x")
	h.sync()
	before := len(s.order())
	for i := range 50 {
		h.write("obj"+string(rune('A'+i)), "o")
	}
	h.write("ref", "1")
	h.remove("old")
	h.sync()
	log := s.order()[before:]
	ref, old, last := -1, -1, -1
	for i, l := range log {
		switch {
		case l == "=f/ref":
			ref = i
		case l == "-f/old":
			old = i
		case strings.HasPrefix(l, "+f/obj"):
			last = i
		}
	}
	if last < 0 || ref < last || old < ref {
		t.Errorf("the last new key came at %d, the replacement at %d, the removal at %d of\n%s", last, ref, old, strings.Join(log, "\n"))
	}
}

func TestForeignChanges(t *testing.T) {
	s := newMemStore()
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	h.write("a", "ours")
	h.write("gone", "ours")
	h.sync()
	h.tree()
	s.foreign("f/new", "theirs")
	s.foreign("f/dir/deep/x", "x")
	s.foreign("f/a", "changed")
	s.remove("f/gone")
	want := map[string]string{"a": "changed", "new": "theirs", "dir/": "", "dir/deep/": "", "dir/deep/x": "x"}
	eventually(t, "adoption", func() bool {
		got := h.tree()
		return len(got) == len(want) && got["a"] == "changed" && got["new"] == "theirs" && got["dir/deep/x"] == "x"
	})
	h.check()
	// A recursive delete by another program.
	s.remove("f/dir/deep/x")
	eventually(t, "removal", func() bool { return len(h.tree()) == 2 })
	// Foreign metadata and content type stay.
	h.write("new", "ours now")
	h.sync()
	in, err := s.Head(t.Context(), "f/new")
	h.must(err)
	if in.Meta["color"] != "red" || in.ContentType != "text/plain" || in.Meta["file-permissions"] != "0100644" {
		t.Errorf("metadata after the overwrite: %v %q", in.Meta, in.ContentType)
	}
}

func TestBothChanged(t *testing.T) {
	s := newMemStore()
	cfg := fast()
	cfg.Settle, cfg.RefreshEvery = 1e10, 1e12
	h := newHost(t, "host-a", s, cfg)
	h.mkfolder("f")
	h.write("a", "base")
	h.sync()
	h.write("a", "ours")
	h.write("n", "ours new")
	s.foreign("f/a", "theirs")
	s.foreign("f/n", "theirs new")
	h.sync()
	got := s.tree("f/")
	copies := map[string]bool{}
	for k, v := range got {
		if strings.Contains(k, ".conflict-") {
			copies[v] = true
		}
	}
	if got["a"] != "ours" || got["n"] != "ours new" || !copies["theirs"] || !copies["theirs new"] || len(got) != 4 {
		t.Errorf("bucket: %v", got)
	}
	sameTree(t, "index", h.tree(), got)
	st, err := h.r.Status(h.root)
	h.must(err)
	if len(st.Conflicts) != 2 || st.Pending != 0 {
		t.Errorf("status: %+v", st)
	}
}

func TestForeignDeleteOfDirtyFile(t *testing.T) {
	s := newMemStore()
	cfg := fast()
	cfg.Settle = 1e10
	h := newHost(t, "host-a", s, cfg)
	h.mkfolder("f")
	h.write("a", "base")
	h.sync()
	h.write("a", "ours")
	s.remove("f/a")
	h.sync()
	sameTree(t, "bucket", s.tree("f/"), map[string]string{"a": "ours"})
}

func TestHardLinks(t *testing.T) {
	s := newMemStore()
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	h.mkdir("d")
	h.write("a", "linked")
	h.sync()
	h.link("a", "d/b")
	h.link("a", "c")
	h.sync()
	sameTree(t, "bucket", s.tree("f/"), map[string]string{"a": "linked", "c": "linked", "d/": "", "d/b": "linked"})
	h.write("c", "changed")
	h.remove("a")
	h.sync()
	sameTree(t, "bucket", s.tree("f/"), map[string]string{"c": "changed", "d/": "", "d/b": "changed"})
	h.check()
	h.close()
	s.foreign("f/copy", "x")
	h2 := newHost(t, "host-b", s, fast())
	h2.useFolder("f")
	sameTree(t, "second host", h2.tree(), map[string]string{"c": "changed", "copy": "x", "d/": "", "d/b": "changed"})
	b, err := h2.stat("d/b")
	h2.must(err)
	c, err := h2.stat("c")
	h2.must(err)
	if b.Ino != c.Ino || b.Nlink != 2 {
		t.Errorf("d/b is inode %d with %d links, c is %d", b.Ino, b.Nlink, c.Ino)
	}
	h2.check()
}

func TestLongKeys(t *testing.T) {
	s := newMemStore()
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	p := ""
	for range 8 {
		p += strings.Repeat("d", 200)
		h.mkdir(p)
		p += "/"
	}
	h.write(p+"leaf", "deep")
	h.write(strings.Repeat("\xff", 250), "bad name")
	h.sync()
	for k := range s.tree("") {
		if len(k) > 1024 {
			t.Errorf("a key of %d bytes", len(k))
		}
	}
	h.rename(strings.Repeat("d", 200), "top")
	h.sync()
	want := h.tree()
	h.check()
	h.close()
	h2 := newHost(t, "host-b", s, fast())
	h2.useFolder("f")
	sameTree(t, "second host", h2.tree(), want)
}

func TestPartialFileIsCompleted(t *testing.T) {
	s := newMemStore()
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	body := strings.Repeat("0123456789", 3000)
	s.foreign("f/big", body)
	eventually(t, "adoption", func() bool { return len(h.tree()) == 1 })
	h.patch("big", 5000, "PATCH")
	h.sync()
	want := body[:5000] + "PATCH" + body[5005:]
	if got := s.tree("f/")["big"]; got != want {
		t.Errorf("bucket has %d bytes, patch at %d", len(got), strings.Index(got, "PATCH"))
	}
}

func TestOpenOrphanKeepsItsBytes(t *testing.T) {
	s := newMemStore()
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	s.foreign("f/a", "needed")
	s.foreign("f/b", "needed too")
	eventually(t, "adoption", func() bool { return len(h.tree()) == 2 })
	var orphans []*meta.Inode
	for _, name := range []string{"a", "b"} {
		n, err := h.stat(name)
		h.must(err)
		dir, _, err := h.walk(name)
		h.must(err)
		h.must(h.db.Update(func(tx *meta.Tx) error { _, err := tx.Unlink(dir, name); return err }))
		orphans = append(orphans, n)
	}
	h.write("b", "replacement")
	h.sync()
	sameTree(t, "bucket", s.tree("f/"), map[string]string{"b": "replacement"})
	for i, want := range []string{"needed", "needed too"} {
		if got, err := h.readIno(orphans[i]); err != nil || got != want {
			t.Errorf("orphan: %q, %v", got, err)
		}
		h.Freed(orphans[i])
	}
	f := h.r.folder(h.root)
	h.must(f.sweepParked())
	h.sync()
	if left := s.tree(f.own(parkedDir)); len(left) > 0 {
		t.Errorf("parked objects are left: %v", left)
	}
}

func TestNoPOSIXName(t *testing.T) {
	s := newMemStore()
	s.strict = false
	h := newHost(t, "host-a", s, fast())
	s.foreign("f/a", "file")
	s.foreign("f/a/b", "below")
	s.foreign("f//x", "empty segment")
	s.foreign("f/d/", "body of a directory")
	s.foreign("f/../y", "dots")
	h.mkfolder("f")
	want := map[string]string{"a": "file", "a~dir/": "", "a~dir/b": "below", "%00/": "", "%00/x": "empty segment", "d/": "", "d~body": "body of a directory", "%2E%2E/": "", "%2E%2E/y": "dots"}
	h.tree()
	sameTree(t, "index", h.tree(), want)
	h.check()
}

func TestSegmentsSpareHeads(t *testing.T) {
	s := newMemStore()
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	for i := range 20 {
		h.write("a"+string(rune('a'+i)), "x")
	}
	h.sync()
	s.mu.Lock()
	for k, o := range s.objs {
		o.in.LastModified = o.in.LastModified.Add(-1e10)
		s.objs[k] = o
	}
	s.mu.Unlock()
	f := h.r.folder(h.root)
	f.seg.wrote(f)
	f.flushSegments(t.Context())
	h.close()
	c := &counting{memStore: s}
	h2 := newHost(t, "host-b", c, fast())
	h2.useFolder("f")
	heads := c.heads.Load()
	if got := h2.tree(); len(got) != 20 {
		t.Fatalf("%v", got)
	}
	if n := c.heads.Load() - heads; n > 1 {
		t.Errorf("%d HEADs for 20 files", n)
	}
	n, err := h2.stat("aa")
	h2.must(err)
	if n.Mode != 0o100644 || n.Unhydrated {
		t.Errorf("%+v", n)
	}
}

func TestLease(t *testing.T) {
	s := newMemStore()
	cfg := fast()
	a := newHost(t, "host-a", s, cfg)
	a.mkfolder("f")
	a.write("a", "1")
	a.sync()
	b := newHost(t, "host-b", s, cfg)
	b.useFolder("f")
	if err := b.tryWrite("b", "2"); vfolderKind(err) != "locked" || !strings.Contains(err.Error(), "host-a") {
		t.Fatalf("a second writer got %v", err)
	}
	a.close()
	eventually(t, "the lease", func() bool { return b.tryWrite("b", "2") == nil })
	b.sync()
	if e := b.r.folder(b.root).lease.epoch(); e < 2 {
		t.Errorf("epoch %d", e)
	}
	sameTree(t, "bucket", s.tree("f/"), map[string]string{"a": "1", "b": "2"})
}

func TestFoldersAndTrash(t *testing.T) {
	s := newMemStore()
	a := newHost(t, "host-a", s, fast())
	b := newHost(t, "host-b", s, fast())
	a.mkfolder("f")
	a.write("x", "1")
	a.sync()
	h := t.Context()
	a.must(b.r.SyncRegistry(h))
	b.useFolder("f")
	sameTree(t, "other host", b.tree(), map[string]string{"x": "1"})
	if _, _, err := b.r.CreateFolder(h, "f"); vfolderKind(err) != "exists" {
		t.Errorf("create again: %v", err)
	}
	a.must(a.r.DeleteFolder(h, "f"))
	a.must(b.r.SyncRegistry(h))
	if all, _ := b.r.Folders(h); len(all) != 0 {
		t.Errorf("folders: %v", all)
	}
	m, adopted, err := a.r.CreateFolder(h, "f")
	a.must(err)
	if adopted || !strings.HasPrefix(m.Record.Prefix, "f~") {
		t.Errorf("new folder: %+v %v", m.Record, adopted)
	}
	if s.tree("f/")["x"] != "1" {
		t.Errorf("the trash lost its objects")
	}
}
