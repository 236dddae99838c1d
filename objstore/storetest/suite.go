package storetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/objstore"
)

// suiteTimeout ends a test whose store hangs.
const suiteTimeout = 2 * time.Minute

// Run proves the contract of objstore.Store on the stores that open returns,
// each of them empty.
func Run(t *testing.T, open func(t *testing.T) objstore.Store) {
	for _, tc := range []struct {
		name string
		run  func(*suite)
	}{
		{"put get head", (*suite).putGetHead},
		{"ranges", (*suite).ranges},
		{"missing", (*suite).missing},
		{"conditions", (*suite).conditions},
		{"race", (*suite).race},
		{"metadata", (*suite).metadata},
		{"list", (*suite).list},
		{"list pages", (*suite).listPages},
		{"odd keys", (*suite).oddKeys},
		{"bad keys", (*suite).badKeys},
		{"key shapes", (*suite).keyShapes},
		{"copy", (*suite).copies},
		{"delete", (*suite).deletes},
		{"multipart", (*suite).multipart},
		{"multipart conditions", (*suite).multipartConditions},
		{"upload", (*suite).upload},
		{"copy conditional", (*suite).copyConditional},
		{"short body", (*suite).shortBody},
		{"cancelled", (*suite).cancelled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), suiteTimeout)
			defer cancel()
			tc.run(&suite{T: t, ctx: ctx, s: open(t)})
		})
	}
}

type suite struct {
	*testing.T
	ctx context.Context
	s   objstore.Store
}

func (t *suite) ok(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (t *suite) kind(err error, want vfolder.Kind) {
	t.Helper()
	if err == nil || vfolder.KindOf(err) != want {
		t.Errorf("error %v of kind %v, want %v", err, vfolder.KindOf(err), want)
	}
}

func (t *suite) put(key, body string) objstore.Info {
	t.Helper()
	in, err := t.s.Put(t.ctx, key, strings.NewReader(body), int64(len(body)), objstore.PutOptions{})
	t.ok(err)
	return in
}

func (t *suite) putIf(key, body string, c objstore.Condition) error {
	_, err := t.s.Put(t.ctx, key, strings.NewReader(body), int64(len(body)), objstore.PutOptions{Condition: c})
	return err
}

func (t *suite) body(key string) string {
	t.Helper()
	rc, _, err := t.s.Get(t.ctx, key, 0, -1, "")
	t.ok(err)
	b, err := io.ReadAll(rc)
	t.ok(err)
	t.ok(rc.Close())
	return string(b)
}

func (t *suite) keys(prefix, after string, delimited bool) []string {
	t.Helper()
	var keys []string
	for in, err := range t.s.List(t.ctx, prefix, after, delimited) {
		t.ok(err)
		keys = append(keys, in.Key)
	}
	return keys
}

func (t *suite) equal(what string, got, want any) {
	t.Helper()
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func (t *suite) putGetHead() {
	const key = "f/dir/a b.txt"
	put, err := t.s.Put(t.ctx, key, strings.NewReader("hello"), 5, objstore.PutOptions{
		ContentType: "text/x-test", Meta: map[string]string{"mode": "0100644", "cache-control": "mine"},
	})
	t.ok(err)
	head, err := t.s.Head(t.ctx, key)
	t.ok(err)
	rc, got, err := t.s.Get(t.ctx, key, 0, -1, put.ETag)
	t.ok(err)
	b, err := io.ReadAll(rc)
	t.ok(err)
	t.ok(rc.Close())
	t.equal("body", string(b), "hello")
	for _, in := range []objstore.Info{put, head, got} {
		if in.Key != key || in.ETag == "" || in.ETag != put.ETag || in.Size != 5 || in.ContentType != "text/x-test" ||
			in.Meta["mode"] != "0100644" || in.Meta["cache-control"] != "mine" {
			t.Errorf("info %+v", in)
		}
	}
	if age := time.Since(head.LastModified); age < -time.Minute || age > time.Hour {
		t.Errorf("last modified %v", head.LastModified)
	}
	_, err = t.s.Put(t.ctx, "f/empty", nil, 0, objstore.PutOptions{})
	t.ok(err)
	_, err = t.s.Put(t.ctx, "f/dir/", nil, 0, objstore.PutOptions{ContentType: objstore.DirContentType})
	t.ok(err)
	t.equal("empty body", t.body("f/empty"), "")
	t.put(key, "again")
	t.equal("replaced body", t.body(key), "again")
}

func (t *suite) ranges() {
	in := t.put("r", "0123456789")
	for _, tc := range []struct {
		off, length int64
		want        string
	}{
		{0, -1, "0123456789"}, {0, 1, "0"}, {0, 10, "0123456789"}, {2, 3, "234"}, {7, -1, "789"}, {8, 100, "89"}, {9, 1, "9"}, {3, 0, ""},
	} {
		rc, got, err := t.s.Get(t.ctx, "r", tc.off, tc.length, in.ETag)
		t.ok(err)
		b, err := io.ReadAll(rc)
		t.ok(err)
		t.ok(rc.Close())
		if string(b) != tc.want || got.Size != 10 {
			t.Errorf("Get(%d, %d) = %q of %d bytes", tc.off, tc.length, b, got.Size)
		}
	}
	_, _, err := t.s.Get(t.ctx, "r", 10, 5, "")
	t.kind(err, vfolder.KindNoData)
	t.put("r", "replaced, and longer")
	_, _, err = t.s.Get(t.ctx, "r", 0, 5, in.ETag)
	t.kind(err, vfolder.KindConflict)
	_, _, err = t.s.Get(t.ctx, "r", 0, 0, in.ETag)
	t.kind(err, vfolder.KindConflict)
}

func (t *suite) missing() {
	_, err := t.s.Head(t.ctx, "none")
	t.kind(err, vfolder.KindNotFound)
	_, _, err = t.s.Get(t.ctx, "none", 0, -1, "")
	t.kind(err, vfolder.KindNotFound)
	_, err = t.s.Copy(t.ctx, "dst", "none", objstore.CopyOptions{})
	t.kind(err, vfolder.KindNotFound)
	t.ok(t.s.Delete(t.ctx, "none", objstore.Condition{}))
	t.ok(t.s.Delete(t.ctx, "none/below", objstore.Condition{}))
	if keys := t.keys("none", "", false); len(keys) != 0 {
		t.Errorf("listed %q", keys)
	}
}

func (t *suite) conditions() {
	absent := objstore.Condition{IfAbsent: true}
	t.ok(t.putIf("c", "1", absent))
	t.kind(t.putIf("c", "2", absent), vfolder.KindConflict)
	in, err := t.s.Head(t.ctx, "c")
	t.ok(err)
	match := objstore.Condition{IfMatch: in.ETag}
	t.ok(t.putIf("c", "3", match))
	t.kind(t.putIf("c", "4", match), vfolder.KindConflict)
	t.equal("body", t.body("c"), "3")
	err = t.putIf("never", "5", match)
	if k := vfolder.KindOf(err); err == nil || k != vfolder.KindConflict && k != vfolder.KindNotFound {
		t.Errorf("If-Match on a missing key: %v", err)
	}
}

// race: of many that create or replace the same version, one wins.
func (t *suite) race() {
	const writers = 8
	for _, tc := range []struct {
		name string
		cond func() objstore.Condition
	}{
		{"create", func() objstore.Condition { return objstore.Condition{IfAbsent: true} }},
		{"replace", func() objstore.Condition { return objstore.Condition{IfMatch: t.put("race/replace", "old").ETag} }},
	} {
		cond := tc.cond()
		var wins atomic.Int64
		var winner atomic.Value
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				body := fmt.Sprint("writer ", i)
				err := t.putIf("race/"+tc.name, body, cond)
				switch {
				case err == nil:
					wins.Add(1)
					winner.Store(body)
				case vfolder.KindOf(err) != vfolder.KindConflict:
					t.Errorf("writer %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 {
			t.Fatalf("%s: %d winners", tc.name, wins.Load())
		}
		t.equal(tc.name, t.body("race/"+tc.name), winner.Load())
	}
}

func (t *suite) metadata() {
	meta, _, err := objstore.EncodeMeta(objstore.Attrs{
		Mode: 0o100640, UID: 1000, GID: 1000, Mtime: 1595002920123456789, Atime: 1, Ctime: 2, Btime: 3,
		HasMode: true, HasOwner: true, HasMtime: true, VID: "1f.2.3.00ff", Name: strings.Repeat("\xff", 255),
		Xattrs: map[string][]byte{"user.a": bytes.Repeat([]byte{7}, 200)},
	})
	t.ok(err)
	for k := 0; objstore.MetaBytes(meta) < objstore.MaxMetaBytes-60; k++ {
		meta[fmt.Sprint("pad", k)] = strings.Repeat("p", 20)
	}
	_, err = t.s.Put(t.ctx, "m", strings.NewReader("x"), 1, objstore.PutOptions{Meta: meta})
	t.ok(err)
	in, err := t.s.Head(t.ctx, "m")
	t.ok(err)
	for k, v := range meta {
		if in.Meta[k] != v {
			t.Errorf("%s came back as %q, not %q", k, in.Meta[k], v)
		}
	}
}

func (t *suite) list() {
	all := []string{"l/a", "l/a-b", "l/a0", "l/b/x", "l/b/y/z", "l/c", "l/d/", "l/d/e"}
	for _, k := range slices.Backward(all) {
		if strings.HasSuffix(k, "/") {
			t.put(k, "")
			continue
		}
		t.put(k, "x")
	}
	t.put("l2", "x")
	t.equal("flat", t.keys("l/", "", false), all)
	t.equal("flat, after a key", t.keys("l/", "l/a0", false), all[3:])
	t.equal("flat, after no key", t.keys("l/", "l/bb", false), all[5:])
	t.equal("prefix inside a name", t.keys("l/a", "", false), all[:3])
	t.equal("delimited", t.keys("l/", "", true), []string{"l/a", "l/a-b", "l/a0", "l/b/", "l/c", "l/d/"})
	t.equal("top", t.keys("", "", true), []string{"l/", "l2"})
	for in, err := range t.s.List(t.ctx, "l/", "", true) {
		t.ok(err)
		if in.IsPrefix != strings.HasSuffix(in.Key, "/") {
			t.Errorf("%q: prefix %v", in.Key, in.IsPrefix)
		}
		if !in.IsPrefix && (in.Size != 1 || in.ETag == "" || strings.Contains(in.ETag, `"`) || in.LastModified.IsZero()) {
			t.Errorf("entry %+v", in)
		}
	}
	n := 0
	for range t.s.List(t.ctx, "l/", "", false) {
		if n++; n == 2 {
			break
		}
	}
}

// listPages: more keys than a page has, objects and prefixes mixed.
func (t *suite) listPages() {
	const n = 1030
	var want []string
	jobs := make(chan int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range jobs {
				key := fmt.Sprintf("p/%04d", i)
				if i%10 == 0 {
					key += "/x"
				}
				if err := t.putIf(key, "x", objstore.Condition{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		jobs <- i
		if key := fmt.Sprintf("p/%04d", i); i%10 == 0 {
			want = append(want, key+"/")
		} else {
			want = append(want, key)
		}
	}
	close(jobs)
	wg.Wait()
	t.equal("delimited", t.keys("p/", "", true), want)
	if got := t.keys("p/", "", false); len(got) != n || !slices.IsSorted(got) {
		t.Errorf("%d keys, sorted %v", len(got), slices.IsSorted(got))
	}
}

// oddKeys: every name that the codec writes is stored, listed and found again,
// as an object, as a directory marker and as a directory.
func (t *suite) oddKeys() {
	c := objstore.NewCodec(t.s.Capabilities())
	names := []string{
		" ", " a", "a ", ". ", " ..", ".", "..", "...", "a\\b", "a%b", "%2E", "%2b", "100%25", "%", "+", "a+b", "a\tb", "a\x01b",
		"a\x7fb", "bad\xff\xfe", "é", "e\u0301", "日本", "😀", "\u200d", "\u202e", "\ufffd", "\U0010ffff", "\u0085", "\u2028",
		"xl.meta", ".sgwtmp", ".vgwlocks", "~", "%~", "a:b", "x__XLDIR__", "a\"b'<c>&d", "a\nb", "a\rb", "a?b#c=d&e", "a*b|c", "[x]{y}^`",
		strings.Repeat("n", 240), strings.Repeat("n", 255), strings.Repeat("é", 120), strings.Repeat("\xff", 200),
	}
	for _, name := range names {
		seg, hashed := c.Encode(name)
		want := []string{"o/" + seg, "d/" + seg + "/", "e/" + seg + "/f"}
		t.put(want[0], "v1")
		t.put(want[0], "v2") // replacing is another way than creating on some
		t.put(want[1], "")
		t.put(want[2], "x")
		t.equal("body of "+want[0], t.body(want[0]), "v2")
		var got []string
		for _, p := range []string{"o/", "d/", "e/"} {
			got = append(got, t.keys(p, "", false)...)
		}
		t.equal(fmt.Sprintf("keys of %q", name), got, want)
		if back, ok := c.Decode(seg); !hashed && (!ok || back != name) {
			t.Errorf("%q -> %q -> %q", name, seg, back)
		}
		_, err := t.s.Copy(t.ctx, "copied", want[0], objstore.CopyOptions{})
		t.ok(err)
		for _, k := range want {
			t.ok(t.s.Delete(t.ctx, k, objstore.Condition{}))
		}
	}
}

func (t *suite) badKeys() {
	for key, want := range map[string]vfolder.Kind{
		"": vfolder.KindInvalid, "/a": vfolder.KindInvalid, "bad\xff": vfolder.KindInvalid,
		strings.Repeat("k/", 513): vfolder.KindNameTooLong,
	} {
		t.kind(t.putIf(key, "x", objstore.Condition{}), want)
		_, err := t.s.Head(t.ctx, key)
		t.kind(err, want)
	}
}

// keyShapes: a file where a directory is, or below a file, is KindExists where
// the store has no room for both, never KindConflict.
func (t *suite) keyShapes() {
	t.put("s/file", "x")
	t.put("s/dir/x", "x")
	below := t.putIf("s/file/y", "x", objstore.Condition{IfAbsent: true})
	over := t.putIf("s/dir", "x", objstore.Condition{IfAbsent: true})
	for _, err := range []error{below, over} {
		if err != nil {
			t.kind(err, vfolder.KindExists)
		} else if !t.s.Capabilities().FileBesideDir && below != nil && over != nil {
			t.Errorf("allowed without FileBesideDir")
		}
	}
	t.equal("file", t.body("s/file"), "x")
}

func (t *suite) copies() {
	src, err := t.s.Put(t.ctx, "src", strings.NewReader("data"), 4, objstore.PutOptions{
		ContentType: "text/x-a", Meta: map[string]string{"a": "1", "foreign": "f"},
	})
	t.ok(err)
	_, err = t.s.Copy(t.ctx, "dst/keep", "src", objstore.CopyOptions{SourceIfMatch: src.ETag})
	t.ok(err)
	in, err := t.s.Head(t.ctx, "dst/keep")
	t.ok(err)
	if in.Meta["a"] != "1" || in.ContentType != "text/x-a" || in.Size != 4 {
		t.Errorf("copy %+v", in)
	}
	for _, dst := range []string{"dst/new", "src"} { // onto itself too
		_, err = t.s.Copy(t.ctx, dst, "src", objstore.CopyOptions{
			SourceIfMatch: src.ETag, Meta: map[string]string{"b": "2"}, ContentType: "text/x-b",
		})
		t.ok(err)
		in, err = t.s.Head(t.ctx, dst)
		t.ok(err)
		if in.Meta["b"] != "2" || in.Meta["a"] != "" || in.ContentType != "text/x-b" {
			t.Errorf("copy to %s: %+v", dst, in)
		}
		t.equal("body", t.body(dst), "data")
	}
	t.put("src", "other")
	_, err = t.s.Copy(t.ctx, "dst/stale", "src", objstore.CopyOptions{SourceIfMatch: src.ETag})
	t.kind(err, vfolder.KindConflict)
}

func (t *suite) deletes() {
	old := t.put("d/x", "1")
	t.put("d/x", "2")
	t.kind(t.s.Delete(t.ctx, "d/x", objstore.Condition{IfMatch: old.ETag}), vfolder.KindConflict)
	in, err := t.s.Head(t.ctx, "d/x")
	t.ok(err)
	t.ok(t.s.Delete(t.ctx, "d/x", objstore.Condition{IfMatch: in.ETag}))
	_, err = t.s.Head(t.ctx, "d/x")
	t.kind(err, vfolder.KindNotFound)
	t.ok(t.s.Delete(t.ctx, "d/x", objstore.Condition{IfMatch: in.ETag}))
}

// pattern is a body of random bytes.
func pattern(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), 1))
	for i := 0; i+8 <= n; i += 8 {
		v := r.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b
}
