// Package content keeps the local bytes of inodes: one sparse file per inode
// and data generation, which of its blocks are known, and frozen views from
// which uploads read one point in time while writers go on.
//
// It knows nothing of names, the index or the object store.
package content

import "github.com/vfolder/vfolder"

// ID names one local data file. Gen changes whenever an inode's bytes are
// replaced as a whole (a foreign version adopted, an eviction), so that the
// bytes of two versions never mix in one file.
type ID struct {
	Ino vfolder.Ino
	Gen uint32
}

// Range is [Off, Off+Len) in bytes.
type Range struct{ Off, Len int64 }
