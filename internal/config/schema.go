package config

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"
)

//go:generate go test -run TestSchemaFile -update

// typesSource is where the descriptions of the schema come from.
//
//go:embed types.go
var typesSource string

// Schema returns the JSON schema of a document, generated from the types and their comments. A document that fits it may
// still be refused by Parse, which checks the document as a whole.
func Schema() ([]byte, error) {
	comments, err := typeComments()
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	r := jsonschema.Reflector{Anonymous: true, ExpandedStruct: true, CommentMap: comments, Mapper: textSchema}
	s := r.Reflect(&Document{})
	s.Title = "Fabric document"
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	return append(data, '\n'), nil
}

// textSchema describes the types that are written as text.
func textSchema(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[netip.Addr]():
		return &jsonschema.Schema{Type: "string", AnyOf: []*jsonschema.Schema{{Format: "ipv4"}, {Format: "ipv6"}}}
	case prefixType:
		return &jsonschema.Schema{Type: "string", Pattern: `^[0-9a-fA-F.:]+/[0-9]{1,3}$`}
	case reflect.TypeFor[netip.AddrPort]():
		return &jsonschema.Schema{Type: "string", Pattern: `^([0-9.]+|\[[0-9a-fA-F.:]+\]):[0-9]{1,5}$`}
	case reflect.TypeFor[Duration]():
		return &jsonschema.Schema{Type: "string", Pattern: `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`}
	}
	return nil
}

// typeComments reads the comments of types and fields from the source, under the names that jsonschema looks up.
func typeComments() (map[string]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), "types.go", typesSource, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	comments := map[string]string{}
	note := func(name string, doc *ast.CommentGroup) {
		if text := strings.Join(strings.Fields(doc.Text()), " "); text != "" {
			comments[reflect.TypeFor[Document]().PkgPath()+"."+name] = text
		}
	}
	for _, decl := range file.Decls {
		g, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range g.Specs {
			t, ok := spec.(*ast.TypeSpec)
			if !ok {
				continue
			}
			note(t.Name.Name, g.Doc)
			if s, ok := t.Type.(*ast.StructType); ok {
				for _, f := range s.Fields.List {
					for _, name := range f.Names {
						note(t.Name.Name+"."+name.Name, f.Doc)
					}
				}
			}
		}
	}
	return comments, nil
}
