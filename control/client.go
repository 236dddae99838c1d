package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/vfolder/vfolder"
)

// Limits of the client.
const (
	dialTimeout = 5 * time.Second
	// callTimeout bounds a call whose answer is small. The daemon answers at
	// once or gives up on the store before that.
	callTimeout    = 2 * time.Minute
	maxAnswerBytes = 64 << 20
)

// Client talks to one daemon. Its methods may be called concurrently and end
// with their context. Their errors are *vfolder.Error with the Kind that the
// daemon gave; KindDaemon when it does not answer.
type Client struct {
	http   *http.Client
	socket string
}

// Dial makes a client of the daemon that listens on socket. Nothing is sent
// before the first call.
func Dial(socket string) *Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &Client{
		socket: socket,
		http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", socket)
			},
			DisableCompression: true,
			MaxIdleConns:       8,
			IdleConnTimeout:    idleTimeout / 2, // before the server closes it
		}},
	}
}

// Socket is where the daemon listens.
func (c *Client) Socket() string { return c.socket }

// Close drops idle connections.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Version asks which daemon this is.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	return v, c.call(ctx, "GET", "/version", nil, nil, &v)
}

// Folders lists the live folders by name.
func (c *Client) Folders(ctx context.Context) ([]Folder, error) {
	var list folderList
	return list.Folders, c.call(ctx, "GET", "/folders", nil, nil, &list)
}

// CreateFolder makes a folder.
func (c *Client) CreateFolder(ctx context.Context, name string) (Folder, error) {
	var f Folder
	return f, c.call(ctx, "POST", "/folders", nil, createRequest{name}, &f)
}

// Folder shows one folder.
func (c *Client) Folder(ctx context.Context, name string) (Folder, error) {
	var f Folder
	return f, c.call(ctx, "GET", folderPath(name, ""), nil, nil, &f)
}

// DeleteFolder puts a folder into the trash.
func (c *Client) DeleteFolder(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", folderPath(name, ""), nil, nil, nil)
}

// FolderStatus says how far the bucket is behind the folder.
func (c *Client) FolderStatus(ctx context.Context, name string) (FolderStatus, error) {
	var st FolderStatus
	return st, c.call(ctx, "GET", folderPath(name, "/status"), nil, nil, &st)
}

// PrepareFolder makes a folder ready for a session.
func (c *Client) PrepareFolder(ctx context.Context, name string) (Prepared, error) {
	var p Prepared
	return p, c.call(ctx, "POST", folderPath(name, "/prepare"), nil, nil, &p)
}

// Prepare is PrepareFolder as sessions want it.
func (c *Client) Prepare(ctx context.Context, name string) (hostPath string, readOnly bool, err error) {
	p, err := c.PrepareFolder(ctx, name)
	return p.Path, p.ReadOnly, err
}

// Sync returns when everything written in the folder before is in the bucket.
func (c *Client) Sync(ctx context.Context, name string, progress func(left int, bytes int64)) error {
	return c.stream(ctx, "POST", folderPath(name, "/sync"), nil, nil, func(e event) error {
		if e.Progress != nil && progress != nil {
			progress(e.Progress.Files, e.Progress.Bytes)
		}
		return nil
	})
}

// List calls yield for each entry of a directory, by name.
func (c *Client) List(ctx context.Context, folder, path string, yield func(Entry) error) error {
	return c.stream(ctx, "GET", folderPath(folder, "/entries"), url.Values{"path": {path}}, nil, func(e event) error {
		if e.Entry == nil {
			return nil
		}
		return yield(*e.Entry)
	})
}

// Stat describes one file or directory.
func (c *Client) Stat(ctx context.Context, folder, path string) (Entry, error) {
	var e Entry
	return e, c.call(ctx, "GET", folderPath(folder, "/stat"), url.Values{"path": {path}}, nil, &e)
}

// Read opens [off, off+length) of a file, to the end where length is negative.
// A body that ends early is an error of the reader. Close it.
func (c *Client) Read(ctx context.Context, folder, path string, off, length int64) (io.ReadCloser, error) {
	req, err := c.request(ctx, "GET", folderPath(folder, "/content"), url.Values{"path": {path}}, nil)
	if err != nil {
		return nil, err
	}
	switch {
	case length == 0:
		return io.NopCloser(bytes.NewReader(nil)), nil
	case length > 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+length-1))
	case off > 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", off))
	}
	resp, err := c.do(req)
	if err != nil {
		return nil, err
	}
	return &answerBody{resp.Body, c}, nil
}

// answerBody gives the errors of a body a Kind.
type answerBody struct {
	io.ReadCloser
	c *Client
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = b.c.cutOff(err)
	}
	return n, err
}

// Write makes or replaces a file, whole or not at all. size is the number of
// bytes in body, -1 when it is not known.
func (c *Client) Write(ctx context.Context, folder, path string, body io.Reader, size int64, o WriteOptions) (Entry, error) {
	q := url.Values{"path": {path}}
	if o.Mode != 0 {
		q.Set("mode", strconv.FormatUint(uint64(o.Mode), 8))
	}
	if o.Mtime != 0 {
		q.Set("mtime", strconv.FormatInt(o.Mtime, 10))
	}
	// The type hides a Close of body from net/http: it stays the caller's.
	source := &sourceReader{r: body}
	req, err := c.request(ctx, "PUT", folderPath(folder, "/content"), q, source)
	if err != nil {
		return Entry{}, err
	}
	req.ContentLength = size
	if size == 0 {
		req.Body = http.NoBody
	}
	if o.Exclusive {
		req.Header.Set("If-None-Match", "*")
	}
	resp, err := c.do(req)
	if source.err != nil {
		// The caller's own reader failed: that is the cause, whatever became of
		// the connection.
		if err == nil {
			resp.Body.Close()
		}
		return Entry{}, source.err
	}
	if err != nil {
		return Entry{}, err
	}
	var e Entry
	return e, c.answer(resp, &e)
}

// sourceReader remembers why its reader failed.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// Mkdir makes a directory, with those missing above it if parents.
func (c *Client) Mkdir(ctx context.Context, folder, path string, mode uint32, parents bool) (Entry, error) {
	q := url.Values{"path": {path}, "mode": {strconv.FormatUint(uint64(mode), 8)}, "parents": {strconv.FormatBool(parents)}}
	var e Entry
	return e, c.call(ctx, "POST", folderPath(folder, "/mkdir"), q, nil, &e)
}

// Symlink makes a symbolic link.
func (c *Client) Symlink(ctx context.Context, folder, path, target string) (Entry, error) {
	var e Entry
	return e, c.call(ctx, "POST", folderPath(folder, "/symlink"), url.Values{"path": {path}}, symlinkRequest{[]byte(target)}, &e)
}

// Status describes the daemon.
func (c *Client) Status(ctx context.Context) (DaemonStatus, error) {
	var st DaemonStatus
	return st, c.call(ctx, "GET", "/daemon", nil, nil, &st)
}

// Restart asks for a planned hand-over to a new worker.
func (c *Client) Restart(ctx context.Context) error {
	return c.call(ctx, "POST", "/daemon/restart", nil, nil, nil)
}

// Stop drains and ends the daemon and its mount. It returns when the daemon has
// accepted: the socket goes away a moment later.
func (c *Client) Stop(ctx context.Context, o StopOptions, progress func(Pending)) (StopResult, error) {
	var result StopResult
	err := c.stream(ctx, "POST", "/daemon/stop", nil, o, func(e event) error {
		if e.Progress != nil && progress != nil {
			progress(*e.Progress)
		}
		if e.Stopped != nil {
			result = *e.Stopped
		}
		return nil
	})
	return result, err
}

func folderPath(name, rest string) string { return "/folders/" + url.PathEscape(name) + rest }

// call is one request with a small answer.
func (c *Client) call(ctx context.Context, method, path string, q url.Values, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.send(ctx, method, path, q, in)
	if err != nil {
		return err
	}
	return c.answer(resp, out)
}

func (c *Client) stream(ctx context.Context, method, path string, q url.Values, in any, on func(event) error) error {
	resp, err := c.send(ctx, method, path, q, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return c.readStream(&answerBody{resp.Body, c}, on)
}

func (c *Client) send(ctx context.Context, method, path string, q url.Values, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, vfolder.Errorf(vfolder.KindInvalid, "request", path, "%w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := c.request(ctx, method, path, q, body)
	if err != nil {
		return nil, err
	}
	return c.do(req)
}

func (c *Client) request(ctx context.Context, method, path string, q url.Values, body io.Reader) (*http.Request, error) {
	target := "http://vfolder" + prefix + path
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, vfolder.Errorf(vfolder.KindInvalid, "request", path, "%w", err)
	}
	return req, nil
}

// do sends a request. An answer that is an error becomes one.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		if e := req.Context().Err(); e != nil {
			return nil, &vfolder.Error{Op: "daemon", Kind: kindOf(e), Path: c.socket, Err: e}
		}
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, &vfolder.Error{Op: "daemon", Kind: vfolder.KindDaemon, Path: c.socket, Err: reason(err), Fix: "vfolder daemon start"}
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	var body errorBody
	err = json.NewDecoder(io.LimitReader(resp.Body, maxBodyBytes)).Decode(&body)
	if err != nil || body.Error.Kind == "" {
		return nil, vfolder.Errorf(vfolder.KindDaemon, "daemon", c.socket, "it answered %s without saying why", resp.Status)
	}
	return nil, body.Error.toError()
}

// reason says in plain words why nobody answers.
func reason(err error) error {
	switch vfolder.KindOf(err) {
	case vfolder.KindNotFound:
		return errors.New("it is not running (there is no socket)")
	case vfolder.KindAccess:
		return errors.New("it belongs to another user")
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("it is not running (%w)", op.Err)
	}
	return err
}

// cutOff is the error of an answer that ended early.
func (c *Client) cutOff(err error) error {
	if kind := kindOf(err); kind == vfolder.KindInterrupted || kind == vfolder.KindTimeout {
		return &vfolder.Error{Op: "daemon", Kind: kind, Path: c.socket, Err: err}
	}
	return &vfolder.Error{Op: "daemon", Kind: vfolder.KindDaemon, Path: c.socket, Err: fmt.Errorf("its answer was cut off: %w", err)}
}

func (c *Client) answer(resp *http.Response, out any) error {
	defer resp.Body.Close()
	if out == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBodyBytes))
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswerBytes)).Decode(out); err != nil {
		return c.cutOff(err)
	}
	return nil
}
