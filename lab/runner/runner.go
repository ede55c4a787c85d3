// Package runner brings a topology up in one of three ways, and runs commands in its nodes: in namespaces of this host, as
// containers by containerlab, or within a virtual machine that lives for one check.
package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"fabric/lab/clab"
	"fabric/lab/netns"
)

// Runner starts and ends one lab and runs commands in it.
type Runner interface {
	// Up starts the lab; on failure nothing is left.
	Up(ctx context.Context) error
	// Down ends it. A lab that is not up is no error.
	Down(ctx context.Context) error
	// Run runs a command in a node and returns its standard output; its error output is in the error.
	Run(ctx context.Context, node string, argv ...string) ([]byte, error)
}

// Namespaces runs a lab in network namespaces of this host (package netns).
type Namespaces struct {
	File    string
	Options netns.Options

	lab *netns.Lab
}

// Up implements Runner.
func (r *Namespaces) Up(ctx context.Context) (err error) {
	if err := prepare(ctx, r.File); err != nil {
		return err
	}
	r.lab, err = netns.Up(ctx, r.File, r.Options)
	return err
}

// Down implements Runner.
func (r *Namespaces) Down(ctx context.Context) error { return netns.Down(ctx, r.File, r.Options) }

// Run implements Runner.
func (r *Namespaces) Run(ctx context.Context, node string, argv ...string) ([]byte, error) {
	n := r.lab.Node(node)
	return output(n.Command(ctx, argv...), argv)
}

// Open finds a lab that is up, for Run.
func (r *Namespaces) Open() (err error) {
	r.lab, err = netns.Open(r.File, r.Options)
	return err
}

// prepare runs the topology's prepare.sh, which makes keys and what goes with them, where it has one.
func prepare(ctx context.Context, file string) error {
	script := filepath.Join(filepath.Dir(file), "prepare.sh")
	if _, err := os.Stat(script); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if out, err := exec.CommandContext(ctx, "sh", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, bytes.TrimSpace(out))
	}
	return nil
}

// output runs a command; argv is what its error calls it.
func output(cmd *exec.Cmd, argv []string) ([]byte, error) {
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		if said.Len() == 0 {
			said.Write(out) // where docker says why a command was not started
		}
		err = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	return out, err
}

// Containers runs a lab by the programs containerlab and docker of this host.
type Containers struct {
	Topology *clab.Topology
}

// Up implements Runner.
func (r *Containers) Up(ctx context.Context) error {
	if err := r.programs(); err != nil {
		return err
	}
	for _, n := range r.Topology.Nodes {
		if err := exec.CommandContext(ctx, "docker", "image", "inspect", n.Image).Run(); err != nil {
			return fmt.Errorf("docker has no image %s (%w): make it with lab/topologies/scripts/image.sh", n.Image, err)
		}
	}
	if err := prepare(ctx, r.Topology.File); err != nil {
		return err
	}
	argv := []string{"containerlab", "deploy", "--topo", r.Topology.File}
	if _, err := output(exec.CommandContext(ctx, argv[0], argv[1:]...), argv); err != nil {
		return errors.Join(err, r.Down(context.WithoutCancel(ctx)))
	}
	if err := r.running(ctx); err != nil {
		return errors.Join(err, r.Down(context.WithoutCancel(ctx)))
	}
	return nil
}

// running says which nodes have no running container: containerlab reports success without them, too.
func (r *Containers) running(ctx context.Context) error {
	var errs []error
	for _, n := range r.Topology.Nodes {
		argv := []string{"docker", "inspect", "--format", "{{.State.Running}} {{.State.Error}}", r.Topology.Container(n.Name)}
		out, err := output(exec.CommandContext(ctx, argv[0], argv[1:]...), argv)
		if state := strings.TrimSpace(string(out)); err == nil && state != "true" {
			err = fmt.Errorf("its container does not run: %s", strings.TrimSpace(strings.TrimPrefix(state, "false")))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", n.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Down implements Runner.
func (r *Containers) Down(ctx context.Context) error {
	if err := r.programs(); err != nil {
		return err
	}
	argv := []string{"containerlab", "destroy", "--topo", r.Topology.File, "--cleanup"}
	_, err := output(exec.CommandContext(ctx, argv[0], argv[1:]...), argv)
	return err
}

// Run implements Runner.
func (r *Containers) Run(ctx context.Context, node string, argv ...string) ([]byte, error) {
	argv = append([]string{"docker", "exec", r.Topology.Container(node)}, argv...)
	return output(exec.CommandContext(ctx, argv[0], argv[1:]...), argv)
}

// programs says what is missing on this host.
func (r *Containers) programs() error {
	var missing []string
	for _, p := range []string{"containerlab", "docker"} {
		if _, err := exec.LookPath(p); err != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%s: not on this host; install it (https://containerlab.dev/install/), or use --runner=netns: %w", strings.Join(missing, " and "), exec.ErrNotFound)
}

// InMachine brings a lab up, checks it and takes it down within lab/vm's virtual machine, and returns once that is off. The
// machine lives no longer: up and down alone have no meaning there. root is the project's folder.
func InMachine(ctx context.Context, root, topology string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(root, "lab", "vm", "test.sh"), "topologies/"+topology)
	cmd.Dir, cmd.Stdout, cmd.Stderr = root, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return cmd.Run()
}
