package config

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// Parse reads a document strictly, fills in the defaults and validates it as a whole. The error is of type Problems and
// holds everything that is wrong, each with its place in file; file itself is only a name here.
func Parse(file string, data []byte) (*Document, error) {
	d, r := decode(file, data)
	if d != nil && !r.seen[""] { // else it is not a mapping, and nothing more can be said
		d.setDefaults()
		d.validate(r)
	}
	if len(r.list) > 0 {
		return nil, r.list.sorted()
	}
	return d, nil
}

// decode reads a document without defaults or validation. The document is nil if data is not YAML at all.
func decode(file string, data []byte) (*Document, *report) {
	r := newReport(file)
	node := parseSyntax(data, r)
	if node == nil {
		return nil, r
	}
	d := new(Document)
	(&decoder{r}).value(node, reflect.ValueOf(d).Elem(), "")
	return d, r
}

// decoder copies a tree into a struct. It goes on after a problem, so that all are found at once, which is why the
// YAML library's own decoder does not do here.
type decoder struct{ *report }

// textTypes are read from one scalar; the words are for people.
var textTypes = map[reflect.Type][2]string{
	reflect.TypeFor[netip.Addr]():     {"an IP address", "write it like 192.0.2.1 or \"2001:db8::1\""},
	reflect.TypeFor[netip.Prefix]():   {"a prefix", "write it like 192.0.2.0/24 or \"2001:db8::/32\""},
	reflect.TypeFor[netip.AddrPort](): {"an address with a port", "write it like 192.0.2.1:9100 or \"[2001:db8::1]:9100\""},
	reflect.TypeFor[Duration]():       {"a duration", "write it like 300ms, 5s or 2m"},
}

// value copies the node into v, which is settable.
func (d *decoder) value(n ast.Node, v reflect.Value, path string) {
	if _, ok := d.at[path]; !ok {
		d.at[path] = nodePosition(n)
	}
	if n == nil || n.Type() == ast.NullType {
		d.add(path, "give it a value or remove the key", "has no value")
		return
	}
	if words, ok := textTypes[v.Type()]; ok {
		d.text(n, v, path, words)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		d.value(n, p.Elem(), path)
		v.Set(p)
	case reflect.Struct:
		d.mapping(n, v, path)
	case reflect.Slice:
		d.sequence(n, v, path)
	case reflect.String:
		if s, ok := n.(*ast.StringNode); ok {
			v.SetString(s.Value)
			return
		}
		mend := "write one line of text, in quotes if it has a colon"
		if _, ok := n.(ast.ScalarNode); ok {
			mend = "put it in quotes"
		}
		d.add(path, mend, "must be text, not %s", kindOf(n))
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.add(path, "write true or false", "must be true or false, not %s", kindOf(n))
			return
		}
		v.SetBool(b.Value)
	case reflect.Int, reflect.Uint32:
		d.integer(n, v, path)
	default:
		panic(fmt.Sprintf("config: no way to decode %s at %s", v.Type(), path))
	}
}

// integer reads a decimal number without grouping: 0x10, 010 and 1_000 mean different things to different readers.
func (d *decoder) integer(n ast.Node, v reflect.Value, path string) {
	const mend = "write a plain decimal number"
	s := n.GetToken().Value
	tooLarge := n.GetToken().Type == token.StringType && strings.Trim(s, "0123456789") == ""
	if _, ok := n.(*ast.IntegerNode); !ok && !tooLarge {
		d.add(path, mend, "must be a whole number, not %s", kindOf(n))
		return
	}
	i, err := strconv.ParseInt(s, 10, 64)
	digits := strings.TrimPrefix(s, "-")
	switch {
	case err != nil && strings.Trim(digits, "0123456789") == "":
		d.add(path, "write a smaller number", "%s is out of range", s)
	case err != nil || len(digits) > 1 && digits[0] == '0':
		d.add(path, mend, "%s is not a decimal number", s)
	case v.CanInt():
		v.SetInt(i)
	case i < 0 || v.OverflowUint(uint64(i)):
		d.add(path, "write a number from 0 to 4294967295", "%s is out of range", s)
	default:
		v.SetUint(uint64(i))
	}
}

// text reads a type that has its own way to write itself.
func (d *decoder) text(n ast.Node, v reflect.Value, path string, words [2]string) {
	if _, ok := n.(ast.ScalarNode); !ok {
		d.add(path, words[1], "must be %s, not %s", words[0], kindOf(n))
		return
	}
	s := n.GetToken().Value
	if s == "" || v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)) != nil {
		d.add(path, words[1], "%s is not %s", quoteShort(s), words[0])
	}
}

// sequence reads a list.
func (d *decoder) sequence(n ast.Node, v reflect.Value, path string) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.add(path, "begin each element with \"- \"", "must be a list, not %s", kindOf(n))
		return
	}
	if len(s.Values) == 0 {
		return // the same as absent
	}
	list := reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values))
	for i, e := range s.Values {
		d.value(e, list.Index(i), index(path, i))
	}
	v.Set(list)
}

// mapping reads a struct.
func (d *decoder) mapping(n ast.Node, v reflect.Value, path string) {
	var pairs []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	default:
		d.add(path, "write keys and values", "must hold keys, not %s", kindOf(n))
		return
	}
	fields := fieldsOf(v.Type())
	first := map[string]position{}
	for _, pair := range pairs {
		pos := tokenPosition(pair.Key.GetToken())
		key, ok := keyOf(pair.Key)
		if !ok {
			d.addAt(pos, path, "write a plain key", "key must be text, not %s", kindOf(pair.Key))
			continue
		}
		f := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
		if f < 0 {
			d.addAt(pos, join(path, key), "known here: "+known(fields), "unknown key %s", quoteShort(key))
			continue
		}
		if at, twice := first[key]; twice {
			d.addAt(pos, join(path, key), "keep one of them", "duplicate key, first on line %d", at.line)
			continue
		}
		first[key] = pos
		child := join(path, key)
		// A list or mapping is pointed at by its key, a scalar by itself.
		if _, scalar := pair.Value.(ast.ScalarNode); !scalar || pair.Value.Type() == ast.NullType {
			d.at[child] = pos
		}
		d.value(pair.Value, v.FieldByIndex(fields[f].index), child)
	}
	for _, f := range fields {
		if _, ok := first[f.key]; !ok && f.required {
			d.addAt(d.find(path), join(path, f.key), "add it", "required key is missing")
		}
	}
}

// field is one key of a struct.
type field struct {
	key      string
	index    []int // as reflect.Value.FieldByIndex takes it
	required bool
}

// fieldsOf reads the yaml tags of a struct: a key that may not be left out is required, and the keys of an inline struct are its own.
func fieldsOf(t reflect.Type) []field {
	fields := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		key, options, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if options == "inline" {
			for _, f := range fieldsOf(t.Field(i).Type) {
				f.index = append([]int{i}, f.index...)
				fields = append(fields, f)
			}
			continue
		}
		fields = append(fields, field{key: key, index: []int{i}, required: options == ""})
	}
	return fields
}

func known(fields []field) string {
	keys := make([]string, len(fields))
	for i, f := range fields {
		keys[i] = f.key
	}
	return strings.Join(keys, ", ")
}

// keyOf returns the text of a key.
func keyOf(n ast.MapKeyNode) (string, bool) {
	s, ok := n.(*ast.StringNode)
	if !ok || s.GetToken().Type == token.MergeKeyType {
		return "", false
	}
	return s.Value, true
}

// kindOf names what a node is, for people.
func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.StringNode:
		return "text"
	case *ast.BoolNode:
		return "true or false"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number"
	case *ast.NullNode:
		return "nothing"
	}
	return "something else"
}

// quoteShort quotes what stands in a document, bounded.
func quoteShort(s string) string {
	const limit = 60
	if r := []rune(s); len(r) > limit {
		s = string(r[:limit]) + "…"
	}
	return strconv.Quote(s)
}
