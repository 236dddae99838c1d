// Command vfolder is the command line of vfolder: folders through the daemon,
// sessions and images through rootless Podman.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process: it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr *os.File) int {
	app := newApp(stdout, stderr)
	err := app.RunContext(ctx, reorder(app, args))
	var child childExit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &child):
		return int(child)
	}
	printError(stderr, err)
	return exitCode(ctx, err)
}
