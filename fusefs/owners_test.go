package fusefs

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/vfolder/vfolder"
)

func TestOwnerMap(t *testing.T) {
	const nobody = vfolder.NobodyID
	usual := []IDRange{{100000, 65536}}
	for _, c := range []struct {
		what         string
		m            OwnerMap
		host, stored uint32
		hostBack     uint32 // of stored
	}{
		{"zero value", OwnerMap{}, 123456, 123456, 123456},
		{"zero value, root", OwnerMap{}, 0, 0, 0},
		{"the user", NewOwnerMap(1234, 1234, usual, usual), 1234, 1000, 1234},
		{"root of a session", NewOwnerMap(1234, 1234, usual, usual), 100000, 0, 100000},
		{"below the user", NewOwnerMap(1234, 1234, usual, usual), 100999, 999, 100999},
		{"above the user", NewOwnerMap(1234, 1234, usual, usual), 101000, 1001, 101000},
		{"last of the range", NewOwnerMap(1234, 1234, usual, usual), 165535, 65536, 165535},
		{"root of the host", NewOwnerMap(1234, 1234, usual, usual), 0, nobody, 165533},
		{"no ranges", NewOwnerMap(1234, 1234, nil, nil), 100000, nobody, nobody},
		{"second range", NewOwnerMap(1234, 1234, []IDRange{{5000, 10}, {9000, 10}}, []IDRange{{5000, 10}, {9000, 10}}), 9001, 11, 9001},
		{"the user in a range", NewOwnerMap(5003, 5003, []IDRange{{5000, 10}}, []IDRange{{5000, 10}}), 5003, 1000, 5003},
	} {
		if u, g := c.m.ToStored(c.host, c.host); u != c.stored || g != c.stored {
			t.Errorf("%s: host %d is stored as %d:%d, want %d", c.what, c.host, u, g, c.stored)
		}
		if u, g := c.m.ToHost(c.stored, c.stored); u != c.hostBack || g != c.hostBack {
			t.Errorf("%s: stored %d is %d:%d on the host, want %d", c.what, c.stored, u, g, c.hostBack)
		}
	}
	inside := NewOwnerMap(5003, 5003, []IDRange{{5000, 10}}, nil)
	if u, _ := inside.ToHost(3, 3); u != nobody {
		t.Errorf("stored 3 is %d on the host, where it would be the user's", u)
	}
}

// Whatever the ranges, also overlapping ones around the user's own id: what is
// expressible on one side comes back from the other.
func TestOwnerMapIsBijective(t *testing.T) {
	small := rapid.Uint32Range(0, 2500)
	rapid.Check(t, func(t *rapid.T) {
		m := &idMap{self: small.Draw(t, "self"), stored: vfolder.SessionUID}
		for range rapid.IntRange(0, 4).Draw(t, "ranges") {
			m.ranges = append(m.ranges, IDRange{small.Draw(t, "start"), small.Draw(t, "count")})
		}
		seen := make(map[uint32]uint32)
		for id := range uint32(6000) {
			if stored, ok := m.toStored(id); ok {
				if back := m.toHost(stored); back != id {
					t.Fatalf("host %d is stored as %d, which is host %d", id, stored, back)
				}
			} else if stored != vfolder.NobodyID {
				t.Fatalf("host %d has no place and is stored as %d", id, stored)
			}
			host := m.toHost(id)
			if host == vfolder.NobodyID {
				continue
			}
			if other, ok := seen[host]; ok {
				t.Fatalf("stored %d and %d are both host %d", other, id, host)
			}
			seen[host] = id
		}
	})
}

func TestChangeOwner(t *testing.T) {
	m := &idMap{self: 1234, stored: vfolder.SessionUID, ranges: []IDRange{{100000, 65536}}}
	if id, err := m.change(100001); err != nil || id == nil || *id != 1 {
		t.Errorf("chown to a subordinate id: %v, %v", id, err)
	}
	if id, err := m.change(vfolder.NobodyID); err != nil || id != nil {
		t.Errorf("chown to nobody: %v, %v, want the owner kept", id, err)
	}
	if _, err := m.change(77); vfolder.KindOf(err) != vfolder.KindInvalid {
		t.Errorf("chown to a foreign id: %v", err)
	}
}
