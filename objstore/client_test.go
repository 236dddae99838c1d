package objstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/objstore"
)

// fakeStore opens a store whose every answer handler gives.
func fakeStore(t *testing.T, timeout time.Duration, handler http.HandlerFunc) objstore.Store {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead && strings.Trim(r.URL.Path, "/") == "bucket" {
			return
		}
		handler(w, r)
	}))
	t.Cleanup(srv.Close)
	s, err := objstore.Open(t.Context(), objstore.Config{
		Endpoint: srv.URL, Bucket: "bucket", AccessKey: "a", SecretKey: "secret-key", PathStyle: true,
		Capabilities: &objstore.Capabilities{ListEncoding: true}, Timeout: timeout, Stall: timeout,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestErrorKinds(t *testing.T) {
	for _, tc := range []struct {
		status int
		code   string
		want   vfolder.Kind
	}{
		{404, "NoSuchKey", vfolder.KindNotFound},
		{404, "NoSuchBucket", vfolder.KindUnreachable},
		{412, "PreconditionFailed", vfolder.KindConflict},
		{409, "ConditionalRequestConflict", vfolder.KindConflict},
		{409, "ObjectParentIsFile", vfolder.KindExists},
		{409, "ExistingObjectIsDirectory", vfolder.KindExists},
		{400, "XMinioParentIsObject", vfolder.KindExists},
		{400, "InvalidArgument", vfolder.KindInvalid},
		{400, "KeyTooLongError", vfolder.KindNameTooLong},
		{400, "EntityTooLarge", vfolder.KindTooLarge},
		{400, "BadDigest", vfolder.KindUnreachable},
		{403, "AccessDenied", vfolder.KindAccess},
		{403, "SignatureDoesNotMatch", vfolder.KindAccess},
		{429, "TooManyRequests", vfolder.KindUnreachable},
		{500, "InternalError", vfolder.KindUnreachable},
		{501, "NotImplemented", vfolder.KindUnsupported},
		{503, "SlowDown", vfolder.KindUnreachable},
	} {
		s := fakeStore(t, time.Minute, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(tc.status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>m</Message></Error>", tc.code)
		})
		_, err := s.Put(t.Context(), "k", strings.NewReader("v"), 1, objstore.PutOptions{})
		if vfolder.KindOf(err) != tc.want || err == nil {
			t.Errorf("%d %s on put: %v of kind %v", tc.status, tc.code, err, vfolder.KindOf(err))
		}
		if tc.status != 404 { // a missing key is deleted already
			if err := s.Delete(t.Context(), "k", objstore.Condition{}); vfolder.KindOf(err) != tc.want || err == nil {
				t.Errorf("%d %s on delete: %v of kind %v", tc.status, tc.code, err, vfolder.KindOf(err))
			}
		}
	}
}

// A listing of a bucket that is gone must not look like an empty one.
func TestListOfNoBucket(t *testing.T) {
	s := fakeStore(t, time.Minute, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) })
	n := 0
	for _, err := range s.List(t.Context(), "", "", false) {
		n++
		if vfolder.KindOf(err) != vfolder.KindUnreachable || err == nil {
			t.Errorf("%v", err)
		}
	}
	if n != 1 {
		t.Errorf("%d entries", n)
	}
}

// An answer of 200 with an error in its body is no success.
func TestCopyFailsInItsBody(t *testing.T) {
	s := fakeStore(t, time.Minute, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "<Error><Code>InternalError</Code><Message>m</Message></Error>")
	})
	_, err := s.Copy(t.Context(), "dst", "src", objstore.CopyOptions{})
	if vfolder.KindOf(err) != vfolder.KindUnreachable {
		t.Errorf("copy: %v", err)
	}
	_, err = s.CopyPart(t.Context(), "dst", "id", 1, "src", 0, 1, "")
	if vfolder.KindOf(err) != vfolder.KindUnreachable {
		t.Errorf("copy part: %v", err)
	}
	_, err = s.CompleteUpload(t.Context(), "dst", "id", []objstore.Part{{Number: 1, ETag: "e"}}, objstore.PutOptions{})
	if vfolder.KindOf(err) != vfolder.KindUnreachable {
		t.Errorf("complete: %v", err)
	}
}

// Nothing waits for ever: neither for an answer nor for a body.
func TestStalls(t *testing.T) {
	hang := make(chan struct{})
	s := fakeStore(t, 50*time.Millisecond, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/body") {
			w.Header().Set("Content-Length", "10")
			w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			_, _ = w.Write([]byte("half"))
			w.(http.Flusher).Flush()
		}
		<-hang
	})
	// Before the server closes, which waits for its handlers.
	t.Cleanup(func() { close(hang) })
	ctx := t.Context()
	_, putErr := s.Put(ctx, "k", strings.NewReader("v"), 1, objstore.PutOptions{})
	_, headErr := s.Head(ctx, "k")
	_, _, getErr := s.Get(ctx, "k", 0, -1, "")
	for op, err := range map[string]error{"put": putErr, "head": headErr, "get": getErr, "delete": s.Delete(ctx, "k", objstore.Condition{})} {
		if vfolder.KindOf(err) != vfolder.KindUnreachable || err == nil {
			t.Errorf("%s: %v", op, err)
		}
	}
	rc, _, err := s.Get(ctx, "body", 0, -1, "")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(rc)
	if string(b) != "half" || vfolder.KindOf(err) != vfolder.KindUnreachable {
		t.Errorf("%q, %v", b, err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	cancel(errors.New("enough"))
	if _, err := s.Head(ctx, "k"); vfolder.KindOf(err) != vfolder.KindInterrupted {
		t.Errorf("cancelled: %v", err)
	}
}

// A body that ends early is an error, not a short file.
func TestShortAnswer(t *testing.T) {
	s := fakeStore(t, time.Minute, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		_, _ = w.Write([]byte("half"))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	rc, _, err := s.Get(t.Context(), "k", 0, -1, "")
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if b, err := io.ReadAll(rc); vfolder.KindOf(err) != vfolder.KindUnreachable || err == nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestPartBytes(t *testing.T) {
	for _, size := range []int64{1, objstore.MinPartBytes, 1 << 40, vfolder.MaxFileBytes} {
		part := objstore.PartBytes(size)
		if n := (size + part - 1) / part; n > objstore.MaxParts || part < objstore.MinPartBytes || part%(1<<20) != 0 {
			t.Errorf("%d bytes in %d parts of %d", size, n, part)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := objstore.Open(t.Context(), objstore.Config{}); vfolder.KindOf(err) != vfolder.KindInvalid {
		t.Errorf("%v", err)
	}
	_, err := objstore.Open(t.Context(), objstore.Config{Endpoint: "127.0.0.1:1", Bucket: "bucket", Timeout: time.Second})
	if vfolder.KindOf(err) != vfolder.KindUnreachable {
		t.Errorf("%v", err)
	}
}
