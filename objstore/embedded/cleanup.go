package embedded

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/versity/versitygw/backend/posix"
)

// What a killed server may leave behind, and what the next start does with it:
//
//	BUCKET/.sgwtmp/FILE            a body under way: removed
//	BUCKET/.sgwtmp/multipart/KEY/FILE    a part under way: removed
//	.../KEY/UPLOAD.ETAG.inprogress an upload being completed: taken back to
//	                               UPLOAD, so that it can be completed or aborted
//	.../KEY/UPLOAD                 one that nobody touched for uploadMaxAge: removed
//
// Nothing is left among the objects: bodies are written into .sgwtmp and
// renamed into place.
const uploadMaxAge = 14 * 24 * time.Hour

// inProgress is how the library marks an upload that is being completed.
const inProgress = ".inprogress"

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
