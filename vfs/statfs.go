package vfs

import (
	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
)

// StatFS shows the disk that holds local bytes: what is not uploaded yet has to
// fit there. The bucket has no size to show.
func (fs *FS) StatFS(*fusefs.Request, vfolder.Ino) (fusefs.Statfs, error) {
	d, err := fs.content.Disk()
	if err != nil {
		return fusefs.Statfs{}, err
	}
	return fusefs.Statfs{
		BlockSize: vfolder.BlockBytes,
		Blocks:    uint64(d.Total / vfolder.BlockBytes),
		Free:      uint64(d.Free / vfolder.BlockBytes),
		Avail:     uint64(d.Avail / vfolder.BlockBytes),
		Files:     d.Files, FilesFree: d.FilesFree,
	}, nil
}
