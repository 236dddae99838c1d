package content

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newStore(t testing.TB) *Store {
	t.Helper()
	s := openStore(t, Options{Dir: filepath.Join(t.TempDir(), "store")})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newFile(t testing.TB, s *Store, ino vfolder.Ino, data []byte) *File {
	t.Helper()
	f := s.File(ID{Ino: ino})
	t.Cleanup(func() { _ = f.Close() })
	must(t, f.Create())
	if len(data) > 0 {
		_, err := f.WriteAt(data, 0)
		must(t, err)
	}
	return f
}

func readAll(t testing.TB, r io.ReaderAt, size int64) []byte {
	t.Helper()
	p := make([]byte, size+1)
	n, err := r.ReadAt(p, 0)
	if err != io.EOF {
		t.Fatalf("reading %d bytes: %d, %v", size, n, err)
	}
	return p[:n]
}

func wantKind(t testing.TB, err error, kind vfolder.Kind) {
	t.Helper()
	var e *vfolder.Error
	if !errors.Is(err, kind) || !errors.As(err, &e) {
		t.Errorf("error %v, want a *vfolder.Error of kind %s", err, kind)
	}
}

func openDescriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

func TestLayoutAndModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := openStore(t, Options{Dir: dir})
	f := s.File(ID{Ino: 0xabcdef, Gen: 12})
	must(t, f.Create())
	for path, mode := range map[string]os.FileMode{"": 0o700, "ef": 0o700, "ef/abcdef.12": 0o600} {
		st, err := os.Stat(filepath.Join(dir, path))
		must(t, err)
		if st.Mode().Perm() != mode {
			t.Errorf("%q has mode %v, want %v", path, st.Mode().Perm(), mode)
		}
	}
	wantKind(t, f.Create(), vfolder.KindExists)
	must(t, f.Close())
	g := s.File(ID{Ino: 0xabcdef, Gen: 12})
	wantKind(t, g.Create(), vfolder.KindExists)
	must(t, g.Close())
	must(t, s.Close())
	must(t, s.Close())
	wantKind(t, s.File(ID{Ino: 1}).Create(), vfolder.KindStale)
}

func TestOpenRemovesStrays(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "tmp-17"), []byte("of a dead freeze"), 0o600))
	s := openStore(t, Options{Dir: dir})
	defer func() { must(t, s.Close()) }()
	list, err := os.ReadDir(dir)
	must(t, err)
	if len(list) != 0 {
		t.Errorf("left over: %v", list)
	}
}

func TestMissingFile(t *testing.T) {
	s := newStore(t)
	f := s.File(ID{Ino: 5})
	defer func() { must(t, f.Close()) }()
	_, err := f.ReadAt(make([]byte, 1), 0)
	wantKind(t, err, vfolder.KindNotFound)
	_, err = f.WriteAt(make([]byte, 1), 0)
	wantKind(t, err, vfolder.KindNotFound)
	wantKind(t, f.Recover(false, nil), vfolder.KindNotFound)
	wantKind(t, f.Sync(), vfolder.KindNotFound)
	must(t, s.Remove(f.ID()))
	must(t, f.Create()) // removing nothing does not spoil the handle
}

func TestLimits(t *testing.T) {
	f := newFile(t, newStore(t), 5, nil)
	_, err := f.WriteAt([]byte("x"), vfolder.MaxFileBytes)
	wantKind(t, err, vfolder.KindTooLarge)
	_, err = f.WriteAt([]byte("x"), -1)
	wantKind(t, err, vfolder.KindInvalid)
	wantKind(t, f.Truncate(vfolder.MaxFileBytes+1), vfolder.KindTooLarge)
	wantKind(t, f.Allocate(0, 0, false), vfolder.KindInvalid)
	wantKind(t, f.Punch(0, 0), vfolder.KindInvalid)
	wantKind(t, f.Fill(1, nil), vfolder.KindInvalid)
	must(t, f.Truncate(vfolder.MaxFileBytes))
	_, err = f.SeekData(0)
	wantKind(t, err, vfolder.KindNoData)
	_, err = f.SeekHole(vfolder.MaxFileBytes)
	wantKind(t, err, vfolder.KindNoData)
	must(t, f.Punch(vfolder.MaxFileBytes-5000, 5000))
	v, err := f.Freeze()
	must(t, err)
	defer func() { must(t, v.Close()) }()
	must(t, f.Truncate(1)) // 5 TiB of hole are set aside at once
	if _, err := v.ReadAt(make([]byte, 10), vfolder.MaxFileBytes-10); err != nil {
		t.Error(err)
	}
}

func TestHandlesShareState(t *testing.T) {
	s := newStore(t)
	a, b := s.File(ID{Ino: 9}), s.File(ID{Ino: 9})
	must(t, a.CreatePartial(3*blockBytes))
	must(t, a.Fill(0, make([]byte, blockBytes)))
	must(t, a.Punch(blockBytes, blockBytes))
	must(t, a.Close())
	must(t, b.Recover(true, nil)) // keeps what is known already
	if got := b.Known(); !slices.Equal(got, []Range{{0, 2 * blockBytes}}) {
		t.Errorf("known %v", got)
	}
	v, err := b.Freeze()
	must(t, err)
	must(t, b.Close()) // the view is a handle too
	c := s.File(ID{Ino: 9})
	_, err = c.Freeze()
	wantKind(t, err, vfolder.KindBusy)
	must(t, v.Close())
	must(t, v.Close())
	_, err = v.ReadAt(make([]byte, 1), 0)
	wantKind(t, err, vfolder.KindStale)
	v, err = c.Freeze()
	must(t, err)
	must(t, v.Close())
	must(t, c.Close())
	if len(s.table) != 0 || s.fds.order.Len() != 0 {
		t.Errorf("left in memory: %d files, %d descriptors", len(s.table), s.fds.order.Len())
	}
}

func TestRemoveWithHandles(t *testing.T) {
	s := newStore(t)
	s.fds.max = 1
	data := randomBytes(3, 3*blockBytes)
	f := newFile(t, s, 1, data)
	newFile(t, s, 2, data) // pushes the first descriptor out
	v, err := f.Freeze()
	must(t, err)
	must(t, s.Remove(f.ID()))
	must(t, s.Remove(f.ID()))
	if bytes, files := s.Usage(); files != 1 || bytes > 4*blockBytes {
		t.Errorf("usage %d bytes, %d files", bytes, files)
	}
	g := newFile(t, s, 1, []byte("another"))
	newFile(t, s, 3, data)
	if !bytes.Equal(readAll(t, f, f.Size()), data) || string(readAll(t, g, g.Size())) != "another" {
		t.Error("the removed file and the new one of its name are mixed up")
	}
	must(t, f.Truncate(0)) // without a name to replace
	_, err = f.WriteAt([]byte("still writable"), 0)
	must(t, err)
	if !bytes.Equal(readAll(t, v, v.Size()), data) || string(readAll(t, f, f.Size())) != "still writable" {
		t.Error("view of a removed file changed")
	}
	must(t, f.Sync())
	must(t, v.Close())
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, Options{Dir: dir})
	for i := range vfolder.Ino(40) {
		f := s.File(ID{Ino: i})
		must(t, f.Create())
		_, err := f.WriteAt(randomBytes(1, 3*blockBytes), 0)
		must(t, err)
		must(t, f.Close())
	}
	check := func(bytes, files int64) {
		t.Helper()
		// The file system may add blocks of its own.
		if b, n := s.Usage(); n != files || b < bytes || b > bytes+files*blockBytes {
			t.Errorf("usage %d bytes, %d files; want %d, %d", b, n, bytes, files)
		}
	}
	check(40*3*blockBytes, 40)
	for i := range vfolder.Ino(20) {
		must(t, s.Remove(ID{Ino: i}))
	}
	check(20*3*blockBytes, 20)
	f := s.File(ID{Ino: 20})
	must(t, f.Truncate(blockBytes))
	must(t, f.Close())
	must(t, s.Close())
	s = openStore(t, Options{Dir: dir})
	defer func() { must(t, s.Close()) }()
	check(19*3*blockBytes+blockBytes, 20)
	var ids []ID
	must(t, s.List(func(id ID) bool {
		ids = append(ids, id)
		must(t, s.Remove(id))
		return len(ids) < 15
	}))
	if len(ids) != 15 {
		t.Errorf("listed %d", len(ids))
	}
	must(t, s.List(func(id ID) bool { ids = append(ids, id); return true }))
	if slices.SortFunc(ids, func(a, b ID) int { return int(a.Ino) - int(b.Ino) }); len(slices.Compact(ids)) != 20 {
		t.Errorf("listed %v", ids)
	}
}

func TestTimes(t *testing.T) {
	s := newStore(t)
	f := s.File(ID{Ino: 4})
	defer func() { must(t, f.Close()) }()
	must(t, f.CreatePartial(2*blockBytes))
	const want = 1234567890_987654321
	must(t, f.SetTimes(want))
	must(t, f.Fill(0, make([]byte, 2*blockBytes)))
	if got := f.Mtime(); got != want {
		t.Errorf("filling moved the time to %d", got)
	}
	before := time.Now().Add(-time.Minute).UnixNano()
	_, err := f.WriteAt([]byte("x"), 0)
	must(t, err)
	if got := f.Mtime(); got < before {
		t.Errorf("writing left the time at %d", got)
	}
}

func TestLabelOutlivesReplacement(t *testing.T) {
	s := newStore(t)
	f := newFile(t, s, 4, []byte("content"))
	if b, err := f.Label(); err != nil || b != nil {
		t.Errorf("label %q, %v", b, err)
	}
	must(t, f.SetLabel([]byte("folder/name")))
	v, err := f.Freeze()
	must(t, err)
	must(t, f.Truncate(0))
	if !v.detached {
		t.Error("emptying the file copied its blocks")
	}
	must(t, v.Close())
	if b, err := f.Label(); err != nil || string(b) != "folder/name" {
		t.Errorf("label %q, %v", b, err)
	}
}

// A new file's fsync makes its directory durable too, also through another
// handle, and costs no directory fsync when there is nothing new.
func TestSyncNames(t *testing.T) {
	s := newStore(t)
	f := newFile(t, s, 6, []byte("x"))
	g := s.File(f.ID())
	sh := &s.shards[6]
	if sh.synced == sh.changes {
		t.Fatal("a new name counts as durable")
	}
	must(t, g.Sync())
	if sh.synced != sh.changes || !f.named.Load() {
		t.Error("the name is not durable after Sync")
	}
	must(t, g.Close())
	must(t, f.Sync())
	v, err := f.Freeze()
	must(t, err)
	must(t, f.Truncate(0))
	must(t, v.Close())
	if f.named.Load() || sh.synced == sh.changes {
		t.Error("the replaced file's name counts as durable")
	}
	must(t, f.Sync())
	if sh.synced != sh.changes {
		t.Error("the replaced file's name is not durable after Sync")
	}
}

func TestDescriptorBound(t *testing.T) {
	s := newStore(t)
	s.fds.max = 8
	before := openDescriptors(t)
	files := make([]*File, 64)
	for i := range files {
		files[i] = newFile(t, s, vfolder.Ino(i*256), fmt.Append(nil, i))
	}
	if n := openDescriptors(t) - before; n > 8+1 { // and the shard's
		t.Errorf("%d descriptors for a limit of 8", n)
	}
	for i, f := range files {
		if got := string(readAll(t, f, f.Size())); got != fmt.Sprint(i) {
			t.Errorf("file %d holds %q", i, got)
		}
	}
}

func TestDescriptorsAreClosed(t *testing.T) {
	before := openDescriptors(t)
	s := openStore(t, Options{Dir: t.TempDir()})
	f := s.File(ID{Ino: 1})
	must(t, f.Create())
	_, err := f.WriteAt(randomBytes(1, 5*blockBytes), 0)
	must(t, err)
	for _, change := range []func() error{
		func() error { return f.Punch(0, blockBytes) },
		func() error { return f.Truncate(0) },
		func() error { return s.Remove(f.ID()) },
	} {
		v, err := f.Freeze()
		must(t, err)
		must(t, change())
		must(t, f.Sync())
		must(t, v.Close())
	}
	must(t, f.Close())
	must(t, s.Close())
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// Memory follows what is known in scattered blocks, not the size.
func TestKnowledgeIsCompact(t *testing.T) {
	f := newStore(t).File(ID{Ino: 8})
	defer func() { must(t, f.Close()) }()
	must(t, f.CreatePartial(vfolder.MaxFileBytes))
	must(t, f.Fill(vfolder.MaxFileBytes-blockBytes, make([]byte, blockBytes)))
	must(t, f.Fill(1<<40, make([]byte, 40<<20)))
	if n := len(f.k.have.chunks); n > 5 {
		t.Errorf("%d chunks", n)
	}
	want := []Range{{1 << 40, 40 << 20}, {vfolder.MaxFileBytes - blockBytes, blockBytes}}
	if got := f.Known(); !slices.Equal(got, want) {
		t.Errorf("known %v", got)
	}
	if got := f.Missing(0, vfolder.MaxFileBytes); len(got) != 2 {
		t.Errorf("missing %v", got)
	}
}

func TestParseID(t *testing.T) {
	for _, id := range []ID{{}, {Ino: 1}, {Ino: ^vfolder.Ino(0), Gen: ^uint32(0)}} {
		if got, ok := parseID(id.String()); !ok || got != id {
			t.Errorf("%v became %v", id, got)
		}
	}
	for _, name := range []string{"", "1", "1.", ".1", "01.1", "1.01", "G.1", "A.1", "1.4294967296", "tmp-1", "1.1.1", "+1.1"} {
		if id, ok := parseID(name); ok {
			t.Errorf("%q is taken for %v", name, id)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("1f.3")
	f.Add("0.0")
	f.Fuzz(func(t *testing.T, name string) {
		if id, ok := parseID(name); ok && (id.String() != name || strings.ContainsAny(name, "/\x00")) {
			t.Errorf("%q is taken for %v", name, id)
		}
	})
}

// The attribute that says where remote bytes end may be damaged.
func TestCorruptLimit(t *testing.T) {
	s := newStore(t)
	f := s.File(ID{Ino: 3})
	must(t, f.CreatePartial(blockBytes))
	fd, err := f.open()
	must(t, err)
	must(t, unix.Fsetxattr(fd, limitXattr, []byte("-5"), 0))
	must(t, f.Close())
	f = s.File(ID{Ino: 3})
	defer func() { must(t, f.Close()) }()
	wantKind(t, f.Recover(true, nil), vfolder.KindCorrupt)
}

// Without extended attributes the persisted ranges alone tell where remote
// bytes end.
func TestRecoverWithoutAttributes(t *testing.T) {
	s := newStore(t)
	s.noXattr.Store(true)
	f := s.File(ID{Ino: 3})
	must(t, f.CreatePartial(3*blockBytes))
	must(t, f.Truncate(blockBytes+100))
	must(t, f.Truncate(5*blockBytes))
	known := f.Known()
	must(t, f.Close())
	f = s.File(ID{Ino: 3})
	defer func() { must(t, f.Close()) }()
	must(t, f.Recover(true, known))
	if got := f.Known(); !slices.Equal(got, known) || !slices.Equal(got, []Range{{blockBytes + 100, 4*blockBytes - 100}}) {
		t.Errorf("known %v, was %v", got, known)
	}
	if got := f.Missing(0, 5*blockBytes); !slices.Equal(got, []Range{{0, blockBytes + 100}}) {
		t.Errorf("missing %v", got)
	}
}
