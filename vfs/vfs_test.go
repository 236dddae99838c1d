package vfs_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
)

func TestCreateWriteRead(t *testing.T) {
	b := newBed(t, nil)
	ino := b.file("a", "hello")
	if got := b.read(ino); got != "hello" {
		t.Fatalf("read %q", got)
	}
	b.write(ino, 10, "x")
	if got := b.read(ino); got != "hello\x00\x00\x00\x00\x00x" {
		t.Fatalf("read %q", got)
	}
	a := b.stat(ino)
	if a.Size != 11 || a.Nlink != 1 || a.Mode != unix.S_IFREG|0o644 || a.UID != 1000 {
		t.Fatalf("attributes %+v", a)
	}
	if b.bucket.settled.Load() == 0 {
		t.Fatal("nobody was told that the file was closed")
	}
	_, err := b.fs.Create(b.req(), b.root, "a", 0o644, 0, unix.O_EXCL)
	wantKind(t, err, vfolder.KindExists)
	again, err := b.fs.Create(b.req(), b.root, "a", 0o644, 0, unix.O_TRUNC)
	check(t, err)
	if again.Ino != ino || again.Size != 0 {
		t.Fatalf("open of an existing file: %+v", again)
	}
	_, err = b.fs.Lookup(b.req(), b.root, strings.Repeat("x", 256))
	wantKind(t, err, vfolder.KindNameTooLong)
}

func TestRootIsReadOnly(t *testing.T) {
	b := newBed(t, nil)
	dir := b.mkdir("d")
	for what, err := range map[string]error{
		"create":  second(b.fs.Create(b.req(), vfolder.RootIno, "x", 0o644, 0, 0)),
		"mkdir":   second(b.fs.Mkdir(b.req(), vfolder.RootIno, "x", 0o755, 0)),
		"rmdir":   b.fs.Rmdir(b.req(), vfolder.RootIno, "data"),
		"unlink":  b.fs.Unlink(b.req(), vfolder.RootIno, "data"),
		"rename":  b.fs.Rename(b.req(), vfolder.RootIno, "data", vfolder.RootIno, "x", 0),
		"into":    b.fs.Rename(b.req(), b.root, "d", vfolder.RootIno, "x", 0),
		"setattr": second(b.fs.SetAttr(b.req(), vfolder.RootIno, fusefs.SetAttr{})),
		"xattr":   b.fs.SetXattr(b.req(), vfolder.RootIno, "user.x", nil, 0),
	} {
		if vfolder.KindOf(err) != vfolder.KindPermission {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := b.names(vfolder.RootIno); !slices.Equal(got, []string{"data"}) {
		t.Fatalf("folders %q", got)
	}
	if a, err := b.lookup("d"); err != nil || a.Ino != dir {
		t.Fatalf("resolve: %+v %v", a, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestFoldersAreSeparate(t *testing.T) {
	b := newBed(t, nil)
	var other vfolder.Ino
	check(t, b.db.Update(func(tx *meta.Tx) error {
		n := &meta.Inode{Mode: unix.S_IFDIR | 0o777}
		err := tx.Create(vfolder.RootIno, "other", n)
		other = n.Ino
		return err
	}))
	ino := b.file("a", "1")
	wantKind(t, b.fs.Rename(b.req(), b.root, "a", other, "a", 0), vfolder.KindCrossDevice)
	_, err := b.fs.Link(b.req(), ino, other, "a")
	wantKind(t, err, vfolder.KindCrossDevice)
}

func TestReadOnlyFolder(t *testing.T) {
	b := newBed(t, nil)
	ino := b.file("a", "1")
	b.bucket.set(func() { b.bucket.refuse = vfolder.KindLocked })
	for what, err := range map[string]error{
		"create":  second(b.fs.Create(b.req(), b.root, "x", 0o644, 0, 0)),
		"write":   second(b.fs.Write(b.req(), ino, []byte("x"), 0, false)),
		"open":    b.fs.Open(b.req(), ino, unix.O_WRONLY),
		"unlink":  b.fs.Unlink(b.req(), b.root, "a"),
		"setattr": second(b.fs.SetAttr(b.req(), ino, fusefs.SetAttr{})),
	} {
		if vfolder.KindOf(err) != vfolder.KindLocked {
			t.Errorf("%s: %v", what, err)
		}
	}
	check(t, b.fs.Open(b.req(), ino, unix.O_RDONLY))
	if got := b.read(ino); got != "1" {
		t.Fatalf("read %q", got)
	}
	b.bucket.set(func() { b.bucket.refuse = nil })
}

// TestExactlyOnce carries every operation out twice, as when a worker died
// before its answer was read.
func TestExactlyOnce(t *testing.T) {
	b := newBed(t, nil)
	b.file("old", "old")
	b.file("a", "a")
	b.file("b", "b")
	b.mkdir("dir")
	src := b.file("src", "source")
	ops := map[string]func(*fusefs.Request) (fusefs.Attr, error){
		"create": func(r *fusefs.Request) (fusefs.Attr, error) {
			return b.fs.Create(r, b.root, "new", 0o644, 0, unix.O_EXCL)
		},
		"mknod": func(r *fusefs.Request) (fusefs.Attr, error) {
			return b.fs.Mknod(r, b.root, "fifo", unix.S_IFIFO|0o644, 0, 0)
		},
		"mkdir": func(r *fusefs.Request) (fusefs.Attr, error) { return b.fs.Mkdir(r, b.root, "newdir", 0o755, 0) },
		"symlink": func(r *fusefs.Request) (fusefs.Attr, error) {
			return b.fs.Symlink(r, b.root, "sym", "target")
		},
		"tmpfile": func(r *fusefs.Request) (fusefs.Attr, error) { return b.fs.Tmpfile(r, b.root, 0o600, 0, 0) },
		"link":    func(r *fusefs.Request) (fusefs.Attr, error) { return b.fs.Link(r, src, b.root, "hard") },
		"unlink":  func(r *fusefs.Request) (fusefs.Attr, error) { return fusefs.Attr{}, b.fs.Unlink(r, b.root, "old") },
		"rmdir":   func(r *fusefs.Request) (fusefs.Attr, error) { return fusefs.Attr{}, b.fs.Rmdir(r, b.root, "dir") },
		"rename": func(r *fusefs.Request) (fusefs.Attr, error) {
			return fusefs.Attr{}, b.fs.Rename(r, b.root, "src", b.root, "dst", unix.RENAME_NOREPLACE)
		},
		"exchange": func(r *fusefs.Request) (fusefs.Attr, error) {
			return fusefs.Attr{}, b.fs.Rename(r, b.root, "a", b.root, "b", unix.RENAME_EXCHANGE)
		},
		"setxattr": func(r *fusefs.Request) (fusefs.Attr, error) {
			return fusefs.Attr{}, b.fs.SetXattr(r, src, "user.x", []byte("1"), unix.XATTR_CREATE)
		},
	}
	for name, op := range ops {
		req := b.req()
		first, err := op(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b.restart(false)
		second, err := op(resent(req))
		if err != nil {
			t.Fatalf("%s again: %v", name, err)
		}
		if first.Ino != second.Ino || first.Mode != second.Mode {
			t.Fatalf("%s: %+v, then %+v", name, first, second)
		}
		if _, err := op(b.req()); err == nil && name != "tmpfile" && name != "exchange" {
			t.Fatalf("%s: a new request was taken for the old one", name)
		}
	}
	req := b.req()
	check(t, b.fs.RemoveXattr(req, src, "user.x"))
	check(t, b.fs.RemoveXattr(resent(req), src, "user.x"))
	wantKind(t, b.fs.RemoveXattr(b.req(), src, "user.x"), vfolder.KindNoAttr)
	if a := b.stat(src); a.Nlink != 2 {
		t.Fatalf("links %d", a.Nlink)
	}
}

func TestOrphans(t *testing.T) {
	b := newBed(t, nil)
	ino := b.file("a", "still here")
	check(t, b.fs.Unlink(b.req(), b.root, "a"))
	if a := b.stat(ino); a.Nlink != 0 {
		t.Fatalf("links %d", a.Nlink)
	}
	b.write(ino, 0, "STILL")
	if got := b.read(ino); got != "STILL here" {
		t.Fatalf("read %q", got)
	}
	b.restart(false)
	if got := b.fs.Orphans(); !slices.Equal(got, []vfolder.Ino{ino}) {
		t.Fatalf("orphans %v", got)
	}
	if got := b.read(ino); got != "STILL here" {
		t.Fatalf("after a restart: %q", got)
	}
	b.fs.Forget(ino)
	eventually(t, "the orphan is freed", func() bool {
		_, err := b.fs.GetAttr(b.req(), ino)
		return errors.Is(err, vfolder.KindStale)
	})
	eventually(t, "its bytes are gone", func() bool { return b.dataFiles() == 0 })
}

func (b *bed) dataFiles() int {
	files, err := filepath.Glob(filepath.Join(b.dir, "content", "*", "*"))
	check(b.t, err)
	return len(files)
}

func TestTmpfileGetsAName(t *testing.T) {
	b := newBed(t, nil)
	a, err := b.fs.Tmpfile(b.req(), b.root, 0o600, 0, unix.O_RDWR)
	check(t, err)
	b.write(a.Ino, 0, "named later")
	a, err = b.fs.Link(b.req(), a.Ino, b.root, "name")
	check(t, err)
	b.fs.Forget(a.Ino)
	if a.Nlink != 1 || a.Size != 11 {
		t.Fatalf("%+v", a)
	}
	if len(b.fs.Orphans()) != 0 {
		t.Fatal("it counts as an orphan")
	}
	b.restart(false)
	if got := b.read(a.Ino); got != "named later" {
		t.Fatalf("read %q", got)
	}
}

func TestRenameReplaces(t *testing.T) {
	b := newBed(t, nil)
	old := b.file("dst", "old")
	ino := b.file("src", "new")
	wantKind(t, b.fs.Rename(b.req(), b.root, "src", b.root, "dst", unix.RENAME_NOREPLACE), vfolder.KindExists)
	check(t, b.fs.Rename(b.req(), b.root, "src", b.root, "dst", 0))
	if a, err := b.lookup("dst"); err != nil || a.Ino != ino {
		t.Fatalf("%+v %v", a, err)
	}
	if got := b.read(old); got != "old" || b.stat(old).Nlink != 0 {
		t.Fatalf("the replaced file reads %q", got)
	}
	wantKind(t, b.fs.Rename(b.req(), b.root, "dst", b.root, "x", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), vfolder.KindInvalid)
	wantKind(t, b.fs.Rename(b.req(), b.root, "dst", b.root, "x", unix.RENAME_WHITEOUT), vfolder.KindInvalid)
}

func TestSetgidDirectory(t *testing.T) {
	b := newBed(t, nil)
	d := b.mkdir("d")
	mode, gid := uint32(unix.S_ISGID|0o775), uint32(7)
	_, err := b.fs.SetAttr(b.req(), d, fusefs.SetAttr{Mode: &mode, GID: &gid})
	check(t, err)
	if a := b.stat(b.file("d/f", "")); a.GID != 7 || a.Mode&unix.S_ISGID != 0 {
		t.Fatalf("file %+v", a)
	}
	if a := b.stat(b.mkdir("d/s")); a.GID != 7 || a.Mode&unix.S_ISGID == 0 {
		t.Fatalf("directory %+v", a)
	}
}

func TestPrivilegesDrop(t *testing.T) {
	b := newBed(t, nil)
	ino := b.file("a", "x")
	mode := uint32(0o6755)
	set := func() {
		t.Helper()
		_, err := b.fs.SetAttr(b.req(), ino, fusefs.SetAttr{Mode: &mode})
		check(t, err)
		check(t, b.fs.SetXattr(b.req(), ino, "security.capability", []byte("cap"), 0))
	}
	dropped := func(what string) {
		t.Helper()
		if a := b.stat(ino); a.Mode&0o7777 != 0o755 {
			t.Fatalf("%s: mode %o", what, a.Mode)
		}
		_, err := b.fs.GetXattr(b.req(), ino, "security.capability")
		wantKind(t, err, vfolder.KindNoAttr)
	}
	set()
	_, err := b.fs.Write(b.req(), ino, []byte("y"), 0, true)
	check(t, err)
	dropped("write")
	set()
	size := int64(0)
	_, err = b.fs.SetAttr(b.req(), ino, fusefs.SetAttr{Size: &size, KillPriv: true})
	check(t, err)
	dropped("truncate")
	set()
	uid := uint32(5)
	_, err = b.fs.SetAttr(b.req(), ino, fusefs.SetAttr{UID: &uid})
	check(t, err)
	dropped("chown")
}

func TestXattrRules(t *testing.T) {
	b := newBed(t, nil)
	ino := b.file("a", "")
	set := func(name, v string, flags uint32) error {
		return b.fs.SetXattr(b.req(), ino, name, []byte(v), flags)
	}
	wantKind(t, set("user.a", "1", unix.XATTR_REPLACE), vfolder.KindNoAttr)
	check(t, set("user.a", "1", unix.XATTR_CREATE))
	wantKind(t, set("user.a", "2", unix.XATTR_CREATE), vfolder.KindExists)
	check(t, set("user.a", "", unix.XATTR_REPLACE))
	wantKind(t, set("system.posix_acl_access", "2", 0), vfolder.KindUnsupported)
	wantKind(t, set("trusted.a", "2", 0), vfolder.KindPermission)
	wantKind(t, set("user.", "2", 0), vfolder.KindInvalid)
	if err := set("user.big", strings.Repeat("x", vfolder.MaxXattrValueBytes+1), 0); !errors.Is(err, unix.E2BIG) {
		t.Fatal(err)
	}
	root := b.req()
	root.UID = 0
	check(t, b.fs.SetXattr(root, ino, "trusted.a", []byte("t"), 0))
	names, err := b.fs.ListXattr(b.req(), ino)
	check(t, err)
	if !slices.Equal(names, []string{"user.a"}) {
		t.Fatalf("names %q", names)
	}
	if v, err := b.fs.GetXattr(b.req(), ino, "user.a"); err != nil || len(v) != 0 {
		t.Fatalf("%q %v", v, err)
	}
}

func TestResolve(t *testing.T) {
	b := newBed(t, nil)
	b.mkdir("d")
	ino := b.file("d/f", "x")
	for name, target := range map[string]string{"in": "d/f", "up": "d/../d/./f", "loop": "loop", "out": "/etc/passwd", "above": "../../d/f"} {
		_, err := b.fs.Symlink(b.req(), b.root, name, target)
		check(t, err)
	}
	for _, path := range []string{"in", "up", "/d//f", "above"} {
		a, err := b.fs.Resolve(t.Context(), "data", path, true)
		if err != nil || a.Ino != ino {
			t.Errorf("%s: %+v %v", path, a, err)
		}
	}
	_, err := b.fs.Resolve(t.Context(), "data", "loop", true)
	wantKind(t, err, vfolder.KindLoop)
	_, err = b.fs.Resolve(t.Context(), "data", "out", true)
	wantKind(t, err, vfolder.KindAccess)
	_, err = b.fs.Resolve(t.Context(), "data", "d/f/x", true)
	wantKind(t, err, vfolder.KindNotDir)
	_, err = b.fs.Resolve(t.Context(), "nodata", "", true)
	wantKind(t, err, vfolder.KindNotFound)
}

func TestFsyncAndFreeze(t *testing.T) {
	b := newBed(t, nil)
	ino := b.file("a", "one")
	check(t, b.fs.SetXattr(b.req(), ino, "user.x", []byte("1"), 0))
	check(t, b.fs.Fsync(b.req(), ino, false))
	if n := b.record(ino); n.Boot != 0 || n.Size != 3 || !n.Dirty {
		t.Fatalf("after fsync: %+v", n)
	}
	fr, err := b.fs.Freeze(t.Context(), ino)
	check(t, err)
	gen := fr.Inode.Gen
	b.write(ino, 0, "TWO and more")
	if fr.Inode.Size != 3 || string(fr.Xattrs["user.x"]) != "1" {
		t.Fatalf("frozen %+v %q", fr.Inode, fr.Xattrs)
	}
	buf := make([]byte, 3)
	if _, err := fr.View.ReadAt(buf, 0); err != nil || string(buf) != "one" {
		t.Fatalf("the view reads %q, %v", buf, err)
	}
	fr.Close()
	if n := b.record(ino); n.Gen != gen+1 {
		t.Fatalf("generation %d after %d", n.Gen, gen)
	}
	if a := b.fs.Activity(ino); !a.Open || a.DirtySince.IsZero() {
		t.Fatalf("activity %+v", a)
	}
	check(t, b.fs.Flush(b.req(), ino))
	if a := b.fs.Activity(ino); a.Open {
		t.Fatalf("activity %+v", a)
	}
	d := b.mkdir("d")
	fr, err = b.fs.Freeze(context.Background(), d)
	check(t, err)
	if fr.View != nil {
		t.Fatal("a directory has a view")
	}
	fr.Close()
}

func TestKillKeepsUnsavedState(t *testing.T) {
	b := newBed(t, nil)
	ino := b.file("a", strings.Repeat("x", 10_000))
	want := b.stat(ino)
	old := int64(1e18)
	other := b.file("b", "b")
	_, err := b.fs.SetAttr(b.req(), other, fusefs.SetAttr{Mtime: &old})
	check(t, err)
	b.restart(false)
	if got := b.stat(ino); got.Size != want.Size || got.Mtime != want.Mtime {
		t.Fatalf("%+v, was %+v", got, want)
	}
	if got := b.stat(other); got.Mtime != old || got.Size != 1 {
		t.Fatalf("%+v", got)
	}
}

func TestEviction(t *testing.T) {
	b := newBed(t, nil)
	b.close(true)
	b.maxNodes = 4
	b.open()
	var all []vfolder.Ino
	for i := range 40 {
		all = append(all, b.file("f"+string(rune('0'+i)), strings.Repeat("y", i)))
	}
	for i, ino := range all {
		if got := b.read(ino); len(got) != i {
			t.Fatalf("file %d has %d bytes", i, len(got))
		}
	}
}

func TestPowerLoss(t *testing.T) {
	b := newBed(t, nil)
	kept := b.file("kept", "as published")
	b.publish(kept)
	b.write(kept, 0, "CHANGED BUT NOT FLUSHED")
	flushed := b.file("flushed", "flushed")
	check(t, b.fs.Fsync(b.req(), flushed, false))
	b.write(flushed, 0, "F")
	fresh := b.file("fresh", "never published")
	clean := b.file("clean", "clean")
	b.publish(clean)
	b.close(false)
	b.boot = "boot 2"
	b.open()
	for ino, want := range map[vfolder.Ino]string{kept: "as published", flushed: "Flushed", fresh: "never published", clean: "clean"} {
		if got := b.read(ino); got != want {
			t.Errorf("%d: %q, want %q", ino, got, want)
		}
	}
	files, err := filepath.Glob(filepath.Join(b.dir, "recovered", "data", "kept.*"))
	check(t, err)
	if len(files) != 1 {
		t.Fatalf("recovered: %q", files)
	}
	if got, err := os.ReadFile(files[0]); err != nil || string(got) != "CHANGED BUT NOT FLUSHED" {
		t.Fatalf("%q %v", got, err)
	}
	if n := b.record(kept); n.Dirty {
		t.Fatalf("%+v", n)
	}
}

func TestCleanShutdownIsTrusted(t *testing.T) {
	b := newBed(t, nil)
	ino := b.file("a", "published")
	b.publish(ino)
	b.write(ino, 0, "CHANGED!!")
	b.close(true)
	b.boot = "boot 2"
	b.open()
	if got := b.read(ino); got != "CHANGED!!" {
		t.Fatalf("read %q", got)
	}
}

func TestSparse(t *testing.T) {
	b := newBed(t, nil)
	ino := b.create("a")
	b.write(ino, 1<<20, "end")
	off, err := b.fs.Seek(b.req(), ino, 0, unix.SEEK_DATA)
	check(t, err)
	if off != 1<<20 {
		t.Fatalf("data at %d", off)
	}
	if a := b.stat(ino); a.Blocks*512 >= 1<<20 {
		t.Fatalf("%d blocks", a.Blocks)
	}
	check(t, b.fs.Fallocate(b.req(), ino, 0, 0, 2<<20))
	if a := b.stat(ino); a.Size != 2<<20 {
		t.Fatalf("size %d", a.Size)
	}
	wantKind(t, b.fs.Fallocate(b.req(), ino, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), vfolder.KindUnsupported)
	_, err = b.fs.Seek(b.req(), ino, 2<<20, unix.SEEK_DATA)
	wantKind(t, err, vfolder.KindNoData)
	n, err := b.fs.CopyRange(b.req(), ino, 1<<20, ino, 100, 3)
	check(t, err)
	buf := make([]byte, 3)
	if _, err := b.fs.Read(b.req(), ino, buf, 100); err != nil || n != 3 || !bytes.Equal(buf, []byte("end")) {
		t.Fatalf("%d %q %v", n, buf, err)
	}
	_, err = b.fs.Write(b.req(), ino, []byte("x"), vfolder.MaxFileBytes, false)
	wantKind(t, err, vfolder.KindTooLarge)
}
