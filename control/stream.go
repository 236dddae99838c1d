package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/vfolder/vfolder"
)

// maxLineBytes bounds one line of a stream.
const maxLineBytes = 256 << 10

// streamWriter sends events as JSON lines. The status is sent with the first
// one, so that a call that fails at once still gets the Kind's status.
type streamWriter struct {
	mu      sync.Mutex
	w       http.ResponseWriter
	control *http.ResponseController
	buf     *bufio.Writer
	enc     *json.Encoder
	started bool
	err     error // of the connection
}

func newStreamWriter(w http.ResponseWriter) *streamWriter {
	buf := bufio.NewWriterSize(w, 16<<10)
	return &streamWriter{w: w, control: http.NewResponseController(w), buf: buf, enc: encoder(buf)}
}

// send writes one event; now says that the reader should see it at once. The
// error is that of the connection.
func (s *streamWriter) send(e event, now bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if !s.started {
		s.started = true
		s.w.Header().Set("Content-Type", "application/x-ndjson")
		s.w.Header().Set("Cache-Control", "no-store")
		s.w.WriteHeader(http.StatusOK)
	}
	_ = s.control.SetWriteDeadline(time.Now().Add(stallTimeout))
	s.err = s.enc.Encode(e)
	if s.err == nil && now {
		if s.err = s.buf.Flush(); s.err == nil {
			s.err = s.control.Flush()
		}
	}
	return s.err
}

// end finishes the stream with the outcome. An error before the first event is
// returned, to be answered with its own status.
func (s *streamWriter) end(last event, err error) error {
	if err != nil {
		s.mu.Lock()
		started := s.started
		s.mu.Unlock()
		if !started {
			return err
		}
		o := toObject(err)
		last = event{Error: &o}
	} else {
		last.Done = true
	}
	_ = s.send(last, true)
	_ = s.control.SetWriteDeadline(time.Time{})
	return nil
}

// readStream gives the events of a stream to on. It returns the stream's error,
// or KindDaemon when the stream was cut off.
func (c *Client) readStream(body io.Reader, on func(event) error) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 4096), maxLineBytes)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return &vfolder.Error{Op: "daemon", Kind: vfolder.KindDaemon, Err: errors.New("its answer is not JSON")}
		}
		if e.Error != nil {
			return e.Error.toError()
		}
		if err := on(e); err != nil {
			return err
		}
		if e.Done {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return c.cutOff(io.ErrUnexpectedEOF)
}

// deadlineReader reads a request's body and ends when the client stalls.
type deadlineReader struct {
	r       io.Reader
	control *http.ResponseController
}

func (d *deadlineReader) Read(p []byte) (int, error) {
	_ = d.control.SetReadDeadline(time.Now().Add(stallTimeout))
	return d.r.Read(p)
}

// deadlineWriter does so for an answer.
type deadlineWriter struct {
	w       io.Writer
	control *http.ResponseController
}

func (d *deadlineWriter) Write(p []byte) (int, error) {
	_ = d.control.SetWriteDeadline(time.Now().Add(stallTimeout))
	return d.w.Write(p)
}
