package config

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite docs/fabric.schema.json")

// The schema that is published must be the one of these types.
func TestSchemaFile(t *testing.T) {
	const path = "../../docs/fabric.schema.json"
	got, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.MkdirAll("../../docs", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not up to date: run go generate ./internal/config", path)
	}
	for _, s := range []string{`"vtep-family"`, "the tunnel to the k-th gateway of the document", `"additionalProperties": false`} {
		if !strings.Contains(string(got), s) {
			t.Errorf("schema lacks %s", s)
		}
	}
}
