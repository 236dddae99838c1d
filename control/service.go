package control

import (
	"context"
	"io"
)

// Folders is what the server needs of the registry and the reconciler. Methods
// may be called concurrently and end with ctx; errors are *vfolder.Error, and a
// folder that does not exist is KindNotFound.
type Folders interface {
	// Folders lists live folders by name.
	Folders(ctx context.Context) ([]Folder, error)
	// CreateFolder is not idempotent: KindExists.
	CreateFolder(ctx context.Context, name string) (Folder, error)
	Folder(ctx context.Context, name string) (Folder, error)
	// DeleteFolder puts a folder into the trash; its objects stay.
	DeleteFolder(ctx context.Context, name string) error
	FolderStatus(ctx context.Context, name string) (FolderStatus, error)
	// SyncFolder returns when all that was written before is in the bucket,
	// verified. It calls progress, from one goroutine at a time.
	SyncFolder(ctx context.Context, name string, progress func(Pending)) error
	// PrepareFolder makes a folder ready for a session. Idempotent.
	PrepareFolder(ctx context.Context, name string) (Prepared, error)
}

// Files is what the server needs of the folder tree. Paths are relative to the
// folder, cleaned ("" is the folder itself), of any bytes but NUL; symbolic
// links on the way are not followed, so that no path leads out of a folder.
type Files interface {
	// List calls yield for each entry of a directory, by name, until it returns
	// an error.
	List(ctx context.Context, folder, path string, yield func(Entry) error) error
	Stat(ctx context.Context, folder, path string) (Entry, error)
	// Read opens a file. Close the reader.
	Read(ctx context.Context, folder, path string) (Reader, error)
	// Write makes or replaces a file: at once when all of body has been read
	// without an error, else not at all.
	Write(ctx context.Context, folder, path string, body io.Reader, o WriteOptions) (Entry, error)
	// Mkdir makes a directory; with parents, those missing above it too, and
	// one that is there already is no error.
	Mkdir(ctx context.Context, folder, path string, mode uint32, parents bool) (Entry, error)
	// Symlink makes a symbolic link: KindExists when the name is taken.
	Symlink(ctx context.Context, folder, path, target string) (Entry, error)
}

// Reader reads a file at one point of the tree; bytes may change while it does,
// as for every reader of an open file.
type Reader interface {
	io.ReaderAt
	io.Closer
	Entry() Entry
}

// Daemon is what the server needs of the process around it.
type Daemon interface {
	Status(ctx context.Context) (DaemonStatus, error)
	// Restart asks for a planned hand-over to a new worker and returns at once.
	Restart(ctx context.Context) error
	// Stop drains for as long as o says, then asks for the end of the daemon
	// and its mount and returns before that comes. Progress as SyncFolder.
	Stop(ctx context.Context, o StopOptions, progress func(Pending)) (StopResult, error)
}

// Services are the three together.
type Services struct {
	Folders Folders
	Files   Files
	Daemon  Daemon
	// Program is the version that GET /api/v1/version shows.
	Program string
}
