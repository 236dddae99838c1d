// Package content keeps the local bytes of inodes: one sparse file per inode
// and data generation, which of its blocks are known, and frozen views from
// which uploads read one point in time while writers go on.
//
// It knows nothing of names, the index or the object store.
//
// # Known and unknown
//
// A complete file knows every byte; its holes are zeros. A partial file stands
// for bytes that an object still holds: it knows blocks of
// [vfolder.BlockBytes], the rest is remote. Unknown blocks never hold data in
// the data file, so that after a crash a block with data is a known one. A hole
// may be either; what Known returns tells them apart and must be persisted by
// the caller before it relies on a hole being known (punch, truncate, and
// before the last handle of a partial file is closed).
//
// Remote bytes end at the smallest size the file ever had: truncating a file
// and growing it again does not bring old bytes back. That limit is kept in an
// extended attribute of the data file where the file system has them, and shows
// as a range of Known that starts inside a block.
//
// # Concurrency
//
// Everything is safe for concurrent use. One RWMutex per file orders writers
// against readers; a call sees another call's effect wholly or not at all.
// Lock order: File.syncMu or File.mu, File.openMu, fdCache.mu, shard.mu.
// Store.mu is taken last and alone.
package content

import (
	"strconv"

	"github.com/vfolder/vfolder"
)

// ID names one local data file. Gen changes whenever an inode's bytes are
// replaced as a whole (a foreign version adopted, an eviction), so that the
// bytes of two versions never mix in one file.
type ID struct {
	Ino vfolder.Ino
	Gen uint32
}

// String is the name of the data file: inode in hex, a dot, the generation.
func (id ID) String() string {
	var b [32]byte
	s := strconv.AppendUint(b[:0], uint64(id.Ino), 16)
	s = append(s, '.')
	return string(strconv.AppendUint(s, uint64(id.Gen), 10))
}

// Range is [Off, Off+Len) in bytes.
type Range struct{ Off, Len int64 }

// End is the first byte after the range.
func (r Range) End() int64 { return r.Off + r.Len }

// appendRange adds [off,end) to a sorted list, joining it with the last one.
func appendRange(list []Range, off, end int64) []Range {
	if off >= end {
		return list
	}
	if n := len(list); n > 0 && list[n-1].End() >= off {
		list[n-1].Len = max(list[n-1].End(), end) - list[n-1].Off
		return list
	}
	return append(list, Range{Off: off, Len: end - off})
}
