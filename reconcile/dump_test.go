package reconcile

import (
	"fmt"

	"github.com/vfolder/vfolder/meta"
)

// dump shows the queue and the entries it concerns, for a failed model test.
func (h *host) dump() {
	f := h.r.folder(h.root)
	_ = h.db.View(func(tx *meta.Tx) error {
		_ = tx.Items(h.root, 0, func(it meta.Item) bool {
			line := fmt.Sprintf("item %d kind %d %d/%q ino %d row %v", it.Seq, it.Kind, it.Parent, it.Name, it.Ino, it.Row)
			if e, err := tx.Entry(it.Parent, it.Name); err == nil {
				n, _ := tx.Inode(e.Ino)
				p, err := f.place(tx, it.Parent, it.Name, n, false)
				at, _ := keyOf(tx, e.Row)
				line += fmt.Sprintf(" at %q wants %q (%v) mode %o", at, p.key, err, n.Mode)
				bs, err := f.blockers(tx, p, it.Parent, it.Name, n.IsDir())
				for _, b := range bs {
					bk, _ := keyOf(tx, b.k)
					line += fmt.Sprintf(" blocked by %q %+v", bk, *b.row)
				}
				if err != nil {
					line += err.Error()
				}
			} else if k, err := keyOf(tx, it.Row); err == nil {
				o, _ := tx.Row(it.Row)
				line += fmt.Sprintf(" delete %q %+v", k, o)
			}
			h.t.Logf("%s", line)
			return true
		})
		_ = tx.PrefixesUnder("", func(id uint64, p string) bool {
			_ = tx.Rows(id, func(k meta.RowKey, o *meta.Row) bool { h.t.Logf("row %d %q %+v", id, p+k.Name, *o); return true })
			return true
		})
		_ = tx.Entries(h.root, 0, func(e meta.DirEntry) bool {
			n, _ := tx.Inode(e.Ino)
			p, _ := tx.Prefix(n.Prefix)
			h.t.Logf("entry %q %+v prefix %q", e.Name, e.Entry, p)
			return true
		})
		return nil
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	h.t.Logf("flying %v ready %d locks %v wanted %v", f.flying, len(f.ready), f.locks, f.wanted)
}
