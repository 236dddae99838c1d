package daemon

import (
	"bufio"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// LogName is the log file in the log directory; the ones before it are
// LogName.1 and so on.
const LogName = "vfolderd.log"

const (
	maxLogBytes = 16 << 20 // of one log file
	keptLogs    = 3        // older ones
)

// logFile is a log that is put aside when it grows. Safe for concurrent use.
type logFile struct {
	mu    sync.Mutex
	path  string
	limit int64
	f     *os.File
	size  int64
}

func openLog(path string, limit int64) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, &vfolder.Error{Op: "log", Kind: vfolder.KindOf(err), Path: path, Err: err}
	}
	l := &logFile{path: path, limit: limit}
	if err := l.open(); err != nil {
		return nil, &vfolder.Error{Op: "log", Kind: vfolder.KindOf(err), Path: path, Err: err}
	}
	return l, nil
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	l.f, l.size = f, info.Size()
	return nil
}

// Write implements io.Writer. A full disk loses lines, never the daemon.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > l.limit {
		l.rotate()
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

// rotate puts the log aside. Where that fails the same file goes on.
func (l *logFile) rotate() {
	for i := keptLogs; i > 0; i-- {
		from := l.path
		if i > 1 {
			from = numbered(l.path, i-1)
		}
		_ = os.Rename(from, numbered(l.path, i))
	}
	old := l.f
	if err := l.open(); err != nil {
		l.size = 0 // try again after as much again
		return
	}
	_ = old.Close()
}

func numbered(path string, i int) string { return path + "." + string(rune('0'+i)) }

// pipe is a file for children's output: what they write comes out in the log,
// line by line. It ends when all its writers have.
func (l *logFile) pipe() (*os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, &vfolder.Error{Op: "log", Err: err}
	}
	read := os.NewFile(uintptr(fds[0]), l.path)
	go func() {
		defer read.Close()
		lines := bufio.NewReaderSize(read, 64<<10)
		for {
			line, err := lines.ReadSlice('\n')
			if len(line) > 0 {
				_, _ = l.Write(line)
			}
			if err != nil && err != bufio.ErrBufferFull {
				return
			}
		}
	}()
	return os.NewFile(uintptr(fds[1]), l.path), nil
}

// newLogger writes text at the level that the configuration names.
func newLogger(w io.Writer, level string) *slog.Logger {
	var at slog.Level
	if err := at.UnmarshalText([]byte(level)); err != nil {
		at = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: at}))
}
