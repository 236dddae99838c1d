package reconcile

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
	"github.com/vfolder/vfolder/objstore/faultstore"
)

// TestConverges plays random operations, writes of other programs, lost
// answers and crashes. After a sync the bucket's tree is the index's, and a
// host that knows nothing sees the same.
func TestConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPlay(t)
		defer p.end()
		t.Repeat(map[string]func(*rapid.T){
			"write":    p.write,
			"mkdir":    p.mkdir,
			"symlink":  p.symlink,
			"rename":   p.rename,
			"exchange": p.exchange,
			"remove":   p.remove,
			"link":     p.link,
			"foreign":  p.foreign,
			"erase":    p.erase,
			"lose":     p.lose,
			"crash":    p.crash,
			"sync":     p.sync,
			"":         func(*rapid.T) {},
		})
		p.sync(t)
		p.second(t)
	})
}

type play struct {
	t      *rapid.T
	dir    string
	mem    *memStore
	s      *faultstore.Store
	h      *host
	serial int
}

func newPlay(t *rapid.T) *play {
	dir, err := os.MkdirTemp("", "vfolder-reconcile-*")
	if err != nil {
		t.Fatalf("%v", err)
	}
	p := &play{t: t, dir: dir, mem: newMemStore()}
	p.s = faultstore.New(p.mem)
	p.start(t)
	p.h.mkfolder("f")
	return p
}

func (p *play) start(t *rapid.T) {
	cfg := fast()
	cfg.RefreshEvery = 1e12
	p.h = startHost(t, p.dir, "host-a", p.s, cfg)
}

func (p *play) end() {
	if p.h.r != nil {
		p.h.die()
	}
	os.RemoveAll(p.dir)
}

var playNames = []string{"a", "b", "c", "d"}

func (p *play) path(t *rapid.T, label string) string {
	n := rapid.IntRange(1, 3).Draw(t, label+" depth")
	var parts []string
	for range n {
		parts = append(parts, rapid.SampledFrom(playNames).Draw(t, label))
	}
	return strings.Join(parts, "/")
}

// Operations that the tree refuses are no operations.

func (p *play) write(t *rapid.T) {
	p.serial++
	_ = p.h.tryWrite(p.path(t, "path"), fmt.Sprintf("body %d", p.serial))
}

func (p *play) mkdir(t *rapid.T) {
	_ = p.h.tryMknod(p.path(t, "path"), &meta.Inode{Mode: 0o040755, UID: 1000, GID: 1000})
}

func (p *play) symlink(t *rapid.T) {
	_ = p.h.tryMknod(p.path(t, "path"), &meta.Inode{Mode: 0o120777, Target: "somewhere"})
}

func (p *play) rename(t *rapid.T) { _ = p.h.tryRename(p.path(t, "from"), p.path(t, "to")) }

func (p *play) exchange(t *rapid.T) {
	a, b := p.path(t, "a"), p.path(t, "b")
	d1, n1, err := p.h.walk(a)
	if err != nil {
		return
	}
	d2, n2, err := p.h.walk(b)
	if err != nil {
		return
	}
	_ = p.h.db.Update(func(tx *meta.Tx) error { return tx.Exchange(d1, n1, d2, n2) })
}

func (p *play) remove(t *rapid.T) { _ = p.h.tryRemove(p.path(t, "path")) }

func (p *play) link(t *rapid.T) {
	n, err := p.h.stat(p.path(t, "from"))
	if err != nil {
		return
	}
	dir, name, err := p.h.walk(p.path(t, "to"))
	if err != nil {
		return
	}
	_ = p.h.db.Update(func(tx *meta.Tx) error { _, err := tx.Link(n.Ino, dir, name, randomHex(8)); return err })
}

// foreign overwrites or makes a key as another program would, where a store
// that is a file system allows it.
func (p *play) foreign(t *rapid.T) {
	key := "f/" + p.path(t, "key")
	p.serial++
	p.mem.mu.Lock()
	err := p.mem.check("put", key, objstore.Condition{})
	p.mem.mu.Unlock()
	if err == nil {
		p.mem.foreign(key, fmt.Sprintf("foreign %d", p.serial))
	}
}

func (p *play) erase(t *rapid.T) {
	key := "f/" + p.path(t, "key")
	p.mem.remove(key)
}

// lose lets the next writes happen and loses their answers.
func (p *play) lose(t *rapid.T) {
	n := rapid.Int64Range(1, 3).Draw(t, "answers")
	rule := faultstore.FailAfter
	if rapid.Bool().Draw(t, "before") {
		rule = faultstore.FailBefore
	}
	p.s.SetRules(faultstore.Times(n, rule(faultstore.On(faultstore.Put, faultstore.Copy, faultstore.CompleteUpload, faultstore.Delete))))
}

func (p *play) crash(t *rapid.T) {
	p.h.die()
	root := p.h.root
	open := p.h.open
	p.start(t)
	p.h.root, p.h.open = root, open
}

// sync brings both sides together. Foreign changes are looked for before and
// after, since the last of them may be younger than the last listing.
func (p *play) sync(t *rapid.T) {
	p.s.SetRules()
	f := p.h.r.folder(p.h.root)
	for range 4 {
		p.h.must(p.h.trySync(), "sync")
		p.h.must(f.rescanAll(t.Context()), "rescan")
	}
	p.h.must(p.h.trySync(), "sync")
	p.h.check()
	want := map[string]string{}
	for k, v := range p.h.tree() {
		want[k] = strings.TrimPrefix(v, "-> ")
	}
	got := p.mem.tree("f/")
	for k := range want { // directories that other programs made have no object
		if strings.HasSuffix(k, "/") {
			if _, ok := got[k]; !ok {
				delete(want, k)
			}
		}
	}
	sameTree(t, "the bucket against the index", got, want)
}

func (p *play) second(t *rapid.T) {
	want := p.h.tree()
	dir, err := os.MkdirTemp("", "vfolder-reconcile-*")
	p.h.must(err)
	defer os.RemoveAll(dir)
	cfg := fast()
	cfg.RefreshEvery = 1e12
	b := startHost(t, dir, "host-b", p.mem, cfg)
	defer b.die()
	b.useFolder("f")
	sameTree(t, "a second host", b.tree(), want)
	b.check()
}
