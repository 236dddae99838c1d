// Package vfolder holds the vocabulary that every other package shares: inode
// numbers, folder records, limits and the one error type with its table of
// errno, HTTP status and exit code.
//
// It imports nothing of the project, so that every package may import it.
package vfolder

import (
	"fmt"
	"regexp"
	"strings"
)

// Ino is the persistent number of an inode. It is the FUSE node id too, is
// never used twice within one index, and 1 is the root of a mount (the
// directory whose entries are the folders).
type Ino uint64

// RootIno is the root of a mount: its entries are the folders.
const RootIno Ino = 1

// Limits, in bytes unless the name says otherwise.
const (
	MaxNameBytes       = 255            // one path component (Linux NAME_MAX)
	MaxPathBytes       = 4096           // a whole path (Linux PATH_MAX)
	MaxKeyBytes        = 1024           // an object key (S3)
	MaxFolderName      = 64             // a folder's name, in characters, all of them ASCII
	MaxXattrNameBytes  = 255            // Linux XATTR_NAME_MAX
	MaxXattrValueBytes = 64 << 10       // Linux XATTR_SIZE_MAX
	MaxLinks           = 65000          // names of one inode, as ext4
	MaxFileBytes       = int64(5) << 40 // the largest object of S3: 5 TiB
	BlockBytes         = 4096           // granularity in which local content is known
	ReservedPrefix     = ".vfolder/"    // top of the bucket: everything that is not a user's file
	FormatVersion      = 1              // of the bucket's layout; see docs/format.md
)

// SessionUID and SessionGID are the ids of the user inside sessions; the
// host's user is stored as this id, so that folders are portable.
const (
	SessionUID = 1000
	SessionGID = 1000
	// NobodyID is shown for stored ids that the host cannot express.
	NobodyID = 65534
)

// FolderState says where in its life a folder is.
type FolderState string

// The states of a folder. The objects of a trashed folder stay in the bucket.
const (
	FolderReady FolderState = "ready"
	FolderTrash FolderState = "trash"
)

// Folder is a folder's record in the registry (docs/format.md, "Registry").
type Folder struct {
	ID      string      `json:"id"`     // 16 hex digits, immutable
	Name    string      `json:"name"`   // unique among the owner's live folders
	Prefix  string      `json:"prefix"` // object key prefix, with the trailing slash
	State   FolderState `json:"state"`
	Created int64       `json:"created"` // Unix nanoseconds
	Changed int64       `json:"changed"` // of this record, Unix nanoseconds
}

var folderName = regexp.MustCompile(`^[A-Za-z0-9_.][A-Za-z0-9_.-]*$`)

// CheckFolderName refuses names that could not be a directory, a key prefix
// and a word on a command line at once. The error's Kind is KindInvalid.
func CheckFolderName(name string) error {
	why := ""
	switch {
	case name == "":
		why = "it is empty"
	case len(name) > MaxFolderName:
		why = fmt.Sprintf("it is longer than %d characters", MaxFolderName)
	case name == "." || name == "..":
		why = "it is a directory's name for itself or its parent"
	case name == strings.TrimSuffix(ReservedPrefix, "/"):
		why = "it is reserved for vfolder's own objects"
	case !folderName.MatchString(name):
		why = "only letters, digits, '_', '.' and '-' are allowed, and '-' not at the start"
	}
	if why == "" {
		return nil
	}
	return &Error{Op: "folder name", Kind: KindInvalid, Path: name, Err: fmt.Errorf("not a folder name: %s", why)}
}
