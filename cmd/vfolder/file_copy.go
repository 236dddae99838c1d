package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/control"
)

// copier is one run of cp.
type copier struct {
	c         *cli.Context
	client    *control.Client
	recursive bool
	preserve  bool
	keep      bool // never replace a file
	copied    int
	failed    int
	last      error
}

func copyFiles(c *cli.Context, client *control.Client) error {
	if c.NArg() < 2 {
		return wrongUsage(c, "it takes a source and a target")
	}
	args := c.Args().Slice()
	target := parsePlace(args[len(args)-1])
	k := &copier{
		c: c, client: client, recursive: c.Bool("recursive"), preserve: c.Bool("preserve"), keep: c.Bool("no-clobber"),
	}
	var sources []place
	for _, arg := range args[:len(args)-1] {
		p := parsePlace(arg)
		if p.folder == "" && target.folder == "" {
			return wrongUsage(c, "neither %q nor %q is in a folder (NAME:PATH)", arg, target)
		}
		sources = append(sources, p)
	}
	into, err := k.isDir(target)
	if err != nil {
		return err
	}
	if len(sources) > 1 && !into {
		return wrongUsage(c, "with several sources the target has to be a directory, %q is none", target)
	}
	for _, source := range sources {
		if err := k.one(source, target, into); err != nil {
			return err
		}
	}
	return k.result()
}

// result is what the command returns: one failure as it is, several as a
// partial success.
func (k *copier) result() error {
	switch {
	case k.failed == 0:
		return nil
	case k.copied == 0 && k.failed == 1:
		return k.last
	}
	printError(k.c.App.ErrWriter, k.last)
	return vfolder.Errorf(vfolder.KindPartial, "cp", "", "%d of %d files were not copied", k.failed, k.failed+k.copied)
}

// note counts one file. Errors that would be the same for every file end the
// command.
func (k *copier) note(err error) error {
	if err == nil {
		k.copied++
		return nil
	}
	if ctxErr := k.ctx().Err(); ctxErr != nil {
		return ctxErr
	}
	if vfolder.KindOf(err) == vfolder.KindDaemon {
		return err
	}
	if k.last != nil {
		printError(k.c.App.ErrWriter, k.last)
	}
	k.failed++
	k.last = err
	return nil
}

func (k *copier) ctx() context.Context { return k.c.Context }

// isDir reports whether a target takes files by their own names.
func (k *copier) isDir(p place) (bool, error) {
	switch {
	case p.stdio:
		return false, nil
	case p.folder == "":
		info, err := os.Stat(p.path)
		if err != nil && strings.HasSuffix(p.path, "/") {
			return false, localError("cp", p.path, err)
		}
		return err == nil && info.IsDir(), nil
	}
	clean, err := control.CleanPath(p.path)
	if err != nil {
		return false, err
	}
	e, err := k.client.Stat(k.ctx(), p.folder, clean)
	switch {
	case err == nil:
		return e.Type == control.TypeDir, nil
	case vfolder.KindOf(err) == vfolder.KindNotFound && clean != "" && !strings.HasSuffix(p.path, "/"):
		return false, nil
	}
	return false, err
}

func localError(op, name string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return &vfolder.Error{Op: op, Kind: vfolder.KindOf(err), Path: name, Err: err}
}

// one copies one source, which may be a directory.
func (k *copier) one(source, target place, into bool) error {
	if source.stdio {
		if into {
			return k.note(vfolder.Errorf(vfolder.KindIsDir, "cp", target.String(), "standard input has no name; give the target one"))
		}
		return k.note(k.upload(os.Stdin, -1, target.folder, target.path, control.WriteOptions{}))
	}
	if source.folder != "" {
		clean, err := control.CleanPath(source.path)
		if err != nil {
			return err
		}
		source.path = clean
	}
	if into {
		target.path = joinPlace(target, baseName(source))
	}
	if source.folder == "" {
		return k.fromLocal(source.path, target)
	}
	e, err := k.client.Stat(k.ctx(), source.folder, source.path)
	if err != nil {
		return k.note(err)
	}
	if e.Type == control.TypeDir && !k.recursive {
		return k.note(&vfolder.Error{Op: "cp", Kind: vfolder.KindIsDir, Path: source.String(), Fix: "add -r"})
	}
	if target.folder != "" {
		return k.between(source, e, target)
	}
	if target.stdio {
		if e.Type == control.TypeDir {
			return k.note(vfolder.Errorf(vfolder.KindIsDir, "cp", source.String(), "a directory does not go to standard output"))
		}
		return k.note(sendTo(k.c, k.client, source, k.c.App.Writer))
	}
	// Everything is written below the target's parent: a hostile tree cannot
	// lead out of it through links or names.
	parent, name := filepath.Split(filepath.Clean(target.path))
	root, err := os.OpenRoot(filepath.Clean(parent + "."))
	if err != nil {
		return k.note(localError("cp", target.path, err))
	}
	defer root.Close()
	return k.toLocal(source, e, root, name)
}

func baseName(p place) string {
	if p.folder == "" {
		abs, err := filepath.Abs(p.path)
		if err != nil {
			abs = p.path
		}
		return filepath.Base(abs)
	}
	if p.path == "" {
		return p.folder
	}
	return path.Base(p.path)
}

func joinPlace(p place, name string) string {
	if p.folder == "" {
		return filepath.Join(p.path, name)
	}
	return path.Join(p.path, name)
}

// fromLocal copies a local file or tree into a folder.
func (k *copier) fromLocal(name string, target place) error {
	info, err := os.Stat(name) // a link named by the user is followed
	if err != nil {
		return k.note(localError("cp", name, err))
	}
	if info.IsDir() && !k.recursive {
		return k.note(&vfolder.Error{Op: "cp", Kind: vfolder.KindIsDir, Path: name, Fix: "add -r"})
	}
	if !info.IsDir() {
		return k.note(k.uploadFile(name, info, target))
	}
	return filepath.WalkDir(name+string(filepath.Separator), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return k.note(localError("cp", p, err))
		}
		rel, err := filepath.Rel(name, p)
		if err != nil {
			return err
		}
		to := place{folder: target.folder, path: path.Join(target.path, filepath.ToSlash(rel))}
		info, err := d.Info()
		if err != nil {
			return k.note(localError("cp", p, err))
		}
		switch {
		case d.IsDir():
			_, err := k.client.Mkdir(k.ctx(), to.folder, to.path, unixMode(info.Mode()), true)
			return k.note(err)
		case info.Mode()&fs.ModeSymlink != 0:
			link, err := os.Readlink(p)
			if err != nil {
				return k.note(localError("cp", p, err))
			}
			_, err = k.client.Symlink(k.ctx(), to.folder, to.path, link)
			return k.note(err)
		}
		return k.note(k.uploadFile(p, info, to))
	})
}

// unixMode is a file's permissions with setuid, setgid and sticky bit.
func unixMode(mode fs.FileMode) uint32 {
	m := uint32(mode.Perm())
	for _, b := range []struct {
		mode fs.FileMode
		bit  uint32
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if mode&b.mode != 0 {
			m |= b.bit
		}
	}
	return m
}

func (k *copier) uploadFile(name string, info fs.FileInfo, target place) error {
	if !info.Mode().IsRegular() {
		return vfolder.Errorf(vfolder.KindUnsupported, "cp", name, "not a regular file")
	}
	f, err := os.Open(name)
	if err != nil {
		return localError("cp", name, err)
	}
	defer f.Close()
	// The size is that of the open file: it may have been replaced since.
	if info, err = f.Stat(); err != nil {
		return localError("cp", name, err)
	}
	o := control.WriteOptions{Mode: unixMode(info.Mode())}
	if k.preserve {
		o.Mtime = info.ModTime().UnixNano()
	}
	return k.upload(f, info.Size(), target.folder, target.path, o)
}

func (k *copier) upload(body io.Reader, size int64, folder, name string, o control.WriteOptions) error {
	clean, err := control.CleanPath(name)
	if err != nil {
		return err
	}
	o.Exclusive = k.keep
	_, err = k.client.Write(k.ctx(), folder, clean, body, size, o)
	return err
}

// between copies from folder to folder, through this process.
func (k *copier) between(source place, e control.Entry, target place) error {
	if source.folder == target.folder && (target.path == source.path || e.Type == control.TypeDir && strings.HasPrefix(target.path+"/", source.path+"/")) {
		return k.note(vfolder.Errorf(vfolder.KindInvalid, "cp", source.String(), "it cannot be copied onto or into itself"))
	}
	switch e.Type {
	case control.TypeDir:
		if _, err := k.client.Mkdir(k.ctx(), target.folder, target.path, e.Mode, true); err != nil {
			return k.note(err)
		}
		k.copied++
		return k.children(source, func(child control.Entry, from place) error {
			return k.between(from, child, place{folder: target.folder, path: path.Join(target.path, child.Bytes())})
		})
	case control.TypeSymlink:
		_, err := k.client.Symlink(k.ctx(), target.folder, target.path, e.TargetBytes())
		return k.note(err)
	case control.TypeFile:
		body, err := k.client.Read(k.ctx(), source.folder, source.path, 0, -1)
		if err != nil {
			return k.note(err)
		}
		defer body.Close()
		o := control.WriteOptions{Mode: e.Mode}
		if k.preserve {
			o.Mtime = e.Mtime
		}
		return k.note(k.upload(body, -1, target.folder, target.path, o))
	}
	return k.note(vfolder.Errorf(vfolder.KindUnsupported, "cp", source.String(), "not a regular file"))
}

// children calls do for each entry of a directory, after the listing ended: it
// makes calls of its own.
func (k *copier) children(dir place, do func(control.Entry, place) error) error {
	var entries []control.Entry
	err := k.client.List(k.ctx(), dir.folder, dir.path, func(e control.Entry) error {
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return k.note(err)
	}
	for _, e := range entries {
		name := e.Bytes()
		if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
			if err := k.note(vfolder.Errorf(vfolder.KindInvalid, "cp", dir.String(), "it lists the name %q", name)); err != nil {
				return err
			}
			continue
		}
		if err := do(e, place{folder: dir.folder, path: path.Join(dir.path, name)}); err != nil {
			return err
		}
	}
	return nil
}

// toLocal copies a folder's file or tree to name below root.
func (k *copier) toLocal(source place, e control.Entry, root *os.Root, name string) error {
	switch e.Type {
	case control.TypeDir:
		// The directory stays writable while it is filled.
		if err := root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return k.note(localError("cp", name, err))
		}
		sub, err := root.OpenRoot(name)
		if err != nil {
			return k.note(localError("cp", name, err))
		}
		defer sub.Close()
		k.copied++
		err = k.children(source, func(child control.Entry, from place) error {
			return k.toLocal(from, child, sub, child.Bytes())
		})
		if err != nil {
			return err
		}
		if err := root.Chmod(name, fs.FileMode(e.Mode&0o777)); err != nil {
			return k.note(localError("cp", name, err))
		}
		if k.preserve {
			if err := root.Chtimes(name, time.Unix(0, e.Mtime), time.Unix(0, e.Mtime)); err != nil {
				return k.note(localError("cp", name, err))
			}
		}
		return nil
	case control.TypeSymlink:
		err := root.Symlink(e.TargetBytes(), name)
		if err != nil {
			err = localError("cp", name, err)
		}
		return k.note(err)
	case control.TypeFile:
		return k.note(k.download(source, e, root, name))
	}
	return k.note(vfolder.Errorf(vfolder.KindUnsupported, "cp", source.String(), "not a regular file"))
}

// download writes a file beside its target and renames it: it appears whole.
func (k *copier) download(source place, e control.Entry, root *os.Root, name string) error {
	if k.keep {
		if _, err := root.Lstat(name); err == nil {
			return &vfolder.Error{Op: "cp", Kind: vfolder.KindExists, Path: name}
		}
	}
	temp := fmt.Sprintf(".vfolder-cp-%d-%d", os.Getpid(), k.copied+k.failed)
	f, err := root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(e.Mode&0o777)|0o200)
	if err != nil {
		return localError("cp", name, err)
	}
	defer root.Remove(temp) // gone already when all went well
	err = sendTo(k.c, k.client, source, f)
	if err == nil && k.preserve {
		err = root.Chtimes(temp, time.Unix(0, e.Mtime), time.Unix(0, e.Mtime))
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil && e.Mode&0o200 == 0 {
		err = root.Chmod(temp, fs.FileMode(e.Mode&0o777))
	}
	if err == nil {
		err = root.Rename(temp, name)
	}
	var known *vfolder.Error
	if err != nil && !errors.As(err, &known) {
		return localError("cp", name, err)
	}
	return err
}
