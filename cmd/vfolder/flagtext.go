package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// The cli package's own text repeats the placeholder of a flag for each of its
// names and says of every switch that it is off by default.
func init() { cli.FlagStringer = flagText }

// flagText is a flag's line in the help: names and placeholder, a tab, what it
// does, its default and its variable.
func flagText(f cli.Flag) string {
	doc, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return ""
	}
	usage, placeholder := unquote(doc.GetUsage())
	var names []string
	for _, name := range f.Names() {
		dashes := "--"
		if len(name) == 1 {
			dashes = "-"
		}
		names = append(names, dashes+name)
	}
	text := strings.Join(names, ", ")
	if doc.TakesValue() {
		if placeholder == "" {
			placeholder = "VALUE"
		}
		text += " " + placeholder
		if value := strings.Trim(doc.GetDefaultText(), `"`); value != "" {
			usage += fmt.Sprintf(" (default: %s)", value)
		}
	}
	if vars := doc.GetEnvVars(); len(vars) > 0 {
		usage += " [$" + strings.Join(vars, ", $") + "]"
	}
	return text + "\t" + usage
}

// unquote takes the placeholder out of a usage text, where it stands in
// backquotes.
func unquote(usage string) (text, placeholder string) {
	before, rest, ok := strings.Cut(usage, "`")
	if !ok {
		return usage, ""
	}
	placeholder, after, ok := strings.Cut(rest, "`")
	if !ok {
		return usage, ""
	}
	return before + placeholder + after, placeholder
}
