package objstore_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/objstore"
)

// goldenCase is one line of testdata/metadata.json, which is part of the
// format: what was written once must stay readable.
type goldenCase struct {
	Name  string            `json:"name"`
	Attrs objstore.Attrs    `json:"attrs"`
	Meta  map[string]string `json:"meta"`
}

func TestMetadataGolden(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "metadata.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []goldenCase
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) < 6 {
		t.Fatalf("only %d cases", len(cases))
	}
	for _, tc := range cases {
		t.Run(tc.Name, func(t *testing.T) {
			meta, over, err := objstore.EncodeMeta(tc.Attrs)
			if err != nil || over != nil {
				t.Fatal(over, err)
			}
			if !maps.Equal(meta, tc.Meta) {
				t.Errorf("encoded %q\nwant    %q", meta, tc.Meta)
			}
			if got := objstore.DecodeMeta(tc.Meta); !reflect.DeepEqual(got, tc.Attrs) {
				t.Errorf("decoded %+v\nwant    %+v", got, tc.Attrs)
			}
		})
	}
}

// What other tools write.
func TestDecodeMetaOfOthers(t *testing.T) {
	for _, tc := range []struct {
		name string
		meta map[string]string
		want objstore.Attrs
	}{
		{
			"s3fs",
			map[string]string{"mode": "33188", "uid": "1", "gid": "2", "mtime": "1595002920.000000001", "ctime": "1595002921", "atime": "1595002922.5"},
			objstore.Attrs{Mode: 0o100644, UID: 1, GID: 2, Mtime: 1595002920000000001, Ctime: 1595002921e9, Atime: 1595002922500000000, HasMode: true, HasOwner: true, HasMtime: true},
		},
		{"bare octal", map[string]string{"mode": "100664"}, objstore.Attrs{Mode: 0o100664, HasMode: true}},
		{
			"rclone",
			map[string]string{"mtime": "1595002920.25", "btime": "2020-07-17T16:22:00Z"},
			objstore.Attrs{Mtime: 1595002920250000000, HasMtime: true, Foreign: map[string]string{"btime": "2020-07-17T16:22:00Z"}},
		},
		{
			"file gateway in milliseconds",
			map[string]string{"file-permissions": "0750", "file-owner": "7", "file-group": "8", "file-mtime": "1595002920123"},
			objstore.Attrs{Mode: 0o750, UID: 7, GID: 8, Mtime: 1595002920123000000, HasMode: true, HasOwner: true, HasMtime: true},
		},
		{
			"first family first",
			map[string]string{"file-permissions": "0100600", "mode": "0100644", "file-mtime": "5ns", "mtime": "9"},
			objstore.Attrs{Mode: 0o100600, Mtime: 5, HasMode: true, HasMtime: true},
		},
		{"half an owner", map[string]string{"uid": "5"}, objstore.Attrs{}},
		{"rubbish", map[string]string{"mode": "rwx", "uid": "-1", "gid": "4294967296", "mtime": "yesterday", "xattr": "%7B", "vfolder-name": "a%2Fb", "vfolder-xattr": "x"}, objstore.Attrs{}},
	} {
		if got := objstore.DecodeMeta(tc.meta); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}

func TestXattrsOverflow(t *testing.T) {
	a := objstore.Attrs{Mode: 0o100644, HasMode: true, Xattrs: map[string][]byte{
		"user.big": make([]byte, 2000), "user.bad\xff": []byte("v"),
	}}
	meta, over, err := objstore.EncodeMeta(a)
	if err != nil || len(over) != 2 || meta["xattr"] != "" {
		t.Fatalf("%q, %d, %v", meta, len(over), err)
	}
	body, ref, err := objstore.EncodeXattrs(over)
	if err != nil {
		t.Fatal(err)
	}
	a.XattrRef = ref
	if meta, over, err = objstore.EncodeMeta(a); err != nil || over != nil || meta["vfolder-xattr"] != ref {
		t.Fatalf("%q, %d, %v", meta, len(over), err)
	}
	if got := objstore.DecodeMeta(meta); got.XattrRef != ref || got.Xattrs != nil {
		t.Errorf("%+v", got)
	}
	back, err := objstore.DecodeXattrs(body, ref)
	if err != nil || !reflect.DeepEqual(back, a.Xattrs) {
		t.Errorf("%d attributes, %v", len(back), err)
	}
	if _, err := objstore.DecodeXattrs(append(body, ' '), ref); vfolder.KindOf(err) != vfolder.KindCorrupt {
		t.Errorf("a changed body: %v", err)
	}
	if objstore.XattrKey(ref) != ".vfolder/x/"+ref {
		t.Errorf("key %q", objstore.XattrKey(ref))
	}
}

func TestMetadataLimit(t *testing.T) {
	_, _, err := objstore.EncodeMeta(objstore.Attrs{Foreign: map[string]string{"k": strings.Repeat("v", objstore.MaxMetaBytes)}})
	if vfolder.KindOf(err) != vfolder.KindTooLarge {
		t.Errorf("%v", err)
	}
}

func TestMerge(t *testing.T) {
	got := objstore.Merge(
		map[string]string{"mode": "0100600", "vfolder-link": "l", "theirs": "1", "both": "old"},
		map[string]string{"mode": "0100644", "both": "new"})
	if want := map[string]string{"mode": "0100644", "theirs": "1", "both": "new"}; !maps.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestVID(t *testing.T) {
	v := objstore.VID{Ino: 0x1f, Epoch: 2, Gen: 30, Nonce: objstore.NewNonce()}
	if got, err := objstore.ParseVID(v.String()); err != nil || got != v || !strings.HasPrefix(v.String(), "1f.2.30.") {
		t.Errorf("%v -> %v, %v", v, got, err)
	}
	for _, s := range []string{"", "1.2.3", "1.2.3.", "1.2.3.x", "01.2.3.a", "1.+2.3.a", "A.2.3.a", "1.2.3.4.5", "1.2.3." + strings.Repeat("a", 33), "1.2.99999999999999999999.a"} {
		if got, err := objstore.ParseVID(s); vfolder.KindOf(err) != vfolder.KindInvalid || err == nil {
			t.Errorf("ParseVID(%q) = %v, %v", s, got, err)
		}
	}
	if (objstore.VID{Epoch: 1, Gen: 9}).Compare(objstore.VID{Epoch: 2, Gen: 1}) >= 0 {
		t.Errorf("the epoch does not come first")
	}
}

func FuzzDecodeMeta(f *testing.F) {
	f.Add("mode", "0100644", "mtime", "1.5", "xattr", "%7B%22user.a%22%3A%22%22%7D")
	f.Add("file-permissions", "040755", "file-mtime", "-1ns", "vfolder-name", "%FF")
	f.Add("mtime", "9223372036.854775807", "file-atime", "9223372036854775807", "rdev", "4294967295")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, k3, v3 string) {
		a := objstore.DecodeMeta(map[string]string{k1: v1, k2: v2, k3: v3})
		meta, over, err := objstore.EncodeMeta(a)
		if err != nil || over != nil {
			return // foreign metadata or attributes without room
		}
		// What was understood once is understood again; rdev is written with
		// the modes that have one only.
		b := objstore.DecodeMeta(meta)
		a.Rdev, b.Rdev = 0, 0
		if len(a.Xattrs) == 0 {
			a.Xattrs, b.Xattrs = nil, nil
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%+v\nbecame %+v\nby %q", a, b, meta)
		}
	})
}
