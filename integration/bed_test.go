// Package integration tests the whole system: the real programs, real FUSE
// mounts, real S3 servers and rootless Podman, as an unprivileged user. Run as
// root, the tests move into a bed of private namespaces (scripts/bed-a.sh); run
// as a user, they use the host as it is.
package integration

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	code, err := runInBed()
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// runInBed runs this test binary again as an unprivileged user. The programs
// are copied, since the user may not be able to enter root's directories.
func runInBed() (int, error) {
	repo, err := filepath.Abs("..")
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("/var/tmp", "vfolder-integration-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	bin := os.Getenv("VFOLDER_BIN")
	if bin == "" {
		bin = filepath.Join(repo, ".build", "bin")
	}
	minio, err := minioPath()
	if err != nil {
		return 0, err
	}
	for to, from := range map[string]string{
		"integration.test": self, "vfolder": filepath.Join(bin, "vfolder"), "vfolderd": filepath.Join(bin, "vfolderd"),
		"minio": minio,
	} {
		if err := copyProgram(from, filepath.Join(dir, to)); err != nil {
			return 0, fmt.Errorf("%w; build the programs with: make build tools", err)
		}
	}
	args := []string{filepath.Join(dir, "integration.test")}
	for _, a := range os.Args[1:] {
		if !strings.HasPrefix(a, "-test.testlogfile=") { // of the user who runs go test
			args = append(args, a)
		}
	}
	cmd := exec.Command(filepath.Join(repo, "scripts", "bed-a.sh"), args...)
	cmd.Dir = "/"
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return 0, fmt.Errorf("go env GOROOT: %w", err)
	}
	cmd.Env = append(os.Environ(), "VFOLDER_BIN="+dir, "VFOLDER_MINIO="+filepath.Join(dir, "minio"), "GOFLAGS=", "BED_GO="+strings.TrimSpace(string(goroot)))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err = cmd.Run()
	if cmd.ProcessState != nil && cmd.ProcessState.Exited() {
		return cmd.ProcessState.ExitCode(), nil
	}
	return 0, err
}

func minioPath() (string, error) {
	if p := os.Getenv("VFOLDER_MINIO"); p != "" {
		return p, nil
	}
	return exec.LookPath("minio")
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
