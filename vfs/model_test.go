package vfs_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
)

// TestModel does the same random operations on the tree and in a directory of
// the local file system. Results and errno must be equal, at once and after
// worker restarts, clean and not.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "model")
		check(t, err)
		m := &model{b: newBed(t, nil), dir: dir}
		if rapid.Bool().Draw(rt, "small cache") {
			m.b.maxNodes = 3
			m.b.restart(true)
		}
		defer m.b.close(false)
		rt.Repeat(map[string]func(*rapid.T){
			"create": m.create, "mkdir": m.mkdir, "symlink": m.symlink, "link": m.link,
			"unlink": m.unlink, "rmdir": m.rmdir, "rename": m.rename, "exchange": m.exchange,
			"write": m.write, "write2": m.write, "truncate": m.truncate, "punch": m.punch, "chmod": m.chmod,
			"xattr": m.xattr, "utimes": m.utimes, "read": m.read, "fsync": m.fsync,
			"publish": m.publish, "evict": m.evict,
			"restart": func(rt *rapid.T) { m.b.restart(rapid.Bool().Draw(rt, "clean")) },
			"":        m.same,
		})
	})
}

type model struct {
	b   *bed
	dir string
}

// path draws one of few paths, so that operations meet.
func path(rt *rapid.T, what string) string {
	p := rapid.SampledFrom([]string{"", "d/", "e/", "d/e/"}).Draw(rt, what+" directory")
	return p + rapid.SampledFrom([]string{"a", "b", "d", "e"}).Draw(rt, what+" name")
}

// in finds the directory of a path, without following links, as the kernel
// would before it sends a request.
func (m *model) in(path string) (vfolder.Ino, string, error) {
	dir, name := filepath.Split(path)
	at := m.b.root
	for _, part := range bytes.Split([]byte(dir), []byte("/")) {
		if len(part) == 0 {
			continue
		}
		a, err := m.b.fs.Lookup(m.b.req(), at, string(part))
		if err != nil {
			return 0, "", err
		}
		switch a.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
		case unix.S_IFLNK: // those that are made here lead nowhere
			return 0, "", vfolder.KindNotFound
		default:
			return 0, "", vfolder.KindNotDir
		}
		at = a.Ino
	}
	return at, name, nil
}

func (m *model) find(path string) (fusefs.Attr, error) {
	dir, name, err := m.in(path)
	if err != nil {
		return fusefs.Attr{}, err
	}
	return m.b.fs.Lookup(m.b.req(), dir, name)
}

func (m *model) real(path string) string { return filepath.Join(m.dir, path) }

// agree compares the outcome of both sides.
func (m *model) agree(rt *rapid.T, what string, got, want error) bool {
	rt.Helper()
	g, w := errnoOf(got), syscall.Errno(0)
	if want != nil && !errors.As(want, &w) {
		rt.Fatalf("%s: the local file system says %v", what, want)
	}
	if g != w {
		rt.Fatalf("%s: %v (%v), the local file system says %v", what, g, got, w)
	}
	return got == nil
}

func (m *model) create(rt *rapid.T) {
	p := path(rt, "create")
	dir, name, err := m.in(p)
	if err == nil {
		var a fusefs.Attr
		if a, err = m.b.fs.Create(m.b.req(), dir, name, 0o640, 0, unix.O_EXCL|unix.O_RDWR); err == nil {
			m.b.fs.Release(a.Ino, 0)
		}
	}
	f, werr := os.OpenFile(m.real(p), os.O_CREATE|os.O_EXCL|os.O_RDWR|syscall.O_NOFOLLOW, 0o640)
	if werr == nil {
		_ = f.Close()
	}
	m.agree(rt, "create "+p, err, werr)
}

func (m *model) mkdir(rt *rapid.T) {
	p := path(rt, "mkdir")
	dir, name, err := m.in(p)
	if err == nil {
		_, err = m.b.fs.Mkdir(m.b.req(), dir, name, 0o750, 0)
	}
	m.agree(rt, "mkdir "+p, err, os.Mkdir(m.real(p), 0o750))
}

func (m *model) symlink(rt *rapid.T) {
	p := path(rt, "symlink")
	dir, name, err := m.in(p)
	if err == nil {
		_, err = m.b.fs.Symlink(m.b.req(), dir, name, "some/target")
	}
	m.agree(rt, "symlink "+p, err, os.Symlink("some/target", m.real(p)))
}

// link leaves out what the kernel refuses before it asks.
func (m *model) link(rt *rapid.T) {
	p, q := path(rt, "old"), path(rt, "new")
	a, err := m.find(p)
	if err == nil {
		var dir vfolder.Ino
		var name string
		if dir, name, err = m.in(q); err == nil {
			if _, err = m.b.fs.Lookup(m.b.req(), dir, name); err == nil {
				err = vfolder.KindExists
			} else if errors.Is(err, vfolder.KindNotFound) {
				_, err = m.b.fs.Link(m.b.req(), a.Ino, dir, name)
			}
		}
	}
	m.agree(rt, "link "+p+" "+q, err, os.Link(m.real(p), m.real(q)))
}

func (m *model) unlink(rt *rapid.T) {
	p := path(rt, "unlink")
	dir, name, err := m.in(p)
	if err == nil {
		err = m.b.fs.Unlink(m.b.req(), dir, name)
	}
	m.agree(rt, "unlink "+p, err, syscall.Unlink(m.real(p)))
}

func (m *model) rmdir(rt *rapid.T) {
	p := path(rt, "rmdir")
	dir, name, err := m.in(p)
	if err == nil {
		err = m.b.fs.Rmdir(m.b.req(), dir, name)
	}
	m.agree(rt, "rmdir "+p, err, syscall.Rmdir(m.real(p)))
}

func (m *model) rename(rt *rapid.T) {
	m.move(rt, rapid.SampledFrom([]uint32{0, 0, unix.RENAME_NOREPLACE}).Draw(rt, "flags"))
}

func (m *model) exchange(rt *rapid.T) { m.move(rt, unix.RENAME_EXCHANGE) }

// move leaves out ancestors of one another: the kernel refuses these itself.
func (m *model) move(rt *rapid.T, flags uint32) {
	p, q := path(rt, "from"), path(rt, "to")
	if related(p, q) {
		return
	}
	dir, name, err := m.in(p)
	if err == nil {
		var to vfolder.Ino
		var toName string
		if to, toName, err = m.in(q); err == nil {
			err = m.b.fs.Rename(m.b.req(), dir, name, to, toName, flags)
		}
	}
	werr := unix.Renameat2(unix.AT_FDCWD, m.real(p), unix.AT_FDCWD, m.real(q), uint(flags))
	m.agree(rt, "rename "+p+" "+q, err, werr)
}

func related(p, q string) bool {
	p, q = p+"/", q+"/"
	return len(p) <= len(q) && q[:len(p)] == p || len(q) < len(p) && p[:len(q)] == q
}

// regular draws a path at which both sides have a file.
func (m *model) regular(rt *rapid.T) (string, vfolder.Ino, bool) {
	p := path(rt, "file")
	a, err := m.find(p)
	if err != nil || a.Mode&unix.S_IFMT != unix.S_IFREG {
		return p, 0, false
	}
	return p, a.Ino, true
}

func (m *model) write(rt *rapid.T) {
	p, ino, ok := m.regular(rt)
	if !ok {
		return
	}
	off := rapid.Int64Range(0, 20_000).Draw(rt, "offset")
	data := bytes.Repeat([]byte{rapid.Byte().Draw(rt, "byte")}, rapid.IntRange(1, 9000).Draw(rt, "length"))
	_, err := m.b.fs.Write(m.b.req(), ino, data, off, false)
	f, werr := os.OpenFile(m.real(p), os.O_WRONLY, 0)
	if werr == nil {
		_, werr = f.WriteAt(data, off)
		_ = f.Close()
	}
	m.agree(rt, "write "+p, err, werr)
}

func (m *model) truncate(rt *rapid.T) {
	p, ino, ok := m.regular(rt)
	if !ok {
		return
	}
	size := rapid.SampledFrom([]int64{0, 1, 4096, 5000, 8192, 30_000}).Draw(rt, "size")
	_, err := m.b.fs.SetAttr(m.b.req(), ino, fusefs.SetAttr{Size: &size})
	m.agree(rt, "truncate "+p, err, os.Truncate(m.real(p), size))
}

func (m *model) punch(rt *rapid.T) {
	p, ino, ok := m.regular(rt)
	if !ok {
		return
	}
	off, n := rapid.Int64Range(0, 20_000).Draw(rt, "offset"), rapid.Int64Range(1, 9000).Draw(rt, "length")
	mode := rapid.SampledFrom([]uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE}).Draw(rt, "mode")
	err := m.b.fs.Fallocate(m.b.req(), ino, mode, off, n)
	f, werr := os.OpenFile(m.real(p), os.O_WRONLY, 0)
	if werr == nil {
		werr = unix.Fallocate(int(f.Fd()), mode, off, n)
		_ = f.Close()
	}
	m.agree(rt, "fallocate "+p, err, werr)
}

func (m *model) chmod(rt *rapid.T) {
	p, ino, ok := m.regular(rt)
	if !ok {
		return
	}
	mode := rapid.SampledFrom([]uint32{0o600, 0o644, 0o755}).Draw(rt, "mode")
	_, err := m.b.fs.SetAttr(m.b.req(), ino, fusefs.SetAttr{Mode: &mode})
	m.agree(rt, "chmod "+p, err, os.Chmod(m.real(p), os.FileMode(mode)))
}

func (m *model) utimes(rt *rapid.T) {
	p, ino, ok := m.regular(rt)
	if !ok {
		return
	}
	at := rapid.Int64Range(1, 1<<30).Draw(rt, "seconds") * 1e9
	_, err := m.b.fs.SetAttr(m.b.req(), ino, fusefs.SetAttr{Atime: &at, Mtime: &at})
	m.agree(rt, "utimes "+p, err, unix.UtimesNanoAt(unix.AT_FDCWD, m.real(p), []unix.Timespec{unix.NsecToTimespec(at), unix.NsecToTimespec(at)}, 0))
	m.b.restart(false)
	if a := m.b.stat(ino); a.Mtime != at {
		rt.Fatalf("utimes %s: %d, then %d", p, at, a.Mtime)
	}
}

func (m *model) xattr(rt *rapid.T) {
	p, ino, ok := m.regular(rt)
	if !ok {
		return
	}
	flags := rapid.SampledFrom([]int{0, unix.XATTR_CREATE, unix.XATTR_REPLACE}).Draw(rt, "flags")
	name := rapid.SampledFrom([]string{"user.x", "user.y"}).Draw(rt, "name")
	if rapid.Bool().Draw(rt, "remove") {
		m.agree(rt, "removexattr "+p, m.b.fs.RemoveXattr(m.b.req(), ino, name), unix.Removexattr(m.real(p), name))
		return
	}
	err := m.b.fs.SetXattr(m.b.req(), ino, name, []byte("v"), uint32(flags))
	m.agree(rt, "setxattr "+p, err, unix.Setxattr(m.real(p), name, []byte("v"), flags))
}

func (m *model) read(rt *rapid.T) {
	p, ino, ok := m.regular(rt)
	if !ok {
		return
	}
	got := make([]byte, 40_000)
	n, err := m.b.fs.Read(m.b.req(), ino, got, 0)
	want, werr := os.ReadFile(m.real(p))
	if m.agree(rt, "read "+p, err, werr) && !bytes.Equal(got[:n], want) {
		rt.Fatalf("read %s: differs at %d of %d and %d bytes", p, diff(got[:n], want), n, len(want))
	}
}

func (m *model) fsync(rt *rapid.T) {
	if _, ino, ok := m.regular(rt); ok {
		check(m.b.t, m.b.fs.Fsync(m.b.req(), ino, false))
	}
}

// publish uploads a file that has one name.
func (m *model) publish(rt *rapid.T) {
	if _, ino, ok := m.regular(rt); ok && m.b.stat(ino).Nlink == 1 {
		m.b.publish(ino)
	}
}

// evict drops the local bytes of a published file.
func (m *model) evict(rt *rapid.T) {
	if _, ino, ok := m.regular(rt); ok && m.b.stat(ino).Nlink == 1 {
		m.b.publish(ino)
		if _, err := m.b.fs.Evict(ino); err != nil && vfolder.KindOf(err) != vfolder.KindBusy {
			rt.Fatal(err)
		}
	}
}

// same compares both trees.
func (m *model) same(rt *rapid.T) { m.sameDir(rt, m.b.root, m.dir) }

func (m *model) sameDir(rt *rapid.T, ino vfolder.Ino, dir string) {
	var got []string
	attrs := map[string]fusefs.Attr{}
	check(m.b.t, m.b.fs.ReadDirPlus(m.b.req(), ino, 2, func(e fusefs.DirEntry, a fusefs.Attr) bool {
		got = append(got, e.Name)
		attrs[e.Name] = a
		return true
	}))
	slices.Sort(got)
	var want []string
	entries, err := os.ReadDir(dir)
	check(m.b.t, err)
	for _, e := range entries {
		want = append(want, e.Name())
	}
	if !slices.Equal(got, want) {
		rt.Fatalf("%s has %q, the local file system %q", dir, got, want)
	}
	for _, name := range want {
		var st unix.Stat_t
		check(m.b.t, unix.Lstat(filepath.Join(dir, name), &st))
		a := attrs[name]
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if a.Mode != st.Mode || !isDir && (a.Size != st.Size || uint64(a.Nlink) != uint64(st.Nlink)) {
			rt.Fatalf("%s/%s: %+v, the local file system has %+v", dir, name, a, st)
		}
		if isDir {
			m.sameDir(rt, a.Ino, filepath.Join(dir, name))
		}
	}
}
