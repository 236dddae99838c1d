package objstore_test

import (
	"strings"
	"testing"

	"github.com/vfolder/vfolder/objstore"
)

var codecs = []objstore.Codec{{}, {PlusInKeys: true}, {UTF8Keys: true}, {PlusInKeys: true, UTF8Keys: true}}

func TestCodecEncode(t *testing.T) {
	full := objstore.Codec{PlusInKeys: true, UTF8Keys: true}
	for _, tc := range []struct{ name, full, least string }{
		{"a.txt", "a.txt", "a.txt"},
		{"sp ace", "sp ace", "sp ace"},
		{"a\\b\"<>&", "a\\b\"<>&", "a\\b\"<>&"},
		{"c++", "c++", "c%2B%2B"},
		{"naïve 日本", "naïve 日本", "na%C3%AFve %E6%97%A5%E6%9C%AC"},
		{"bad\xff\xfe", "bad%FF%FE", "bad%FF%FE"},
		{"new\nline\x01\x7f", "new%0Aline%01%7F", "new%0Aline%01%7F"},
		{"\u202egpj", "%E2%80%AEgpj", "%E2%80%AEgpj"},
		{"100%", "100%", "100%"},
		{"100%25", "100%25", "100%25"},
		{"%41", "%41", "%41"},
		{"%2B", "%252B", "%252B"},
		{"%252B", "%25252B", "%25252B"},
		{"%2b", "%2b", "%2b"},
		{".", "%2E", "%2E"},
		{"..", "%2E%2E", "%2E%2E"},
		{" ..", " %2E%2E", " %2E%2E"},
		{"...", "...", "..."},
		{"%2E", "%252E", "%252E"},
		{".sgwtmp", "%2Esgwtmp", "%2Esgwtmp"},
		{"x__XLDIR__", "x__XLDIR_%5F", "x__XLDIR_%5F"},
		{"%~0123456789abcdef0123456789abcdef", "%25~0123456789abcdef0123456789abcdef", "%25~0123456789abcdef0123456789abcdef"},
		{"%~x", "%~x", "%~x"},
	} {
		if got, _ := full.Encode(tc.name); got != tc.full {
			t.Errorf("Encode(%q) = %q, want %q", tc.name, got, tc.full)
		}
		if got, _ := (objstore.Codec{}).Encode(tc.name); got != tc.least {
			t.Errorf("Encode(%q) for the least store = %q, want %q", tc.name, got, tc.least)
		}
		for _, c := range codecs {
			seg, hashed := c.Encode(tc.name)
			if back, ok := c.Decode(seg); back != tc.name || !ok || hashed {
				t.Errorf("%+v: %q -> %q -> %q, %v", c, tc.name, seg, back, ok)
			}
		}
	}
}

func TestCodecHashesLongSegments(t *testing.T) {
	c := objstore.Codec{PlusInKeys: true, UTF8Keys: true}
	if seg, hashed := c.Encode(strings.Repeat("n", 240)); hashed || len(seg) != 240 {
		t.Errorf("240 plain bytes: %q, %v", seg, hashed)
	}
	long := strings.Repeat("\xff", 100)
	seg, hashed := c.Encode(long)
	if !hashed || !objstore.IsHashed(seg) || len(seg) != 34 {
		t.Errorf("300 escaped bytes: %q, %v", seg, hashed)
	}
	if _, ok := c.Decode(seg); ok {
		t.Errorf("a hash decodes to a name")
	}
}

func TestCodecForeignSegments(t *testing.T) {
	c := objstore.Codec{PlusInKeys: true, UTF8Keys: true}
	for seg, want := range map[string]string{
		"a%2Eb": "a%2Eb", "\x01": "\x01", "": "%00", ".": "%2E", "..": "%2E%2E",
		"é%C3%A9": "é%C3%A9", "a\x00b": "a%00b",
	} {
		if name, ok := c.Decode(seg); ok || name != want {
			t.Errorf("Decode(%q) = %q, %v; want %q and not ok", seg, name, ok, want)
		}
	}
	got := c.Resolve([]string{"%2B", "+", "a", "%01", "\x01", "%~" + strings.Repeat("0", 32)})
	seen := map[string]string{}
	for seg, name := range got {
		if other, ok := seen[name]; ok {
			t.Errorf("%q and %q are both %q", seg, other, name)
		}
		seen[name] = seg
	}
	if len(got) != 5 || got["+"] != "+" || got["%01"] != "\x01" || !strings.HasPrefix(got["%2B"], "+~") {
		t.Errorf("resolved %q", got)
	}
}

func FuzzCodec(f *testing.F) {
	for _, s := range []string{"a", "%25%2B", "%2525", "é", "\xff%C3", "..", " . ", "%~0123456789abcdef0123456789abcdef", "%25~0123456789abcdef0123456789abcdef", "x__XLDIR__", "%00", "__XLDIR_%5F"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if s == "" || len(s) > 255 || strings.ContainsAny(s, "/\x00") {
			return
		}
		for _, c := range codecs {
			seg, hashed := c.Encode(s)
			if len(seg) > 240 || strings.ContainsAny(seg, "/\x00\n\x7f") || seg == "." || seg == ".." {
				t.Errorf("Encode(%q) = %q", s, seg)
			}
			if hashed != objstore.IsHashed(seg) {
				t.Errorf("Encode(%q) = %q, hashed %v", s, seg, hashed)
			}
			if hashed {
				continue
			}
			for _, d := range codecs {
				if back, ok := d.Decode(seg); back != s || !ok {
					t.Errorf("%q -> %q -> %q, %v", s, seg, back, ok)
				}
			}
			// Taken as a segment, s is a spelling or stands for itself.
			if name, ok := c.Decode(s); ok {
				one := false
				for _, d := range codecs {
					if again, _ := d.Encode(name); again == s {
						one = true
					}
				}
				if !one {
					t.Errorf("nothing writes %q for %q", s, name)
				}
			}
		}
	})
}
