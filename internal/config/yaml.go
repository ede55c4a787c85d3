package config

import (
	"bytes"
	"encoding"
	"fmt"
	"reflect"
	"regexp"
	"strings"
)

// YAML writes the document in its one canonical form: keys in the order of the types, defaults written out, two
// spaces of indentation. Parse reads it back to an equal document. (The YAML library's encoder panics on zero values of
// types that marshal themselves and knows no omitzero, so the form is written here.)
func (d *Document) YAML() ([]byte, error) {
	var b bytes.Buffer
	if err := writeMapping(&b, reflect.ValueOf(d).Elem(), "", ""); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// writeMapping writes the keys of a struct. The first key follows what is on the line already, after first.
func writeMapping(b *bytes.Buffer, v reflect.Value, first, indent string) error {
	prefix := first
	for _, f := range fieldsOf(v.Type()) {
		child := v.FieldByIndex(f.index)
		if child.Kind() == reflect.Pointer {
			if child.IsNil() {
				continue
			}
			child = child.Elem()
		} else if !f.required && (child.IsZero() || child.Kind() == reflect.Slice && child.Len() == 0) {
			continue
		}
		fmt.Fprintf(b, "%s%s:", prefix, f.key)
		prefix = indent
		if err := writeValue(b, child, indent); err != nil {
			return fmt.Errorf("%s: %w", f.key, err)
		}
	}
	if prefix == first && first != indent {
		b.WriteString(first + "{}\n")
	}
	return nil
}

// writeValue writes what follows a key and its colon, to the end of the line or of the lines.
func writeValue(b *bytes.Buffer, v reflect.Value, indent string) error {
	switch {
	case isScalar(v.Type()):
		s, err := scalar(v)
		if err != nil {
			return err
		}
		b.WriteString(" " + s + "\n")
		return nil
	case v.Kind() == reflect.Struct:
		if v.IsZero() {
			b.WriteString(" {}\n")
			return nil
		}
		b.WriteString("\n")
		return writeMapping(b, v, indent+"  ", indent+"  ")
	case v.Len() == 0:
		b.WriteString(" []\n")
		return nil
	case isScalar(v.Type().Elem()):
		items := make([]string, v.Len())
		for i := range items {
			s, err := scalar(v.Index(i))
			if err != nil {
				return err
			}
			items[i] = s
		}
		b.WriteString(" [" + strings.Join(items, ", ") + "]\n")
		return nil
	}
	b.WriteString("\n")
	for i := range v.Len() {
		if err := writeMapping(b, v.Index(i), indent+"  - ", indent+"    "); err != nil {
			return fmt.Errorf("%d: %w", i, err)
		}
	}
	return nil
}

func isScalar(t reflect.Type) bool {
	_, text := textTypes[t]
	return text || t.Kind() != reflect.Struct && t.Kind() != reflect.Slice
}

// plain is text that every reader of YAML takes as text without quotes, in brackets too.
var plain = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./-]*$|^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+(/[0-9]+|:[0-9]+)?$|^[0-9]+(ns|us|ms|s|m|h)([0-9hms]*)$`)

// ambiguous are words that some readers of YAML take for something else than text.
var ambiguous = regexp.MustCompile(`^(?i:true|false|null|yes|no|on|off|y|n)$`)

// scalar writes one value.
func scalar(v reflect.Value) (string, error) {
	s := ""
	switch t, ok := v.Interface().(encoding.TextMarshaler); {
	case ok:
		text, err := t.MarshalText()
		if err != nil {
			return "", err
		}
		s = string(text)
	case v.Kind() == reflect.String:
		s = v.String()
	default:
		return fmt.Sprint(v.Interface()), nil
	}
	if plain.MatchString(s) && !ambiguous.MatchString(s) {
		return s, nil
	}
	return quote(s), nil
}

// quote writes text between double quotes, with YAML's escapes.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		case c >= 0x80 && c < 0xa0 || c == 0x2028 || c == 0x2029 || c == 0xfeff:
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
