// Command bench measures what a person does in a folder (small files, large
// files, random I/O, tar, git, rename, SQLite) side by side on
//
//   - plain: a directory of the disk itself,
//   - loopback: go-fuse's loopback of a directory on the same disk, the least
//     that any FUSE file system of that library costs,
//   - vfolder: a folder served by vfolderd with its embedded object store,
//     its state on the same disk,
//   - store: that object store itself, through minio-go.
//
// Repetitions are interleaved: each workload runs on every target before the
// next repetition starts, so that a busy moment of the machine hits all of
// them. The noise column (largest by smallest value of a row) says what a
// difference is worth.
//
//	go run ./bench -quick
//	go run ./bench -json before.json          # then, after a change:
//	go run ./bench -compare before.json       # exits 1 if a row fell by more than the noise
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// options are the command line's.
type options struct {
	dir     string // scratch directory, on the disk to measure
	bin     string // directory of vfolder and vfolderd
	reps    int
	quick   bool
	targets []string
	rows    *regexp.Regexp // workloads to run, by name
	json    string
	compare string
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == loopbackArg {
		exitOn(serveLoopback(os.Args[2], os.Args[3]))
		return
	}
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	exitOn(run(ctx, o))
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	var targets, rows string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.dir, "dir", "/var/tmp", "scratch directory `DIR` on the disk to measure")
	f.StringVar(&o.bin, "bin", defaultBin(), "directory `DIR` of vfolder and vfolderd")
	f.IntVar(&o.reps, "reps", 3, "repetitions")
	f.BoolVar(&o.quick, "quick", false, "a tenth of the work and one repetition unless -reps is given")
	f.StringVar(&targets, "targets", "plain,loopback,vfolder,store", "what to measure")
	f.StringVar(&rows, "run", "", "only workloads whose name matches `REGEXP`: "+strings.Join(workloadNames(), " "))
	f.StringVar(&o.json, "json", "", "write all values to `FILE`")
	f.StringVar(&o.compare, "compare", "", "compare with `FILE`, written by -json")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	given := false
	f.Visit(func(x *flag.Flag) { given = given || x.Name == "reps" })
	if o.quick && !given {
		o.reps = 1
	}
	if o.reps < 1 {
		return o, errors.New("-reps must be at least 1")
	}
	o.targets = strings.Split(targets, ",")
	var err error
	o.rows, err = regexp.Compile(rows)
	return o, err
}

// defaultBin is where make build puts the programs.
func defaultBin() string {
	if d := os.Getenv("VFOLDER_BIN"); d != "" {
		return d
	}
	return filepath.Join(".build", "bin")
}

func run(ctx context.Context, o options) (err error) {
	scratch, err := os.MkdirTemp(o.dir, "vfolder-bench.")
	if err != nil {
		return err
	}
	var open []target
	defer func() {
		var left error
		for i := len(open) - 1; i >= 0; i-- {
			left = errors.Join(left, open[i].close())
		}
		if left != nil {
			// Something may still be mounted below: removing would reach into it.
			err = errors.Join(err, left, fmt.Errorf("%s is left as it is", scratch))
			return
		}
		err = errors.Join(err, os.RemoveAll(scratch))
	}()
	for _, name := range o.targets {
		t, err := openTarget(ctx, name, filepath.Join(scratch, name), o, open)
		if err != nil {
			return fmt.Errorf("target %s: %w", name, err)
		}
		open = append(open, t)
	}
	input, err := makeInput(scratch, o.quick)
	if err != nil {
		return err
	}

	res := newResults(o, open)
	start := time.Now()
	for rep := range o.reps {
		for _, w := range workloads {
			if !o.rows.MatchString(w.name) {
				continue
			}
			for _, t := range open {
				began := time.Now()
				if err := runOne(ctx, w, t, input, rep, res); err != nil {
					return fmt.Errorf("%s on %s: %w", w.name, t.name(), err)
				}
				fmt.Fprintf(os.Stderr, "repetition %d of %d: %-8s %-9s %6.1f s\n", rep+1, o.reps, w.name, t.name(), time.Since(began).Seconds())
			}
		}
	}
	res.Seconds = time.Since(start).Seconds()
	res.print(os.Stdout)
	if o.json != "" {
		if err := res.save(o.json); err != nil {
			return err
		}
	}
	if o.compare != "" {
		return res.compareWith(os.Stdout, o.compare)
	}
	return nil
}

// runOne runs a workload in a directory (or below a key prefix) of its own,
// which it removes again.
func runOne(ctx context.Context, w workload, t target, in *input, rep int, res *results) error {
	delete(res.last, t.name()) // a workload's rows start at the end
	r := &runner{ctx: ctx, in: in, name: fmt.Sprintf("%s-%d", w.name, rep), res: res, target: t.name()}
	switch t := t.(type) {
	case interface{ place() *directory }:
		if w.onDir == nil {
			return nil
		}
		r.at = t.place()
		r.dir = filepath.Join(r.at.path, r.name)
		if err := os.Mkdir(r.dir, 0o755); err != nil {
			return err
		}
		return errors.Join(w.onDir(r), os.RemoveAll(r.dir))
	case *bucket:
		if w.onStore == nil {
			return nil
		}
		return w.onStore(r, t)
	}
	return fmt.Errorf("no workloads for %T", t)
}
