package fusefs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/vfolder/vfolder"
)

// IDRange is a run of subordinate ids of the host, as in /etc/subuid.
type IDRange struct{ Start, Count uint32 }

// OwnerMap translates between ids of the host and ids as stored. Stored ids
// are those that a session sees: its user is 1000, whoever that is on the
// host, and the i-th subordinate id of that user is i, or i+1 from 1000 on.
// The zero value is the identity, right for mounts made by root. It is
// immutable and safe for concurrent use.
type OwnerMap struct {
	uids, gids *idMap
}

// NewOwnerMap is the map of one host user with their subordinate ids, in the
// order of the files.
func NewOwnerMap(uid, gid uint32, subuids, subgids []IDRange) OwnerMap {
	return OwnerMap{
		uids: &idMap{self: uid, stored: vfolder.SessionUID, ranges: subuids},
		gids: &idMap{self: gid, stored: vfolder.SessionGID, ranges: subgids},
	}
}

// LoadOwnerMap reads a host user's subordinate ids from /etc/subuid and
// /etc/subgid. Root's map is the identity. A missing file is no ranges.
func LoadOwnerMap(uid, gid uint32) (OwnerMap, error) {
	if uid == 0 {
		return OwnerMap{}, nil
	}
	name := ""
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		name = u.Username
	}
	var ranges [2][]IDRange
	for i, path := range []string{"/etc/subuid", "/etc/subgid"} {
		f, err := os.Open(path)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return OwnerMap{}, &vfolder.Error{Op: "subordinate ids", Kind: vfolder.KindOf(err), Path: path, Err: err}
		}
		ranges[i], err = parseSubIDs(f, name, uid)
		_ = f.Close()
		if err != nil {
			return OwnerMap{}, &vfolder.Error{Op: "subordinate ids", Kind: vfolder.KindInvalid, Path: path, Err: err}
		}
	}
	return NewOwnerMap(uid, gid, ranges[0], ranges[1]), nil
}

// parseSubIDs reads the lines "USER:START:COUNT" of one user, named or by id.
func parseSubIDs(r io.Reader, name string, uid uint32) ([]IDRange, error) {
	var ranges []IDRange
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 3 || fields[0] == "" ||
			fields[0] != name && fields[0] != strconv.FormatUint(uint64(uid), 10) {
			continue
		}
		start, err1 := strconv.ParseUint(fields[1], 10, 32)
		count, err2 := strconv.ParseUint(fields[2], 10, 32)
		if err1 != nil || err2 != nil || start+count > 1<<32-1 {
			return nil, fmt.Errorf("line %d: not USER:START:COUNT: %q", n, line)
		}
		ranges = append(ranges, IDRange{Start: uint32(start), Count: uint32(count)})
	}
	return ranges, lines.Err()
}

// ToStored translates ids of the host. An id without a place is NobodyID.
func (m OwnerMap) ToStored(uid, gid uint32) (uint32, uint32) {
	u, _ := m.uids.toStored(uid)
	g, _ := m.gids.toStored(gid)
	return u, g
}

// ToHost translates stored ids. An id that the host cannot express is NobodyID.
func (m OwnerMap) ToHost(uid, gid uint32) (uint32, uint32) {
	return m.uids.toHost(uid), m.gids.toHost(gid)
}

// idMap is one half of an OwnerMap; nil is the identity.
type idMap struct {
	self   uint32 // the host user
	stored uint32 // their stored id
	ranges []IDRange
}

func (m *idMap) toStored(id uint32) (uint32, bool) {
	if m == nil {
		return id, true
	}
	if id == m.self {
		return m.stored, true
	}
	first := uint64(0) // index of the range's first id
	for _, r := range m.ranges {
		if id >= r.Start && id-r.Start < r.Count {
			i := first + uint64(id-r.Start)
			if i >= uint64(m.stored) {
				i++
			}
			if i >= 1<<32-1 {
				break
			}
			return uint32(i), true
		}
		first += uint64(r.Count)
	}
	return vfolder.NobodyID, false
}

func (m *idMap) toHost(id uint32) uint32 {
	if m == nil {
		return id
	}
	if id == m.stored {
		return m.self
	}
	i := uint64(id)
	if id > m.stored {
		i--
	}
	for _, r := range m.ranges {
		if i < uint64(r.Count) {
			// The user's own id may lie in a range, and ranges may overlap: two
			// stored ids must not become one host id.
			host := r.Start + uint32(i)
			if back, ok := m.toStored(host); ok && back == id {
				return host
			}
			return vfolder.NobodyID
		}
		i -= uint64(r.Count)
	}
	return vfolder.NobodyID
}

// change translates an id that chown(2) asks for; nil means that the stored id
// stays. NobodyID is what an inexpressible id was shown as: copying a file's
// owner back must not destroy it.
func (m *idMap) change(id uint32) (*uint32, error) {
	stored, ok := m.toStored(id)
	if ok {
		return &stored, nil
	}
	if id == vfolder.NobodyID {
		return nil, nil
	}
	return nil, vfolder.Errorf(vfolder.KindInvalid, "chown", "", "host id %d has no id in sessions", id)
}
