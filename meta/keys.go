// Package meta is the index: inodes, entries, extended attributes and local
// extents as they are now (the desired state), what lies in the bucket (the
// actual state), and the ordered queue of what is left to do. It keeps them in
// Badger and knows neither FUSE nor the object store.
//
// # Key schema
//
// All integers are big-endian, so that ranges sort by number.
//
//	f ino8                    folder record, by the inode of its root directory
//	i ino8                    inode
//	e parent8 cookie8 name    entry; cookie is a keyed hash of the name, so that
//	                          a directory has a stable order and one key an entry
//	l ino8 parent8 name       a name of an inode that has or had several names
//	a ino8 name               extended attribute
//	o ino8                    inode without a name (open or not yet freed)
//	p prefix                  id of a remote key prefix
//	P id8                     the prefix of an id
//	r id8 name                row: an object in the bucket, at prefix(id)+name
//	g folder8 linkid          inode of a hard link group
//	h folder8 key             attributes known from segments of another index
//	q folder8 seq8            queue of work items
//	w folder8 id8 name        row with a write whose outcome is not known
//	d slot2                   reply record (unique8, ino8), a ring
//	x key                     one-off values (host id, format, counters' limit)
//
// Schema version 1. A newer version found in the store is refused.
package meta

import (
	"encoding/binary"
	"math/bits"

	"github.com/vfolder/vfolder"
)

const schemaVersion = 1

const (
	kFolder   = 'f'
	kInode    = 'i'
	kEntry    = 'e'
	kName     = 'l'
	kXattr    = 'a'
	kOrphan   = 'o'
	kPrefixID = 'p'
	kPrefix   = 'P'
	kRow      = 'r'
	kGroup    = 'g'
	kHint     = 'h'
	kItem     = 'q'
	kIntent   = 'w'
	kReply    = 'd'
	kValue    = 'x'
)

func key8(kind byte, n uint64, extra int) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 9+extra), kind), n)
}

func folderKey(root vfolder.Ino) []byte { return key8(kFolder, uint64(root), 0) }
func inodeKey(ino vfolder.Ino) []byte   { return key8(kInode, uint64(ino), 0) }
func orphanKey(ino vfolder.Ino) []byte  { return key8(kOrphan, uint64(ino), 0) }
func prefixKey(id uint64) []byte        { return key8(kPrefix, id, 0) }
func prefixIDKey(prefix string) []byte  { return append([]byte{kPrefixID}, prefix...) }

// firstCookie is above the cookies of "." and ".." and leaves room below.
const firstCookie = 16

// cookieOf orders a directory: SipHash-like mixing of FNV-1a with the
// database's random seed, cut to 62 bits so that it is positive for every user
// of d_off. Entries with equal cookies stay distinct by their names.
func cookieOf(seed uint64, name string) uint64 {
	h := seed ^ 0xcbf29ce484222325
	for i := 0; i < len(name); i++ {
		h = (h ^ uint64(name[i])) * 0x100000001b3
		h ^= bits.RotateLeft64(h, 29)
	}
	h ^= h >> 32
	h *= 0x9fb21c651e98df25
	h ^= h >> 28
	h >>= 2
	if h < firstCookie {
		h += firstCookie
	}
	return h
}

func (db *DB) entryKey(parent vfolder.Ino, name string) []byte {
	k := key8(kEntry, uint64(parent), 8+len(name))
	k = binary.BigEndian.AppendUint64(k, cookieOf(db.seed, name))
	return append(k, name...)
}

func nameKey(ino, parent vfolder.Ino, name string) []byte {
	k := key8(kName, uint64(ino), 8+len(name))
	k = binary.BigEndian.AppendUint64(k, uint64(parent))
	return append(k, name...)
}

func xattrKey(ino vfolder.Ino, name string) []byte {
	return append(key8(kXattr, uint64(ino), len(name)), name...)
}

func rowKey(k RowKey) []byte {
	return append(key8(kRow, k.Dir, len(k.Name)), k.Name...)
}

func groupKey(folder vfolder.Ino, link string) []byte {
	return append(key8(kGroup, uint64(folder), len(link)), link...)
}

func hintKey(folder vfolder.Ino, key string) []byte {
	return append(key8(kHint, uint64(folder), len(key)), key...)
}

func itemKey(folder vfolder.Ino, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(key8(kItem, uint64(folder), 8), seq)
}

func intentKey(folder vfolder.Ino, k RowKey) []byte {
	b := binary.BigEndian.AppendUint64(key8(kIntent, uint64(folder), 8+len(k.Name)), k.Dir)
	return append(b, k.Name...)
}

// replySlots bounds the reply record: the kernel counts uniques by twos, so a
// record is overwritten 8,192 requests later, far above the number of requests
// that one worker can have carried out but not yet answered.
const replySlots = 4096

func replyKey(unique uint64) []byte {
	return binary.BigEndian.AppendUint16([]byte{kReply}, uint16(unique/2%replySlots))
}

func valueKey(name string) []byte { return append([]byte{kValue}, name...) }
