package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// passThrough lists the commands whose rest is another program's command line:
// after so many arguments everything is passed on untouched.
var passThrough = map[string]int{}

// reorder moves the flags of a command line before its arguments, because the
// cli package stops at the first argument: "folder delete data --yes" becomes
// "folder delete --yes -- data". What follows "--" is never taken for a flag.
// An unknown flag is moved as one without a value, so that it is complained of
// by its name.
func reorder(app *cli.App, args []string) []string {
	// A shell that asks for completions says so in the last word.
	if len(args) == 0 || args[len(args)-1] == "--generate-bash-completion" {
		return args
	}
	out := []string{args[0]}
	list, flags := app.Commands, app.Flags
	var path []string
	rest := args[1:]
	for len(rest) > 0 {
		command := find(list, rest[0])
		if command == nil {
			break
		}
		path = append(path, command.Name)
		out = append(out, rest[0])
		rest = rest[1:]
		list, flags = command.Subcommands, command.Flags
	}
	if len(path) == 0 || len(list) > 0 {
		return append(out, rest...)
	}
	limit, limited := passThrough[strings.Join(path, " ")]
	options, operands := split(flags, rest, limit, limited)
	out = append(out, options...)
	if len(operands) > 0 {
		out = append(append(out, "--"), operands...)
	}
	return out
}

// split takes the flags, with their values, out of the words of one command. If
// limited, it stops after limit operands.
func split(flags []cli.Flag, words []string, limit int, limited bool) (options, operands []string) {
	for i := 0; i < len(words); i++ {
		word := words[i]
		switch {
		case limited && len(operands) > limit:
			return options, append(operands, words[i:]...)
		case word == "--":
			return options, append(operands, words[i+1:]...)
		case len(word) < 2 || word[0] != '-':
			if limited && len(operands) == limit {
				return options, append(operands, words[i:]...)
			}
			operands = append(operands, word)
		default:
			options = append(options, word)
			if takesValue(flags, word) && i+1 < len(words) {
				i++
				options = append(options, words[i])
			}
		}
	}
	return options, operands
}

// takesValue reports whether a flag's value is the next word.
func takesValue(flags []cli.Flag, word string) bool {
	name := strings.TrimLeft(word, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			_, isBool := f.(*cli.BoolFlag)
			return !isBool
		}
	}
	return false
}

func find(list []*cli.Command, name string) *cli.Command {
	for _, c := range list {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
