package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// TestOthersWriteToTheBucket: what an S3 client puts, overwrites and deletes is
// seen in the folder; a file changed on both sides loses no byte.
func TestOthersWriteToTheBucket(t *testing.T) {
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			cfg := open(t)
			h := newHost(t, &cfg).start()
			dir := h.folder("shared")
			c := client(t, cfg)
			put := func(key, body string) {
				t.Helper()
				_, err := c.PutObject(t.Context(), cfg.Bucket, "shared/"+key, strings.NewReader(body), int64(len(body)), minio.PutObjectOptions{})
				if err != nil {
					t.Fatal(err)
				}
			}
			content := func(rel string) string {
				b, err := os.ReadFile(filepath.Join(dir, rel))
				if err != nil {
					return err.Error()
				}
				return string(b)
			}
			write := func(rel, body string) {
				t.Helper()
				if err := os.WriteFile(filepath.Join(dir, rel), []byte(body), 0o644); err != nil {
					t.Fatal(err)
				}
			}

			put("new", "from s3")
			eventually(t, "a new object is a file", func() bool { return content("new") == "from s3" })
			put("deep/er/new", "from s3 too")
			eventually(t, "a new object below new prefixes is a file", func() bool { return content("deep/er/new") == "from s3 too" })

			write("ours", "first")
			h.sync("shared")
			put("ours", "overwritten by s3")
			eventually(t, "an overwritten object is the file", func() bool { return content("ours") == "overwritten by s3" })
			put("ours", "overwritten again")
			eventually(t, "an object overwritten twice is the file", func() bool { return content("ours") == "overwritten again" })

			if err := c.RemoveObject(t.Context(), cfg.Bucket, "shared/new", minio.RemoveObjectOptions{}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a deleted object is gone", func() bool {
				_, err := os.Lstat(filepath.Join(dir, "new"))
				return os.IsNotExist(err)
			})

			// Both sides change one file: the writer holds it open, so that its
			// bytes are not on their way yet when the object changes.
			write("both", "base")
			h.sync("shared")
			f, err := os.OpenFile(filepath.Join(dir, "both"), os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteString("written in the folder"); err != nil {
				t.Fatal(err)
			}
			put("both", "written by s3")
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "both versions are kept", func() bool {
				files, _ := filepath.Glob(filepath.Join(dir, "both*"))
				got := map[string]bool{}
				for _, f := range files {
					got[content(filepath.Base(f))] = true
				}
				return got["written in the folder"] && got["written by s3"]
			})
			h.sync("shared")
			if got := content("both"); got != "written in the folder" {
				t.Errorf("the name holds %q", got)
			}
			bucketEqualsTree(t, c, cfg.Bucket, "shared/", dir, "deep", "deep/er")
		})
	}
}

// TestBigDirectoryRename: renaming a directory of 10,000 files returns at once
// and converges in the bucket.
func TestBigDirectoryRename(t *testing.T) {
	const files = 10000
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			cfg := open(t)
			h := newHost(t, &cfg).start()
			dir := h.folder("big")
			old := filepath.Join(dir, "old")
			for d := range 10 {
				if err := os.MkdirAll(filepath.Join(old, fmt.Sprint(d)), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for i := range files {
				if err := os.WriteFile(filepath.Join(old, fmt.Sprint(i%10), fmt.Sprint("f", i)), fmt.Appendf(nil, "body %d", i), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			h.sync("big")
			start := time.Now()
			if err := os.Rename(old, filepath.Join(dir, "new")); err != nil {
				t.Fatal(err)
			}
			t.Logf("rename of %d files returned after %v", files, time.Since(start))
			if b, err := os.ReadFile(filepath.Join(dir, "new", "7", "f17")); err != nil || string(b) != "body 17" {
				t.Fatalf("right after the rename: %q %v", b, err)
			}
			start = time.Now()
			h.sync("big")
			t.Logf("it was in the bucket after %v", time.Since(start))
			c := client(t, cfg)
			objs := objects(t, c, cfg.Bucket, "big/")
			n := 0
			for key := range objs {
				if strings.HasPrefix(key, "old") {
					t.Fatalf("%s is left", key)
				}
				if strings.HasPrefix(key, "new/") && !strings.HasSuffix(key, "/") {
					n++
				}
			}
			if n != files {
				t.Errorf("%d objects below new/, want %d", n, files)
			}
			if b := object(t, c, cfg.Bucket, "big/new/3/f13"); !bytes.Equal(b, []byte("body 13")) {
				t.Errorf("an object holds %q", b)
			}
		})
	}
}

// TestSecondHost: one host writes a folder; a second one reads it, sees what
// changes, and is refused to write until the first has let go.
func TestSecondHost(t *testing.T) {
	cfg := stores["embedded"](t)
	a, b := newHost(t, &cfg).start(), newHost(t, &cfg).start()
	dirA := a.folder("one")
	if err := os.WriteFile(filepath.Join(dirA, "f"), []byte("from a"), 0o644); err != nil {
		t.Fatal(err)
	}
	a.sync("one")
	var dirB string
	eventually(t, "the folder appears on the other host", func() bool {
		out, _, code := b.try("folder", "path", "one")
		dirB = strings.TrimSpace(out)
		return code == 0
	})
	eventually(t, "the file is there", func() bool {
		got, err := os.ReadFile(filepath.Join(dirB, "f"))
		return err == nil && string(got) == "from a"
	})
	err := os.WriteFile(filepath.Join(dirB, "g"), []byte("from b"), 0o644)
	if err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("a second writer got %v, want a read-only file system", err)
	}
	if err := os.WriteFile(filepath.Join(dirA, "f"), []byte("from a again"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the change is seen on the other host", func() bool {
		got, err := os.ReadFile(filepath.Join(dirB, "f"))
		return err == nil && string(got) == "from a again"
	})
	a.vf("daemon", "stop")
	eventually(t, "the second host may write once the first has stopped", func() bool {
		return os.WriteFile(filepath.Join(dirB, "g"), []byte("from b"), 0o644) == nil
	})
	b.sync("one")
	if got := object(t, client(t, cfg), cfg.Bucket, "one/g"); string(got) != "from b" {
		t.Errorf("the object holds %q", got)
	}
}
