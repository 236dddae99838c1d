// Package control is the daemon's API: HTTP and JSON on a Unix socket that only
// the daemon's user (and root) can use, and its Go client. docs/api.md is the
// reference; testdata/ holds the shapes.
//
// The server knows folders, files and the daemon through interfaces that this
// package defines and package daemon implements.
package control

import (
	"unicode/utf8"

	"github.com/vfolder/vfolder"
)

// APIVersion is the version of the paths, types and meanings of this API. It
// rises when an existing client would misunderstand an answer; additions do not
// change it.
const APIVersion = 1

// prefix is where everything of this version lies.
const prefix = "/api/v1"

// Version is what a client asks first.
type Version struct {
	API     int    `json:"api"`
	Program string `json:"program"` // version of vfolderd
	Format  int    `json:"format"`  // of the bucket
}

// Folder is a folder as the daemon sees it now.
type Folder struct {
	vfolder.Folder
	// Path is its directory in the mount, "" while the mount is not live.
	Path string `json:"path,omitempty"`
	// ReadOnly says that this host may not write, and Reason why.
	ReadOnly bool   `json:"read_only,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

// Pending is what is not in the bucket yet.
type Pending struct {
	Files int   `json:"files"` // objects to write or to remove
	Bytes int64 `json:"bytes"`
}

// FileProblem is a file that cannot be written to the bucket at the moment.
type FileProblem struct {
	Path  string `json:"path"` // in the folder
	Kind  string `json:"kind"` // name of a vfolder.Kind
	Error string `json:"error"`
	Tries int    `json:"tries"`
	Next  int64  `json:"next"` // when it is tried again, Unix nanoseconds
}

// Conflict is a file that was kept twice because both sides changed it.
type Conflict struct {
	Path string `json:"path"` // has what was written here
	Copy string `json:"copy"` // has what another program wrote to the bucket
	At   int64  `json:"at"`   // Unix nanoseconds
}

// FolderStatus says how far the bucket is behind the folder.
type FolderStatus struct {
	Folder
	Pending   Pending       `json:"pending"`
	Problems  []FileProblem `json:"problems,omitempty"`
	Conflicts []Conflict    `json:"conflicts,omitempty"`
	// Holder names this host while it is the one that may write the folder.
	Holder string `json:"holder,omitempty"`
	// Unreachable is why the store is not being asked now.
	Unreachable string `json:"unreachable,omitempty"`
}

// Prepared is a folder that is ready to be bound into a session.
type Prepared struct {
	Path     string `json:"path"`
	ReadOnly bool   `json:"read_only"`
	Reason   string `json:"reason,omitempty"`
}

// The types of entries.
const (
	TypeFile    = "file"
	TypeDir     = "dir"
	TypeSymlink = "symlink"
	TypeOther   = "other" // fifo, socket or device
)

// Entry is one name in a folder.
type Entry struct {
	Name string `json:"name"`
	// NameRaw holds the bytes of a name that is not UTF-8; Name then has
	// replacement characters. TargetRaw likewise.
	NameRaw   []byte      `json:"name_raw,omitempty"`
	Type      string      `json:"type"`
	Mode      uint32      `json:"mode"` // permissions, with setuid, setgid and sticky bit
	UID       uint32      `json:"uid"`  // as sessions see it
	GID       uint32      `json:"gid"`
	Size      int64       `json:"size"`
	Mtime     int64       `json:"mtime"` // Unix nanoseconds
	Target    string      `json:"target,omitempty"`
	TargetRaw []byte      `json:"target_raw,omitempty"`
	Ino       vfolder.Ino `json:"ino"`
}

// SetName stores a name whatever its bytes.
func (e *Entry) SetName(name string) { e.Name, e.NameRaw = carry(name) }

// Bytes is the name as it is in the folder.
func (e *Entry) Bytes() string { return carried(e.Name, e.NameRaw) }

// SetTarget stores what a symbolic link points to, whatever its bytes.
func (e *Entry) SetTarget(target string) { e.Target, e.TargetRaw = carry(target) }

// TargetBytes is what a symbolic link points to.
func (e *Entry) TargetBytes() string { return carried(e.Target, e.TargetRaw) }

// carry splits a string into what JSON can carry and, where that is not all,
// its bytes.
func carry(s string) (string, []byte) {
	if utf8.ValidString(s) {
		return s, nil
	}
	return string([]rune(s)), []byte(s)
}

func carried(s string, raw []byte) string {
	if raw != nil {
		return string(raw)
	}
	return s
}

// WriteOptions of a file that is written whole.
type WriteOptions struct {
	Mode      uint32 // permissions; 0 is 0644, or those of the file that is replaced
	Mtime     int64  // Unix nanoseconds; 0 is now
	Exclusive bool   // KindExists when there is something of that name
}

// DaemonStatus describes the daemon.
type DaemonStatus struct {
	PID        int         `json:"pid"`    // of the supervisor
	Worker     int         `json:"worker"` // pid
	Program    string      `json:"program"`
	Started    int64       `json:"started"` // of the worker, Unix nanoseconds
	Mountpoint string      `json:"mountpoint"`
	Mounted    bool        `json:"mounted"`
	Store      StoreStatus `json:"store"`
	StateDir   string      `json:"state_dir"`
	LogDir     string      `json:"log_dir,omitempty"` // "" under systemd: see the journal
	Pending    Pending     `json:"pending"`
	CacheBytes int64       `json:"cache_bytes"` // of local content
	CacheFiles int64       `json:"cache_files"`
	// Warnings are facts about the host that break sessions, with their fix.
	Warnings []string `json:"warnings,omitempty"`
}

// StoreStatus describes the object store behind the daemon.
type StoreStatus struct {
	Endpoint  string `json:"endpoint"`
	Bucket    string `json:"bucket"`
	Embedded  bool   `json:"embedded"`
	Reachable bool   `json:"reachable"`
	Error     string `json:"error,omitempty"`
}

// StopOptions of a stop.
type StopOptions struct {
	// DrainMillis bounds, in milliseconds, the wait for what is not in the
	// bucket; 0 does not wait. What is left is kept on disk for the next start.
	DrainMillis int64 `json:"drain_ms"`
}

// StopResult says what a stop left behind.
type StopResult struct {
	Left Pending `json:"left"`
}

// event is one line of a stream: progress any number of times, entries any
// number of times, then exactly one of done and error. A stream that ends
// without one of these was cut off.
type event struct {
	Progress *Pending     `json:"progress,omitempty"`
	Entry    *Entry       `json:"entry,omitempty"`
	Stopped  *StopResult  `json:"stopped,omitempty"`
	Done     bool         `json:"done,omitempty"`
	Error    *errorObject `json:"error,omitempty"`
}
