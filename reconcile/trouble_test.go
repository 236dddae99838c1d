package reconcile

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
	"github.com/vfolder/vfolder/objstore/faultstore"
)

func TestOutage(t *testing.T) {
	mem := newMemStore()
	s := faultstore.New(mem)
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	h.write("a", "1")
	h.sync()
	s.SetDown(true)
	h.write("a", "2")
	h.write("b", "2")
	h.rename("a", "c")
	ctx, cancel := ctxFor(300 * time.Millisecond)
	defer cancel()
	if err := h.r.Sync(ctx, h.root, nil); vfolderKind(err) != "partial" {
		t.Errorf("sync in an outage: %v", err)
	}
	if st, err := h.r.Status(h.root); err != nil || st.Pending == 0 || st.Unreachable == nil {
		t.Errorf("status in an outage: %+v, %v", st, err)
	}
	s.SetDown(false)
	h.sync()
	sameTree(t, "bucket", mem.tree("f/"), map[string]string{"b": "2", "c": "2"})
	h.check()
}

// A write whose answer was lost is recognised by its id, not called a conflict.
func TestLostAnswers(t *testing.T) {
	for _, op := range []faultstore.Op{faultstore.Put, faultstore.Copy, faultstore.Delete} {
		t.Run(string(op), func(t *testing.T) {
			mem := newMemStore()
			s := faultstore.New(mem)
			h := newHost(t, "host-a", s, fast())
			h.mkfolder("f")
			h.write("a", "1")
			h.write("b", "1")
			h.write("gone", "1")
			h.sync()
			s.SetRules(faultstore.Times(3, faultstore.FailAfter(func(c faultstore.Call) bool {
				return c.Op == op && strings.HasPrefix(c.Key, "f/")
			})))
			h.write("a", "2")
			h.write("new", "2")
			h.rename("b", "moved")
			h.remove("gone")
			h.sync()
			sameTree(t, "bucket", mem.tree("f/"), map[string]string{"a": "2", "new": "2", "moved": "1"})
			if st, err := h.r.Status(h.root); err != nil || len(st.Conflicts) > 0 {
				t.Errorf("status: %+v, %v", st, err)
			}
			h.check()
		})
	}
}

// A write whose answer was lost is settled by the next worker, even when the
// file has another name by then.
func TestLostAnswerThenCrash(t *testing.T) {
	mem := newMemStore()
	s := faultstore.New(mem)
	dir := t.TempDir()
	h := startHost(t, dir, "host-a", s, fast())
	h.mkfolder("f")
	h.sync()
	root := h.root
	var hit atomic.Int64
	s.SetRules(faultstore.FailAfter(func(c faultstore.Call) bool {
		return c.Op == faultstore.Put && c.Key == "f/a" && hit.Add(1) > 0
	}))
	h.write("a", "body")
	eventually(t, "the lost answer", func() bool { return hit.Load() > 0 && mem.tree("f/")["a"] == "body" })
	h.rename("a", "b")
	h.die()
	s.SetRules()
	h = startHost(t, dir, "host-a", s, fast())
	defer h.close()
	h.root = root
	h.sync()
	sameTree(t, "bucket", mem.tree("f/"), map[string]string{"b": "body"})
	h.check()
}

func TestAttributes(t *testing.T) {
	s := newMemStore()
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	h.write("small", "bytes")
	h.write("big", strings.Repeat("b", smallBytes+1))
	h.mkdir("d")
	h.sync()
	for _, name := range []string{"small", "big", "d"} {
		n, err := h.stat(name)
		h.must(err)
		h.must(h.db.Update(func(tx *meta.Tx) error {
			now, err := tx.Inode(n.Ino)
			if err != nil {
				return err
			}
			now.Mode = now.Mode&^0o777 | 0o700
			now.Mtime = 1595002920123456789
			if err := tx.PutXattr(n.Ino, "user.small", []byte("x")); err != nil {
				return err
			}
			if err := tx.PutXattr(n.Ino, "user.large", []byte(strings.Repeat("v", 4000))); err != nil {
				return err
			}
			return tx.Touch(now)
		}))
	}
	h.sync()
	h.close()
	h2 := newHost(t, "host-b", s, fast())
	h2.useFolder("f")
	for _, name := range []string{"small", "big", "d"} {
		n, err := h2.stat(name)
		h2.must(err)
		var x map[string][]byte
		h2.must(h2.db.View(func(tx *meta.Tx) (err error) { x, err = tx.Xattrs(n.Ino); return err }))
		if n.Mode&0o777 != 0o700 || n.Mtime != 1595002920123456789 || len(x["user.large"]) != 4000 || string(x["user.small"]) != "x" {
			t.Errorf("%s: mode %o, mtime %d, %d attributes", name, n.Mode, n.Mtime, len(x))
		}
	}
}

// A host that only reads follows what the writing one does.
func TestLiveRefresh(t *testing.T) {
	s := newMemStore()
	a := newHost(t, "host-a", s, fast())
	a.mkfolder("f")
	a.mkdir("d")
	a.write("d/1", "one")
	a.sync()
	b := newHost(t, "host-b", s, fast())
	b.useFolder("f")
	sameTree(t, "at first", b.tree(), a.tree())
	a.write("d/1", "changed")
	a.write("d/2", "two")
	a.rename("d", "e")
	a.link("e/2", "hard")
	a.must(a.tryMknod("s", &meta.Inode{Mode: 0o120777, Target: "e/1"}))
	a.sync()
	eventually(t, "the other host's view", func() bool {
		got := b.tree()
		return len(got) == 5 && got["e/1"] == "changed" && got["e/2"] == "two" && got["hard"] == "two" && got["s"] == "-> e/1"
	})
	a.remove("e/1")
	a.remove("e/2")
	a.remove("e")
	a.sync()
	eventually(t, "the removal", func() bool { return len(b.tree()) == 2 })
	b.check()
	if st, err := b.r.Status(b.root); err != nil || st.Pending != 0 || st.Lease.Held {
		t.Errorf("the reading host has %d changes, lease %v, %v", st.Pending, st.Lease.Held, err)
	}
}

// A host that comes back after its lease was taken over loses no byte.
func TestLeaseTakenOver(t *testing.T) {
	mem := newMemStore()
	sa := faultstore.New(mem)
	var skew atomic.Int64
	cfg := fast()
	cfg.LeaseTTL = 3 * time.Second
	cfg.Clock = func() time.Duration { return bootTime() + time.Duration(skew.Load()) }
	a := newHost(t, "host-a", sa, cfg)
	a.mkfolder("f")
	a.write("a", "base")
	a.sync()
	b := newHost(t, "host-b", mem, cfg)
	b.useFolder("f")
	b.tree()
	sa.SetDown(true)
	if err := b.tryWrite("b", "x"); vfolderKind(err) != "locked" {
		t.Fatalf("second writer: %v", err)
	}
	a.write("a", "from a") // goes on in the outage
	skew.Add(int64(10 * time.Second))
	eventually(t, "the lease", func() bool { return b.tryWrite("a", "from b") == nil })
	b.sync()
	sa.SetDown(false)
	eventually(t, "the loss", func() bool { return !a.r.folder(a.root).lease.held() })
	if err := a.tryWrite("a", "more"); vfolderKind(err) != "locked" {
		t.Errorf("write after the loss: %v", err)
	}
	b.close()
	a.sync()
	got := mem.tree("f/")
	copies := 0
	for k, v := range got {
		if strings.HasPrefix(k, "a.conflict-") && v == "from b" {
			copies++
		}
	}
	if got["a"] != "from a" || copies != 1 {
		t.Errorf("bucket: %v", got)
	}
}

// A change that the store refuses for good is told, and holds nothing else up.
func TestRefusedChange(t *testing.T) {
	mem := newMemStore()
	s := faultstore.New(mem, func(c faultstore.Call) (faultstore.Fault, bool) {
		return faultstore.Fault{Before: mem.fail(vfolder.KindInvalid, string(c.Op), c.Key)}, c.Op == faultstore.Put && c.Key == "f/bad"
	})
	h := newHost(t, "host-a", s, fast())
	h.mkfolder("f")
	h.write("keep", "1")
	h.sync()
	h.write("bad", "1")
	h.write("keep", "2")
	err := h.trySync()
	if vfolderKind(err) != "partial" || !strings.Contains(err.Error(), "bad") {
		t.Errorf("sync: %v", err)
	}
	eventually(t, "the other change", func() bool { return mem.tree("f/")["keep"] == "2" })
	st, err := h.r.Status(h.root)
	h.must(err)
	if len(st.Failures) != 1 || st.Failures[0].Path != "bad" {
		t.Errorf("failures: %+v", st.Failures)
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	s := newMemStore()
	_, err := s.Put(context.Background(), formatKey, strings.NewReader(`{"version":2}`), 13, objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t}
	h.db, err = meta.Open(meta.Options{Dir: t.TempDir(), BootID: "b", Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer h.db.Close()
	r := &Reconciler{cfg: Config{DB: h.db, Store: s, Log: quiet, Now: time.Now}, db: h.db, store: s, log: quiet}
	if err := r.checkFormat(context.Background()); vfolderKind(err) != "unsupported" {
		t.Errorf("%v", err)
	}
}
