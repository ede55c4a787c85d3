// Package clab reads topology files in the containerlab format
// (https://containerlab.dev/manual/topo-def-file/), or rather the part of it that
// our labs use. Every file accepted here is meant to mean the same to containerlab;
// what the two could understand differently is refused with its place in the file.
//
// Differences that the checks keep out of the files:
//
//   - containerlab adds a management interface eth0 to each node: network-mode must
//     be none, since the namespace runner has no such network;
//   - containerlab replaces $NAME and {{…}} in the whole file before it reads it: both are
//     refused, commands that need one belong into a bound script;
//   - exec commands run without a shell, after all links exist, in the order written;
//   - a link without mtu gets 9500, as in containerlab.
//
// Our own facts about nodes live in labels only (see [LabelRole] and its siblings).
package clab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// DefaultMTU is the MTU in bytes of a link that does not give one, as in containerlab.
const DefaultMTU = 9500

// Labels that our topologies put on nodes. Values are strings, as containerlab wants them.
const (
	// LabelRole says what a node is: gateway, vpc, router, host or internet.
	LabelRole = "fabric.role"
	// LabelSite names the site a node belongs to.
	LabelSite = "fabric.site"
	// LabelVRF names the VRF a host sits in.
	LabelVRF = "fabric.vrf"
	// LabelAddress is the IPv4 address at which a host answers.
	LabelAddress = "fabric.address"
	// LabelAddress6 is the IPv6 address at which a host answers, if it has one.
	LabelAddress6 = "fabric.address6"
	// LabelTTLPrefix, followed by a node's name, is the ttl that a ping from this host to that
	// node must print: 64 less the routers the answer passes.
	LabelTTLPrefix = "fabric.ttl/"
	// LabelTTL6Prefix is the same as LabelTTLPrefix for the IPv6 hop limit.
	LabelTTL6Prefix = "fabric.ttl6/"
)

// Topology is one lab: named nodes and the links between them.
type Topology struct {
	// File is the absolute path of the topology file; bind sources are relative to its folder.
	File string
	// Name is the lab's name, unique among the labs that run at the same time.
	Name string
	// Prefix of the containers' names, "clab" if the file does not say.
	Prefix string
	// Nodes in the order of the file, with defaults and kinds applied.
	Nodes []Node
	// Links in the order of the file.
	Links []Link
}

// Node is one machine of the lab.
type Node struct {
	// Name is also the node's host name.
	Name string
	// Image is what containerlab runs; the namespace runner uses the host's own file system instead.
	Image string
	// Cmd is the process that keeps the node alive, split into words; empty means the image's own.
	Cmd []string
	// Exec are the commands, split into words, that run once the links are there.
	Exec [][]string
	// Binds are the host's files and folders seen inside the node.
	Binds []Bind
	// Env is the environment of everything that runs in the node.
	Env map[string]string
	// Labels are free text by name; ours start with "fabric.".
	Labels map[string]string
	// Sysctls are written before the links exist, by their dotted names.
	Sysctls map[string]string
}

// Bind is one file or folder of the host inside a node.
type Bind struct {
	// Source is the absolute path on the host.
	Source string
	// Target is the absolute path in the node.
	Target string
	// ReadOnly says that the node cannot write to it.
	ReadOnly bool
}

// Link is a point-to-point Ethernet link.
type Link struct {
	// A and B are the two ends.
	A, B Endpoint
	// MTU in bytes of both ends.
	MTU int
}

// Endpoint is one interface of one node.
type Endpoint struct {
	Node, Interface string
}

// String gives the endpoint as the file writes it: node:interface.
func (e Endpoint) String() string { return e.Node + ":" + e.Interface }

// Load reads and checks the topology file at path. The error lists everything found wrong,
// one line each, as file:line:column: what, and how to mend it.
func Load(path string) (*Topology, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("topology %s: %w", path, err)
	}
	data, err := os.ReadFile(abs)
	if err != nil {
		return nil, fmt.Errorf("topology: %w", err)
	}
	return Parse(abs, data)
}

// Node returns the node of that name, and whether there is one.
func (t *Topology) Node(name string) (Node, bool) {
	for _, n := range t.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

// Container is the name that containerlab gives a node's container: PREFIX-LAB-NODE, NODE alone with an empty prefix, and
// LAB-NODE with the prefix "__lab-name".
func (t *Topology) Container(node string) string {
	switch t.Prefix {
	case "":
		return node
	case "__lab-name":
		return t.Name + "-" + node
	}
	return t.Prefix + "-" + t.Name + "-" + node
}

// SplitCommand splits a command line into words as containerlab does: at blanks, with
// '…' and "…" keeping blanks and a backslash keeping the next character (not within '…').
// No shell is involved: no variables, no pipes, no lists.
func SplitCommand(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, quote, escaped := false, rune(0), false
	for _, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			inWord, escaped = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			inWord, quote = true, r
		case r == ' ' || r == '\t' || r == '\n' || r == '\r':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		case r == '#' && !inWord:
			return nil, fmt.Errorf("command %q: containerlab takes what follows a # for a comment: quote it", line)
		default:
			inWord = true
			word.WriteRune(r)
		}
	}
	if quote != 0 || escaped {
		return nil, fmt.Errorf("command %q ends within a quote: close it", line)
	}
	if inWord {
		words = append(words, word.String())
	}
	if len(words) == 0 {
		return nil, fmt.Errorf("command is empty: remove it or write one")
	}
	return words, nil
}
