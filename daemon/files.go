package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/control"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/vfs"
)

// Tree is what file access through the control API needs of the folder tree;
// vfs implements it. Requests without a Unique come from this process, so that
// the tree itself tells the kernel of what they change.
type Tree interface {
	// Resolve walks a path in a folder; links that lead out of the folder are
	// KindAccess.
	Resolve(ctx context.Context, folder, path string, follow bool) (fusefs.Attr, error)
	fusefs.FS
}

// known is the tree with the folders of the bucket: one that this host has not
// seen yet is looked for before it is said not to exist.
type known struct {
	*vfs.FS
	w *worker
}

// Resolve implements Tree.
func (k known) Resolve(ctx context.Context, folder, path string, follow bool) (fusefs.Attr, error) {
	if _, err := k.w.find(ctx, folder); err != nil {
		return fusefs.Attr{}, err
	}
	return k.FS.Resolve(ctx, folder, path, follow)
}

// writeChunk is how much of a file is handed to the tree at once, in bytes.
const writeChunk = fusefs.MaxWrite

// files implements control.Files.
type files struct{ tree Tree }

var _ control.Files = files{}

// request is one by the user whom sessions know: files made through the API
// belong to them.
func request(ctx context.Context) *fusefs.Request {
	return &fusefs.Request{Context: ctx, UID: vfolder.SessionUID, GID: vfolder.SessionGID}
}

func place(folder, p string) string { return folder + ":" + p }

// at gives an error the place that the user named.
func at(op, folder, p string, err error) error {
	if err == nil {
		return nil
	}
	var e *vfolder.Error
	if errors.As(err, &e) && e.Path == place(folder, p) {
		return err
	}
	return &vfolder.Error{Op: op, Kind: vfolder.KindOf(err), Path: place(folder, p), Err: reason(err)}
}

// reason drops the operation of an inner error, which the outer one repeats.
func reason(err error) error {
	var e *vfolder.Error
	if errors.As(err, &e) && e.Err != nil && e.Fix == "" {
		return e.Err
	}
	return err
}

// List reads the whole directory before it yields: names come sorted, and no
// entry is held up by a slow client.
func (f files) List(ctx context.Context, folder, p string, yield func(control.Entry) error) error {
	dir, err := f.tree.Resolve(ctx, folder, p, true)
	if err != nil {
		return err
	}
	if dir.Mode&unix.S_IFMT != unix.S_IFDIR {
		return &vfolder.Error{Op: "list", Kind: vfolder.KindNotDir, Path: place(folder, p)}
	}
	req := request(ctx)
	var all []control.Entry
	err = f.tree.ReadDirPlus(req, dir.Ino, 2, func(d fusefs.DirEntry, a fusefs.Attr) bool {
		all = append(all, entryOf(d.Name, a))
		return ctx.Err() == nil
	})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return at("list", folder, p, err)
	}
	slices.SortFunc(all, func(a, b control.Entry) int { return strings.Compare(a.Bytes(), b.Bytes()) })
	for _, e := range all {
		if e.Type == control.TypeSymlink {
			if target, err := f.tree.ReadLink(req, e.Ino); err == nil {
				e.SetTarget(target)
			}
		}
		if err := yield(e); err != nil {
			return err
		}
	}
	return nil
}

func entryOf(name string, a fusefs.Attr) control.Entry {
	e := control.Entry{
		Type: control.TypeOther, Mode: a.Mode & 0o7777, UID: a.UID, GID: a.GID, Size: a.Size, Mtime: a.Mtime, Ino: a.Ino,
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type = control.TypeFile
	case unix.S_IFDIR:
		e.Type = control.TypeDir
	case unix.S_IFLNK:
		e.Type = control.TypeSymlink
	}
	e.SetName(name)
	return e
}

func nameOf(folder, p string) string {
	if p == "" {
		return folder
	}
	return path.Base(p)
}

// Stat describes the last name of a path itself, also where it is a link.
func (f files) Stat(ctx context.Context, folder, p string) (control.Entry, error) {
	a, err := f.tree.Resolve(ctx, folder, p, false)
	if err != nil {
		return control.Entry{}, err
	}
	e := entryOf(nameOf(folder, p), a)
	if e.Type == control.TypeSymlink {
		target, err := f.tree.ReadLink(request(ctx), a.Ino)
		if err != nil {
			return e, at("stat", folder, p, err)
		}
		e.SetTarget(target)
	}
	return e, nil
}

// Read opens a file for reading.
func (f files) Read(ctx context.Context, folder, p string) (control.Reader, error) {
	a, err := f.tree.Resolve(ctx, folder, p, true)
	if err != nil {
		return nil, err
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return nil, &vfolder.Error{Op: "read", Kind: vfolder.KindIsDir, Path: place(folder, p)}
	default:
		return nil, vfolder.Errorf(vfolder.KindInvalid, "read", place(folder, p), "not a regular file")
	}
	req := request(ctx)
	if err := f.tree.Open(req, a.Ino, unix.O_RDONLY); err != nil {
		return nil, at("read", folder, p, err)
	}
	return &fileReader{tree: f.tree, ctx: ctx, entry: entryOf(nameOf(folder, p), a), where: place(folder, p)}, nil
}

// fileReader is one open file.
type fileReader struct {
	tree  Tree
	ctx   context.Context // of the call that opened it
	entry control.Entry
	where string
}

func (r *fileReader) Entry() control.Entry { return r.entry }

// ReadAt implements io.ReaderAt.
func (r *fileReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.tree.Read(request(r.ctx), r.entry.Ino, p, off)
	if err != nil {
		return n, &vfolder.Error{Op: "read", Kind: vfolder.KindOf(err), Path: r.where, Err: reason(err)}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (r *fileReader) Close() error {
	r.tree.Release(r.entry.Ino, unix.O_RDONLY)
	return nil
}

// parent resolves the directory of a path and returns the last name.
func (f files) parent(ctx context.Context, folder, p string) (fusefs.Attr, string, error) {
	dir, name := path.Split(p)
	if name == "" {
		return fusefs.Attr{}, "", &vfolder.Error{Op: "write", Kind: vfolder.KindIsDir, Path: place(folder, p)}
	}
	a, err := f.tree.Resolve(ctx, folder, strings.TrimSuffix(dir, "/"), true)
	if err == nil && a.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = &vfolder.Error{Op: "write", Kind: vfolder.KindNotDir, Path: place(folder, dir)}
	}
	return a, name, err
}

// Write fills a file without a name and names it when all is there: nobody sees
// a part of it, and nothing of it is left when the client goes away.
func (f files) Write(ctx context.Context, folder, p string, body io.Reader, o control.WriteOptions) (control.Entry, error) {
	dir, name, err := f.parent(ctx, folder, p)
	if err != nil {
		return control.Entry{}, err
	}
	req := request(ctx)
	mode := o.Mode
	old, err := f.tree.Lookup(req, dir.Ino, name)
	switch {
	case err == nil && o.Exclusive:
		return control.Entry{}, &vfolder.Error{Op: "write", Kind: vfolder.KindExists, Path: place(folder, p)}
	case err == nil && old.Mode&unix.S_IFMT == unix.S_IFDIR:
		return control.Entry{}, &vfolder.Error{Op: "write", Kind: vfolder.KindIsDir, Path: place(folder, p)}
	case err == nil && mode == 0 && old.Mode&unix.S_IFMT == unix.S_IFREG:
		mode = old.Mode & 0o7777
	case err != nil && vfolder.KindOf(err) != vfolder.KindNotFound:
		return control.Entry{}, at("write", folder, p, err)
	}
	if mode == 0 {
		mode = 0o644
	}
	file, err := f.tree.Tmpfile(req, dir.Ino, mode, 0, unix.O_WRONLY)
	if err != nil {
		return control.Entry{}, at("write", folder, p, err)
	}
	err = f.fill(req, file.Ino, body, o)
	if err == nil {
		err = f.name(req, file.Ino, dir.Ino, name, o.Exclusive)
	}
	f.tree.Release(file.Ino, unix.O_WRONLY)
	if err != nil {
		f.tree.Forget(file.Ino) // frees it: it has no name
		return control.Entry{}, at("write", folder, p, err)
	}
	return f.Stat(ctx, folder, p)
}

// fill copies body into a file and sets its time.
func (f files) fill(req *fusefs.Request, ino vfolder.Ino, body io.Reader, o control.WriteOptions) error {
	buf := make([]byte, writeChunk)
	for off := int64(0); ; {
		n, err := fullRead(body, buf)
		for part := buf[:n]; len(part) > 0; {
			done, err := f.tree.Write(req, ino, part, off, true)
			if err != nil {
				return err
			}
			if done == 0 {
				return io.ErrShortWrite
			}
			part, off = part[done:], off+int64(done)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return &vfolder.Error{Op: "receive", Kind: vfolder.KindInterrupted, Err: err}
		}
	}
	if o.Mtime == 0 {
		return nil
	}
	_, err := f.tree.SetAttr(req, ino, fusefs.SetAttr{Mtime: &o.Mtime})
	return err
}

// fullRead fills buf unless there is an error. Unlike io.ReadFull it keeps the
// end of the body apart from a body that was cut off.
func fullRead(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var some int
		some, err = r.Read(buf[n:])
		n += some
	}
	return n, err
}

// name gives the file its name, in place of what has it.
func (f files) name(req *fusefs.Request, ino, dir vfolder.Ino, name string, exclusive bool) error {
	_, err := f.tree.Link(req, ino, dir, name)
	if err == nil || exclusive || vfolder.KindOf(err) != vfolder.KindExists {
		return err
	}
	var b [8]byte
	rand.Read(b[:])
	temp := ".vfolder-new-" + hex.EncodeToString(b[:])
	if _, err := f.tree.Link(req, ino, dir, temp); err != nil {
		return err
	}
	err = f.tree.Rename(req, dir, temp, dir, name, 0)
	if err != nil {
		_ = f.tree.Unlink(req, dir, temp)
	}
	return err
}

// Mkdir makes a directory; see control.Files.
func (f files) Mkdir(ctx context.Context, folder, p string, mode uint32, parents bool) (control.Entry, error) {
	req := request(ctx)
	if parents {
		here := ""
		for name := range strings.SplitSeq(p, "/") {
			if name == "" {
				break // the folder itself
			}
			dir, err := f.tree.Resolve(ctx, folder, here, true)
			if err != nil {
				return control.Entry{}, err
			}
			here = path.Join(here, name)
			made := mode
			if here != p {
				made |= 0o300 // whoever asked has to get through
			}
			_, err = f.tree.Mkdir(req, dir.Ino, name, made, 0)
			if err != nil && vfolder.KindOf(err) != vfolder.KindExists {
				return control.Entry{}, at("mkdir", folder, here, err)
			}
		}
		e, err := f.tree.Resolve(ctx, folder, p, true)
		if err == nil && e.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = &vfolder.Error{Op: "mkdir", Kind: vfolder.KindNotDir, Path: place(folder, p)}
		}
		return entryOf(nameOf(folder, p), e), err
	}
	dir, name, err := f.parent(ctx, folder, p)
	if err != nil {
		return control.Entry{}, err
	}
	a, err := f.tree.Mkdir(req, dir.Ino, name, mode, 0)
	return entryOf(name, a), at("mkdir", folder, p, err)
}

// Symlink makes a symbolic link.
func (f files) Symlink(ctx context.Context, folder, p, target string) (control.Entry, error) {
	dir, name, err := f.parent(ctx, folder, p)
	if err != nil {
		return control.Entry{}, err
	}
	a, err := f.tree.Symlink(request(ctx), dir.Ino, name, target)
	e := entryOf(name, a)
	e.SetTarget(target)
	return e, at("symlink", folder, p, err)
}
