package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// row is one measured quantity, on all targets.
type row struct {
	Name string `json:"name"`
	Unit string `json:"unit"` // "…/s" is a rate: more is better; "s" a time: less is
	// Values has every repetition, by target.
	Values map[string][]float64 `json:"values"`
}

// results is the whole run, in the order in which rows first appeared.
type results struct {
	Quick   bool     `json:"quick"`
	Targets []string `json:"targets"`
	Seconds float64  `json:"seconds"`
	When    string   `json:"when"`
	Rows    []*row   `json:"rows"`

	last map[string]string // by target: the row that it added last
}

func newResults(o options, ts []target) *results {
	r := &results{Quick: o.quick, When: time.Now().UTC().Format(time.RFC3339), last: map[string]string{}}
	for _, t := range ts {
		r.Targets = append(r.Targets, t.name())
	}
	return r
}

func (r *results) row(name string) *row {
	for _, x := range r.Rows {
		if x.Name == name {
			return x
		}
	}
	return nil
}

// add notes a value. A new row goes below the one that its target added before,
// so that rows which not every target has stand where they belong.
func (r *results) add(target, name, unit string, v float64) {
	x := r.row(name)
	if x == nil {
		x = &row{Name: name, Unit: unit, Values: map[string][]float64{}}
		at := len(r.Rows)
		if i := slices.IndexFunc(r.Rows, func(y *row) bool { return y.Name == r.last[target] }); i >= 0 {
			at = i + 1
		}
		r.Rows = slices.Insert(r.Rows, at, x)
	}
	r.last[target] = name
	x.Values[target] = append(x.Values[target], v)
}

// rate says that more is better.
func (x *row) rate() bool { return strings.HasSuffix(x.Unit, "/s") }

// summary of one target's repetitions; ok is false where there are none.
func (x *row) summary(target string) (s struct{ lowest, median, noise float64 }, ok bool) {
	v := slices.Sorted(slices.Values(x.Values[target]))
	if len(v) == 0 {
		return s, false
	}
	s.lowest, s.median, s.noise = v[0], v[len(v)/2], 1
	if len(v)%2 == 0 {
		s.median = (v[len(v)/2-1] + v[len(v)/2]) / 2
	}
	if v[0] > 0 {
		s.noise = v[len(v)-1] / v[0]
	}
	return s, true
}

// speedup is how many times better a is than b, in the row's own sense.
func (x *row) speedup(a, b float64) float64 {
	if !x.rate() {
		a, b = b, a
	}
	if b == 0 {
		return 0
	}
	return a / b
}

func (r *results) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s; rates: more is better, seconds: less is better; median (lowest) x noise;\n", r.When)
	fmt.Fprintf(w, "\"of plain\" and \"of loopback\" say how fast vfolder is in comparison: 1.00 is as fast.\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "row\tunit\t%s", strings.Join(r.Targets, "\t"))
	against := []string{}
	for _, n := range []string{"plain", "loopback"} {
		if slices.Contains(r.Targets, "vfolder") && slices.Contains(r.Targets, n) {
			against = append(against, n)
			fmt.Fprintf(t, "\tof %s", n)
		}
	}
	fmt.Fprintln(t)
	for _, x := range r.Rows {
		fmt.Fprintf(t, "%s\t%s", x.Name, x.Unit)
		for _, n := range r.Targets {
			if s, ok := x.summary(n); ok {
				fmt.Fprintf(t, "\t%s (%s) x%.2f", number(s.median), number(s.lowest), s.noise)
			} else {
				fmt.Fprint(t, "\t-")
			}
		}
		own, ok := x.summary("vfolder")
		for _, n := range against {
			if s, there := x.summary(n); ok && there {
				fmt.Fprintf(t, "\t%.2f", x.speedup(own.median, s.median))
			} else {
				fmt.Fprint(t, "\t-")
			}
		}
		fmt.Fprintln(t)
	}
	_ = t.Flush() // an error of stdout has nowhere to be told
	fmt.Fprintf(w, "\n%.0f s in all\n", r.Seconds)
}

// number prints three significant digits or more, without an exponent.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.4f", v)
}

func (r *results) save(path string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// compareWith fails when a row of vfolder fell, next to the loopback of the
// same run where it has one, by more than the noise that the two runs show.
func (r *results) compareWith(w io.Writer, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var old results
	if err := json.Unmarshal(b, &old); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if old.Quick != r.Quick {
		return fmt.Errorf("%s: one run is -quick and the other is not", path)
	}
	var fell []string
	fmt.Fprintf(w, "\nvfolder against %s (of %s)\n", path, old.When)
	for _, x := range r.Rows {
		before := old.row(x.Name)
		if before == nil {
			continue
		}
		now, ok := x.relative()
		was, ok2 := before.relative()
		if !ok || !ok2 || was.value == 0 {
			continue
		}
		change, noise := now.value/was.value, max(now.noise, was.noise)
		mark := ""
		if change*noise < 1 {
			mark = "  FELL"
			fell = append(fell, x.Name)
		}
		fmt.Fprintf(w, "%-34s %6.2f times what it was (noise x%.2f)%s\n", x.Name, change, noise, mark)
	}
	if len(fell) > 0 {
		return fmt.Errorf("slower by more than the noise: %s", strings.Join(fell, ", "))
	}
	return nil
}

// relative is vfolder's speed in units of the same run's loopback.
func (x *row) relative() (s struct{ value, noise float64 }, ok bool) {
	own, ok := x.summary("vfolder")
	if !ok {
		return s, false
	}
	ref, there := x.summary("loopback")
	if !there {
		ref.median, ref.noise = 1, 1
	}
	return struct{ value, noise float64 }{x.speedup(own.median, ref.median), own.noise * ref.noise}, true
}
