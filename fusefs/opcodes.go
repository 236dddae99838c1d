package fusefs

import "strconv"

// Opcodes of the FUSE protocol (include/uapi/linux/fuse.h).
const (
	opLookup        = 1
	opForget        = 2
	opGetattr       = 3
	opSetattr       = 4
	opReadlink      = 5
	opSymlink       = 6
	opMknod         = 8
	opMkdir         = 9
	opUnlink        = 10
	opRmdir         = 11
	opRename        = 12
	opLink          = 13
	opOpen          = 14
	opRead          = 15
	opWrite         = 16
	opStatfs        = 17
	opRelease       = 18
	opFsync         = 20
	opSetxattr      = 21
	opGetxattr      = 22
	opListxattr     = 23
	opRemovexattr   = 24
	opFlush         = 25
	opInit          = 26
	opOpendir       = 27
	opReaddir       = 28
	opReleasedir    = 29
	opFsyncdir      = 30
	opCreate        = 35
	opInterrupt     = 36
	opDestroy       = 38
	opIoctl         = 39
	opNotifyReply   = 41
	opBatchForget   = 42
	opFallocate     = 43
	opReaddirplus   = 44
	opRename2       = 45
	opLseek         = 46
	opCopyFileRange = 47
	opTmpfile       = 51
	opStatx         = 52
	opCount         = 53
)

type operation struct {
	name string
	// do carries the request out and says how long the reply's body is.
	do func(*task) (int, error)
}

// operations has a row for each opcode that is served. All others are ENOSYS,
// which the kernel remembers: it then does without (access, bmap, poll, locks,
// the 64-bit copy) for the mount's life.
var operations [opCount]operation

func init() {
	operations = [opCount]operation{
		opLookup:        {"LOOKUP", (*task).lookup},
		opForget:        {"FORGET", (*task).forget},
		opGetattr:       {"GETATTR", (*task).getattr},
		opSetattr:       {"SETATTR", (*task).setattr},
		opReadlink:      {"READLINK", (*task).readlink},
		opSymlink:       {"SYMLINK", (*task).symlink},
		opMknod:         {"MKNOD", (*task).mknod},
		opMkdir:         {"MKDIR", (*task).mkdir},
		opUnlink:        {"UNLINK", (*task).unlink},
		opRmdir:         {"RMDIR", (*task).rmdir},
		opRename:        {"RENAME", (*task).rename},
		opLink:          {"LINK", (*task).link},
		opOpen:          {"OPEN", (*task).open},
		opRead:          {"READ", (*task).read},
		opWrite:         {"WRITE", (*task).write},
		opStatfs:        {"STATFS", (*task).statfs},
		opRelease:       {"RELEASE", (*task).release},
		opFsync:         {"FSYNC", (*task).fsync},
		opSetxattr:      {"SETXATTR", (*task).setxattr},
		opGetxattr:      {"GETXATTR", (*task).getxattr},
		opListxattr:     {"LISTXATTR", (*task).listxattr},
		opRemovexattr:   {"REMOVEXATTR", (*task).removexattr},
		opFlush:         {"FLUSH", (*task).flush},
		opInit:          {"INIT", nil},
		opOpendir:       {"OPENDIR", (*task).opendir},
		opReaddir:       {"READDIR", (*task).readdir},
		opReleasedir:    {"RELEASEDIR", (*task).releasedir},
		opFsyncdir:      {"FSYNCDIR", (*task).fsyncdir},
		opCreate:        {"CREATE", (*task).create},
		opInterrupt:     {"INTERRUPT", (*task).interrupt},
		opDestroy:       {"DESTROY", (*task).destroy},
		opIoctl:         {"IOCTL", (*task).ioctl},
		opNotifyReply:   {"NOTIFY_REPLY", (*task).notifyReply},
		opBatchForget:   {"BATCH_FORGET", (*task).batchForget},
		opFallocate:     {"FALLOCATE", (*task).fallocate},
		opReaddirplus:   {"READDIRPLUS", (*task).readdirplus},
		opRename2:       {"RENAME2", (*task).rename2},
		opLseek:         {"LSEEK", (*task).lseek},
		opCopyFileRange: {"COPY_FILE_RANGE", (*task).copyFileRange},
		opTmpfile:       {"TMPFILE", (*task).tmpfile},
		opStatx:         {"STATX", (*task).statx},
	}
}

func opName(op uint32) string {
	if op < opCount && operations[op].name != "" {
		return operations[op].name
	}
	return "opcode " + strconv.FormatUint(uint64(op), 10)
}
