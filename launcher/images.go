package launcher

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containers/podman/v5/pkg/bindings/images"
	"go.podman.io/image/v5/pkg/compression"

	"github.com/vfolder/vfolder"
)

// DefaultImage is what sessions run when nothing else is asked for; BuildImage
// makes it.
const DefaultImage = "localhost/vfolder-session:latest"

// Image is an image that sessions can use.
type Image struct {
	ID      string    `json:"id"`
	Names   []string  `json:"names"`
	Size    int64     `json:"size"` // bytes
	Created time.Time `json:"created"`
}

// Images lists what the user's Podman has, newest first, without nameless
// remains of builds.
func (l *Launcher) Images(ctx context.Context) ([]Image, error) {
	list, err := images.List(l.with(ctx), nil)
	if err != nil {
		return nil, podmanError("image", "", err)
	}
	all := []Image{}
	for _, i := range list {
		names := i.Names
		if len(names) == 0 {
			names = i.RepoTags
		}
		if len(names) == 0 {
			continue
		}
		all = append(all, Image{ID: i.ID, Names: names, Size: i.Size, Created: time.Unix(i.Created, 0)})
	}
	slices.SortStableFunc(all, func(a, b Image) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// ImportImage makes an image of a file or directory: an archive of an image as
// docker save, podman save or skopeo write it (name is not needed then), a tar of
// a root file system, or a directory with one; tars may be compressed. It
// returns the image's name, or its id if it has none.
func (l *Launcher) ImportImage(ctx context.Context, from, name string) (string, error) {
	fail := func(kind vfolder.Kind, err error) (string, error) {
		return "", &vfolder.Error{Op: "image", Kind: kind, Path: from, Err: err}
	}
	info, err := os.Stat(from)
	if err != nil {
		return fail(vfolder.KindOf(err), err)
	}
	if info.IsDir() {
		return l.importDir(ctx, from, name)
	}
	saved, err := isSavedImage(from)
	if err != nil {
		return fail(vfolder.KindInvalid, fmt.Errorf("not a tar archive: %w", err))
	}
	f, err := os.Open(from)
	if err != nil {
		return fail(vfolder.KindOf(err), err)
	}
	defer f.Close()
	if !saved {
		return l.importRoot(ctx, f, from, name)
	}
	report, err := images.Load(l.with(ctx), f)
	if err != nil {
		return "", podmanError("image", from, err)
	}
	if len(report.Names) == 0 {
		return fail(vfolder.KindInvalid, errors.New("the archive holds no image"))
	}
	if name == "" {
		return report.Names[0], nil
	}
	ref, tag := splitTag(name)
	if err := images.Tag(l.with(ctx), report.Names[0], tag, ref, nil); err != nil {
		return "", podmanError("image", name, err)
	}
	return name, nil
}

// splitTag takes NAME[:TAG] apart; the tag is "latest" if there is none.
func splitTag(name string) (ref, tag string) {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i], name[i+1:]
	}
	return name, "latest"
}

// importRoot makes an image of a root file system's tar.
func (l *Launcher) importRoot(ctx context.Context, r io.Reader, from, name string) (string, error) {
	opts := new(images.ImportOptions)
	if name != "" {
		opts = opts.WithReference(name)
	}
	report, err := images.Import(l.with(ctx), r, opts)
	if err != nil {
		return "", podmanError("image", from, err)
	}
	if name == "" {
		return report.Id, nil
	}
	return name, nil
}

func (l *Launcher) importDir(ctx context.Context, dir, name string) (string, error) {
	if info, err := os.Stat(filepath.Join(dir, "etc")); err != nil || !info.IsDir() {
		return "", vfolder.Errorf(vfolder.KindInvalid, "image", dir, "not a root file system: it has no etc")
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := tarDir(ctx, w, dir)
		w.CloseWithError(err)
		done <- err
	}()
	name, err := l.importRoot(ctx, r, dir, name)
	r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	if tarErr := <-done; tarErr != nil && err == nil {
		err = tarErr
	} else if tarErr != nil && !errors.Is(tarErr, io.ErrClosedPipe) {
		return "", vfolder.Errorf(vfolder.KindOf(tarErr), "image", dir, "reading it: %w", tarErr)
	}
	return name, err
}

// tarDir writes a directory tree as a tar. What the caller owns becomes root's:
// an unprivileged user cannot have unpacked it otherwise.
func tarDir(ctx context.Context, w io.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tw := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return tarEntry(tw, root, name, d)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

func tarEntry(tw *tar.Writer, root *os.Root, name string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket != 0 {
		return nil // a socket lives only as long as the process that bound it
	}
	link := ""
	if info.Mode()&os.ModeSymlink != 0 {
		if link, err = root.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname, h.Format = name, "", "", tar.FormatPAX
	if info.IsDir() {
		h.Name += "/"
	}
	if h.Uid == os.Getuid() {
		h.Uid = 0
	}
	if h.Gid == os.Getgid() {
		h.Gid = 0
	}
	if err := tw.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(tw, f)
	return err
}

// isSavedImage reports whether a tar, compressed or not, holds an image with its
// layers, rather than a root file system.
func isSavedImage(name string) (bool, error) {
	f, err := os.Open(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	plain, _, err := compression.AutoDecompress(f)
	if err != nil {
		return false, err
	}
	defer plain.Close()
	tr := tar.NewReader(plain)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) && n > 0 {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		switch path := filepath.Clean(h.Name); path {
		case "manifest.json", "oci-layout", "index.json":
			return true, nil
		case "etc", "usr", "bin":
			return false, nil
		}
	}
}
