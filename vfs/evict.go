package vfs

import (
	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/meta"
)

// Evict drops the local bytes of a file that the bucket holds in the same
// version, and returns how many bytes of disk that gave back. KindBusy: they
// are needed, because the file has changes that are not published, or no bytes
// are here. Readers go on; what they read next is fetched again.
//
// The index says that the bytes are remote, durably, before they go.
func (fs *FS) Evict(ino vfolder.Ino) (int64, error) {
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	id, freed, err := fs.makeRemote(nd)
	if err != nil {
		return 0, err
	}
	if err := fs.db.Sync(); err != nil {
		return 0, err // the file is found and removed by the next collection of garbage
	}
	return freed, fs.content.Remove(id)
}

func (fs *FS) makeRemote(nd *node) (id content.ID, freed int64, err error) {
	n, err := fs.lock(nd)
	if err != nil {
		return id, 0, err
	}
	defer nd.mu.Unlock()
	busy := fail(vfolder.KindBusy, "evict", n.Name, "inode %d has no local bytes that the bucket has too", n.Ino)
	if !n.IsRegular() || n.Data == meta.DataRemote || nd.open {
		return id, 0, busy
	}
	if _, err = fs.openData(nd, n); err != nil {
		return id, 0, err
	}
	if !nd.absent {
		freed = nd.file.Blocks() * 512
	}
	id = nd.file.ID()
	_, err = fs.update(nd, func(tx *meta.Tx, n *meta.Inode) error {
		row, err := tx.Row(n.Base)
		if err != nil {
			return err
		}
		if n.Dirty || n.DataGen != id.Gen || row == nil || row.Absent || row.Ino != n.Ino || row.Gen != n.Gen || row.Size != n.Size {
			return busy
		}
		n.Data, n.Known, n.Boot = meta.DataRemote, nil, 0
		return tx.PutInode(n)
	})
	if err != nil {
		return id, 0, err
	}
	return id, freed, nd.closeFile()
}
