package objstore

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/vfolder/vfolder"
)

// VID identifies one version of one inode: it is what an ETag is not. It is
// written as "<ino, hex>.<epoch>.<generation>.<nonce>".
type VID struct {
	Ino uint64
	// Epoch is that of the folder's lease under which it was written.
	Epoch uint64
	// Gen counts the versions of the inode.
	Gen uint64
	// Nonce tells two writers of the same version apart: 1 to 32 hex digits.
	Nonce string
}

const maxNonce = 32

// NewNonce returns a random nonce of 16 digits.
func NewNonce() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	return hex.EncodeToString(b[:])
}

// String is the inverse of ParseVID.
func (v VID) String() string {
	return strconv.FormatUint(v.Ino, 16) + "." + strconv.FormatUint(v.Epoch, 10) + "." + strconv.FormatUint(v.Gen, 10) + "." + v.Nonce
}

// Compare orders the versions of one inode: by epoch, then generation. Equal
// ones with different nonces were written by two that each believed to be the
// only writer.
func (v VID) Compare(o VID) int {
	return cmp.Or(cmp.Compare(v.Epoch, o.Epoch), cmp.Compare(v.Gen, o.Gen))
}

// ParseVID reads the metadata key vfolder-id; KindInvalid when it is not what
// String writes.
func ParseVID(s string) (VID, error) {
	bad := func() (VID, error) {
		return VID{}, vfolder.Errorf(vfolder.KindInvalid, "parse version id", s, "it is not <ino>.<epoch>.<generation>.<nonce>")
	}
	f := strings.Split(s, ".")
	if len(f) != 4 || f[3] == "" || len(f[3]) > maxNonce || strings.Trim(f[3], "0123456789abcdef") != "" {
		return bad()
	}
	v := VID{Nonce: f[3]}
	for i, p := range []*uint64{&v.Ino, &v.Epoch, &v.Gen} {
		base := 10
		if i == 0 {
			base = 16
		}
		n, err := strconv.ParseUint(f[i], base, 64)
		if err != nil {
			return bad()
		}
		*p = n
	}
	if v.String() != s { // "+1", "01", "A"
		return bad()
	}
	return v, nil
}
