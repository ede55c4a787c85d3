// Package netns runs a containerlab topology in namespaces of this host: no containers, no
// images, nothing left behind.
//
// Each node is a network, mount and UTS namespace. Its root is the host's file system with all
// writes kept in memory, its /run and /tmp are empty and its own, /var/log is a folder of the lab's
// folder, and binds are mounted where the topology says. Links are veth
// pairs made straight inside the namespaces: neither the host's nor another lab's names are
// touched.
//
// A node's network namespace is held by a bind mount in the lab's folder. Every process in it
// was started by the lab, and while the mount holds it, its inode number cannot come to mean
// another namespace: so Down ends exactly the lab's processes, whichever way they were started.
package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"fabric/lab/clab"
)

// DefaultRoot is the folder in which labs keep their folders, one by the name of each lab.
const DefaultRoot = "/run/fabric-lab"

const (
	stateFile    = "lab.json"
	execTimeout  = time.Minute
	startTimeout = 20 * time.Second
	endTimeout   = 10 * time.Second
)

// Options are what a caller may choose; the zero value is good.
type Options struct {
	// Dir is the lab's own folder. Up makes it and Down removes it; DefaultRoot/NAME if empty.
	Dir string
	// Log hears what is done; nothing is logged if nil.
	Log *slog.Logger
}

// Lab is a lab that runs.
type Lab struct {
	// Topology is what it was made from.
	Topology *clab.Topology
	// Dir is the lab's own folder.
	Dir string

	log   *slog.Logger
	nodes map[string]*Node
}

// state is the content of lab.json: enough to find a lab again.
type state struct {
	Name string         `json:"name"`
	File string         `json:"file"`
	Pids map[string]int `json:"pids"`
}

// Up starts the lab described by a topology file: nodes, links, then the exec commands of
// each node in order. If anything fails it takes down what it made and says which part failed; a
// failed command's output is in the error. A lab whose folder exists is never touched: fs.ErrExist.
func Up(ctx context.Context, file string, opts Options) (*Lab, error) {
	topology, err := clab.Load(file)
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("lab %s: making namespaces needs root: %w", topology.Name, fs.ErrPermission)
	}
	for _, n := range topology.Nodes {
		for _, b := range n.Binds {
			if _, err := os.Stat(b.Source); err != nil {
				return nil, fmt.Errorf("lab %s: node %s: bind source: %w: build or generate it first", topology.Name, n.Name, err)
			}
		}
	}
	l := newLab(topology, opts)
	if err := os.MkdirAll(filepath.Dir(l.Dir), 0o755); err != nil {
		return nil, fmt.Errorf("lab %s: %w", topology.Name, err)
	}
	if err := os.Mkdir(l.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("lab %s: %w: it is up, or a start was broken off: run down first", topology.Name, err)
	}
	if err := l.start(ctx); err != nil {
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("lab %s: %w", topology.Name, err), l.Down(down))
	}
	return l, nil
}

// Open finds a lab that Up has started, perhaps in another process. The error is
// fs.ErrNotExist if it is not up.
func Open(file string, opts Options) (*Lab, error) {
	topology, err := clab.Load(file)
	if err != nil {
		return nil, err
	}
	l := newLab(topology, opts)
	s, err := readState(l.Dir)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w: is it up?", topology.Name, err)
	}
	if s.Name != topology.Name {
		return nil, fmt.Errorf("lab %s: %s belongs to lab %s: give another --dir", topology.Name, l.Dir, s.Name)
	}
	if len(s.Pids) == 0 {
		return nil, fmt.Errorf("lab %s: its start was broken off: run down, then up", topology.Name)
	}
	for name, pid := range s.Pids {
		if n := l.nodes[name]; n != nil {
			n.pid = pid
		}
	}
	return l, nil
}

// Down ends what Up started for a topology file, also when that start failed half way or its process
// was killed. A lab that is not there is no error.
func Down(ctx context.Context, file string, opts Options) error {
	topology, err := clab.Load(file)
	if err != nil {
		return err
	}
	return newLab(topology, opts).Down(ctx)
}

func newLab(topology *clab.Topology, opts Options) *Lab {
	l := &Lab{Topology: topology, Dir: opts.Dir, log: opts.Log, nodes: map[string]*Node{}}
	if l.Dir == "" {
		l.Dir = filepath.Join(DefaultRoot, topology.Name)
	}
	if abs, err := filepath.Abs(l.Dir); err == nil {
		l.Dir = abs
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	for _, config := range topology.Nodes {
		l.nodes[config.Name] = &Node{Node: config, dir: filepath.Join(l.Dir, config.Name)}
	}
	return l
}

// Node returns the node of that name. It panics if the topology has none: names are constants of
// the caller, like the topology itself.
func (l *Lab) Node(name string) *Node {
	n := l.nodes[name]
	if n == nil {
		panic(fmt.Sprintf("lab %s has no node %q", l.Topology.Name, name))
	}
	return n
}

func (l *Lab) start(ctx context.Context) error {
	// Written first, so that Down knows the folder as a lab's whatever happens from here on.
	if err := l.writeState(); err != nil {
		return err
	}
	for _, config := range l.Topology.Nodes {
		n := l.nodes[config.Name]
		if err := n.start(ctx); err != nil {
			return fmt.Errorf("node %s: %w", config.Name, err)
		}
		if err := n.writeSysctls(ctx); err != nil {
			return fmt.Errorf("node %s: %w", config.Name, err)
		}
	}
	if err := l.writeState(); err != nil {
		return err
	}
	l.log.Info("nodes are up", "lab", l.Topology.Name, "nodes", len(l.Topology.Nodes), "dir", l.Dir)
	if err := l.connect(); err != nil {
		return err
	}
	for _, config := range l.Topology.Nodes {
		n := l.nodes[config.Name]
		for _, words := range config.Exec {
			if err := n.exec(ctx, words); err != nil {
				return fmt.Errorf("node %s: %w", config.Name, err)
			}
			l.log.Debug("exec", "node", config.Name, "command", words)
		}
	}
	l.log.Info("lab is up", "lab", l.Topology.Name)
	return nil
}

func (l *Lab) writeState() error {
	s := state{Name: l.Topology.Name, File: l.Topology.File, Pids: map[string]int{}}
	for name, n := range l.nodes {
		if n.pid != 0 {
			s.Pids[name] = n.pid
		}
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(l.Dir, stateFile)
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func readState(dir string) (state, error) {
	var s state
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%s: %w", filepath.Join(dir, stateFile), err)
	}
	return s, nil
}
