package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/control"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/reconcile"
)

const (
	// pendingMost bounds how many changes are counted.
	pendingMost = 100_000
	// leaseWait is how long a session's start waits to learn whether this host
	// may write the folder.
	leaseWait = 5 * time.Second
)

// folders implements control.Folders.
type folders struct{ w *worker }

var _ control.Folders = folders{}

// bucketNow is the reconciler, which takes a moment after a start.
func (w *worker) bucketNow(ctx context.Context) (*reconcile.Reconciler, error) {
	if _, err := w.late.wait(ctx); err != nil {
		return nil, err
	}
	return w.bucket.Load(), nil
}

// folderRecords lists the live folders of the index by name: it needs no store.
func (w *worker) folderRecords() ([]*meta.Folder, error) {
	var all []*meta.Folder
	err := w.db.View(func(tx *meta.Tx) (err error) {
		all, err = tx.Folders()
		return err
	})
	all = slices.DeleteFunc(all, func(f *meta.Folder) bool { return f.Record.State != vfolder.FolderReady })
	slices.SortFunc(all, func(a, b *meta.Folder) int { return strings.Compare(a.Record.Name, b.Record.Name) })
	return all, err
}

// find finds a live folder by name. One that another host made just now is
// looked for in the bucket.
func (w *worker) find(ctx context.Context, name string) (*meta.Folder, error) {
	look := func() (*meta.Folder, error) {
		all, err := w.folderRecords()
		for _, f := range all {
			if f.Record.Name == name {
				return f, nil
			}
		}
		return nil, err
	}
	f, err := look()
	if f != nil || err != nil {
		return f, err
	}
	r, err := w.bucketNow(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.SyncRegistry(ctx); err != nil {
		return nil, err
	}
	if f, err := look(); f != nil || err != nil {
		return f, err
	}
	return nil, &vfolder.Error{
		Op: "folder", Kind: vfolder.KindNotFound, Path: name, Err: errors.New("there is no such folder"), Fix: "vfolder folder create " + name,
	}
}

// shown is a folder as clients see it.
func (w *worker) shown(f *meta.Folder) control.Folder {
	out := control.Folder{Folder: f.Record}
	if w.served.Load() {
		out.Path = filepath.Join(w.mount.Point, f.Record.Name)
	}
	if r := w.bucket.Load(); r != nil {
		if st, err := r.Status(f.Root); err == nil && st.Lease.Err != nil && !st.Lease.Held {
			out.ReadOnly, out.Reason = true, st.Lease.Err.Error()
		}
	}
	return out
}

func (s folders) Folders(context.Context) ([]control.Folder, error) {
	all, err := s.w.folderRecords()
	if err != nil {
		return nil, err
	}
	var out []control.Folder
	for _, f := range all {
		out = append(out, s.w.shown(f))
	}
	return out, nil
}

func (s folders) CreateFolder(ctx context.Context, name string) (control.Folder, error) {
	r, err := s.w.bucketNow(ctx)
	if err != nil {
		return control.Folder{}, err
	}
	f, adopted, err := r.CreateFolder(ctx, name)
	if err != nil {
		return control.Folder{}, err
	}
	s.w.log.Info("folder created", "folder", name, "id", f.Record.ID, "adopted", adopted)
	return s.w.shown(f), nil
}

func (s folders) Folder(ctx context.Context, name string) (control.Folder, error) {
	f, err := s.w.find(ctx, name)
	if err != nil {
		return control.Folder{}, err
	}
	return s.w.shown(f), nil
}

func (s folders) DeleteFolder(ctx context.Context, name string) error {
	r, err := s.w.bucketNow(ctx)
	if err != nil {
		return err
	}
	if _, err := s.w.find(ctx, name); err != nil {
		return err
	}
	if err := r.DeleteFolder(ctx, name); err != nil {
		return err
	}
	s.w.log.Info("folder put into the trash", "folder", name)
	return nil
}

func (s folders) FolderStatus(ctx context.Context, name string) (control.FolderStatus, error) {
	f, err := s.w.find(ctx, name)
	if err != nil {
		return control.FolderStatus{}, err
	}
	out := control.FolderStatus{Folder: s.w.shown(f)}
	r := s.w.bucket.Load()
	if r == nil {
		out.Pending, err = s.w.pending(f.Root)
		out.Unreachable = s.w.late.cause().Error()
		return out, err
	}
	st, err := r.Status(f.Root)
	if err != nil {
		return out, err
	}
	out.Pending = control.Pending{Files: st.Pending, Bytes: st.Bytes}
	for _, x := range st.Failures {
		out.Problems = append(out.Problems, control.FileProblem{
			Path: x.Path, Kind: vfolder.KindOf(x.Err).String(), Error: x.Err.Error(), Tries: x.Tries, Next: x.Next.UnixNano(),
		})
	}
	slices.SortFunc(out.Problems, func(a, b control.FileProblem) int { return strings.Compare(a.Path, b.Path) })
	for _, c := range st.Conflicts {
		out.Conflicts = append(out.Conflicts, control.Conflict{Path: c.Path, Copy: c.Copy, At: c.At.UnixNano()})
	}
	if st.Lease.Held {
		out.Holder = s.w.hostID
	}
	if st.Unreachable != nil {
		out.Unreachable = st.Unreachable.Error()
	}
	return out, nil
}

func (s folders) SyncFolder(ctx context.Context, name string, progress func(control.Pending)) error {
	f, err := s.w.find(ctx, name)
	if err != nil {
		return err
	}
	return s.w.sync(ctx, f.Root, progress)
}

func (w *worker) sync(ctx context.Context, root vfolder.Ino, progress func(control.Pending)) error {
	r, err := w.bucketNow(ctx)
	if err != nil {
		return err
	}
	return r.Sync(ctx, root, func(left int, bytes int64) {
		if progress != nil {
			progress(control.Pending{Files: left, Bytes: bytes})
		}
	})
}

// PrepareFolder finds out whether this host may write the folder by asking for
// its lease, since a session that mounts it is going to write.
func (s folders) PrepareFolder(ctx context.Context, name string) (control.Prepared, error) {
	w := s.w
	f, err := w.find(ctx, name)
	if err != nil {
		return control.Prepared{}, err
	}
	if !w.served.Load() {
		return control.Prepared{}, &vfolder.Error{
			Op: "prepare folder", Kind: vfolder.KindDaemon, Path: name, Err: errors.New("the mount is not live"), Fix: "vfolder daemon restart",
		}
	}
	out := control.Prepared{Path: filepath.Join(w.mount.Point, name)}
	limited, cancel := context.WithTimeout(ctx, leaseWait)
	defer cancel()
	err = w.late.Writable(limited, f.Root)
	switch vfolder.KindOf(err) {
	case vfolder.KindLocked, vfolder.KindReadOnly:
		out.ReadOnly, out.Reason = true, err.Error()
		return out, nil
	}
	if err != nil {
		// The store does not answer. What is local can be read, and what needs
		// the store says so when it is used.
		w.log.Warn("it is not known whether a folder may be written", "folder", name, "err", err)
	}
	return out, ctx.Err()
}

// pending counts what is not in the bucket, from the index alone.
func (w *worker) pending(root vfolder.Ino) (control.Pending, error) {
	var p control.Pending
	err := w.db.View(func(tx *meta.Tx) error {
		return tx.Items(root, 0, func(it meta.Item) bool {
			p.Files++
			if it.Kind == meta.ItemPut {
				if n, err := tx.Inode(it.Ino); err == nil && n.Mode&unix.S_IFMT == unix.S_IFREG {
					p.Bytes += n.Size
				}
			}
			return p.Files < pendingMost
		})
	})
	return p, err
}

func (w *worker) pendingAll() (control.Pending, error) {
	var sum control.Pending
	all, err := w.folderRecords()
	if err != nil {
		return sum, err
	}
	for _, f := range all {
		p, err := w.pending(f.Root)
		if err != nil {
			return sum, err
		}
		sum.Files += p.Files
		sum.Bytes += p.Bytes
	}
	return sum, nil
}
