package reconcile

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/objstore"
)

// memStore is an object store in memory with the semantics of the contract. It
// notes the order in which keys appear and go.
type memStore struct {
	mu      sync.Mutex
	objs    map[string]memObj
	uploads map[string]*memUpload
	next    int
	log     []string // "+key" a new key, "=key" a replacement, "-key" a removal
	caps    objstore.Capabilities
	now     func() time.Time
	strict  bool // a file system: "a" and "a/b" exclude each other
}

type memObj struct {
	body []byte
	in   objstore.Info
}

type memUpload struct {
	key   string
	o     objstore.PutOptions
	parts map[int][]byte
}

func newMemStore() *memStore {
	return &memStore{
		objs: map[string]memObj{}, uploads: map[string]*memUpload{}, now: time.Now, strict: true,
		caps: objstore.Capabilities{PutIfAbsent: true, PutIfMatch: true, CompleteIfAbsent: true, CompleteIfMatch: true, DeleteIfMatch: true, PlusInKeys: true, UTF8Keys: true, ListEncoding: true},
	}
}

func (m *memStore) fail(kind vfolder.Kind, op, key string) error {
	return &vfolder.Error{Op: op, Kind: kind, Path: key}
}

func (m *memStore) check(op, key string, c objstore.Condition) error {
	if len(key) > vfolder.MaxKeyBytes || key == "" {
		return m.fail(vfolder.KindNameTooLong, op, key)
	}
	o, ok := m.objs[key]
	if c.IfAbsent && ok {
		return m.fail(vfolder.KindConflict, op, key)
	}
	if c.IfMatch != "" && !ok {
		return m.fail(vfolder.KindNotFound, op, key)
	}
	if c.IfMatch != "" && o.in.ETag != c.IfMatch {
		return m.fail(vfolder.KindConflict, op, key)
	}
	if !m.strict || ok {
		return nil
	}
	for i := range len(key) {
		if key[i] == '/' && i < len(key)-1 {
			if _, ok := m.objs[key[:i]]; ok {
				return m.fail(vfolder.KindExists, op, key)
			}
		}
	}
	if _, ok := m.objs[strings.TrimSuffix(key, "/")]; ok && strings.HasSuffix(key, "/") {
		return m.fail(vfolder.KindExists, op, key)
	}
	if !strings.HasSuffix(key, "/") {
		for k := range m.objs {
			if strings.HasPrefix(k, key+"/") {
				return m.fail(vfolder.KindExists, op, key)
			}
		}
	}
	return nil
}

func (m *memStore) set(key string, body []byte, o objstore.PutOptions, etag string) objstore.Info {
	if _, ok := m.objs[key]; ok {
		m.log = append(m.log, "="+key)
	} else {
		m.log = append(m.log, "+"+key)
	}
	if etag == "" {
		sum := md5.Sum(body)
		etag = hex.EncodeToString(sum[:])
	}
	meta := map[string]string{}
	maps.Copy(meta, o.Meta)
	in := objstore.Info{Key: key, ETag: etag, Size: int64(len(body)), LastModified: m.now().Truncate(time.Millisecond).UTC(), ContentType: o.ContentType, Meta: meta, StorageClass: o.StorageClass}
	m.objs[key] = memObj{body, in}
	return in
}

func (m *memStore) Put(ctx context.Context, key string, body objstore.Body, size int64, o objstore.PutOptions) (objstore.Info, error) {
	b := make([]byte, size)
	if size > 0 {
		if _, err := io.ReadFull(io.NewSectionReader(body, 0, size), b); err != nil {
			return objstore.Info{}, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("put", key, o.Condition); err != nil {
		return objstore.Info{}, err
	}
	in := m.set(key, b, o, "")
	in.LastModified = time.Time{}
	return in, nil
}

func (m *memStore) Get(ctx context.Context, key string, off, length int64, ifMatch string) (io.ReadCloser, objstore.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objs[key]
	if !ok {
		return nil, objstore.Info{}, m.fail(vfolder.KindNotFound, "get", key)
	}
	if ifMatch != "" && o.in.ETag != ifMatch {
		return nil, objstore.Info{}, m.fail(vfolder.KindConflict, "get", key)
	}
	end := int64(len(o.body))
	if length >= 0 {
		end = min(end, off+length)
	}
	if off > end {
		return nil, objstore.Info{}, m.fail(vfolder.KindNoData, "get", key)
	}
	return io.NopCloser(bytes.NewReader(o.body[off:end])), o.in, nil
}

func (m *memStore) Head(ctx context.Context, key string) (objstore.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objs[key]
	if !ok {
		return objstore.Info{}, m.fail(vfolder.KindNotFound, "head", key)
	}
	in := o.in
	in.Meta = maps.Clone(in.Meta)
	return in, nil
}

func (m *memStore) List(ctx context.Context, prefix, startAfter string, delimited bool) iter.Seq2[objstore.Info, error] {
	m.mu.Lock()
	var out []objstore.Info
	seen := map[string]bool{}
	for _, k := range slices.Sorted(maps.Keys(m.objs)) {
		rest, ok := strings.CutPrefix(k, prefix)
		if !ok || k <= startAfter {
			continue
		}
		if i := strings.IndexByte(rest, '/'); delimited && i >= 0 {
			p := prefix + rest[:i+1]
			if !seen[p] {
				seen[p] = true
				out = append(out, objstore.Info{Key: p, IsPrefix: true})
			}
			continue
		}
		in := m.objs[k].in
		in.Meta, in.ContentType = nil, ""
		out = append(out, in)
	}
	m.mu.Unlock()
	return func(yield func(objstore.Info, error) bool) {
		for _, in := range out {
			if !yield(in, nil) {
				return
			}
		}
	}
}

func (m *memStore) Copy(ctx context.Context, dst, src string, o objstore.CopyOptions) (objstore.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.objs[src]
	if !ok {
		return objstore.Info{}, m.fail(vfolder.KindNotFound, "copy", src)
	}
	if o.SourceIfMatch != "" && s.in.ETag != o.SourceIfMatch {
		return objstore.Info{}, m.fail(vfolder.KindConflict, "copy", src)
	}
	if err := m.check("copy", dst, objstore.Condition{}); err != nil {
		return objstore.Info{}, err
	}
	put := objstore.PutOptions{Meta: o.Meta, ContentType: o.ContentType}
	if o.Meta == nil {
		put.Meta, put.ContentType = s.in.Meta, s.in.ContentType
	}
	return m.set(dst, s.body, put, ""), nil
}

func (m *memStore) Delete(ctx context.Context, key string, c objstore.Condition) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objs[key]
	if !ok {
		return nil
	}
	if c.IfMatch != "" && o.in.ETag != c.IfMatch {
		return m.fail(vfolder.KindConflict, "delete", key)
	}
	delete(m.objs, key)
	m.log = append(m.log, "-"+key)
	return nil
}

func (m *memStore) CreateUpload(ctx context.Context, key string, o objstore.PutOptions) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next++
	id := fmt.Sprint(m.next)
	m.uploads[id] = &memUpload{key, o, map[int][]byte{}}
	return id, nil
}

func (m *memStore) part(upload string, n int, b []byte) (objstore.Part, error) {
	u := m.uploads[upload]
	if u == nil {
		return objstore.Part{}, m.fail(vfolder.KindNotFound, "part", upload)
	}
	u.parts[n] = b
	sum := md5.Sum(b)
	return objstore.Part{Number: n, ETag: hex.EncodeToString(sum[:]), Size: int64(len(b))}, nil
}

func (m *memStore) UploadPart(ctx context.Context, key, upload string, n int, body objstore.Body, off, size int64) (objstore.Part, error) {
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(body, off, size), b); err != nil {
		return objstore.Part{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.part(upload, n, b)
}

func (m *memStore) CopyPart(ctx context.Context, key, upload string, n int, src string, off, size int64, srcIfMatch string) (objstore.Part, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.objs[src]
	if !ok {
		return objstore.Part{}, m.fail(vfolder.KindNotFound, "copy part", src)
	}
	if srcIfMatch != "" && s.in.ETag != srcIfMatch || off+size > int64(len(s.body)) {
		return objstore.Part{}, m.fail(vfolder.KindConflict, "copy part", src)
	}
	return m.part(upload, n, s.body[off:off+size])
}

func (m *memStore) CompleteUpload(ctx context.Context, key, upload string, parts []objstore.Part, o objstore.PutOptions) (objstore.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.uploads[upload]
	if u == nil {
		return objstore.Info{}, m.fail(vfolder.KindNotFound, "complete", key)
	}
	if err := m.check("complete", key, o.Condition); err != nil {
		return objstore.Info{}, err
	}
	var body []byte
	sums := md5.New()
	for _, p := range parts {
		body = append(body, u.parts[p.Number]...)
		sum := md5.Sum(u.parts[p.Number])
		sums.Write(sum[:])
	}
	delete(m.uploads, upload)
	in := m.set(key, body, u.o, fmt.Sprintf("%x-%d", sums.Sum(nil), len(parts)))
	in.LastModified = time.Time{}
	return in, nil
}

func (m *memStore) AbortUpload(ctx context.Context, key, upload string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.uploads, upload)
	return nil
}

func (m *memStore) Capabilities() objstore.Capabilities { return m.caps }

// foreign puts an object as another program would.
func (m *memStore) foreign(key, body string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set(key, []byte(body), objstore.PutOptions{ContentType: "text/plain", Meta: map[string]string{"color": "red"}}, "")
}

func (m *memStore) remove(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objs, key)
}

// keys lists what lies under a prefix, with the bodies of files.
func (m *memStore) tree(prefix string) map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]string{}
	for k, o := range m.objs {
		if rest, ok := strings.CutPrefix(k, prefix); ok && rest != "" {
			out[rest] = string(o.body)
		}
	}
	return out
}

func (m *memStore) order() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.log)
}
