package embedded

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/versity/versitygw/backend/posix"

	"github.com/vfolder/vfolder"
)

// What a killed server may leave behind, and what the next start does with it:
//
//	BUCKET/.sgwtmp/FILE            a body under way: removed
//	.../.NAME.sgwtmp.NANOSECONDS   a finished body about to replace NAME, never
//	                               acknowledged: removed
//	.../UPLOAD.ETAG.inprogress     an upload being completed: taken back to
//	                               UPLOAD, so that it can be completed or aborted
//	BUCKET/.sgwtmp/multipart/*/*   an upload nobody touched for uploadMaxAge: removed
//
// The second kind lies among the objects, so that finding it means walking all
// of them: only after a run that did not end by itself, which the file
// "running" in the server's directory tells.
const uploadMaxAge = 14 * 24 * time.Hour

var leftover = regexp.MustCompile(`^\..*\.sgwtmp\.([0-9]{19})$`)

// inProgress is how the library marks an upload that is being completed.
const inProgress = ".inprogress"

// run is one run of the server.
type run struct{ marker string }

// beginRun cleans up after the last run and notes that one is under way.
func beginRun(dir, data string) (run, error) {
	r := run{marker: filepath.Join(dir, "running")}
	now := time.Now()
	began, err := os.ReadFile(r.marker)
	switch {
	case err == nil:
		from, perr := strconv.ParseInt(strings.TrimSpace(string(began)), 10, 64)
		if perr != nil {
			from = 0
		}
		err = removeLeftovers(data, from, now.UnixNano())
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err == nil {
		err = cleanTemporary(data, now)
	}
	if err == nil {
		err = os.WriteFile(r.marker, []byte(strconv.FormatInt(now.UnixNano(), 10)+"\n"), 0o600)
	}
	if err == nil {
		err = errors.Join(syncPath(r.marker), syncPath(dir))
	}
	if err != nil {
		return run{}, &vfolder.Error{Op: "embedded store: clean up", Kind: vfolder.KindOf(err), Path: data, Err: err}
	}
	return r, nil
}

// end notes that the run ended in order.
func (r run) end() error {
	if err := os.Remove(r.marker); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &vfolder.Error{Op: "embedded store: stop", Kind: vfolder.KindOf(err), Path: r.marker, Err: err}
	}
	return nil
}

// removeLeftovers removes temporary names from among the objects. Only those
// stamped with a time of the killed run are touched: an object may well have
// such a name.
func removeLeftovers(data string, from, to int64) error {
	return filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case e.IsDir() && e.Name() == posix.MetaTmpDir:
			return filepath.SkipDir
		case !e.Type().IsRegular():
			return nil
		}
		m := leftover.FindStringSubmatch(e.Name())
		if m == nil {
			return nil
		}
		if at, err := strconv.ParseInt(m[1], 10, 64); err != nil || at < from || at > to {
			return nil
		}
		return os.Remove(path)
	})
}

// cleanTemporary goes through each bucket's temporary directory.
func cleanTemporary(data string, now time.Time) error {
	buckets, err := os.ReadDir(data)
	if err != nil {
		return err
	}
	for _, b := range buckets {
		tmp := filepath.Join(data, b.Name(), posix.MetaTmpDir)
		files, err := os.ReadDir(tmp)
		if errors.Is(err, fs.ErrNotExist) || !b.IsDir() {
			continue
		}
		if err != nil {
			return err
		}
		for _, f := range files {
			if f.Type().IsRegular() && !strings.HasSuffix(f.Name(), ".lock") {
				if err := os.Remove(filepath.Join(tmp, f.Name())); err != nil {
					return err
				}
			}
		}
		if err := cleanUploads(filepath.Join(data, b.Name(), posix.MetaTmpMultipartDir), now); err != nil {
			return err
		}
	}
	return nil
}

// cleanUploads takes unfinished completions back and drops old uploads.
func cleanUploads(multipart string, now time.Time) error {
	uploads, err := filepath.Glob(filepath.Join(multipart, "*", "*"))
	if err != nil {
		return err
	}
	for _, u := range uploads {
		st, err := os.Lstat(u)
		if err != nil {
			return err
		}
		if !st.IsDir() {
			// A part's temporary file.
			if err := os.Remove(u); err != nil {
				return err
			}
			continue
		}
		if id, _, ok := strings.Cut(filepath.Base(u), "."); ok && strings.HasSuffix(u, inProgress) {
			back := filepath.Join(filepath.Dir(u), id)
			if err := os.Rename(u, back); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			u = back
		}
		if now.Sub(st.ModTime()) > uploadMaxAge {
			if err := os.RemoveAll(u); err != nil {
				return err
			}
			_ = os.Remove(filepath.Dir(u)) // fails while it holds another upload
		}
	}
	return nil
}
