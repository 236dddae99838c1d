package reconcile

import (
	"fmt"
	"testing"
	"time"

	"github.com/vfolder/vfolder/meta"
)

// TestManyFiles publishes, renames and removes a directory of thousands of
// files: work must stay proportional to their number.
func TestManyFiles(t *testing.T) {
	const files = 3000
	s := newMemStore()
	s.strict = false // its check walks over all keys
	cfg := fast()
	cfg.RefreshEvery = time.Hour // listing the store in memory is slow
	h := newHost(t, "host-a", s, cfg)
	h.mkfolder("f")
	h.mkdir("d")
	dir, err := h.stat("d")
	h.must(err)
	h.must(h.db.Update(func(tx *meta.Tx) error {
		for i := range files {
			n := &meta.Inode{Mode: 0o120777, Target: "t", UID: 1000, GID: 1000}
			if err := tx.Create(dir.Ino, fmt.Sprint("file", i), n); err != nil {
				return err
			}
		}
		return nil
	}))
	step := func(what string) {
		start := time.Now()
		h.sync()
		t.Logf("%s: %v", what, time.Since(start))
	}
	step("publish")
	h.rename("d", "e")
	step("rename")
	if got := len(s.tree("f/")); got != files+1 {
		t.Fatalf("%d keys", got)
	}
	h.check()
	h.must(h.db.Update(func(tx *meta.Tx) error {
		for i := range files {
			if _, err := tx.Unlink(dir.Ino, fmt.Sprint("file", i)); err != nil {
				return err
			}
		}
		_, err := tx.Rmdir(h.root, "e")
		return err
	}))
	step("remove")
	if got := s.tree("f/"); len(got) != 0 {
		t.Fatalf("left: %d", len(got))
	}
}
