package clab

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// document, topologyNode and nodeConfig are the keys that a file may use, spelled as
// containerlab spells them; the decoder refuses all others.
type document struct {
	Name     string       `yaml:"name"`
	Prefix   *string      `yaml:"prefix"`
	Topology topologyNode `yaml:"topology"`
}

type topologyNode struct {
	Defaults *nodeConfig            `yaml:"defaults"`
	Kinds    map[string]*nodeConfig `yaml:"kinds"`
	Nodes    map[string]*nodeConfig `yaml:"nodes"`
	Links    []linkConfig           `yaml:"links"`
}

type nodeConfig struct {
	Kind        string            `yaml:"kind"`
	Image       string            `yaml:"image"`
	NetworkMode string            `yaml:"network-mode"`
	Cmd         string            `yaml:"cmd"`
	Exec        []string          `yaml:"exec"`
	Binds       []string          `yaml:"binds"`
	Env         map[string]string `yaml:"env"`
	Labels      map[string]string `yaml:"labels"`
	Sysctls     map[string]string `yaml:"sysctls"`
}

type linkConfig struct {
	Endpoints []string `yaml:"endpoints"`
	MTU       int      `yaml:"mtu"`
}

var (
	nodeName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)
	// The kernel allows more characters; these are the ones that no tool stumbles over.
	interfaceName = regexp.MustCompile(`^[a-z][a-zA-Z0-9._-]{0,14}$`)
	sysctlName    = regexp.MustCompile(`^net(\.[a-zA-Z0-9_/-]+)+$`)
)

// Parse is Load for a file whose content is at hand. The path names the file in errors
// and gives the folder that bind sources are relative to.
func Parse(path string, data []byte) (*Topology, error) {
	c := check{file: path}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, c.decodeError(err)
	}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil {
		return nil, fmt.Errorf("%s:1:1: empty topology: write name and topology", path)
	}
	if len(file.Docs) > 1 {
		return nil, fmt.Errorf("%s: more than one YAML document: containerlab reads only the first, keep one", path)
	}
	c.root = file.Docs[0].Body
	for i, line := range bytes.Split(data, []byte("\n")) {
		for _, special := range []string{"$", "{{"} {
			if col := bytes.Index(line, []byte(special)); col >= 0 {
				c.errs = append(c.errs, fmt.Errorf("%s:%d:%d: containerlab replaces %s before it reads the file: put the command into a bound script", path, i+1, col+1, special))
			}
		}
	}
	var doc document
	if err := yaml.NodeToValue(c.root, &doc, yaml.Strict()); err != nil {
		return nil, errors.Join(append(c.errs, c.decodeError(err))...)
	}
	t := c.topology(doc)
	if len(c.errs) > 0 {
		return nil, errors.Join(c.errs...)
	}
	return t, nil
}

// check collects what is wrong with one file.
type check struct {
	file string
	root ast.Node
	errs []error
}

// decodeError turns an error of the YAML library into file:line:column: message.
func (c *check) decodeError(err error) error {
	var at yaml.Error
	if errors.As(err, &at) && at.GetToken() != nil {
		pos := at.GetToken().Position
		return fmt.Errorf("%s:%d:%d: %s", c.file, pos.Line, pos.Column, at.GetMessage())
	}
	return fmt.Errorf("%s: %w", c.file, err)
}

// fail notes an error at the value with the given path of keys and list positions, or at
// the deepest part of that path which the file has.
func (c *check) fail(path []any, format string, args ...any) {
	node := c.root
	for _, step := range path {
		next := child(node, step)
		if next == nil {
			break
		}
		node = next
	}
	pos := node.GetToken().Position
	c.errs = append(c.errs, fmt.Errorf("%s:%d:%d: %s", c.file, pos.Line, pos.Column, fmt.Sprintf(format, args...)))
}

// child is the value under a key or at a list position, nil if there is none.
func child(node ast.Node, step any) ast.Node {
	switch n := node.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			if v.Key.GetToken().Value == step {
				return v.Value
			}
		}
	case *ast.SequenceNode:
		if i, ok := step.(int); ok && i < len(n.Values) {
			return n.Values[i]
		}
	}
	return nil
}

// keys are the keys of the mapping at path in the order of the file.
func (c *check) keys(path ...any) []string {
	node := c.root
	for _, step := range path {
		if node = child(node, step); node == nil {
			return nil
		}
	}
	mapping, ok := node.(*ast.MappingNode)
	if !ok {
		return nil
	}
	var keys []string
	for _, v := range mapping.Values {
		keys = append(keys, v.Key.GetToken().Value)
	}
	return keys
}

func (c *check) topology(doc document) *Topology {
	t := &Topology{File: c.file, Name: doc.Name, Prefix: "clab"}
	if doc.Prefix != nil {
		t.Prefix = *doc.Prefix
	}
	if !nodeName.MatchString(doc.Name) {
		c.fail([]any{"name"}, "name %q: use a-z, 0-9 and -, at most 31", doc.Name)
	}
	defaults := &nodeConfig{}
	if doc.Topology.Defaults != nil {
		defaults = doc.Topology.Defaults
		c.shared(defaults, "topology", "defaults")
	}
	for _, kind := range slices.Sorted(maps.Keys(doc.Topology.Kinds)) {
		if kind != "linux" {
			c.fail([]any{"topology", "kinds", kind}, "kind %q: only linux is run here", kind)
		} else if k := doc.Topology.Kinds[kind]; k != nil {
			c.shared(k, "topology", "kinds", kind)
		}
	}
	if len(doc.Topology.Nodes) == 0 {
		c.fail([]any{"topology"}, "no nodes: write at least one under topology.nodes")
	}
	for _, name := range c.keys("topology", "nodes") {
		config := doc.Topology.Nodes[name]
		if config == nil {
			config = &nodeConfig{}
		}
		t.Nodes = append(t.Nodes, c.node(name, []*nodeConfig{defaults, doc.Topology.Kinds["linux"], config}))
	}
	c.links(t, doc.Topology.Links)
	return t
}

// shared checks what defaults and kinds may say.
func (c *check) shared(config *nodeConfig, path ...any) {
	if len(config.Exec) > 0 {
		c.fail(append(path, "exec"), "exec belongs to a node: write it under each node that needs it")
	}
}

// node lays the levels over each other, later ones winning, and checks the outcome.
func (c *check) node(name string, levels []*nodeConfig) Node {
	path := []any{"topology", "nodes", name}
	at := func(steps ...any) []any { return append(slices.Clone(path), steps...) }
	if !nodeName.MatchString(name) {
		c.fail(path, "node name %q: use a-z, 0-9 and -, at most 31", name)
	}
	n := Node{Name: name, Env: map[string]string{}, Labels: map[string]string{}, Sysctls: map[string]string{}}
	var kind, network, cmd string
	for _, level := range levels {
		if level == nil {
			continue
		}
		for _, field := range []struct{ to, from *string }{
			{&kind, &level.Kind}, {&n.Image, &level.Image}, {&network, &level.NetworkMode}, {&cmd, &level.Cmd},
		} {
			if *field.from != "" {
				*field.to = *field.from
			}
		}
		maps.Copy(n.Env, level.Env)
		maps.Copy(n.Labels, level.Labels)
		maps.Copy(n.Sysctls, level.Sysctls)
		for i, text := range level.Binds {
			bind, err := parseBind(filepath.Dir(c.file), text)
			if err != nil {
				c.fail(at("binds", i), "node %s: %v", name, err)
				continue
			}
			if slices.ContainsFunc(n.Binds, func(b Bind) bool { return b.Target == bind.Target }) {
				c.fail(at("binds", i), "node %s: %s is bound twice: keep one", name, bind.Target)
				continue
			}
			n.Binds = append(n.Binds, bind)
		}
	}
	if kind != "linux" {
		c.fail(at("kind"), "node %s: kind %q: only linux is run here", name, kind)
	}
	if n.Image == "" {
		c.fail(path, "node %s: no image: containerlab needs one, write topology.defaults.image", name)
	}
	if network != "none" {
		c.fail(at("network-mode"), "node %s: network-mode %q: write none, a management network exists in containerlab only", name, network)
	}
	for _, key := range slices.Sorted(maps.Keys(n.Sysctls)) {
		if !sysctlName.MatchString(key) {
			c.fail(at("sysctls", key), "node %s: sysctl %q: only net.* belongs to a node, others change the host", name, key)
		}
	}
	var err error
	if cmd != "" {
		if n.Cmd, err = SplitCommand(cmd); err != nil {
			c.fail(at("cmd"), "node %s: %v", name, err)
		}
	}
	for i, line := range levels[len(levels)-1].Exec {
		words, err := SplitCommand(line)
		if err != nil {
			c.fail(at("exec", i), "node %s: %v", name, err)
			continue
		}
		n.Exec = append(n.Exec, words)
	}
	return n
}

// parseBind reads host:node[:ro], the host's part relative to folder.
func parseBind(folder, text string) (Bind, error) {
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return Bind{}, fmt.Errorf("bind %q: write host:node or host:node:ro", text)
	}
	b := Bind{Source: parts[0], Target: parts[1]}
	if len(parts) == 3 {
		if parts[2] != "ro" {
			return Bind{}, fmt.Errorf("bind %q: option %q: only ro is known", text, parts[2])
		}
		b.ReadOnly = true
	}
	if strings.HasPrefix(b.Source, "~") {
		return Bind{}, fmt.Errorf("bind %q: write the host's path without ~", text)
	}
	if !filepath.IsAbs(b.Source) {
		b.Source = filepath.Join(folder, b.Source)
	}
	if b.Target != filepath.Clean(b.Target) || !filepath.IsAbs(b.Target) || b.Target == string(os.PathSeparator) {
		return Bind{}, fmt.Errorf("bind %q: the node's path %q must be absolute, clean and not /", text, b.Target)
	}
	return b, nil
}

func (c *check) links(t *Topology, links []linkConfig) {
	used := map[Endpoint]bool{}
	for i, config := range links {
		path := []any{"topology", "links", i}
		if len(config.Endpoints) != 2 {
			c.fail(path, "link has %d endpoints: write two, [\"a:eth1\", \"b:eth1\"]", len(config.Endpoints))
			continue
		}
		var ends [2]Endpoint
		for j, text := range config.Endpoints {
			at := append(slices.Clone(path), "endpoints", j)
			node, ifname, _ := strings.Cut(text, ":")
			ends[j] = Endpoint{Node: node, Interface: ifname}
			if _, ok := t.Node(node); !ok {
				c.fail(at, "endpoint %q: no node %q in this file", text, node)
			}
			if !interfaceName.MatchString(ifname) || ifname == "lo" {
				c.fail(at, "endpoint %q: interface %q: use letters, digits and . _ -, at most 15, not lo", text, ifname)
			}
			if used[ends[j]] {
				c.fail(at, "endpoint %q is used twice: give one of them another interface", text)
			}
			used[ends[j]] = true
		}
		mtu := config.MTU
		switch {
		case mtu == 0:
			mtu = DefaultMTU
		case mtu < 68 || mtu > 65535:
			c.fail(append(path, "mtu"), "mtu %d: must be within 68 to 65535", mtu)
		}
		t.Links = append(t.Links, Link{A: ends[0], B: ends[1], MTU: mtu})
	}
}
