package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"gopkg.in/yaml.v3"
)

// flushRows is how many rows of a table are laid out together: a list of any length is printed as it comes, at the
// price that the widths may change every so many rows.
const flushRows = 1000

// toJSON writes a message in one line. Every scalar is there, also when it is empty or false, so that programs need
// not know which may be left out.
func toJSON(m proto.Message) ([]byte, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	// protojson varies its white space on purpose.
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// toYAML writes what toJSON writes as YAML. Strings are quoted: YAML 1.1 takes a community for a number.
func toYAML(m proto.Message) (*yaml.Node, error) {
	b, err := toJSON(m)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	n := doc.Content[0]
	blockStyle(n)
	return n, nil
}

// blockStyle turns what came as JSON into the form that people know as YAML.
func blockStyle(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle
	for i, c := range n.Content {
		switch {
		case n.Kind == yaml.MappingNode && i%2 == 0:
			c.Style = 0 // a key
		case c.Kind == yaml.ScalarNode && strings.Contains(c.Value, "\n"):
			c.Style = yaml.LiteralStyle
		default:
			blockStyle(c)
		}
	}
}

func writeYAML(w io.Writer, n *yaml.Node) error {
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	return errors.Join(enc.Encode(n), enc.Close())
}

// printObject prints one message as JSON or YAML, and as a table its fields one by one.
func (a *app) printObject(m proto.Message) error {
	switch a.output {
	case "json":
		b, err := toJSON(m)
		if err != nil {
			return err
		}
		var out bytes.Buffer
		if err := json.Indent(&out, b, "", "  "); err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.out, out.String())
		return err
	case "yaml":
		n, err := toYAML(m)
		if err != nil {
			return err
		}
		return writeYAML(a.out, n)
	}
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	a.printFields(w, "", m.ProtoReflect())
	return w.Flush()
}

// measured are fields that are shown as "-" where there is nothing: that there was no answer says something.
var measured = map[protoreflect.FullName]bool{"fabric.v1.Tunnel.rtt": true, "fabric.v1.Tunnel.min_rtt": true, "fabric.v1.Tunnel.loss_percent": true}

// printFields prints what is set, one field a line; a list or a map one item a line. Fields of a message inside another begin with
// its name, but for the answer to a call, which only wraps one.
func (a *app) printFields(w io.Writer, prefix string, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := prefix + strings.ReplaceAll(string(f.Name()), "_", " ")
		if f.Kind() != protoreflect.BoolKind && !m.Has(f) {
			if measured[f.FullName()] {
				fmt.Fprintf(w, "%s\t-\n", name)
			}
			continue
		}
		v := m.Get(f)
		switch {
		case f.IsMap():
			items := map[string]string{}
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				items[k.String()] = a.fieldText(f.MapValue(), v)
				return true
			})
			for _, k := range slices.Sorted(maps.Keys(items)) {
				fmt.Fprintf(w, "%s\t%s %s\n", name, k, items[k])
				name = ""
			}
		case f.IsList():
			for j := range v.List().Len() {
				fmt.Fprintf(w, "%s\t%s\n", name, a.fieldText(f, v.List().Get(j)))
				name = ""
			}
		case f.Message() != nil && f.Message().FullName().Parent() == m.Descriptor().FullName().Parent():
			inner := name + " "
			if strings.HasSuffix(string(m.Descriptor().Name()), "Response") {
				inner = ""
			}
			a.printFields(w, inner, v.Message())
		default:
			fmt.Fprintf(w, "%s\t%s\n", name, a.fieldText(f, v))
		}
	}
}

// printBlocks prints a whole answer as JSON or YAML, and as a table the items of its list, one block of fields each.
func printBlocks[T proto.Message](a *app, whole proto.Message, items []T) error {
	if a.output != "table" {
		return a.printObject(whole)
	}
	for i, m := range items {
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		if err := a.printObject(m); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) fieldText(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	if f.Message() == nil {
		if f.Kind() == protoreflect.BoolKind {
			return yesNo(v.Bool())
		}
		return v.String()
	}
	switch m := v.Message().Interface().(type) {
	case *timestamppb.Timestamp:
		return m.AsTime().Local().Format(time.RFC3339) + " (" + a.ago(m) + " ago)"
	case *durationpb.Duration:
		return m.AsDuration().String()
	}
	b, _ := toJSON(v.Message().Interface())
	return string(b)
}

// column is one column of a table.
type column[T any] struct {
	head string
	cell func(T) string
}

// lister prints a list as it comes.
type lister[T proto.Message] struct {
	a    *app
	key  string
	cols []column[T]
	w    *tabwriter.Writer
	// buf saves a system call per item; it is flushed after each piece of the list.
	buf *bufio.Writer
	n   int
}

// newLister begins a list; key is its name in JSON and YAML.
func newLister[T proto.Message](a *app, key string, cols []column[T]) *lister[T] {
	buf := bufio.NewWriter(a.out)
	return &lister[T]{a: a, key: key, cols: cols, buf: buf, w: tabwriter.NewWriter(buf, 0, 8, 2, ' ', 0)}
}

// add prints items.
func (l *lister[T]) add(items ...T) error {
	for _, m := range items {
		if err := l.one(m); err != nil {
			return err
		}
		l.n++
	}
	return l.buf.Flush()
}

func (l *lister[T]) one(m T) error {
	switch l.a.output {
	case "json":
		b, err := toJSON(m)
		if err != nil {
			return err
		}
		sep := ",\n  "
		if l.n == 0 {
			sep = `{"` + l.key + `": [` + "\n  "
		}
		_, err = fmt.Fprintf(l.buf, "%s%s", sep, b)
		return err
	case "yaml":
		n, err := toYAML(m)
		if err != nil {
			return err
		}
		if l.n == 0 {
			fmt.Fprintf(l.buf, "%s:\n", l.key)
		}
		return writeYAML(l.buf, &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{n}})
	}
	if l.n == 0 {
		l.header()
	}
	for i, c := range l.cols {
		end := "\t"
		if i == len(l.cols)-1 {
			end = "\n"
		}
		text := c.cell(m)
		if text == "" {
			text = "-"
		}
		fmt.Fprint(l.w, text, end)
	}
	if l.n%flushRows == flushRows-1 {
		return l.w.Flush()
	}
	return nil
}

func (l *lister[T]) header() {
	heads := make([]string, len(l.cols))
	for i, c := range l.cols {
		heads[i] = c.head
	}
	fmt.Fprintln(l.w, strings.Join(heads, "\t"))
}

// end finishes a list that came whole. Without it JSON stays open, so that no program takes half a list for a whole.
func (l *lister[T]) end() error {
	switch {
	case l.a.output == "json" && l.n == 0:
		fmt.Fprintf(l.buf, "{%q: []}\n", l.key)
	case l.a.output == "json":
		fmt.Fprintln(l.buf, "\n]}")
	case l.a.output == "yaml" && l.n == 0:
		fmt.Fprintf(l.buf, "%s: []\n", l.key)
	case l.a.output == "table" && l.n == 0:
		l.header()
	}
	return errors.Join(l.w.Flush(), l.buf.Flush()) // buf keeps its first error
}

// printList prints a list that is already there.
func printList[T proto.Message](a *app, key string, cols []column[T], items []T) error {
	l := newLister(a, key, cols)
	if err := l.add(items...); err != nil {
		return err
	}
	return l.end()
}

// printEvent prints one event of a watch: text, a line of JSON, or a document of YAML.
func (a *app) printEvent(m proto.Message, text string) error {
	switch a.output {
	case "json":
		b, err := toJSON(m)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "%s\n", b)
		return err
	case "yaml":
		n, err := toYAML(m)
		if err != nil {
			return err
		}
		fmt.Fprintln(a.out, "---")
		return writeYAML(a.out, n)
	}
	_, err := fmt.Fprintln(a.out, text)
	return err
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// ago is the time since a moment, in two units at most.
func (a *app) ago(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	d := a.now().Sub(t.AsTime()).Round(time.Second)
	switch {
	case d < 0:
		return "0s"
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return d.String()
}
