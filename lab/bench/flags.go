package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// parse reads the flags of a command that takes no other arguments.
func parse(fs *flag.FlagSet, args []string) error {
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if fs.NArg() > 0 {
		return wrong(fs, "unexpected argument %q", fs.Arg(0))
	}
	return nil
}

// wrong says what is wrong with the command line.
func wrong(fs *flag.FlagSet, format string, v ...any) error {
	fmt.Fprintf(os.Stderr, fs.Name()+": "+format+"\n", v...)
	return errUsage
}

// numbers reads numbers with commas between them.
func numbers(text string, least, most int) (out []int, err error) {
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < least || n > most {
			return nil, fmt.Errorf("%q: %q is not a number from %d to %d", text, word, least, most)
		}
		out = append(out, n)
	}
	return out, nil
}

// words reads words with commas between them, of which each must be one of those known.
func words(text string, known ...string) ([]string, error) {
	list := strings.Split(text, ",")
	for _, word := range list {
		if !slices.Contains(known, word) {
			return nil, fmt.Errorf("%q: write some of %s, with commas", text, strings.Join(known, ", "))
		}
	}
	return list, nil
}

// prepare removes what a killed bench has left and builds the daemons into a folder, which the caller removes.
func prepare(ctx context.Context) (dir string, p programs, err error) {
	if os.Geteuid() != 0 {
		return "", p, errors.New("needs root: it makes network namespaces")
	}
	sweep(ctx)
	if dir, err = os.MkdirTemp("", fmt.Sprintf("%s%d-", prefix, os.Getpid())); err != nil {
		return "", p, err
	}
	if p, err = buildPrograms(ctx, dir, "bench"); err != nil {
		_ = os.RemoveAll(dir)
	}
	return dir, p, err
}

// tunnelKinds are the kinds of tunnels that can be measured.
var tunnelKinds = []string{"wireguard", "tls"}
