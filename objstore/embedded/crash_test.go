package embedded_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/signer"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/objstore"
	"github.com/vfolder/vfolder/objstore/embedded"
	"github.com/vfolder/vfolder/objstore/storetest"
)

// body is what version v of an object holds, of a size that differs.
func body(v int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("version %08d\n", v)), 40_000+v%7*1000)
}

// TestKillWhileWriting kills the server in the middle of PUTs, self-copies and
// multipart uploads, again and again. Every object must then be a whole
// version, not older than the last one that was acknowledged.
func TestKillWhileWriting(t *testing.T) {
	const (
		rounds  = 6
		writers = 3
		// acks is how many writes are acknowledged before a kill.
		acks = 12
	)
	srv := storetest.NewEmbedded(t, t.TempDir())
	cfg := srv.Config()
	store := storetest.Open(t, cfg)
	var acked [writers]atomic.Int64 // last version acknowledged, of each writer
	var next [writers]int
	for round := range rounds {
		done := make(chan struct{}, 1024)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for ctx.Err() == nil {
					next[w]++
					v := next[w]
					if err := write(ctx, store, w, v); err != nil {
						return
					}
					acked[w].Store(int64(v))
					select {
					case done <- struct{}{}:
					default:
					}
				}
			})
		}
		for range acks {
			select {
			case <-done:
			case <-ctx.Done():
				t.Fatalf("round %d: the writers stand still", round)
			}
		}
		srv.Kill()
		cancel()
		wg.Wait()
		if err := srv.Start(); err != nil {
			t.Fatal(err)
		}
		for w := range writers {
			checkVersion(t, store, w, int(acked[w].Load()), next[w])
		}
		for in, err := range store.List(t.Context(), "", "", false) {
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(in.Key, "w/") {
				t.Errorf("round %d left %q among the objects", round, in.Key)
			}
		}
		checkTemporary(t, srv.Dir)
	}
}

func key(w int) string { return fmt.Sprintf("w/%d/deep/er/file", w) }

// write publishes version v by writer w, each writer in its own way.
func write(ctx context.Context, s objstore.Store, w, v int) error {
	b := body(v)
	meta := map[string]string{"v": fmt.Sprint(v)}
	switch w {
	case 0:
		_, err := s.Put(ctx, key(w), bytes.NewReader(b), int64(len(b)), objstore.PutOptions{Meta: meta})
		return err
	case 1:
		id, err := s.CreateUpload(ctx, key(w), objstore.PutOptions{Meta: meta})
		if err != nil {
			return err
		}
		p, err := s.UploadPart(ctx, key(w), id, 1, bytes.NewReader(b), 0, int64(len(b)))
		if err != nil {
			return err
		}
		_, err = s.CompleteUpload(ctx, key(w), id, []objstore.Part{p}, objstore.PutOptions{Meta: meta})
		return err
	default:
		// A change of attributes only: the bytes stay those of the first version.
		if v == 1 {
			_, err := s.Put(ctx, key(w), bytes.NewReader(b), int64(len(b)), objstore.PutOptions{Meta: meta})
			return err
		}
		_, err := s.Copy(ctx, key(w), key(w), objstore.CopyOptions{Meta: meta})
		return err
	}
}

func checkVersion(t *testing.T, s objstore.Store, w, acked, tried int) {
	t.Helper()
	rc, in, err := s.Get(t.Context(), key(w), 0, -1, "")
	if vfolder.KindOf(err) == vfolder.KindNotFound && acked == 0 {
		return
	}
	if err != nil {
		t.Fatalf("writer %d: %v, with version %d acknowledged", w, err, acked)
	}
	defer rc.Close()
	got, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	var v int
	if _, err := fmt.Sscan(in.Meta["v"], &v); err != nil || v < acked || v > tried {
		t.Errorf("writer %d: metadata %v, with version %d acknowledged", w, in.Meta, acked)
	}
	if w == 2 {
		v = 1
	}
	if !bytes.Equal(got, body(v)) {
		t.Errorf("writer %d: version %d has %d other bytes", w, v, len(got))
	}
}

// checkTemporary looks for what the start should have cleaned away.
func checkTemporary(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "data"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && strings.Contains(path, ".sgwtmp") && !strings.Contains(path, "multipart") && e.Type().IsRegular() {
			t.Errorf("left over: %s", path)
		}
		if err == nil && strings.HasSuffix(path, ".inprogress") {
			t.Errorf("not taken back: %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCutOffBody: a client that announces more bytes than it sends, without
// any checksum, replaces nothing.
func TestCutOffBody(t *testing.T) {
	cfg := storetest.Embedded(t)
	store := storetest.Open(t, cfg)
	if _, err := store.Put(t.Context(), "cut", strings.NewReader("the old version"), 15, objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	id, err := store.CreateUpload(t.Context(), "part", objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"/cut", "/part?partNumber=1&uploadId=" + id} {
		sendHalf(t, cfg, target)
	}
	rc, _, err := store.Get(t.Context(), "cut", 0, -1, "")
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if b, err := io.ReadAll(rc); err != nil || string(b) != "the old version" {
		t.Errorf("%q, %v", b, err)
	}
	half := md5.Sum(make([]byte, 500))
	_, err = store.CompleteUpload(t.Context(), "part", id, []objstore.Part{{Number: 1, ETag: hex.EncodeToString(half[:])}}, objstore.PutOptions{})
	if err == nil {
		t.Errorf("half a part was taken")
	}
}

// sendHalf sends 500 of 1,000 announced bytes and hangs up.
func sendHalf(t *testing.T, cfg objstore.Config, target string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+cfg.Endpoint+"/"+cfg.Bucket+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 1000
	req.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	req = signer.SignV4(*req, cfg.AccessKey, cfg.SecretKey, "", objstore.DefaultRegion)
	conn, err := net.Dial("tcp", cfg.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000\r\n", req.URL.RequestURI(), cfg.Endpoint)
	if err := req.Header.Write(conn); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(append([]byte("\r\n"), make([]byte, 500)...)); err != nil {
		t.Fatal(err)
	}
	// No more bytes come, while the answer can still be read: the server is
	// through with the request when it says so or hangs up too.
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err == nil {
		if resp.StatusCode == http.StatusOK {
			t.Errorf("PUT %s of half a body: %s", target, resp.Status)
		}
		resp.Body.Close()
	}
}

func TestServeRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  embedded.Config
		want vfolder.Kind
	}{
		{"no port", embedded.Config{Addr: "127.0.0.1:0", AccessKey: "a", SecretKey: "b"}, vfolder.KindInvalid},
		{"not loopback", embedded.Config{Addr: "0.0.0.0:9", AccessKey: "a", SecretKey: "b"}, vfolder.KindInvalid},
		{"no keys", embedded.Config{Addr: "127.0.0.1:9"}, vfolder.KindInvalid},
	} {
		tc.cfg.Dir = t.TempDir()
		if err := embedded.Serve(t.Context(), tc.cfg); vfolder.KindOf(err) != tc.want || err == nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// TestOneServerPerDirectory: the second one is told so.
func TestOneServerPerDirectory(t *testing.T) {
	srv := storetest.NewEmbedded(t, t.TempDir())
	addr, err := embedded.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	err = embedded.Serve(t.Context(), embedded.Config{Dir: srv.Dir, Addr: addr, AccessKey: "a", SecretKey: "b"})
	if vfolder.KindOf(err) != vfolder.KindBusy {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(srv.Dir, "lock")); err != nil {
		t.Error(err)
	}
}
