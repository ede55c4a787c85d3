package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"fabric/lab/clab"
	"fabric/lab/expect"
	"fabric/lab/netns"
	"fabric/lab/runner"
)

// topologies is where labs are found by name, from the project's folder.
const topologies = "lab/topologies"

// topologyFile is the file of a topology that is given by file or by name.
func topologyFile(arg string) string {
	if strings.ContainsRune(arg, filepath.Separator) || strings.HasSuffix(arg, ".yml") {
		return arg
	}
	return filepath.Join(topologies, arg, arg+".clab.yml")
}

// labRun is one topology and the way it is run.
type labRun struct {
	topology *clab.Topology
	how      string
	runner   runner.Runner
	open     func() error  // before the first Run
	within   time.Duration // in place of the expected state's own, if not 0
}

func newLabRun(arg, how string, opts netns.Options) (*labRun, error) {
	topology, err := clab.Load(topologyFile(arg))
	if err != nil {
		return nil, err
	}
	l := &labRun{topology: topology, how: how, open: func() error { return nil }}
	if how != "netns" && opts.Dir != "" {
		return nil, fmt.Errorf("--dir is the folder of a lab in namespaces: leave it out with --runner=%s", how)
	}
	switch how {
	case "netns":
		r := &runner.Namespaces{File: topology.File, Options: opts}
		l.runner, l.open = r, r.Open
	case "containerlab":
		l.runner = &runner.Containers{Topology: topology}
	case "vm":
	default:
		return nil, fmt.Errorf("--runner %q: want netns, containerlab or vm", how)
	}
	return l, nil
}

var errOnce = errors.New("--runner=vm: the virtual machine lives for one check: use check, which starts and ends it")

func (l *labRun) up(ctx context.Context, _ io.Writer) error {
	if l.runner == nil {
		return errOnce
	}
	return l.runner.Up(ctx)
}

func (l *labRun) down(ctx context.Context, _ io.Writer) error {
	if l.runner == nil {
		return errOnce
	}
	return l.runner.Down(ctx)
}

func (l *labRun) check(ctx context.Context, w io.Writer) error {
	state, err := expect.Load(l.topology)
	if err != nil {
		return err
	}
	if l.within > 0 {
		state.Within = l.within
	}
	if l.runner == nil {
		folder := filepath.Dir(l.topology.File)
		if name := filepath.Base(folder); name == l.topology.Name && filepath.Base(filepath.Dir(folder)) == filepath.Base(topologies) {
			return runner.InMachine(ctx, filepath.Join(folder, "..", "..", ".."), name)
		}
		return fmt.Errorf("--runner=vm takes the topologies of %s only: %s is elsewhere", topologies, l.topology.File)
	}
	if err := l.open(); err != nil {
		return err
	}
	return expect.Check(ctx, w, state, l.runner.Run)
}
