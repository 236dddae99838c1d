// Package fusetest has what tests of the FUSE server and of its supervisor
// share: a small file tree that survives the death of its process, and a
// workload that checks every call and every byte.
package fusetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
)

// Tree is an FS whose names and attributes are kept in memory and in a journal
// of JSON lines, its bytes in one file per inode. A journal line is the
// transaction: it has a request's id, so that a request sent again after the
// process died is answered and not repeated. It survives a kill, not a power
// failure. One lock; safe for concurrent use.
type Tree struct {
	dir     string
	journal *os.File

	mu    sync.Mutex
	nodes map[vfolder.Ino]*node
	done  map[uint64]vfolder.Ino // request id -> inode of the answer
	next  vfolder.Ino

	// Hook, when set, is called by Read and Write before they act.
	Hook func(req *fusefs.Request, op string)
}

type node struct {
	attr   fusefs.Attr
	link   string
	kids   map[string]dirent
	cookie uint64
	parent vfolder.Ino
	xattr  map[string][]byte
	file   *os.File
}

type dirent struct {
	ino    vfolder.Ino
	cookie uint64
}

// change is one line of the journal.
type change struct {
	Unique   uint64       `json:"u,omitempty"`
	Op       string       `json:"op"`
	Ino      vfolder.Ino  `json:"i,omitempty"`
	Parent   vfolder.Ino  `json:"p,omitempty"`
	Name     string       `json:"n,omitempty"`
	To       vfolder.Ino  `json:"p2,omitempty"`
	ToName   string       `json:"n2,omitempty"`
	Exchange bool         `json:"x,omitempty"`
	Attr     *fusefs.Attr `json:"a,omitempty"`
	Link     string       `json:"l,omitempty"`
	Value    []byte       `json:"v,omitempty"`
	At       int64        `json:"t,omitempty"`
}

// OpenTree loads the tree in dir, or begins one. The former process must be
// gone.
func OpenTree(dir string) (*Tree, error) {
	t := &Tree{dir: dir, nodes: make(map[vfolder.Ino]*node), done: make(map[uint64]vfolder.Ino), next: vfolder.RootIno + 1}
	t.nodes[vfolder.RootIno] = &node{
		attr: fusefs.Attr{Ino: vfolder.RootIno, Mode: syscall.S_IFDIR | 0o755, Nlink: 2},
		kids: make(map[string]dirent), cookie: 2, parent: vfolder.RootIno,
	}
	journal, err := os.OpenFile(filepath.Join(dir, "journal"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	t.journal = journal
	all, err := io.ReadAll(journal)
	if err != nil {
		return nil, errors.Join(err, journal.Close())
	}
	whole := bytes.LastIndexByte(all, '\n') + 1 // a line cut by the kill never happened
	for line := range bytes.Lines(all[:whole]) {
		var c change
		if err := json.Unmarshal(line, &c); err != nil {
			return nil, errors.Join(err, journal.Close())
		}
		t.apply(c)
	}
	if err := journal.Truncate(int64(whole)); err != nil {
		return nil, errors.Join(err, journal.Close())
	}
	if _, err := journal.Seek(int64(whole), io.SeekStart); err != nil {
		return nil, errors.Join(err, journal.Close())
	}
	return t, nil
}

// Close closes all files.
func (t *Tree) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	errs := []error{t.journal.Close()}
	for _, n := range t.nodes {
		if n.file != nil {
			errs = append(errs, n.file.Close())
		}
	}
	return errors.Join(errs...)
}

// Orphans implements fusefs.FS.
func (t *Tree) Orphans() []vfolder.Ino {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []vfolder.Ino
	for ino, n := range t.nodes {
		if n.attr.Nlink == 0 {
			list = append(list, ino)
		}
	}
	return list
}

// Inodes counts what is stored, for tests that look for leaks.
func (t *Tree) Inodes() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.nodes)
}

// Forget implements fusefs.FS.
func (t *Tree) Forget(ino vfolder.Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[ino]; n != nil && n.attr.Nlink == 0 {
		if n.file != nil {
			_ = n.file.Close()
		}
		_ = os.Remove(t.dataPath(ino))
		_ = t.commit(change{Op: "free", Ino: ino})
	}
}

// commit writes one change and applies it. t.mu is held.
func (t *Tree) commit(c change) error {
	c.At = time.Now().UnixNano()
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if _, err := t.journal.Write(append(line, '\n')); err != nil {
		return err
	}
	t.apply(c)
	return nil
}

// apply is what a change means, when made and when replayed.
func (t *Tree) apply(c change) {
	if c.Unique != 0 {
		t.done[c.Unique] = c.Ino
	}
	switch c.Op {
	case "make":
		n := &node{attr: *c.Attr, link: c.Link, parent: c.Parent}
		n.attr.Atime, n.attr.Mtime, n.attr.Ctime, n.attr.Btime = c.At, c.At, c.At, c.At
		n.attr.Nlink = 0
		if n.isDir() {
			n.kids, n.cookie = make(map[string]dirent), 2
		}
		t.nodes[c.Ino] = n
		t.next = max(t.next, c.Ino+1)
		if c.Name != "" {
			t.addName(c.Parent, c.Name, c.Ino, c.At)
		}
	case "link":
		t.addName(c.Parent, c.Name, c.Ino, c.At)
	case "remove":
		t.dropName(c.Parent, c.Name, c.At)
	case "rename":
		moved := t.nodes[c.Parent].kids[c.Name].ino
		if c.Exchange {
			other := t.nodes[c.To].kids[c.ToName].ino
			t.dropName(c.Parent, c.Name, c.At)
			t.dropName(c.To, c.ToName, c.At)
			t.addName(c.Parent, c.Name, other, c.At)
			t.addName(c.To, c.ToName, moved, c.At)
			return
		}
		if _, ok := t.nodes[c.To].kids[c.ToName]; ok {
			t.dropName(c.To, c.ToName, c.At)
		}
		t.dropName(c.Parent, c.Name, c.At)
		t.addName(c.To, c.ToName, moved, c.At)
	case "attr":
		nlink := t.nodes[c.Ino].attr.Nlink
		t.nodes[c.Ino].attr = *c.Attr
		t.nodes[c.Ino].attr.Nlink = nlink
	case "xattr":
		n := t.nodes[c.Ino]
		if n.xattr == nil {
			n.xattr = make(map[string][]byte)
		}
		n.xattr[c.Name] = c.Value
		n.attr.Ctime = c.At
	case "unxattr":
		delete(t.nodes[c.Ino].xattr, c.Name)
	case "free":
		delete(t.nodes, c.Ino)
	}
}

func (n *node) isDir() bool { return n.attr.Mode&syscall.S_IFMT == syscall.S_IFDIR }

func (t *Tree) addName(parent vfolder.Ino, name string, ino vfolder.Ino, at int64) {
	p, n := t.nodes[parent], t.nodes[ino]
	p.cookie++
	p.kids[name] = dirent{ino, p.cookie}
	p.attr.Mtime, p.attr.Ctime, n.attr.Ctime = at, at, at
	n.attr.Nlink++
	if n.isDir() {
		n.attr.Nlink = 2
		n.parent = parent
		for _, e := range n.kids {
			if t.nodes[e.ino].isDir() {
				n.attr.Nlink++
			}
		}
		p.attr.Nlink++
	}
}

func (t *Tree) dropName(parent vfolder.Ino, name string, at int64) {
	p := t.nodes[parent]
	n := t.nodes[p.kids[name].ino]
	delete(p.kids, name)
	p.attr.Mtime, p.attr.Ctime, n.attr.Ctime = at, at, at
	n.attr.Nlink--
	if n.isDir() {
		n.attr.Nlink = 0
		p.attr.Nlink--
	}
}

func (t *Tree) dataPath(ino vfolder.Ino) string {
	return filepath.Join(t.dir, strconv.FormatUint(uint64(ino), 10))
}

// find returns an inode; t.mu is held.
func (t *Tree) find(ino vfolder.Ino) (*node, error) {
	if n := t.nodes[ino]; n != nil {
		return n, nil
	}
	return nil, vfolder.KindStale
}

func (t *Tree) directory(ino vfolder.Ino) (*node, error) {
	n, err := t.find(ino)
	if err == nil && !n.isDir() {
		err = vfolder.KindNotDir
	}
	return n, err
}

// data opens the file with an inode's bytes; t.mu is held.
func (t *Tree) data(ino vfolder.Ino) (*os.File, error) {
	n, err := t.find(ino)
	if err != nil {
		return nil, err
	}
	if n.attr.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil, vfolder.KindInvalid
	}
	if n.file == nil {
		n.file, err = os.OpenFile(t.dataPath(ino), os.O_RDWR|os.O_CREATE, 0o600)
	}
	return n.file, err
}

// stat is an inode's attributes with what its data file knows better.
func (t *Tree) stat(ino vfolder.Ino) (fusefs.Attr, error) {
	n, err := t.find(ino)
	if err != nil {
		return fusefs.Attr{}, err
	}
	a := n.attr
	switch a.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		f, err := t.data(ino)
		if err != nil {
			return a, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return a, err
		}
		a.Size, a.Blocks = st.Size, st.Blocks
		a.Mtime = max(a.Mtime, st.Mtim.Nano())
		a.Ctime = max(a.Ctime, st.Mtim.Nano())
		if n.attr.Rdev == explicitMtime { // set by utimes since the last write
			a.Mtime = n.attr.Mtime
		}
		a.Rdev = 0
	case syscall.S_IFLNK:
		a.Size = int64(len(n.link))
	case syscall.S_IFDIR:
		a.Size = vfolder.BlockBytes
	}
	return a, nil
}

// explicitMtime in a regular file's Rdev says that its time was set by hand.
const explicitMtime = 1

func sortedNames(kids map[string]dirent) []string {
	list := make([]string, 0, len(kids))
	for name := range kids {
		list = append(list, name)
	}
	sort.Slice(list, func(i, j int) bool { return kids[list[i]].cookie < kids[list[j]].cookie })
	return list
}
