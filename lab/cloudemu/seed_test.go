package cloudemu

import (
	"os"
	"strings"
	"testing"
)

// The example of the package documentation is a seed, and makes a world.
func TestDocumentedSeed(t *testing.T) {
	b, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	in := false
	for _, line := range strings.Split(string(b), "\n") {
		line = strings.TrimPrefix(line, "//\t")
		in = in || line == "{"
		if in {
			text.WriteString(line + "\n")
		}
		if in && line == "}" {
			break
		}
	}
	seed, err := ParseSeed([]byte(text.String()))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text.String())
	}
	s, err := New(Options{Seed: seed, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(s.world.entries); n != 5 {
		t.Errorf("%d entries, want 5", n)
	}
}

// Every mistake is reported, at once.
func TestSeedMistakes(t *testing.T) {
	_, err := ParseSeed([]byte(`{"regions":[{"id":"r"}],"keys":[{"id":"k"},{"id":"k","secret":"s"}],"vpcs":[
	  {"id":"v","region":"q","cidr":"10.0.0.1/8","vswitches":[{"id":"w","cidr":"ten"}],
	   "routeTables":[{"id":"t","type":"System"},{"id":"u","type":"System","vswitches":["x"],"entries":[{"cidr":"10.0.0.0"}]}],
	   "instances":[{"id":"i","vswitch":"x","privateIp":"","role":"nobody"}]}]}`))
	for _, want := range []string{"key k without secret", `key: id "k" is used twice`, `region "q" is not`, "write 10.0.0.0/8", `"ten" is no CIDR`,
		"2 System route tables", `vswitch "x" is not`, `"10.0.0.0" is no CIDR`, `role "nobody"`, `instance i: "" is no address`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
	if _, err := ParseSeed([]byte(`{} {}`)); err == nil {
		t.Error("text after the document passes")
	}
}
