package storetest

import (
	"bytes"
	"context"
	"io"
	"strings"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/objstore"
)

const partBytes = 5 << 20

func (t *suite) part(key, id string, n int, body []byte) objstore.Part {
	t.Helper()
	p, err := t.s.UploadPart(t.ctx, key, id, n, bytes.NewReader(body), 0, int64(len(body)))
	t.ok(err)
	return p
}

func (t *suite) multipart() {
	meta := map[string]string{"mode": "0100600"}
	first, tail := pattern(partBytes), []byte("the tail")
	id, err := t.s.CreateUpload(t.ctx, "mp", objstore.PutOptions{Meta: meta, ContentType: "text/x-mp"})
	t.ok(err)
	if keys := t.keys("", "", false); len(keys) != 0 {
		t.Errorf("an upload under way is listed: %q", keys)
	}
	p2 := t.part("mp", id, 2, tail)
	t.part("mp", id, 1, pattern(partBytes-1)) // replaced by the next
	p1 := t.part("mp", id, 1, first)
	_, err = t.s.CompleteUpload(t.ctx, "mp", id, []objstore.Part{p1, p2}, objstore.PutOptions{Meta: meta})
	t.ok(err)
	in, err := t.s.Head(t.ctx, "mp")
	t.ok(err)
	if in.Size != partBytes+8 || in.Meta["mode"] != "0100600" || in.ContentType != "text/x-mp" {
		t.Errorf("completed %+v", in)
	}
	if t.body("mp") != string(first)+string(tail) {
		t.Errorf("another body than the parts")
	}
	// Part copies, mixed with a sent one.
	id, err = t.s.CreateUpload(t.ctx, "mp2", objstore.PutOptions{})
	t.ok(err)
	c1, err := t.s.CopyPart(t.ctx, "mp2", id, 1, "mp", 8, partBytes, in.ETag)
	t.ok(err)
	_, err = t.s.CopyPart(t.ctx, "mp2", id, 2, "mp", 0, 8, "00000000000000000000000000000000")
	t.kind(err, vfolder.KindConflict)
	c2 := t.part("mp2", id, 2, []byte("end"))
	_, err = t.s.CompleteUpload(t.ctx, "mp2", id, []objstore.Part{c1, c2}, objstore.PutOptions{})
	t.ok(err)
	if t.body("mp2") != string(first[8:])+string(tail)+"end" {
		t.Errorf("another body than the copied range and the part")
	}
}

func (t *suite) multipartConditions() {
	old := t.put("k", "old")
	try := func(c objstore.Condition) error {
		id, err := t.s.CreateUpload(t.ctx, "k", objstore.PutOptions{})
		t.ok(err)
		p := t.part("k", id, 1, []byte("new"))
		_, err = t.s.CompleteUpload(t.ctx, "k", id, []objstore.Part{p}, objstore.PutOptions{Condition: c})
		t.ok(t.s.AbortUpload(t.ctx, "k", id))
		return err
	}
	t.kind(try(objstore.Condition{IfAbsent: true}), vfolder.KindConflict)
	t.kind(try(objstore.Condition{IfMatch: "00000000000000000000000000000000"}), vfolder.KindConflict)
	t.equal("body", t.body("k"), "old")
	t.ok(try(objstore.Condition{IfMatch: old.ETag}))
	t.equal("body", t.body("k"), "new")
	_, err := t.s.UploadPart(t.ctx, "k", "no-such-upload", 1, strings.NewReader("x"), 0, 1)
	t.kind(err, vfolder.KindNotFound)
	t.ok(t.s.AbortUpload(t.ctx, "k", "no-such-upload"))
}

func (t *suite) upload() {
	absent := objstore.Condition{IfAbsent: true}
	big := pattern(int(objstore.PutThreshold) + 100)
	for _, tc := range []struct {
		key  string
		body []byte
	}{{"u/empty", nil}, {"u/small", big[:1000]}, {"u/big", big}} {
		o := objstore.PutOptions{Meta: map[string]string{"k": "v"}, Condition: absent}
		in, err := objstore.Upload(t.ctx, t.s, tc.key, bytes.NewReader(tc.body), int64(len(tc.body)), o)
		t.ok(err)
		head, err := t.s.Head(t.ctx, tc.key)
		t.ok(err)
		if head.ETag != in.ETag || head.Meta["k"] != "v" || t.body(tc.key) != string(tc.body) {
			t.Errorf("%s: %+v", tc.key, head)
		}
		_, err = objstore.Upload(t.ctx, t.s, tc.key, bytes.NewReader(tc.body), int64(len(tc.body)), o)
		t.kind(err, vfolder.KindConflict)
	}
}

func (t *suite) copyConditional() {
	for _, body := range []string{"", "some bytes", string(pattern(partBytes + 3))} {
		_, err := t.s.Put(t.ctx, "src", strings.NewReader(body), int64(len(body)), objstore.PutOptions{
			ContentType: "text/x-c", Meta: map[string]string{"k": "v"},
		})
		t.ok(err)
		src, err := t.s.Head(t.ctx, "src")
		t.ok(err)
		o := objstore.CopyOptions{SourceIfMatch: src.ETag}
		absent := objstore.Condition{IfAbsent: true}
		t.ok(t.s.Delete(t.ctx, "dst", objstore.Condition{}))
		_, err = objstore.CopyConditional(t.ctx, t.s, "dst", "src", src.Size, o, absent)
		t.ok(err)
		in, err := t.s.Head(t.ctx, "dst")
		t.ok(err)
		if in.Meta["k"] != "v" || in.ContentType != "text/x-c" || t.body("dst") != body {
			t.Errorf("copy of %d bytes: %+v", len(body), in)
		}
		_, err = objstore.CopyConditional(t.ctx, t.s, "dst", "src", src.Size, o, absent)
		t.kind(err, vfolder.KindConflict)
		o.Meta, o.ContentType = map[string]string{"k": "w"}, "text/x-d"
		_, err = objstore.CopyConditional(t.ctx, t.s, "dst", "src", src.Size, o, objstore.Condition{IfMatch: in.ETag})
		t.ok(err)
		in, err = t.s.Head(t.ctx, "dst")
		t.ok(err)
		if in.Meta["k"] != "w" || in.ContentType != "text/x-d" {
			t.Errorf("copy with metadata: %+v", in)
		}
		o.SourceIfMatch = "00000000000000000000000000000000"
		_, err = objstore.CopyConditional(t.ctx, t.s, "other", "src", src.Size, o, absent)
		t.kind(err, vfolder.KindConflict)
	}
}

// shortBody: a body that ends early publishes nothing.
func (t *suite) shortBody() {
	t.put("short", "old")
	_, err := t.s.Put(t.ctx, "short", strings.NewReader("new"), 10, objstore.PutOptions{})
	if err == nil {
		t.Errorf("a short body was put")
	}
	_, err = t.s.Put(t.ctx, "short", &failingBody{}, 1<<20, objstore.PutOptions{})
	if err == nil {
		t.Errorf("an unreadable body was put")
	}
	t.equal("body", t.body("short"), "old")
}

type failingBody struct{ reads int }

// ReadAt reads well for the checksum and breaks off while sending.
func (b *failingBody) ReadAt(p []byte, off int64) (int, error) {
	if off == 0 {
		b.reads++
	}
	if b.reads > 1 && off > 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return min(len(p), int(1<<20-off)), nil
}

func (t *suite) cancelled() {
	ctx, cancel := context.WithCancel(t.ctx)
	cancel()
	_, err := t.s.Head(ctx, "x")
	t.kind(err, vfolder.KindInterrupted)
	_, err = t.s.Put(ctx, "x", strings.NewReader("x"), 1, objstore.PutOptions{})
	t.kind(err, vfolder.KindInterrupted)
	for _, err := range t.s.List(ctx, "", "", false) {
		t.kind(err, vfolder.KindInterrupted)
	}
}
