package meta

import (
	"fmt"

	"github.com/vfolder/vfolder"
)

// Check verifies what every transaction must keep true of one folder's tree
// and returns one line for each fault: names and link counts agree, queued work
// and rows point at each other. It reads the whole folder.
func (tx *Tx) Check(root vfolder.Ino) ([]string, error) {
	var faults []string
	fault := func(format string, a ...any) { faults = append(faults, fmt.Sprintf(format, a...)) }
	items := map[uint64]Item{}
	if err := tx.Items(root, 0, func(it Item) bool { items[it.Seq] = it; return true }); err != nil {
		return nil, err
	}
	used := map[uint64]bool{}
	names := map[vfolder.Ino]uint32{}
	queue := []vfolder.Ino{root}
	for len(queue) > 0 {
		dir := queue[0]
		queue = queue[1:]
		d, err := tx.Inode(dir)
		if err != nil {
			return nil, err
		}
		var entries []DirEntry
		if err := tx.Entries(dir, 0, func(e DirEntry) bool { entries = append(entries, e); return true }); err != nil {
			return nil, err
		}
		subdirs := uint32(0)
		for _, e := range entries {
			n, err := tx.Inode(e.Ino)
			if err != nil {
				fault("entry %d/%q names a missing inode %d", dir, e.Name, e.Ino)
				continue
			}
			names[n.Ino]++
			if n.IsDir() {
				subdirs++
				queue = append(queue, n.Ino)
			}
			places, err := tx.Names(n)
			if err != nil {
				return nil, err
			}
			listed := false
			for _, p := range places {
				listed = listed || p == Place{dir, e.Name}
			}
			if !listed {
				fault("inode %d does not list its name %d/%q", n.Ino, dir, e.Name)
			}
			if !n.IsDir() && n.Nlink != uint32(len(places)) {
				fault("inode %d has %d names but nlink %d", n.Ino, len(places), n.Nlink)
			}
			faults = append(faults, tx.checkEntry(dir, e, n, items, used)...)
		}
		if d.Nlink != 2+subdirs {
			fault("directory %d has %d subdirectories but nlink %d", dir, subdirs, d.Nlink)
		}
	}
	for seq, it := range items {
		switch it.Kind {
		case ItemPut:
			if !used[seq] && it.Parent != vfolder.RootIno {
				fault("item %d for %d/%q belongs to no entry", seq, it.Parent, it.Name)
			}
		case ItemDelete:
			o, err := tx.Row(it.Row)
			if err != nil {
				return nil, err
			}
			if o == nil || o.Item != seq {
				fault("item %d deletes row %v, which does not know it", seq, it.Row)
			}
		}
	}
	return faults, nil
}

func (tx *Tx) checkEntry(dir vfolder.Ino, e DirEntry, n *Inode, items map[uint64]Item, used map[uint64]bool) (faults []string) {
	fault := func(format string, a ...any) { faults = append(faults, fmt.Sprintf(format, a...)) }
	if e.Item != 0 {
		it, ok := items[e.Item]
		used[e.Item] = true
		if !ok || it.Kind != ItemPut || it.Parent != dir || it.Name != e.Name {
			fault("entry %d/%q points at item %d, which is %+v", dir, e.Name, e.Item, it)
		}
	}
	if e.Row.IsZero() {
		// A directory that another program made by its contents has no object.
		if e.Item == 0 && !(n.IsDir() && n.Prefix != 0) {
			fault("entry %d/%q is not in the bucket and not queued", dir, e.Name)
		}
		return faults
	}
	o, err := tx.Row(e.Row)
	if err != nil || o == nil {
		fault("entry %d/%q has no row at %v (%v)", dir, e.Name, e.Row, err)
		return faults
	}
	if o.Parent != dir || o.Name != e.Name {
		fault("row %v of entry %d/%q names %d/%q as its owner", e.Row, dir, e.Name, o.Parent, o.Name)
	}
	if e.Item == 0 && (o.Gen != n.Gen || o.AttrGen != n.AttrGen || o.Ino != n.Ino) {
		fault("entry %d/%q is out of date (%d.%d, bucket %d.%d) and not queued", dir, e.Name, n.Gen, n.AttrGen, o.Gen, o.AttrGen)
	}
	return faults
}
