package reconcile

import (
	"context"
	"errors"
	"strings"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

// level is a directory on the way to the key that a whole listing is at.
type level struct {
	listing
	dir  vfolder.Ino // 0: not in the index
	last string      // the last sub added
}

// rescanAll lists a whole folder in one go and compares each directory that the
// index knows. Only what lies on the way to the current key is in memory.
func (f *folder) rescanAll(ctx context.Context) error {
	stack := []level{{listing: listing{prefix: f.prefix}, dir: f.root}}
	pop := func() error {
		top := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		return f.compareKnown(ctx, top.dir, top.listing)
	}
	for in, err := range f.r.store.List(ctx, f.prefix, "", false) {
		if err != nil {
			return err
		}
		if strings.HasPrefix(in.Key, vfolder.ReservedPrefix) {
			continue
		}
		for !strings.HasPrefix(in.Key, stack[len(stack)-1].prefix) {
			if err := pop(); err != nil {
				return err
			}
		}
		if err := f.descend(&stack, in); err != nil {
			return err
		}
	}
	for len(stack) > 0 {
		if err := pop(); err != nil {
			return err
		}
	}
	return f.sweepParked()
}

// descend adds a key to the levels it belongs to.
func (f *folder) descend(stack *[]level, in objstore.Info) error {
	for {
		top := &(*stack)[len(*stack)-1]
		seg, _, below := strings.Cut(in.Key[len(top.prefix):], "/")
		if !below {
			top.add(in)
			return nil
		}
		sub := seg + "/"
		if top.last != sub {
			top.last = sub
			top.subs = append(top.subs, sub)
		}
		next := level{listing: listing{prefix: top.prefix + sub}}
		if top.dir != 0 {
			err := f.r.db.View(func(tx *meta.Tx) error {
				name, _ := f.r.codec.Decode(seg)
				e, err := tx.Entry(top.dir, name)
				if errors.Is(err, vfolder.KindNotFound) {
					return nil
				}
				next.dir = e.Ino
				return err
			})
			if err != nil {
				return err
			}
		}
		*stack = append(*stack, next)
	}
}

// compareKnown compares a directory's listing if the index has listed it there.
func (f *folder) compareKnown(ctx context.Context, dir vfolder.Ino, l listing) error {
	if dir == 0 {
		return nil
	}
	ok := false
	err := f.r.db.View(func(tx *meta.Tx) error {
		n, err := tx.Inode(dir)
		if err != nil {
			return err
		}
		if !n.IsDir() || !n.Listed || n.Unhydrated {
			return nil
		}
		p, err := f.dirPrefix(tx, n, false)
		ok = p == l.prefix
		return err
	})
	if errors.Is(err, vfolder.KindStale) || errors.Is(err, vfolder.KindNotFound) || err == nil && !ok {
		return nil
	}
	if err != nil {
		return err
	}
	return f.compare(ctx, dir, l)
}
