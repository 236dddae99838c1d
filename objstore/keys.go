package objstore

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/vfolder/vfolder"
)

// How a name becomes one segment of a key.
//
// A name is what POSIX allows: 1 to 255 bytes without '/' and NUL. Stores allow
// less, so some bytes are written as "%XX" with two upper-case hex digits:
//
//	always     control bytes (01-1F, 7F); bytes that are not UTF-8; the runes
//	           that keepRune refuses
//	by store   '+' where it does not list back (Capabilities.PlusInKeys), every
//	           byte above 7F where UTF-8 does not (Capabilities.UTF8Keys)
//	by name    the dots of a name that is "." or ".." but for blanks, the first
//	           dot of ".sgwtmp", the last '_' of a name ending in "__XLDIR__":
//	           some servers keep these for themselves
//	'%'        as "%25", only where what follows would else read as an escape:
//	           "50%" and "%41" stay as they are, "%2B" becomes "%252B"
//
// A segment longer than 240 bytes becomes "%~" and 32 hex digits of the name's
// SHA-256; the name itself rides in the metadata key vfolder-name. (Stores on a
// file system allow 255 bytes, and some put a suffix of their own behind the
// name of a directory.)
//
// Reading needs no knowledge of the store. A segment is a spelling when some
// store's rules would write it for the name it reads as. A name has more than
// one spelling only where it has '+' or non-ASCII letters, one for each kind of
// store, so that a bucket may move. What is not a spelling (made by another
// tool: a raw control byte, "%2E" where no dot needs it) stands for itself.

const (
	maxSegmentBytes = 240
	hashedPrefix    = "%~"
	hashedDigits    = 32
	hexDigits       = "0123456789ABCDEF"
)

// Codec turns names into key segments for one store. The zero value is for a
// store that keeps ASCII only, without '+'. It is safe for concurrent use.
type Codec struct {
	PlusInKeys bool
	UTF8Keys   bool
}

// NewCodec is the Codec for an endpoint.
func NewCodec(c Capabilities) Codec {
	return Codec{PlusInKeys: c.PlusInKeys, UTF8Keys: c.UTF8Keys}
}

// Encode returns the segment of a name. When hashed, the segment does not hold
// the name: the caller stores it in the object's metadata (Attrs.Name).
func (c Codec) Encode(name string) (seg string, hashed bool) {
	if name == "" {
		return "%00", false // no file has this name; a key may ("a//b")
	}
	seg = c.escape(name)
	if len(seg) <= maxSegmentBytes {
		return seg, false
	}
	sum := sha256.Sum256([]byte(name))
	return hashedPrefix + hex.EncodeToString(sum[:])[:hashedDigits], true
}

// IsHashed says whether a segment stands for a name that it does not hold.
func IsHashed(seg string) bool {
	rest, ok := strings.CutPrefix(seg, hashedPrefix)
	return ok && isHash(rest)
}

func isHash(s string) bool {
	if len(s) != hashedDigits {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' && s[i] < 'a' || s[i] > 'f' {
			return false
		}
	}
	return true
}

// Decode returns the name of a segment. ok is false when the segment is no
// spelling of a name: it is hashed (IsHashed) or foreign. The name is then the
// segment, made showable; another segment of the directory may have the same
// name, so that adopting a directory goes through Resolve.
func (Codec) Decode(seg string) (name string, ok bool) {
	if IsHashed(seg) {
		return seg, false
	}
	name = unescape(seg)
	if name != "" && len(name) <= vfolder.MaxNameBytes && !strings.Contains(name, "\x00") {
		for _, c := range [...]Codec{{true, true}, {false, true}, {true, false}, {false, false}} {
			if c.escape(name) == seg {
				return name, true
			}
		}
	}
	return showable(seg), false
}

// showable makes a foreign segment into a name that a directory may have.
func showable(seg string) string {
	switch seg {
	case "":
		return "%00"
	case ".":
		return "%2E"
	case "..":
		return "%2E%2E"
	}
	return strings.ReplaceAll(seg, "\x00", "%00")
}

// Resolve names the segments of one directory, each differently. The spelling
// that c writes has the name; of several others the first in byte order. What
// would take a name twice gets "~" and eight hex digits of its segment's
// SHA-256 behind it. Hashed segments are left out: their objects know.
func (c Codec) Resolve(segs []string) map[string]string {
	names := make(map[string]string, len(segs)) // by segment
	taken := make(map[string]string, len(segs)) // segment, by name
	place := func(seg, name string) {
		if first, ok := taken[name]; ok && first != seg {
			sum := sha256.Sum256([]byte(seg))
			name += "~" + hex.EncodeToString(sum[:4])
		}
		taken[name], names[seg] = seg, name
	}
	// rank 0: what c writes; 1: other spellings; 2: foreign.
	for rank := range 3 {
		for _, seg := range slices.Sorted(slices.Values(segs)) {
			if IsHashed(seg) {
				continue
			}
			name, ok := c.Decode(seg)
			r := 2
			if ok {
				r = 1
				if c.escape(name) == seg {
					r = 0
				}
			}
			if r == rank {
				place(seg, name)
			}
		}
	}
	return names
}

func (c Codec) escape(name string) string {
	if c.plain(name) {
		return name
	}
	var b strings.Builder
	b.Grow(len(name) + 16)
	r := reservedBytes(name)
	for i := 0; i < len(name); {
		switch ch := name[i]; {
		case ch == '%':
			if readsAsEscape(name[i:], i == 0) {
				b.WriteString("%25")
			} else {
				b.WriteByte('%')
			}
			i++
		case ch >= utf8.RuneSelf:
			ru, n := utf8.DecodeRuneInString(name[i:])
			keep := c.UTF8Keys && (ru != utf8.RuneError || n > 1) && keepRune(ru)
			for ; n > 0; n, i = n-1, i+1 {
				if keep {
					b.WriteByte(name[i])
				} else {
					writeEscape(&b, name[i])
				}
			}
		case ch < 0x20, ch == 0x7f, ch == '+' && !c.PlusInKeys, r.covers(name, i):
			writeEscape(&b, ch)
			i++
		default:
			b.WriteByte(ch)
			i++
		}
	}
	return b.String()
}

// plain is the fast path: letters, digits and the few bytes that every name
// has, which nothing but a reserved name makes special.
func (c Codec) plain(name string) bool {
	for i := range len(name) {
		switch ch := name[i]; {
		case ch >= 'a' && ch <= 'z', ch >= 'A' && ch <= 'Z', ch >= '0' && ch <= '9', ch == '-', ch == '_', ch == '.':
		default:
			return false
		}
	}
	return reservedBytes(name) == notReserved
}

func writeEscape(b *strings.Builder, ch byte) {
	b.WriteByte('%')
	b.WriteByte(hexDigits[ch>>4])
	b.WriteByte(hexDigits[ch&15])
}

// reserved says which bytes of a name are escaped because of the whole name.
type reserved uint8

const (
	notReserved reserved = iota
	everyDot
	firstByte
	lastByte
)

func reservedBytes(name string) reserved {
	switch trimmed := strings.TrimSpace(name); {
	case trimmed == "." || trimmed == "..":
		return everyDot
	case name == ".sgwtmp":
		return firstByte
	case strings.HasSuffix(name, "__XLDIR__"):
		return lastByte
	}
	return notReserved
}

func (r reserved) covers(name string, i int) bool {
	switch r {
	case everyDot:
		return name[i] == '.'
	case firstByte:
		return i == 0
	case lastByte:
		return i == len(name)-1
	}
	return false
}

// keepRune says whether a rune may stand in a key as it is. What it refuses is
// invisible, replaced, forbidden in XML or turns the direction of the text.
// The list is fixed: it must not grow with Unicode, or spellings would change.
func keepRune(r rune) bool {
	switch {
	case r < 0xa0, r == utf8.RuneError, r == 0x2028, r == 0x2029, r == 0xfeff,
		r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069,
		r >= 0xfdd0 && r <= 0xfdef, r&0xfffe == 0xfffe, r >= 0xe000 && r <= 0xf8ff, r >= 0xf0000:
		return false
	}
	return true
}

// readsAsEscape says whether s, which begins with '%', begins with an escape;
// at says that s is a whole segment, which a hash is.
func readsAsEscape(s string, at bool) bool {
	for {
		if at && IsHashed(s) {
			return true
		}
		ch, ok := hexByte(s)
		if !ok {
			return false
		}
		if ch != '%' {
			return escapable(ch)
		}
		// "%25" is an escaped '%' only if that '%' had to be escaped.
		s = "%" + s[3:]
	}
}

// escapable are the bytes other than '%' that some Codec escapes somewhere.
func escapable(ch byte) bool {
	return ch > 0 && ch < 0x20 || ch >= 0x7f || ch == '+' || ch == '.' || ch == '_'
}

// hexByte reads "%XX" with upper-case digits.
func hexByte(s string) (byte, bool) {
	if len(s) < 3 || s[0] != '%' {
		return 0, false
	}
	hi := strings.IndexByte(hexDigits, s[1])
	lo := strings.IndexByte(hexDigits, s[2])
	if hi < 0 || lo < 0 {
		return 0, false
	}
	return byte(hi<<4 | lo), true
}

func unescape(seg string) string {
	if !strings.Contains(seg, "%") {
		return seg
	}
	var b strings.Builder
	b.Grow(len(seg))
	for i := 0; i < len(seg); i++ {
		if seg[i] != '%' || !readsAsEscape(seg[i:], i == 0) {
			b.WriteByte(seg[i])
			continue
		}
		ch, ok := hexByte(seg[i:])
		if !ok { // a hash: Decode does not come here with one
			b.WriteByte('%')
			continue
		}
		b.WriteByte(ch)
		i += 2
	}
	return b.String()
}
