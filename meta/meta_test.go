package meta

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"testing"

	"github.com/vfolder/vfolder"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("META_KILL_DIR"); dir != "" {
		writeUntilKilled(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func openAt(t testing.TB, dir, boot string) *DB {
	t.Helper()
	db, err := Open(Options{Dir: dir, BootID: boot, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func must(t interface{ Fatal(...any) }, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

func newFolder(t interface{ Fatal(...any) }, db *DB, name string) vfolder.Ino {
	n := &Inode{Mode: unix.S_IFDIR | 0o755, UID: 1000, GID: 1000}
	must(t, db.Update(func(tx *Tx) error {
		if err := tx.Create(vfolder.RootIno, name, n); err != nil {
			return err
		}
		return tx.PutFolder(&Folder{Root: n.Ino, Record: vfolder.Folder{ID: "id-" + name, Name: name, Prefix: name + "/", State: vfolder.FolderReady}})
	}))
	return n.Ino
}

func file() *Inode { return &Inode{Mode: unix.S_IFREG | 0o644, UID: 1000, GID: 1000} }

func kindOfErr(err error) string {
	if err == nil {
		return ""
	}
	return vfolder.KindOf(err).String()
}

// modelNode is a file (names counts) or a directory of the model.
type modelNode struct {
	dir      bool
	children map[string]*modelNode
	ino      vfolder.Ino
}

// TestModel drives the index and a map-backed tree with the same operations,
// publishes at random as the reconciler does, reopens at random, and checks
// the invariants after each step.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "meta")
		must(rt, err)
		defer os.RemoveAll(dir)
		db := openAt(t, dir, "boot")
		defer func() { db.Close() }()
		root := newFolder(rt, db, "f")
		model := &modelNode{dir: true, children: map[string]*modelNode{}, ino: root}
		dirs := func() []*modelNode {
			var out []*modelNode
			var walk func(*modelNode)
			walk = func(n *modelNode) {
				out = append(out, n)
				names := make([]string, 0, len(n.children))
				for name := range n.children {
					names = append(names, name)
				}
				sort.Strings(names)
				for _, name := range names {
					if n.children[name].dir {
						walk(n.children[name])
					}
				}
			}
			walk(model)
			return out
		}
		name := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		pick := func(label string) *modelNode { return rapid.SampledFrom(dirs()).Draw(rt, label) }
		var inside func(n, in *modelNode) bool
		inside = func(n, in *modelNode) bool {
			if n == in {
				return true
			}
			for _, c := range in.children {
				if c.dir && inside(n, c) {
					return true
				}
			}
			return false
		}
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(rt *rapid.T) {
				d, nm, isDir := pick("dir"), name.Draw(rt, "name"), rapid.Bool().Draw(rt, "isDir")
				n := file()
				if isDir {
					n.Mode = unix.S_IFDIR | 0o755
				}
				err := db.Update(func(tx *Tx) error { return tx.Create(d.ino, nm, n) })
				if _, taken := d.children[nm]; taken {
					if !errors.Is(err, vfolder.KindExists) {
						rt.Fatalf("create over %q: %v", nm, err)
					}
					return
				}
				must(rt, err)
				d.children[nm] = &modelNode{dir: isDir, children: map[string]*modelNode{}, ino: n.Ino}
			},
			"link": func(rt *rapid.T) {
				d, nm, d2, nm2 := pick("dir"), name.Draw(rt, "name"), pick("dir2"), name.Draw(rt, "name2")
				src, ok := d.children[nm]
				if _, taken := d2.children[nm2]; !ok || taken {
					return
				}
				err := db.Update(func(tx *Tx) error {
					_, err := tx.Link(src.ino, d2.ino, nm2, "link"+strconv.Itoa(int(src.ino)))
					return err
				})
				if src.dir {
					if !errors.Is(err, vfolder.KindPermission) {
						rt.Fatalf("link of a directory: %v", err)
					}
					return
				}
				must(rt, err)
				d2.children[nm2] = src
			},
			"remove": func(rt *rapid.T) {
				d, nm := pick("dir"), name.Draw(rt, "name")
				n, ok := d.children[nm]
				var err error
				var left *Inode
				if ok && n.dir {
					err = db.Update(func(tx *Tx) error { _, err := tx.Rmdir(d.ino, nm); return err })
					if len(n.children) > 0 {
						if !errors.Is(err, vfolder.KindNotEmpty) {
							rt.Fatalf("rmdir of a full directory: %v", err)
						}
						return
					}
				} else {
					err = db.Update(func(tx *Tx) (err error) { left, err = tx.Unlink(d.ino, nm); return })
				}
				if !ok {
					if !errors.Is(err, vfolder.KindNotFound) {
						rt.Fatalf("unlink of nothing: %v", err)
					}
					return
				}
				must(rt, err)
				delete(d.children, nm)
				if left == nil || left.Nlink == 0 {
					must(rt, db.Update(func(tx *Tx) error {
						_, freed, err := tx.Free(n.ino)
						if err == nil && !freed {
							err = fmt.Errorf("orphan %d was not freed", n.ino)
						}
						return err
					}))
				}
			},
			"rename": func(rt *rapid.T) {
				d, nm, d2, nm2 := pick("dir"), name.Draw(rt, "name"), pick("dir2"), name.Draw(rt, "name2")
				noReplace := rapid.Bool().Draw(rt, "noReplace")
				src, ok := d.children[nm]
				dst, over := d2.children[nm2]
				var replaced *Inode
				err := db.Update(func(tx *Tx) (err error) {
					_, replaced, err = tx.Rename(d.ino, nm, d2.ino, nm2, noReplace)
					return
				})
				want := ""
				switch {
				case !ok:
					want = "not-found"
				case src.dir && inside(d2, src):
					want = "invalid"
				case over && noReplace:
					want = "exists"
				case over && dst == src:
				case over && src.dir && !dst.dir:
					want = "not-a-directory"
				case over && !src.dir && dst.dir:
					want = "is-a-directory"
				case over && src.dir && len(dst.children) > 0:
					want = "not-empty"
				}
				if got := kindOfErr(err); got != want {
					rt.Fatalf("rename: got %q (%v), want %q", got, err, want)
				}
				if err != nil || dst == src {
					return
				}
				delete(d.children, nm)
				d2.children[nm2] = src
				if over && replaced.Nlink == 0 {
					must(rt, db.Update(func(tx *Tx) error { _, _, err := tx.Free(replaced.Ino); return err }))
				}
			},
			"exchange": func(rt *rapid.T) {
				d, nm, d2, nm2 := pick("dir"), name.Draw(rt, "name"), pick("dir2"), name.Draw(rt, "name2")
				a, b := d.children[nm], d2.children[nm2]
				if a == nil || b == nil || a.dir && inside(d2, a) || b.dir && inside(d, b) {
					return
				}
				must(rt, db.Update(func(tx *Tx) error { return tx.Exchange(d.ino, nm, d2.ino, nm2) }))
				d.children[nm], d2.children[nm2] = b, a
			},
			"publish": func(rt *rapid.T) { publishOne(rt, db, root, rapid.IntRange(0, 5).Draw(rt, "skip")) },
			"reopen": func(rt *rapid.T) {
				must(rt, db.Close())
				db = openAt(t, dir, "boot")
			},
			"": func(rt *rapid.T) {
				must(rt, db.View(func(tx *Tx) error {
					faults, err := tx.Check(root)
					if err == nil && len(faults) > 0 {
						err = fmt.Errorf("%q", faults)
					}
					return err
				}))
				compare(rt, db, model)
			},
		})
	})
}

// publishOne carries out one queued item the way the reconciler would.
func publishOne(t interface{ Fatal(...any) }, db *DB, root vfolder.Ino, skip int) {
	must(t, db.Update(func(tx *Tx) error {
		var it Item
		if err := tx.Items(root, 0, func(i Item) bool { it = i; skip--; return skip >= 0 }); err != nil || it.Seq == 0 {
			return err
		}
		switch it.Kind {
		case ItemPut:
			e, err := tx.Entry(it.Parent, it.Name)
			if err != nil {
				return err
			}
			n, err := tx.Inode(e.Ino)
			if err != nil {
				return err
			}
			dir, err := tx.MakePrefix(fmt.Sprintf("f/%d/", it.Parent))
			if err != nil {
				return err
			}
			k := RowKey{dir, it.Name}
			if o, err := tx.Row(k); err != nil {
				return err
			} else if o != nil && o.Parent != 0 && (o.Parent != it.Parent || o.Name != it.Name) {
				return nil // occupied: the other one moves first
			}
			if err := tx.BindRow(root, it.Parent, it.Name, k, &Row{Ino: n.Ino, ETag: "e", Gen: n.Gen, AttrGen: n.AttrGen}); err != nil {
				return err
			}
		case ItemDelete:
			o, err := tx.Row(it.Row)
			if err != nil {
				return err
			}
			if o != nil && o.Parent == 0 {
				return tx.DropRow(root, it.Row)
			}
		}
		_, err := tx.Done(it)
		return err
	}))
}

func compare(t *rapid.T, db *DB, d *modelNode) {
	must(t, db.View(func(tx *Tx) error {
		seen := map[string]bool{}
		err := tx.Entries(d.ino, 0, func(e DirEntry) bool {
			c := d.children[e.Name]
			if c == nil || c.ino != e.Ino {
				t.Fatalf("index has %q -> %d, the model %+v", e.Name, e.Ino, c)
			}
			seen[e.Name] = true
			return true
		})
		if err == nil && len(seen) != len(d.children) {
			t.Fatalf("index has %v, the model %d entries", seen, len(d.children))
		}
		return err
	}))
	for _, c := range d.children {
		if c.dir {
			compare(t, db, c)
		}
	}
}

func TestEntriesContinueWhileOthersComeAndGo(t *testing.T) {
	db := openAt(t, t.TempDir(), "b")
	defer db.Close()
	root := newFolder(t, db, "f")
	for i := range 500 {
		must(t, db.Update(func(tx *Tx) error { return tx.Create(root, fmt.Sprint("stays", i), file()) }))
	}
	seen := map[string]int{}
	after, round := uint64(0), 0
	for {
		n := 0
		must(t, db.View(func(tx *Tx) error {
			return tx.Entries(root, after, func(e DirEntry) bool {
				if n == 20 && e.Cookie != after {
					return false
				}
				seen[e.Name]++
				after = e.Cookie
				n = min(n+1, 20)
				return true
			})
		}))
		if n == 0 {
			break
		}
		round++
		must(t, db.Update(func(tx *Tx) error { return tx.Create(root, fmt.Sprint("comes", round), file()) }))
	}
	for i := range 500 {
		if c := seen[fmt.Sprint("stays", i)]; c != 1 {
			t.Fatalf("stays%d was listed %d times", i, c)
		}
	}
}

func TestReplyIsFoundOnceAndBounded(t *testing.T) {
	db := openAt(t, t.TempDir(), "b")
	defer db.Close()
	must(t, db.Update(func(tx *Tx) error { return tx.PutReply(42, 7) }))
	check := func(unique uint64, ino vfolder.Ino, done bool) {
		t.Helper()
		must(t, db.View(func(tx *Tx) error {
			i, d, err := tx.Reply(unique)
			if i != ino || d != done {
				t.Errorf("reply of %d: %d %v", unique, i, d)
			}
			return err
		}))
	}
	check(42, 7, true)
	check(44, 0, false)
	check(42+2*replySlots, 0, false)
	must(t, db.Update(func(tx *Tx) error { return tx.PutReply(42+2*replySlots, 9) }))
	check(42, 0, false)
}

func TestQueueOrder(t *testing.T) {
	db := openAt(t, t.TempDir(), "b")
	defer db.Close()
	root := newFolder(t, db, "f")
	a, b := file(), file()
	must(t, db.Update(func(tx *Tx) error { return tx.Create(root, "a", a) }))
	must(t, db.Update(func(tx *Tx) error { return tx.Create(root, "b", b) }))
	seqs := func() map[string]uint64 {
		out := map[string]uint64{}
		must(t, db.View(func(tx *Tx) error {
			return tx.Items(root, 0, func(it Item) bool { out[it.Name] = it.Seq; return true })
		}))
		return out
	}
	was := seqs()
	must(t, db.Update(func(tx *Tx) error {
		n, err := tx.Inode(a.Ino)
		if err != nil {
			return err
		}
		return tx.MarkDirty(n)
	}))
	if now := seqs(); now["a"] != was["a"] {
		t.Errorf("a new key lost its place: %v -> %v", was, now)
	}
	must(t, db.Update(func(tx *Tx) error { // a is published
		id, err := tx.MakePrefix("f/")
		if err != nil {
			return err
		}
		n, err := tx.Inode(a.Ino)
		if err != nil {
			return err
		}
		if err := tx.BindRow(root, root, "a", RowKey{id, "a"}, &Row{Ino: a.Ino, Gen: n.Gen, AttrGen: n.AttrGen}); err != nil {
			return err
		}
		it, _, err := tx.Item(root, seqs()["a"])
		if err != nil {
			return err
		}
		_, err = tx.Done(it)
		return err
	}))
	for range 2 {
		must(t, db.Update(func(tx *Tx) error {
			n, err := tx.Inode(a.Ino)
			if err != nil {
				return err
			}
			return tx.MarkDirty(n)
		}))
		must(t, db.Update(func(tx *Tx) error { return tx.Create(root, fmt.Sprint("n", tx.Now()), file()) }))
	}
	if now := seqs(); now["a"] < now["b"] {
		t.Errorf("a replacement stands before an older new key: %v", now)
	}
}

func TestSecondOpenerIsRefused(t *testing.T) {
	dir := t.TempDir()
	db := openAt(t, dir, "b")
	defer db.Close()
	if _, err := Open(Options{Dir: dir, Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, vfolder.KindBusy) {
		t.Fatalf("second opener: %v", err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	dir := t.TempDir()
	db := openAt(t, dir, "b")
	must(t, db.Update(func(tx *Tx) error {
		v, err := tx.Value("schema")
		v[7] = schemaVersion + 1
		if err != nil {
			return err
		}
		return tx.PutValue("schema", v)
	}))
	must(t, db.Close())
	if _, err := Open(Options{Dir: dir, Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, vfolder.KindUnsupported) {
		t.Fatalf("newer schema: %v", err)
	}
}

func TestDropTree(t *testing.T) {
	db := openAt(t, t.TempDir(), "b")
	defer db.Close()
	keep, drop := newFolder(t, db, "keep"), newFolder(t, db, "drop")
	sub := &Inode{Mode: unix.S_IFDIR | 0o755}
	must(t, db.Update(func(tx *Tx) error { return tx.Create(drop, "sub", sub) }))
	f := file()
	must(t, db.Update(func(tx *Tx) error { return tx.Create(sub.Ino, "f", f) }))
	must(t, db.Update(func(tx *Tx) error { _, err := tx.Link(f.Ino, drop, "g", "L"); return err }))
	must(t, db.Update(func(tx *Tx) error { return tx.PutXattr(f.Ino, "user.x", []byte("1")) }))
	must(t, db.Update(func(tx *Tx) error {
		id, err := tx.MakePrefix("drop/")
		if err != nil {
			return err
		}
		return tx.BindRow(drop, drop, "g", RowKey{id, "g"}, &Row{Ino: f.Ino})
	}))
	freed := map[vfolder.Ino]bool{}
	must(t, db.DropTree(drop, func(n *Inode) { freed[n.Ino] = true }))
	if !freed[f.Ino] || !freed[sub.Ino] || len(freed) != 2 {
		t.Errorf("freed %v", freed)
	}
	left := 0
	must(t, db.View(func(tx *Tx) error {
		for _, kind := range []byte{kEntry, kInode, kName, kXattr, kPrefixID, kPrefix, kRow, kGroup, kItem, kFolder} {
			if err := tx.scan([]byte{kind}, nil, false, func(k, _ []byte) (bool, error) { left++; return true, nil }); err != nil {
				return err
			}
		}
		_, err := tx.Folder(keep)
		return err
	}))
	if left != 5 { // of "keep" and the root: two inodes, one entry, one item, one folder
		t.Errorf("%d records are left", left)
	}
}

// writeUntilKilled commits numbered values and says so on standard output.
func writeUntilKilled(dir string) {
	db, err := Open(Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	val := make([]byte, 4000)
	for i := 0; ; i++ {
		if err := db.Update(func(tx *Tx) error { return tx.PutValue(fmt.Sprintf("k%06d", i), val) }); err != nil {
			fmt.Println("error", err)
			return
		}
		if i%1000 == 999 {
			if err := db.Sync(); err != nil {
				fmt.Println("error", err)
				return
			}
		}
		fmt.Println(i)
	}
}

// TestKilledWriterLosesNoCommit kills a writer, across memtable rotations, and
// finds every transaction that it had committed.
func TestKilledWriterLosesNoCommit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "META_KILL_DIR="+dir)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	last := -1
	var line string
	for last < 12000 {
		if _, err := fmt.Fscanln(out, &line); err != nil {
			t.Fatal(err)
		}
		if last, err = strconv.Atoi(line); err != nil {
			t.Fatal("writer said ", line)
		}
	}
	must(t, cmd.Process.Kill())
	for { // what it had said before the signal reached it
		if _, err := fmt.Fscanln(out, &line); err != nil {
			break
		}
		last, _ = strconv.Atoi(line)
	}
	cmd.Wait()
	db := openAt(t, dir, "b")
	defer db.Close()
	must(t, db.View(func(tx *Tx) error {
		for i := 0; i <= last; i++ {
			if v, err := tx.Value(fmt.Sprintf("k%06d", i)); err != nil || len(v) != 4000 {
				t.Fatalf("commit %d of %d is lost: %d bytes, %v", i, last, len(v), err)
			}
		}
		return nil
	}))
}

func FuzzDecode(f *testing.F) {
	f.Add((&Inode{Mode: 0o100644, Size: 5, Name: "n", Known: [][2]int64{{0, 4096}}}).encode())
	f.Add((&Row{Name: "n", ETag: "e"}).encode())
	f.Add(Entry{Ino: 5, Row: RowKey{3, "x"}}.encode())
	f.Add((&Item{Kind: ItemPut, Name: "n"}).encode())
	f.Add((&Folder{}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, ok := decodeInode(1, b); ok {
			if m, ok := decodeInode(1, n.encode()); !ok || string(m.encode()) != string(n.encode()) {
				t.Fatalf("inode does not survive: %+v %+v", n, m)
			}
		}
		if o, ok := decodeRow(b); ok {
			if p, ok := decodeRow(o.encode()); !ok || *p != *o {
				t.Fatalf("row does not survive: %+v %+v", o, p)
			}
		}
		decodeEntry(b)
		decodeItem(1, 1, b)
		decodeFolder(1, b)
	})
}

func BenchmarkCreate(b *testing.B) {
	db := openAt(b, b.TempDir(), "b")
	defer db.Close()
	root := newFolder(b, db, "f")
	i := 0
	for b.Loop() {
		i++
		must(b, db.Update(func(tx *Tx) error { return tx.Create(root, fmt.Sprint("file", i), file()) }))
	}
}

func BenchmarkLookup(b *testing.B) {
	db := openAt(b, b.TempDir(), "b")
	defer db.Close()
	root := newFolder(b, db, "f")
	for i := range 1000 {
		must(b, db.Update(func(tx *Tx) error { return tx.Create(root, fmt.Sprint("file", i), file()) }))
	}
	for b.Loop() {
		must(b, db.View(func(tx *Tx) error {
			e, err := tx.Entry(root, "file77")
			if err != nil {
				return err
			}
			_, err = tx.Inode(e.Ino)
			return err
		}))
	}
}
