package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/vfolder/vfolder"
)

// fake is a daemon of maps.
type fake struct {
	mu      sync.Mutex
	folders map[string]Folder
	files   map[string][]byte // by folder/path
	sync    func(ctx context.Context, progress func(Pending)) error
	stop    func(ctx context.Context, o StopOptions, progress func(Pending)) (StopResult, error)
	readErr error
	last    WriteOptions
}

func newFake() *fake { return &fake{folders: map[string]Folder{}, files: map[string][]byte{}} }

func (f *fake) services() Services {
	return Services{Folders: f, Files: f, Daemon: f, Program: "test"}
}

func (f *fake) Folders(context.Context) ([]Folder, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []Folder
	for _, folder := range f.folders {
		list = append(list, folder)
	}
	slices.SortFunc(list, func(a, b Folder) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func (f *fake) CreateFolder(_ context.Context, name string) (Folder, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.folders[name]; ok {
		return Folder{}, &vfolder.Error{Op: "create folder", Kind: vfolder.KindExists, Path: name, Fix: "vfolder folder show " + name}
	}
	folder := Folder{
		Folder: vfolder.Folder{ID: "0123456789abcdef", Name: name, Prefix: name + "/", State: vfolder.FolderReady, Created: 1600000000000000000, Changed: 1600000000000000000},
		Path:   "/run/mnt/" + name,
	}
	f.folders[name] = folder
	return folder, nil
}

func (f *fake) Folder(_ context.Context, name string) (Folder, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	folder, ok := f.folders[name]
	if !ok {
		return Folder{}, &vfolder.Error{Op: "folder", Kind: vfolder.KindNotFound, Path: name}
	}
	return folder, nil
}

func (f *fake) DeleteFolder(ctx context.Context, name string) error {
	if _, err := f.Folder(ctx, name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.folders, name)
	return nil
}

func (f *fake) FolderStatus(ctx context.Context, name string) (FolderStatus, error) {
	folder, err := f.Folder(ctx, name)
	return FolderStatus{
		Folder: folder, Pending: Pending{Files: 2, Bytes: 4096}, Holder: "host-a",
		Problems:  []FileProblem{{Path: "a/b", Kind: "store-unreachable", Error: "no route", Tries: 3, Next: 1600000000000000000}},
		Conflicts: []Conflict{{Path: "notes.txt", Copy: "notes (conflict).txt", At: 1600000000000000000}},
	}, err
}

func (f *fake) SyncFolder(ctx context.Context, name string, progress func(Pending)) error {
	if _, err := f.Folder(ctx, name); err != nil {
		return err
	}
	return f.sync(ctx, progress)
}

func (f *fake) PrepareFolder(ctx context.Context, name string) (Prepared, error) {
	folder, err := f.Folder(ctx, name)
	return Prepared{Path: folder.Path, ReadOnly: true, Reason: "host-b writes it"}, err
}

func (f *fake) List(ctx context.Context, folder, path string, yield func(Entry) error) error {
	if _, err := f.Folder(ctx, folder); err != nil {
		return err
	}
	f.mu.Lock()
	var names []string
	dir := strings.TrimSuffix(folder+"/"+path, "/") + "/"
	for p := range f.files {
		if rest, ok := strings.CutPrefix(p, dir); ok && !strings.Contains(rest, "/") {
			names = append(names, rest)
		}
	}
	f.mu.Unlock()
	slices.Sort(names)
	for _, name := range names {
		if err := yield(f.entry(name, len(f.files[dir+name]))); err != nil {
			return err
		}
	}
	return f.readErr
}

func (f *fake) entry(name string, size int) Entry {
	e := Entry{Type: TypeFile, Mode: 0o644, UID: 1000, GID: 1000, Size: int64(size), Mtime: 1600000000000000001, Ino: 17}
	e.SetName(name)
	return e
}

func (f *fake) Stat(_ context.Context, folder, path string) (Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.files[folder+"/"+path]
	if !ok {
		return Entry{}, &vfolder.Error{Op: "stat", Kind: vfolder.KindNotFound, Path: folder + ":" + path}
	}
	return f.entry(path[strings.LastIndex(path, "/")+1:], len(b)), nil
}

type fakeReader struct {
	*bytes.Reader
	entry Entry
	err   error
	after int64
}

func (r *fakeReader) ReadAt(p []byte, off int64) (int, error) {
	if r.err != nil && off >= r.after {
		return 0, r.err
	}
	return r.Reader.ReadAt(p, off)
}
func (r *fakeReader) Close() error { return nil }
func (r *fakeReader) Entry() Entry { return r.entry }

func (f *fake) Read(ctx context.Context, folder, path string) (Reader, error) {
	e, err := f.Stat(ctx, folder, path)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	after := int64(0)
	if strings.HasSuffix(path, "breaks-late") {
		after = 300 << 10
	}
	return &fakeReader{bytes.NewReader(f.files[folder+"/"+path]), e, f.readErr, after}, nil
}

func (f *fake) Write(ctx context.Context, folder, path string, body io.Reader, o WriteOptions) (Entry, error) {
	b, err := io.ReadAll(body)
	if err != nil {
		return Entry{}, err
	}
	f.mu.Lock()
	f.last = o
	_, exists := f.files[folder+"/"+path]
	if !exists || !o.Exclusive {
		f.files[folder+"/"+path] = b
	}
	f.mu.Unlock()
	if exists && o.Exclusive {
		return Entry{}, &vfolder.Error{Op: "write", Kind: vfolder.KindExists, Path: path}
	}
	return f.Stat(ctx, folder, path)
}

func (f *fake) Mkdir(_ context.Context, _, path string, mode uint32, _ bool) (Entry, error) {
	e := Entry{Type: TypeDir, Mode: mode}
	e.SetName(path)
	return e, nil
}

func (f *fake) Symlink(_ context.Context, _, path, target string) (Entry, error) {
	e := Entry{Type: TypeSymlink, Mode: 0o777, Target: target}
	e.SetName(path)
	return e, nil
}

func (f *fake) Status(context.Context) (DaemonStatus, error) {
	return DaemonStatus{
		PID: 10, Worker: 11, Program: "test", Started: 1600000000000000000, Mountpoint: "/run/mnt", Mounted: true,
		Store:    StoreStatus{Endpoint: "127.0.0.1:9000", Bucket: "vfolder", Embedded: true, Reachable: true},
		StateDir: "/state", LogDir: "/state/log", Pending: Pending{1, 2}, CacheBytes: 3, CacheFiles: 4,
	}, nil
}

func (f *fake) Restart(context.Context) error { return nil }

func (f *fake) Stop(ctx context.Context, o StopOptions, progress func(Pending)) (StopResult, error) {
	if f.stop == nil {
		return StopResult{}, errors.New("not expected")
	}
	return f.stop(ctx, o, progress)
}
