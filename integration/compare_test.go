package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/minio/minio-go/v7"
)

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// bucketEqualsTree checks that the objects below prefix are exactly the tree
// below dir: a key each, and the bytes. Names must be ones that keys carry as
// they are. Directories that only exist because another client put objects
// below them (implied) need no object of their own.
func bucketEqualsTree(t *testing.T, c *minio.Client, bucket, prefix, dir string, implied ...string) {
	t.Helper()
	objs := objects(t, c, bucket, prefix)
	delete(objs, "") // the folder's own root
	bad := 0
	fail := func(format string, a ...any) {
		if bad++; bad <= 20 {
			t.Errorf(format, a...)
		}
	}
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if rel == "." {
			return nil
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			return err
		}
		key := rel
		if d.IsDir() {
			key += "/"
		}
		o, ok := objs[key]
		delete(objs, key)
		switch {
		case !ok && d.IsDir() && slices.Contains(implied, rel):
			return nil
		case !ok:
			fail("%s has no object", key)
			return nil
		case d.IsDir():
			return nil
		case d.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			if b := object(t, c, bucket, prefix+key); string(b) != target {
				fail("%s: the object says %q, the link %q", key, b, target)
			}
			return nil
		case o.Size != st.Size:
			fail("%s: object of %d bytes, file of %d", key, o.Size, st.Size)
			return nil
		case !d.Type().IsRegular():
			return nil // a fifo would wait for its writer
		}
		h := sha256.New()
		r, err := c.GetObject(t.Context(), bucket, prefix+key, minio.GetObjectOptions{})
		if err != nil {
			return err
		}
		defer r.Close()
		if _, err := io.Copy(h, r); err != nil {
			return err
		}
		if got := hex.EncodeToString(h.Sum(nil)[:12]); got != sum(t, p) {
			fail("%s: the object's bytes are not the file's", key)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for key := range objs {
		fail("object %s has no file", key)
	}
	if bad > 20 {
		t.Errorf("and %d more", bad-20)
	}
}

// mode returns the mode that an object says the file has, in the family of the
// S3 file gateways.
func mode(o minio.ObjectInfo) string {
	for k, v := range o.UserMetadata {
		if strings.EqualFold(strings.TrimPrefix(strings.ToLower(k), "x-amz-meta-"), "file-permissions") {
			return v
		}
	}
	return fmt.Sprintf("none in %v", o.UserMetadata)
}
