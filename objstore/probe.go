package objstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/vfolder/vfolder"
)

// ProbePrefix is where Probe puts its small objects, each run below a random
// name of its own. It removes them again; what a killed run left is harmless.
const ProbePrefix = vfolder.ReservedPrefix + "probe/"

// probeTimeout bounds a whole probe.
const probeTimeout = 2 * time.Minute

// noSuchETag is an ETag that no object has.
const noSuchETag = "00000000000000000000000000000000"

// probe collects the capabilities; the first unexpected error ends it.
type probe struct {
	ctx  context.Context
	c    *Client
	base string
	caps Capabilities
	err  error
}

// Probe finds out what the endpoint really does, with about thirty small
// requests below ProbePrefix. The result does not change until the endpoint
// does and may be kept as JSON (Config.Capabilities). An error is that of the
// first request that failed for another reason than the one looked for.
func Probe(ctx context.Context, c *Client) (Capabilities, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var r [8]byte
	_, _ = rand.Read(r[:])
	// A client of its own, since the steps switch its capabilities.
	mine := *c
	mine.caps = Capabilities{}
	p := &probe{ctx: ctx, c: &mine, base: ProbePrefix + hex.EncodeToString(r[:]) + "/"}
	defer p.clean()
	for _, step := range []func(){p.puts, p.completes, p.deletes, p.listEncoding, p.names, p.beside} {
		if step(); p.err != nil {
			return Capabilities{}, p.err
		}
	}
	return p.caps, nil
}

// put stores a small object and returns its ETag.
func (p *probe) put(key string, cond Condition) (string, error) {
	body := []byte("probe")
	in, err := p.c.Put(p.ctx, p.base+key, bytes.NewReader(body), int64(len(body)), PutOptions{Condition: cond})
	return in.ETag, err
}

// refused says whether err is the refusal of a condition. Being told that
// conditions are not implemented is a refusal of the feature: not the same.
func (p *probe) refused(err error) bool {
	switch vfolder.KindOf(err) {
	case vfolder.KindConflict:
		return err != nil
	case vfolder.KindUnsupported, vfolder.KindInvalid:
		return false
	}
	if err != nil && p.err == nil {
		p.err = err
	}
	return false
}

// works notes an error that has nothing to do with the question.
func (p *probe) works(err error) bool {
	switch {
	case err == nil:
		return true
	case vfolder.KindOf(err) == vfolder.KindUnreachable || vfolder.KindOf(err) == vfolder.KindAccess ||
		vfolder.KindOf(err) == vfolder.KindInterrupted:
		if p.err == nil {
			p.err = err
		}
	}
	return false
}

func (p *probe) puts() {
	etag, err := p.put("c", Condition{})
	if err != nil {
		p.err = err
		return
	}
	_, fresh := p.put("n", Condition{IfAbsent: true})
	_, again := p.put("c", Condition{IfAbsent: true})
	p.caps.PutIfAbsent = p.works(fresh) && p.refused(again)
	_, stale := p.put("c", Condition{IfMatch: noSuchETag})
	_, good := p.put("c", Condition{IfMatch: etag})
	p.caps.PutIfMatch = p.refused(stale) && p.works(good)
}

// complete publishes one small part at key "c", which exists, under cond.
func (p *probe) complete(key string, cond Condition) error {
	body := []byte("probe by parts")
	id, err := p.c.CreateUpload(p.ctx, p.base+key, PutOptions{})
	if err != nil {
		return err
	}
	part, err := p.c.UploadPart(p.ctx, p.base+key, id, 1, bytes.NewReader(body), 0, int64(len(body)))
	if err == nil {
		_, err = p.c.CompleteUpload(p.ctx, p.base+key, id, []Part{part}, PutOptions{Condition: cond})
	}
	if err != nil {
		_ = p.c.AbortUpload(p.ctx, p.base+key, id)
	}
	return err
}

func (p *probe) completes() {
	p.caps.CompleteIfAbsent = p.works(p.complete("m", Condition{IfAbsent: true})) &&
		p.refused(p.complete("c", Condition{IfAbsent: true}))
	in, err := p.c.Head(p.ctx, p.base+"c")
	if err != nil {
		p.err = err
		return
	}
	p.caps.CompleteIfMatch = p.refused(p.complete("c", Condition{IfMatch: noSuchETag})) &&
		p.works(p.complete("c", Condition{IfMatch: in.ETag}))
}

func (p *probe) deletes() {
	p.c.caps.DeleteIfMatch = true // so that the condition is sent
	defer func() { p.c.caps.DeleteIfMatch = false }()
	stale := p.refused(p.c.Delete(p.ctx, p.base+"c", Condition{IfMatch: noSuchETag}))
	in, err := p.c.Head(p.ctx, p.base+"c")
	if err != nil {
		p.works(err)
		return
	}
	p.caps.DeleteIfMatch = stale && p.works(p.c.Delete(p.ctx, p.base+"c", Condition{IfMatch: in.ETag}))
}

// lists reports which of the keys list back as they are.
func (p *probe) lists(keys ...string) bool {
	missing := make(map[string]bool, len(keys))
	for _, k := range keys {
		missing[p.base+k] = true
	}
	for in, err := range p.c.List(p.ctx, p.base, "", false) {
		if err != nil {
			p.works(err)
			return false
		}
		delete(missing, in.Key)
	}
	return len(missing) == 0
}

// probeASCII has the printable bytes that are trouble somewhere.
const probeASCII = "p +%41&=?#'\"<>;:,@$!*()[]{}|^~`x"

func (p *probe) listEncoding() {
	const key = "e +%2B%e"
	if _, err := p.put(key, Condition{}); err != nil {
		p.works(err)
		return
	}
	p.c.caps.ListEncoding = true
	p.caps.ListEncoding = p.lists(key)
	p.c.caps.ListEncoding = p.caps.ListEncoding
}

func (p *probe) names() {
	const utf8Key = "u é日本😀x"
	if _, err := p.put(probeASCII, Condition{}); p.works(err) {
		p.caps.PlusInKeys = p.lists(probeASCII)
	}
	if _, err := p.put(utf8Key, Condition{}); p.works(err) {
		p.caps.UTF8Keys = p.lists(utf8Key)
	}
}

func (p *probe) beside() {
	if _, err := p.put("b", Condition{}); !p.works(err) {
		return
	}
	if _, err := p.put("b/c", Condition{}); p.works(err) {
		p.caps.FileBesideDir = p.lists("b", "b/c")
	}
}

// clean removes whatever the probe made; it outlives a cancelled context by a
// bounded time.
func (p *probe) clean() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), abortTimeout)
	defer cancel()
	// Children first: stores that are file systems keep a parent that is full.
	for _, k := range []string{"c", "n", "m", "e +%2B%e", probeASCII, "u é日本😀x", "b/c", "b"} {
		_ = p.c.Delete(ctx, p.base+k, Condition{})
	}
}
