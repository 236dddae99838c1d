package fusefs

import (
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// wakeSignal ends system calls that wait for a request. A reader waits in
// read(2) without an end, and polling first would cost every request two more
// system calls; so a waiting reader is interrupted. It is a real-time signal
// that nothing else uses.
const wakeSignal = syscall.Signal(41)

// sigaction is the kernel's struct, the same on amd64 and arm64.
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

const saRestart = 0x10000000

// prepareWake makes wakeSignal interrupt: the Go runtime installs its handlers
// so that system calls go on after them.
var prepareWake = sync.OnceValue(func() error {
	signal.Notify(make(chan os.Signal, 1), wakeSignal) // only so that it has a handler
	var action sigaction
	const size = unsafe.Sizeof(action.mask)
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(wakeSignal), 0, uintptr(unsafe.Pointer(&action)), size, 0, 0); errno != 0 {
		return &vfolder.Error{Op: "wake readers", Err: errno}
	}
	action.flags &^= saRestart
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(wakeSignal), uintptr(unsafe.Pointer(&action)), 0, size, 0, 0); errno != 0 {
		return &vfolder.Error{Op: "wake readers", Err: errno}
	}
	return nil
})

// wakeReaders interrupts every thread once. A reader that is just about to wait
// misses it: callers repeat it.
func wakeReaders() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return &vfolder.Error{Op: "wake readers", Err: err}
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			continue
		}
		// A thread that ended meanwhile needs no signal.
		if err := unix.Tgkill(os.Getpid(), tid, wakeSignal); err != nil && err != unix.ESRCH {
			return &vfolder.Error{Op: "wake readers", Err: err}
		}
	}
	return nil
}
