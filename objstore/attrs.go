package objstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// POSIX attributes ride on an object as user metadata, written in the two
// families that other tools read:
//
//	file-permissions=0100644 file-owner=1000 file-group=1000
//	file-mtime=1595002920123456789ns file-atime=...ns
//	mode=0100644 uid=1000 gid=1000 mtime=1595002920.123456789 rdev=259
//	xattr=<urlencode(JSON{name: base64})>
//
// and vfolder's own:
//
//	vfolder-id     which version of which inode this is (VID)
//	vfolder-link   id of the hard link group
//	vfolder-long   id of the directory that continues elsewhere
//	vfolder-name   the name, percent-encoded, of an object under a hashed segment
//	vfolder-ctime, vfolder-btime   nanoseconds, as file-mtime
//	vfolder-xattr  SHA-256 of the object under XattrPrefix with the extended
//	               attributes that did not fit
//
// When they are read the first family wins, then the second. The modes have
// exactly this spelling because it is the one that every tool reads alike, and
// mtime has nine digits behind the point, or none, because some take the
// digits as nanoseconds.

// MaxMetaBytes is how much metadata an object gets, in bytes of keys with
// their "x-amz-meta-" and values. S3 allows 2 KiB, some stores a little less.
const MaxMetaBytes = 1900

// XattrPrefix is where extended attributes lie that do not fit, each object
// under the SHA-256 of its body.
const XattrPrefix = vfolder.ReservedPrefix + "x/"

// Content types of what is not a plain file.
const (
	DirContentType     = "application/x-directory"
	DefaultContentType = "application/octet-stream"
)

// Attrs are what an object's metadata says of a file. Times are in nanoseconds
// since 1970; a zero Atime, Ctime or Btime is not written.
type Attrs struct {
	// Mode has the file type (S_IFMT) when vfolder wrote it; without one, the
	// object's key decides.
	Mode         uint32
	UID, GID     uint32
	Rdev         uint32
	Atime, Mtime int64
	Ctime, Btime int64

	VID    string // see ParseVID
	Link   string
	LongID string
	Name   string

	Xattrs map[string][]byte
	// XattrRef stands for Xattrs that lie elsewhere: see XattrKey.
	XattrRef string

	// Which of the attributes the metadata had.
	HasMode, HasOwner, HasMtime bool

	// Foreign is metadata that vfolder does not know; it is kept.
	Foreign map[string]string
}

// The metadata keys that vfolder writes, or reads as another tool's word for
// the same thing. All other keys are foreign.
const (
	keyPermissions = "file-permissions"
	keyOwner       = "file-owner"
	keyGroup       = "file-group"
	keyFileMtime   = "file-mtime"
	keyFileAtime   = "file-atime"
	keyMode        = "mode"
	keyUID         = "uid"
	keyGID         = "gid"
	keyMtime       = "mtime"
	keyAtime       = "atime"
	keyCtime       = "ctime"
	keyRdev        = "rdev"
	keyXattr       = "xattr"
	keyID          = "vfolder-id"
	keyLink        = "vfolder-link"
	keyLong        = "vfolder-long"
	keyName        = "vfolder-name"
	keyVCtime      = "vfolder-ctime"
	keyVBtime      = "vfolder-btime"
	keyXattrRef    = "vfolder-xattr"
)

var knownKeys = map[string]bool{
	keyPermissions: true, keyOwner: true, keyGroup: true, keyFileMtime: true, keyFileAtime: true,
	keyMode: true, keyUID: true, keyGID: true, keyMtime: true, keyAtime: true, keyCtime: true, keyRdev: true,
	keyXattr: true, keyID: true, keyLink: true, keyLong: true, keyName: true, keyVCtime: true, keyVBtime: true,
	keyXattrRef: true,
}

// MetaBytes is what metadata counts against MaxMetaBytes.
func MetaBytes(meta map[string]string) int {
	n := 0
	for k, v := range meta {
		n += len(metaHeader) + len(k) + len(v)
	}
	return n
}

// EncodeMeta writes a's metadata. Extended attributes that do not fit are
// returned as overflow: the caller stores EncodeXattrs(overflow) at its
// XattrKey, sets XattrRef and encodes again; with XattrRef set, Xattrs are not
// written. KindTooLarge: it does not fit even so (foreign metadata).
func EncodeMeta(a Attrs) (meta map[string]string, overflow map[string][]byte, err error) {
	meta = make(map[string]string, 16+len(a.Foreign))
	for k, v := range a.Foreign {
		if !knownKeys[k] {
			meta[k] = v
		}
	}
	if a.HasMode {
		mode := fmt.Sprintf("%07o", a.Mode)
		meta[keyPermissions], meta[keyMode] = mode, mode
		if t := a.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
			meta[keyRdev] = strconv.FormatUint(uint64(a.Rdev), 10)
		}
	}
	if a.HasOwner {
		uid, gid := strconv.FormatUint(uint64(a.UID), 10), strconv.FormatUint(uint64(a.GID), 10)
		meta[keyOwner], meta[keyUID] = uid, uid
		meta[keyGroup], meta[keyGID] = gid, gid
	}
	if a.HasMtime {
		meta[keyFileMtime], meta[keyMtime] = formatNanos(a.Mtime), formatSeconds(a.Mtime)
	}
	for _, f := range []struct {
		key string
		at  int64
	}{{keyFileAtime, a.Atime}, {keyVCtime, a.Ctime}, {keyVBtime, a.Btime}} {
		if f.at != 0 {
			meta[f.key] = formatNanos(f.at)
		}
	}
	for _, f := range []struct{ key, value string }{
		{keyID, a.VID}, {keyLink, a.Link}, {keyLong, a.LongID}, {keyName, percentEncode(a.Name)}, {keyXattrRef, a.XattrRef},
	} {
		if f.value != "" {
			meta[f.key] = f.value
		}
	}
	if len(a.Xattrs) > 0 && a.XattrRef == "" {
		value, ok := inlineXattrs(a.Xattrs)
		if ok && MetaBytes(meta)+len(metaHeader)+len(keyXattr)+len(value) < MaxMetaBytes {
			meta[keyXattr] = value
		} else {
			overflow = a.Xattrs
		}
	}
	if n := MetaBytes(meta); n >= MaxMetaBytes {
		return nil, nil, vfolder.Errorf(vfolder.KindTooLarge, "encode metadata", a.Name, "%d bytes of metadata do not fit into %d", n, MaxMetaBytes)
	}
	return meta, overflow, nil
}

// DecodeMeta reads an object's metadata (keys in lower case). What cannot be
// read is as if it were not there: another tool may have written it.
func DecodeMeta(meta map[string]string) Attrs {
	var a Attrs
	a.Mode, a.HasMode = parseMode(meta)
	uid, okUID := firstUint(meta, keyOwner, keyUID)
	gid, okGID := firstUint(meta, keyGroup, keyGID)
	if okUID && okGID {
		a.UID, a.GID, a.HasOwner = uid, gid, true
	}
	a.Rdev, _ = firstUint(meta, keyRdev)
	a.Mtime, a.HasMtime = firstTime(meta, keyFileMtime, keyMtime)
	a.Atime, _ = firstTime(meta, keyFileAtime, keyAtime)
	a.Ctime, _ = firstTime(meta, keyVCtime, keyCtime)
	a.Btime, _ = firstTime(meta, keyVBtime, "")
	a.VID, a.Link, a.LongID = meta[keyID], meta[keyLink], meta[keyLong]
	a.Name = nameOf(meta[keyName])
	if ref := meta[keyXattrRef]; isDigest(ref) {
		a.XattrRef = ref
	} else if v, ok := meta[keyXattr]; ok {
		a.Xattrs = parseInlineXattrs(v)
	}
	for k, v := range meta {
		if !knownKeys[k] {
			if a.Foreign == nil {
				a.Foreign = make(map[string]string)
			}
			a.Foreign[k] = v
		}
	}
	return a
}

// Merge is what an object carries after a rewrite: new, and of old what
// vfolder does not know.
func Merge(old, new map[string]string) map[string]string {
	m := make(map[string]string, len(old)+len(new))
	for k, v := range old {
		if !knownKeys[k] {
			m[k] = v
		}
	}
	maps.Copy(m, new)
	return m
}

func parseMode(meta map[string]string) (uint32, bool) {
	if s, ok := meta[keyPermissions]; ok {
		if m, err := strconv.ParseUint(s, 8, 32); err == nil && m <= 0o177777 {
			return uint32(m), true
		}
	}
	s, ok := meta[keyMode]
	if !ok {
		return 0, false
	}
	m, err := strconv.ParseUint(s, 0, 32)
	if err == nil && m <= 0o177777 && (m&unix.S_IFMT == 0 || validType(uint32(m))) {
		return uint32(m), true
	}
	// Octal without the leading zero.
	if m, err = strconv.ParseUint(s, 8, 32); err == nil && m <= 0o177777 {
		return uint32(m), true
	}
	return 0, false
}

func validType(mode uint32) bool {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		return true
	}
	return false
}

func firstUint(meta map[string]string, keys ...string) (uint32, bool) {
	for _, k := range keys {
		if n, err := strconv.ParseUint(meta[k], 10, 32); err == nil {
			return uint32(n), true
		}
	}
	return 0, false
}

// firstTime reads the nanoseconds of the first family, else the seconds of the
// second.
func firstTime(meta map[string]string, nanos, seconds string) (int64, bool) {
	if t, ok := parseNanos(meta[nanos]); ok {
		return t, true
	}
	return parseSeconds(meta[seconds])
}

func formatNanos(t int64) string { return strconv.FormatInt(t, 10) + "ns" }

// parseNanos reads "<nanoseconds>ns"; a bare number is in milliseconds.
func parseNanos(s string) (int64, bool) {
	digits, ns := strings.CutSuffix(s, "ns")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, false
	}
	if ns {
		return n, true
	}
	ms := int64(time.Millisecond)
	return n * ms, n*ms/ms == n
}

// formatSeconds writes seconds rounded down and the nanoseconds above them.
func formatSeconds(t int64) string {
	sec, ns := t/1e9, t%1e9
	if ns < 0 {
		sec, ns = sec-1, ns+1e9
	}
	if ns == 0 {
		return strconv.FormatInt(sec, 10)
	}
	return fmt.Sprintf("%d.%09d", sec, ns)
}

func parseSeconds(s string) (int64, bool) {
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return 0, false
	}
	var ns int64
	if frac != "" {
		// Fewer digits than nine are a decimal fraction, as rclone writes it.
		frac = (frac + "000000000")[:9]
		n, err := strconv.ParseUint(frac, 10, 32)
		if err != nil {
			return 0, false
		}
		ns = int64(n)
	}
	t := sec * 1e9
	if t/1e9 != sec || t+ns < t {
		return 0, false
	}
	return t + ns, true
}

// percentEncode writes any bytes as letters, digits, "-_.~" and "%XX".
func percentEncode(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// nameOf reads vfolder-name; what could not be a name is none.
func nameOf(s string) string {
	name, err := url.PathUnescape(s)
	if err != nil || len(name) > vfolder.MaxNameBytes || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return ""
	}
	return name
}

// inlineXattrs is the value of the xattr key; not ok for names that JSON
// cannot hold.
func inlineXattrs(x map[string][]byte) (string, bool) {
	for name := range x {
		if !utf8.ValidString(name) {
			return "", false
		}
	}
	b, err := marshal(x)
	if err != nil {
		return "", false
	}
	return url.QueryEscape(string(b)), true
}

func parseInlineXattrs(s string) map[string][]byte {
	plain, err := url.QueryUnescape(s)
	if err != nil {
		return nil
	}
	var x map[string][]byte
	if json.Unmarshal([]byte(plain), &x) != nil || !validXattrs(x) {
		return nil
	}
	return x
}

func validXattrs(x map[string][]byte) bool {
	for name, value := range x {
		if name == "" || len(name) > vfolder.MaxXattrNameBytes || strings.Contains(name, "\x00") || len(value) > vfolder.MaxXattrValueBytes {
			return false
		}
	}
	return true
}

// marshal writes JSON with sorted names and without HTML escapes.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// EncodeXattrs is the body of an object under XattrPrefix, and its SHA-256 in
// hex: JSON{percent-encoded name: base64}. Equal attributes are equal bodies.
func EncodeXattrs(x map[string][]byte) (body []byte, ref string, err error) {
	named := make(map[string][]byte, len(x))
	for name, value := range x {
		named[percentEncode(name)] = value
	}
	body, err = marshal(named)
	if err != nil {
		return nil, "", &vfolder.Error{Op: "encode extended attributes", Kind: vfolder.KindInvalid, Err: err}
	}
	sum := sha256.Sum256(body)
	return body, hex.EncodeToString(sum[:]), nil
}

// DecodeXattrs reads such a body; KindCorrupt when it is not the one that ref
// names, or no such body at all.
func DecodeXattrs(body []byte, ref string) (map[string][]byte, error) {
	sum := sha256.Sum256(body)
	if hex.EncodeToString(sum[:]) != ref {
		return nil, vfolder.Errorf(vfolder.KindCorrupt, "decode extended attributes", ref, "the object has another checksum than its name")
	}
	var named map[string][]byte
	if err := json.Unmarshal(body, &named); err != nil {
		return nil, &vfolder.Error{Op: "decode extended attributes", Kind: vfolder.KindCorrupt, Path: ref, Err: err}
	}
	x := make(map[string][]byte, len(named))
	for n, value := range named {
		name, err := url.PathUnescape(n)
		if err != nil {
			return nil, &vfolder.Error{Op: "decode extended attributes", Kind: vfolder.KindCorrupt, Path: ref, Err: err}
		}
		x[name] = value
	}
	if !validXattrs(x) {
		return nil, vfolder.Errorf(vfolder.KindCorrupt, "decode extended attributes", ref, "a name or value is out of its limits")
	}
	return x, nil
}

// XattrKey is the key of the object that an XattrRef names.
func XattrKey(ref string) string { return XattrPrefix + ref }

func isDigest(s string) bool {
	if len(s) != 2*sha256.Size {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}
