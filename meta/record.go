package meta

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"

	"github.com/vfolder/vfolder"
	"golang.org/x/sys/unix"
)

// Inode is one file, directory or other node: what it is now, and where its
// bytes are. Ids are as stored (session view).
type Inode struct {
	Ino    vfolder.Ino
	Folder vfolder.Ino // root directory of its folder; 0 for RootIno
	Mode   uint32      // type and permissions
	UID    uint32
	GID    uint32
	Rdev   uint32
	Nlink  uint32
	Size   int64

	Atime, Mtime, Ctime, Btime int64 // Unix nanoseconds

	// Parent and Name are the first name; Parent is 0 for an orphan. Further
	// names of a hard link are found by Tx.Names.
	Parent vfolder.Ino
	Name   string
	Target string // of a symlink

	// Gen counts dirty periods of the content, AttrGen changes of attributes;
	// a row that carries both is up to date.
	Gen     uint64
	AttrGen uint64
	Link    string // hard link group, "" while there was only one name

	Data    DataState
	DataGen uint32 // generation of the local data file (content.ID)
	// Known are the locally known ranges of a partial file as last persisted,
	// pairs of offset and length; more may be in the data file (content.Recover).
	Known [][2]int64
	// Base is the row whose object holds the bytes that are not local.
	Base RowKey
	// Dirty says that a dirty period is open or unpublished: Size and Mtime may
	// be older than the data file after a kill.
	Dirty bool
	// Boot is the boot (DB.Boot) in which local bytes last changed without a
	// flush; 0 when every local byte was flushed (durable).
	Boot uint64

	// Unhydrated entries were only listed: mode, times, links are not known yet.
	Unhydrated bool
	// Listed directories have had their prefix listed (always, when made here).
	Listed bool
	// Prefix caches, for a directory, the id of the prefix that its children
	// were last published under; LongID names its prefix when its own key would
	// be too long.
	Prefix uint64
	LongID string
}

// DataState says which bytes of a regular file are local.
type DataState uint8

// The states of local data.
const (
	DataRemote   DataState = iota // none: all of Size bytes are Base's
	DataPartial                   // some
	DataComplete                  // all
)

// IsDir reports whether the inode is a directory.
func (n *Inode) IsDir() bool { return n.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsRegular reports whether the inode is a regular file.
func (n *Inode) IsRegular() bool { return n.Mode&unix.S_IFMT == unix.S_IFREG }

// RowKey is where an object lies: the key is the prefix of Dir, then Name. The
// name of a directory's object ends in "/". The zero RowKey is nowhere.
type RowKey struct {
	Dir  uint64
	Name string
}

// IsZero reports whether k is nowhere.
func (k RowKey) IsZero() bool { return k.Dir == 0 }

// Entry is one name in a directory, and where its own object lies now.
type Entry struct {
	Ino  vfolder.Ino
	Type uint32 // S_IFMT bits, 0 while unhydrated
	Row  RowKey // zero: not in the bucket
	Item uint64 // seq of its pending ItemPut, 0 for none
}

// Row is an object in the bucket as last committed or listed. A row without an
// owner (Parent 0) is to be deleted or overwritten.
type Row struct {
	Parent vfolder.Ino // owning entry
	Name   string
	Ino    vfolder.Ino // whose bytes it holds

	ETag         string
	Size         int64
	LastModified int64 // Unix nanoseconds, as the store listed it
	VersionID    string
	VID          string // vfolder-id carried by the object, "" for a foreign one
	Gen, AttrGen uint64 // of Ino, that the object carries
	Item         uint64 // seq of its pending ItemDelete, 0 for none
	// Pending is the vfolder-id of a write whose outcome is not known: noted
	// before the request, cleared with its result.
	Pending string
	// Absent rows only carry Pending: no object is known at the key.
	Absent bool
}

// ItemKind says what a work item asks for.
type ItemKind uint8

// The kinds of work.
const (
	// ItemPut: make the bucket carry entry (Parent, Name) at its desired key.
	ItemPut ItemKind = iota + 1
	// ItemDelete: delete the object of Row if it still has no owner.
	ItemDelete
	// ItemTree: directory Ino moved; queue every entry below that is out of place.
	ItemTree
)

// Item is one piece of queued work. Seq orders a folder's items.
type Item struct {
	Folder vfolder.Ino
	Seq    uint64
	Kind   ItemKind
	Parent vfolder.Ino
	Name   string
	Ino    vfolder.Ino
	Row    RowKey
	Since  int64 // Unix nanoseconds of the first change it stands for
}

// Folder is what the index keeps of a folder, by its root directory.
type Folder struct {
	Root   vfolder.Ino
	Record vfolder.Folder
	// Epoch is the lease epoch last held by this host, 0 for none; Held says
	// that it was not released.
	Epoch uint64
	Held  bool
	// LeaseETag is of the lease object as last written by this host.
	LeaseETag string
	// Segments counts attribute segments written, and SegmentsRead says that
	// those of the bucket were taken into hints.
	Segments     uint64
	SegmentsRead bool
}

// ErrCorrupt is the cause of every record that does not decode.
var ErrCorrupt = errors.New("record does not decode")

func corrupt(what string, key []byte) error {
	return vfolder.Errorf(vfolder.KindCorrupt, "index", what, "%w (key %x); rebuild the index from the bucket by moving it away", ErrCorrupt, key)
}

const recordVersion = 1

type writer struct{ b []byte }

func (w *writer) u(n uint64) { w.b = binary.AppendUvarint(w.b, n) }
func (w *writer) i(n int64)  { w.b = binary.AppendVarint(w.b, n) }
func (w *writer) s(s string) { w.u(uint64(len(s))); w.b = append(w.b, s...) }
func (w *writer) t(t bool) {
	if t {
		w.b = append(w.b, 1)
	} else {
		w.b = append(w.b, 0)
	}
}
func (w *writer) rowKey(k RowKey) { w.u(k.Dir); w.s(k.Name) }

type reader struct {
	b   []byte
	bad bool
}

func (r *reader) u() uint64 {
	n, k := binary.Uvarint(r.b)
	if k <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[k:]
	return n
}

func (r *reader) i() int64 {
	n, k := binary.Varint(r.b)
	if k <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[k:]
	return n
}

func (r *reader) s() string {
	n := r.u()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

func (r *reader) t() bool {
	if len(r.b) == 0 {
		r.bad = true
		return false
	}
	t := r.b[0] == 1
	r.bad = r.bad || r.b[0] > 1
	r.b = r.b[1:]
	return t
}

func (r *reader) rowKey() RowKey { return RowKey{Dir: r.u(), Name: r.s()} }

// open checks the version byte of a record.
func open(b []byte) *reader {
	if len(b) == 0 || b[0] != recordVersion {
		return &reader{bad: true}
	}
	return &reader{b: b[1:]}
}

func newWriter() *writer { return &writer{b: append(make([]byte, 0, 160), recordVersion)} }

func (n *Inode) encode() []byte {
	w := newWriter()
	w.u(uint64(n.Folder))
	w.u(uint64(n.Mode))
	w.u(uint64(n.UID))
	w.u(uint64(n.GID))
	w.u(uint64(n.Rdev))
	w.u(uint64(n.Nlink))
	w.i(n.Size)
	w.i(n.Atime)
	w.i(n.Mtime)
	w.i(n.Ctime)
	w.i(n.Btime)
	w.u(uint64(n.Parent))
	w.s(n.Name)
	w.s(n.Target)
	w.u(n.Gen)
	w.u(n.AttrGen)
	w.s(n.Link)
	w.u(uint64(n.Data))
	w.u(uint64(n.DataGen))
	w.u(uint64(len(n.Known)))
	for _, r := range n.Known {
		w.i(r[0])
		w.i(r[1])
	}
	w.rowKey(n.Base)
	w.t(n.Dirty)
	w.u(n.Boot)
	w.t(n.Unhydrated)
	w.t(n.Listed)
	w.u(n.Prefix)
	w.s(n.LongID)
	return w.b
}

func decodeInode(ino vfolder.Ino, b []byte) (*Inode, bool) {
	r := open(b)
	n := &Inode{
		Ino: ino, Folder: vfolder.Ino(r.u()), Mode: uint32(r.u()), UID: uint32(r.u()), GID: uint32(r.u()),
		Rdev: uint32(r.u()), Nlink: uint32(r.u()), Size: r.i(),
		Atime: r.i(), Mtime: r.i(), Ctime: r.i(), Btime: r.i(),
		Parent: vfolder.Ino(r.u()), Name: r.s(), Target: r.s(), Gen: r.u(), AttrGen: r.u(), Link: r.s(),
		Data: DataState(r.u()), DataGen: uint32(r.u()),
	}
	for c := r.u(); c > 0 && !r.bad; c-- {
		n.Known = append(n.Known, [2]int64{r.i(), r.i()})
	}
	n.Base, n.Dirty, n.Boot, n.Unhydrated, n.Listed, n.Prefix, n.LongID = r.rowKey(), r.t(), r.u(), r.t(), r.t(), r.u(), r.s()
	return n, !r.bad && n.Data <= DataComplete && n.Size >= 0
}

// Clone returns a copy that shares nothing with n.
func (n *Inode) Clone() *Inode {
	c := *n
	c.Known = slices.Clone(n.Known)
	return &c
}

func (e Entry) encode() []byte {
	w := newWriter()
	w.u(uint64(e.Ino))
	w.u(uint64(e.Type >> 12))
	w.rowKey(e.Row)
	w.u(e.Item)
	return w.b
}

func decodeEntry(b []byte) (Entry, bool) {
	r := open(b)
	e := Entry{Ino: vfolder.Ino(r.u()), Type: uint32(r.u()) << 12, Row: r.rowKey(), Item: r.u()}
	return e, !r.bad && e.Ino != 0
}

func (o *Row) encode() []byte {
	w := newWriter()
	w.u(uint64(o.Parent))
	w.s(o.Name)
	w.u(uint64(o.Ino))
	w.s(o.ETag)
	w.i(o.Size)
	w.i(o.LastModified)
	w.s(o.VersionID)
	w.s(o.VID)
	w.u(o.Gen)
	w.u(o.AttrGen)
	w.u(o.Item)
	w.s(o.Pending)
	w.t(o.Absent)
	return w.b
}

func decodeRow(b []byte) (*Row, bool) {
	r := open(b)
	o := &Row{
		Parent: vfolder.Ino(r.u()), Name: r.s(), Ino: vfolder.Ino(r.u()), ETag: r.s(), Size: r.i(), LastModified: r.i(),
		VersionID: r.s(), VID: r.s(), Gen: r.u(), AttrGen: r.u(), Item: r.u(), Pending: r.s(), Absent: r.t(),
	}
	return o, !r.bad
}

func (it *Item) encode() []byte {
	w := newWriter()
	w.u(uint64(it.Kind))
	w.u(uint64(it.Parent))
	w.s(it.Name)
	w.u(uint64(it.Ino))
	w.rowKey(it.Row)
	w.i(it.Since)
	return w.b
}

func decodeItem(folder vfolder.Ino, seq uint64, b []byte) (Item, bool) {
	r := open(b)
	it := Item{
		Folder: folder, Seq: seq, Kind: ItemKind(r.u()), Parent: vfolder.Ino(r.u()), Name: r.s(),
		Ino: vfolder.Ino(r.u()), Row: r.rowKey(), Since: r.i(),
	}
	return it, !r.bad && it.Kind >= ItemPut && it.Kind <= ItemTree
}

func (f *Folder) encode() []byte {
	w := newWriter()
	w.s(f.Record.ID)
	w.s(f.Record.Name)
	w.s(f.Record.Prefix)
	w.s(string(f.Record.State))
	w.i(f.Record.Created)
	w.i(f.Record.Changed)
	w.u(f.Epoch)
	w.t(f.Held)
	w.s(f.LeaseETag)
	w.u(f.Segments)
	w.t(f.SegmentsRead)
	return w.b
}

func decodeFolder(root vfolder.Ino, b []byte) (*Folder, bool) {
	r := open(b)
	f := &Folder{Root: root}
	f.Record = vfolder.Folder{ID: r.s(), Name: r.s(), Prefix: r.s(), State: vfolder.FolderState(r.s()), Created: r.i(), Changed: r.i()}
	f.Epoch, f.Held, f.LeaseETag, f.Segments, f.SegmentsRead = r.u(), r.t(), r.s(), r.u(), r.t()
	return f, !r.bad
}

// CloneXattrs copies a set of extended attributes.
func CloneXattrs(x map[string][]byte) map[string][]byte {
	c := maps.Clone(x)
	for k, v := range c {
		c[k] = slices.Clone(v)
	}
	return c
}
