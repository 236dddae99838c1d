package launcher

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"strings"
)

// mountEntry is a line of /proc/PID/mountinfo.
type mountEntry struct {
	device   string // major:minor; for FUSE it is the identity of the mount
	root     string // what of the file system is mounted
	point    string // where
	fstype   string
	readOnly bool // of this mount, not of the file system
	shared   bool
}

func (e mountEntry) isFUSE() bool {
	return e.fstype == "fuse" || strings.HasPrefix(e.fstype, "fuse.")
}

// parseMountinfo reads mountinfo lines; order is kept.
func parseMountinfo(r io.Reader) ([]mountEntry, error) {
	var entries []mountEntry
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		e, err := parseMountLine(scan.Text())
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, scan.Err()
}

func parseMountLine(line string) (mountEntry, error) {
	fields := strings.Fields(line)
	dash := -1
	for i, f := range fields {
		if i >= 6 && f == "-" {
			dash = i
			break
		}
	}
	if dash < 0 || len(fields) < dash+2 {
		return mountEntry{}, fmt.Errorf("not a mountinfo line: %q", line)
	}
	e := mountEntry{
		device: fields[2], root: unescape(fields[3]), point: unescape(fields[4]), fstype: fields[dash+1],
	}
	for opt := range strings.SplitSeq(fields[5], ",") {
		e.readOnly = e.readOnly || opt == "ro"
	}
	for _, tag := range fields[6:dash] {
		e.shared = e.shared || strings.HasPrefix(tag, "shared:")
	}
	return e, nil
}

// unescape takes back the kernel's \ooo of blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '7' {
			return false
		}
	}
	return s[0] <= '3'
}

// mountOf finds the mount that a clean absolute path is on: the deepest one,
// and of those on the same directory the last, which covers the others.
func mountOf(entries []mountEntry, p string) (mountEntry, bool) {
	var best mountEntry
	found := false
	for _, e := range entries {
		if (p == e.point || below(p, e.point)) && len(e.point) >= len(best.point) {
			best, found = e, true
		}
	}
	return best, found
}

// mountAt finds the mount whose mountpoint is exactly p: the last, as above.
func mountAt(entries []mountEntry, p string) (mountEntry, bool) {
	e, found := mountOf(entries, p)
	return e, found && e.point == p
}

// rootOf is what mountinfo's root field says for a bind of p, which is on e.
func rootOf(e mountEntry, p string) string {
	return path.Join(e.root, strings.TrimPrefix(p, e.point))
}
