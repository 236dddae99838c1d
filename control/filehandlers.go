package control

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/vfolder/vfolder"
)

// folderAndPath reads and cleans where in a folder a request points. Names are
// bytes, so a query parameter carries them percent-encoded.
func folderAndPath(r *http.Request) (folder, p string, q url.Values, err error) {
	folder, err = folderName(r)
	if err != nil {
		return "", "", nil, err
	}
	q, err = url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", "", nil, vfolder.Errorf(vfolder.KindInvalid, "request", r.URL.Path, "query: %w", err)
	}
	p, err = CleanPath(q.Get("path"))
	return folder, p, q, err
}

// CleanPath makes a path relative to its folder: no slash at either end, none
// twice, "." dropped. ".." is refused rather than resolved.
func CleanPath(p string) (string, error) {
	fail := func(kind vfolder.Kind, why string) (string, error) {
		return "", &vfolder.Error{Op: "path", Kind: kind, Path: p, Err: errors.New(why)}
	}
	if len(p) > vfolder.MaxPathBytes {
		return fail(vfolder.KindNameTooLong, fmt.Sprintf("it is longer than %d bytes", vfolder.MaxPathBytes))
	}
	if strings.ContainsRune(p, 0) {
		return fail(vfolder.KindInvalid, "it has a NUL byte")
	}
	for name := range strings.SplitSeq(p, "/") {
		switch {
		case name == "..":
			return fail(vfolder.KindInvalid, "'..' is not allowed")
		case len(name) > vfolder.MaxNameBytes:
			return fail(vfolder.KindNameTooLong, fmt.Sprintf("a name is longer than %d bytes", vfolder.MaxNameBytes))
		}
	}
	return strings.TrimPrefix(path.Clean("/"+p), "/"), nil
}

func (s *Server) listFiles(w http.ResponseWriter, r *http.Request) error {
	folder, p, _, err := folderAndPath(r)
	if err != nil {
		return err
	}
	stream := newStreamWriter(w)
	err = s.svc.Files.List(r.Context(), folder, p, func(e Entry) error {
		return stream.send(event{Entry: &e}, false)
	})
	return stream.end(event{}, err)
}

func (s *Server) statFile(w http.ResponseWriter, r *http.Request) error {
	folder, p, _, err := folderAndPath(r)
	if err != nil {
		return err
	}
	e, err := s.svc.Files.Stat(r.Context(), folder, p)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, e)
	return nil
}

// readFile sends a file's bytes, or one range of them. What goes wrong after
// the first byte can only cut the connection: the client sees a short body.
func (s *Server) readFile(w http.ResponseWriter, r *http.Request) error {
	folder, p, _, err := folderAndPath(r)
	if err != nil {
		return err
	}
	f, err := s.svc.Files.Read(r.Context(), folder, p)
	if err != nil {
		return err
	}
	defer f.Close()
	size := f.Entry().Size
	off, length, status, err := parseRange(r.Header.Get("Range"), size)
	if err != nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Length", strconv.FormatInt(length, 10))
	if status == http.StatusPartialContent {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+length-1, size))
	}
	if r.Method == http.MethodHead {
		w.WriteHeader(status)
		return nil
	}
	// The first piece is read before the status is sent, so that a file whose
	// bytes cannot be had is an error and not a short answer.
	buf := make([]byte, 256<<10)
	n, err := readAt(f, buf[:min(int64(len(buf)), length)], off)
	if err != nil {
		for _, name := range []string{"Content-Length", "Content-Range", "Accept-Ranges"} {
			h.Del(name)
		}
		return err
	}
	w.WriteHeader(status)
	out := &deadlineWriter{w, http.NewResponseController(w)}
	for {
		if _, err := out.Write(buf[:n]); err != nil {
			return nil
		}
		off, length = off+int64(n), length-int64(n)
		if length == 0 {
			return nil
		}
		n, err = readAt(f, buf[:min(int64(len(buf)), length)], off)
		if err != nil {
			s.log.Warn("control: read failed", "folder", folder, "path", p, "err", err)
			panic(http.ErrAbortHandler)
		}
	}
}

// readAt fills p or says why not: a file that became shorter is an error too.
func readAt(f io.ReaderAt, p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = &vfolder.Error{Op: "read", Kind: vfolder.KindBusy, Err: errors.New("the file became shorter meanwhile")}
	}
	return 0, err
}

// parseRange understands one range of bytes; anything else of that header is
// ignored, as its standard says.
func parseRange(header string, size int64) (off, length int64, status int, err error) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	if !ok || !dash || strings.Contains(spec, ",") {
		return 0, size, http.StatusOK, nil
	}
	unsatisfiable := vfolder.Errorf(vfolder.KindNoData, "range", header, "the file has %d bytes", size)
	if first == "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < 0 {
			return 0, size, http.StatusOK, nil
		}
		if n == 0 || size == 0 {
			return 0, 0, 0, unsatisfiable
		}
		n = min(n, size)
		return size - n, n, http.StatusPartialContent, nil
	}
	off, err = strconv.ParseInt(first, 10, 64)
	if err != nil || off < 0 {
		return 0, size, http.StatusOK, nil
	}
	end := size - 1
	if last != "" {
		if end, err = strconv.ParseInt(last, 10, 64); err != nil || end < off {
			return 0, size, http.StatusOK, nil
		}
		end = min(end, size-1)
	}
	if off >= size {
		return 0, 0, 0, unsatisfiable
	}
	return off, end - off + 1, http.StatusPartialContent, nil
}

func (s *Server) writeFile(w http.ResponseWriter, r *http.Request) error {
	folder, p, q, err := folderAndPath(r)
	if err != nil {
		return err
	}
	o := WriteOptions{Exclusive: r.Header.Get("If-None-Match") == "*"}
	if o.Mode, err = modeOf(q, 0); err != nil {
		return err
	}
	if text := q.Get("mtime"); text != "" {
		if o.Mtime, err = strconv.ParseInt(text, 10, 64); err != nil {
			return vfolder.Errorf(vfolder.KindInvalid, "request", p, "mtime is not a number of nanoseconds")
		}
	}
	if p == "" {
		return &vfolder.Error{Op: "write", Kind: vfolder.KindIsDir, Path: folder}
	}
	control := http.NewResponseController(w)
	body := io.Reader(&deadlineReader{r.Body, control})
	if r.ContentLength >= 0 {
		// net/http reports a body that was cut off; this one checks it as well.
		body = &exactReader{r: body, left: r.ContentLength}
	}
	e, err := s.svc.Files.Write(r.Context(), folder, p, body, o)
	_ = control.SetReadDeadline(time.Time{})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, e)
	return nil
}

// exactReader turns an early end into an error.
type exactReader struct {
	r    io.Reader
	left int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func modeOf(q url.Values, fallback uint32) (uint32, error) {
	text := q.Get("mode")
	if text == "" {
		return fallback, nil
	}
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mode > 0o7777 {
		return 0, vfolder.Errorf(vfolder.KindInvalid, "request", "", "mode %q is not an octal number up to 7777", text)
	}
	return uint32(mode), nil
}

func (s *Server) mkdir(w http.ResponseWriter, r *http.Request) error {
	folder, p, q, err := folderAndPath(r)
	if err != nil {
		return err
	}
	mode, err := modeOf(q, 0o755)
	if err != nil {
		return err
	}
	parents := q.Get("parents") == "true"
	if p == "" && !parents {
		return &vfolder.Error{Op: "mkdir", Kind: vfolder.KindExists, Path: folder}
	}
	e, err := s.svc.Files.Mkdir(r.Context(), folder, p, mode, parents)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, e)
	return nil
}

type symlinkRequest struct {
	Target []byte `json:"target"` // base64: a target is bytes
}

func (s *Server) symlink(w http.ResponseWriter, r *http.Request) error {
	folder, p, _, err := folderAndPath(r)
	if err != nil {
		return err
	}
	var req symlinkRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	target := string(req.Target)
	if p == "" || target == "" || len(target) > vfolder.MaxPathBytes || strings.ContainsRune(target, 0) {
		return vfolder.Errorf(vfolder.KindInvalid, "symlink", p, "a name and a target of at most %d bytes are needed", vfolder.MaxPathBytes)
	}
	e, err := s.svc.Files.Symlink(r.Context(), folder, p, target)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, e)
	return nil
}
