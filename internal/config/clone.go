package config

import "reflect"

// Clone returns a copy that shares nothing with d.
func (d *Document) Clone() *Document {
	c := new(Document)
	deepCopy(reflect.ValueOf(c).Elem(), reflect.ValueOf(d).Elem())
	return c
}

// Clone returns a copy that shares nothing with m.
func (m Mutation) Clone() Mutation {
	var c Mutation
	deepCopy(reflect.ValueOf(&c).Elem(), reflect.ValueOf(&m).Elem())
	return c
}

// deepCopy copies src to dst. Structs of other packages (netip) are values and copied as such.
func deepCopy(dst, src reflect.Value) {
	switch src.Kind() {
	case reflect.Pointer:
		if !src.IsNil() {
			dst.Set(reflect.New(src.Type().Elem()))
			deepCopy(dst.Elem(), src.Elem())
		}
	case reflect.Slice:
		if !src.IsNil() {
			dst.Set(reflect.MakeSlice(src.Type(), src.Len(), src.Len()))
			for i := range src.Len() {
				deepCopy(dst.Index(i), src.Index(i))
			}
		}
	case reflect.Struct:
		if _, value := textTypes[src.Type()]; value {
			dst.Set(src)
			return
		}
		for i := range src.NumField() {
			deepCopy(dst.Field(i), src.Field(i))
		}
	default:
		dst.Set(src)
	}
}
