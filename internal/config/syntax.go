package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// MaxSize is the size of the largest document, in bytes.
const MaxSize = 4 << 20

// The YAML parser recurses on nesting and takes time in the square of the keys of one mapping, so both are bounded
// before it sees a document. No document that could be valid comes near.
const (
	maxDepth  = 32
	maxKeys   = 256
	maxTokens = 1 << 20
)

// refused are the parts of YAML that a document has no use for. Without them a document reads from top to bottom, cannot
// grow when it is expanded, and means the same to every reader.
var refused = map[token.Type]string{
	token.AnchorType:         "anchors",
	token.AliasType:          "aliases",
	token.MergeKeyType:       "merge keys",
	token.TagType:            "tags",
	token.DirectiveType:      "directives",
	token.MappingKeyType:     "explicit keys (?)",
	token.LiteralType:        "block scalars (|)",
	token.FoldedType:         "block scalars (>)",
	token.DocumentHeaderType: "several documents in one file",
	token.DocumentEndType:    "several documents in one file",
}

// parseSyntax turns data into a tree. What is wrong goes to the report; the tree is nil then.
func parseSyntax(data []byte, r *report) (node ast.Node) {
	fail := func(pos position, mend, format string, args ...any) ast.Node {
		r.addAt(pos, "", mend, format, args...)
		return nil
	}
	top := position{1, 1}
	if len(data) > MaxSize {
		return fail(top, "split the fabric or shorten the lists", "document has %d bytes, more than %d", len(data), MaxSize)
	}
	if i := invalidUTF8(data); i >= 0 {
		return fail(positionOf(data, i), "save the file as UTF-8", "byte 0x%02x is not UTF-8", data[i])
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if i := bytes.IndexFunc(data, func(c rune) bool { return c < ' ' && c != '\n' && c != '\t' && c != '\r' || c == 0x7f }); i >= 0 {
		return fail(positionOf(data, i), "remove it", "control character 0x%02x", data[i])
	}
	if countStructure(data) > maxTokens {
		return fail(top, "split the fabric or shorten the lists", "document has more than %d elements", maxTokens)
	}
	// The parser is other people's code on other people's text: a panic in it is one more syntax error.
	defer func() {
		if p := recover(); p != nil {
			node = fail(top, "look for unbalanced brackets or quotes", "not YAML: %v", p)
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if !checkTokens(tokens, r) {
		return nil
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		pos, message := syntaxError(err)
		return fail(pos, "correct the YAML here", "not YAML: %s", message)
	}
	if len(file.Docs) > 0 {
		node = file.Docs[0].Body
	}
	if node == nil {
		return fail(top, "describe a fabric: fabric, vrfs, sites", "document is empty")
	}
	return node
}

// invalidUTF8 returns the index of the first byte that is not UTF-8, or -1.
func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		c, n := utf8.DecodeRune(data[i:])
		if c == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// positionOf returns the position of the byte at offset.
func positionOf(data []byte, offset int) position {
	before := data[:offset]
	line := bytes.Count(before, []byte{'\n'}) + 1
	return position{line, utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1}
}

// countStructure is an upper guess of the tokens in data, made before any is held in memory.
func countStructure(data []byte) int {
	n := 0
	for i, c := range data {
		switch c {
		case ',', '[', ']', '{', '}', '&', '*', '!', '?', '\n', '#':
			n++
		case '-', ':':
			if i+1 < len(data) && (data[i+1] == ' ' || data[i+1] == '\n') {
				n++
			}
		}
	}
	return n
}

// checkTokens refuses what must not reach the parser and says whether all was well.
func checkTokens(tokens token.Tokens, r *report) bool {
	before := len(r.list)
	var s shape
	content := false
	for i, t := range tokens {
		pos := tokenPosition(t)
		if t.Type == token.DocumentHeaderType && !content {
			content = true
			continue
		}
		content = content || t.Type != token.CommentType
		if what, bad := refused[t.Type]; bad {
			r.addAt(pos, "", "write the values out", "%s are not allowed", what)
			continue
		}
		if t.Type == token.InvalidType {
			message := t.Error
			if message == "" {
				message = "unexpected text"
			}
			r.addAt(pos, "", "correct the YAML here", "not YAML: %s", message)
			continue
		}
		if message := s.step(tokens, i); message != "" {
			r.addAt(pos, "", "see docs/fabric.schema.json for the shape of a document", "%s", message)
			return false
		}
	}
	return len(r.list) == before
}

// shape follows how deep the tokens nest and how many keys a mapping has.
type shape struct {
	// block are the columns of the open block collections with the keys seen in each, flow the keys of the open brackets.
	block []openColumn
	flow  []int
}

type openColumn struct{ column, keys int }

// step takes the i-th token and returns what is wrong, or "".
func (s *shape) step(tokens token.Tokens, i int) string {
	t := tokens[i]
	keys := 0
	switch t.Type {
	case token.MappingStartType, token.SequenceStartType:
		s.flow = append(s.flow, 0)
	case token.MappingEndType, token.SequenceEndType:
		if len(s.flow) > 0 {
			s.flow = s.flow[:len(s.flow)-1]
		}
	case token.SequenceEntryType:
		if len(s.flow) == 0 {
			s.open(t.Position.Column)
		}
	case token.MappingValueType:
		if n := len(s.flow); n > 0 {
			s.flow[n-1]++
			keys = s.flow[n-1]
		} else if i > 0 {
			column := s.open(tokens[i-1].Position.Column)
			column.keys++
			keys = column.keys
		}
	}
	if len(s.flow)+len(s.block) > maxDepth {
		return fmt.Sprintf("nested more than %d deep", maxDepth)
	}
	if keys > maxKeys {
		return fmt.Sprintf("more than %d keys in one mapping", maxKeys)
	}
	return ""
}

// open closes the block collections right of column and returns the one at column.
func (s *shape) open(column int) *openColumn {
	for len(s.block) > 0 && s.block[len(s.block)-1].column > column {
		s.block = s.block[:len(s.block)-1]
	}
	if n := len(s.block); n == 0 || s.block[n-1].column < column {
		s.block = append(s.block, openColumn{column: column})
	}
	return &s.block[len(s.block)-1]
}

// syntaxError takes the parser's error apart.
func syntaxError(err error) (position, string) {
	var e interface {
		GetToken() *token.Token
		GetMessage() string
	}
	if errors.As(err, &e) && e.GetToken() != nil {
		return tokenPosition(e.GetToken()), e.GetMessage()
	}
	message, _, _ := strings.Cut(err.Error(), "\n")
	return position{1, 1}, message
}

func tokenPosition(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{1, 1}
	}
	return position{t.Position.Line, t.Position.Column}
}

// nodePosition is where a person would point at to show the node.
func nodePosition(n ast.Node) position {
	switch n := n.(type) {
	case nil:
		return position{1, 1}
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return nodePosition(n.Values[0])
		}
		return tokenPosition(n.Start)
	case *ast.MappingValueNode:
		return tokenPosition(n.Key.GetToken())
	}
	return tokenPosition(n.GetToken())
}
