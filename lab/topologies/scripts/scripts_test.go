// Package scripts tests the scripts that all topologies bind into their nodes.
package scripts

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPrepare(t *testing.T) {
	dir := t.TempDir()
	script, err := os.ReadFile("prepare.sh")
	if err != nil {
		t.Fatal(err)
	}
	document := `sites:
  - name: sz-gw-site
    gateways:
      - name: sz-gw # with a comment
        wireguard:
          public-key: AAAA=
  - gateways: [{name: hk-gw, wireguard: {public-key: "B+/B=", keepalive: 5s}}]
  - gateways:
      - name: "gz-gw"
        wireguard: {public-key: CCCC=}
      - name: other
        wireguard: {public-key: DDDD=}
`
	keygen := "#!/bin/sh\n[ \"$1\" = keygen ]\numask 077\nmktemp -u XXXX >\"$2\"\necho \"$(basename \"$2\" .key | tr -d -)=\"\n"
	topology := ""
	for _, name := range []string{"sz-gw", "hk-gw", "gz-gw"} {
		topology += "      exec:\n        - sh /opt/fabric/gateway.sh up " + name + "\n"
	}
	for name, text := range map[string]string{"prepare.sh": string(script), "fabric.yaml": document, "keygen": keygen, "t.clab.yml": topology} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	prepare := func() {
		t.Helper()
		if out, err := exec.Command("sh", filepath.Join(dir, "prepare.sh"), dir, filepath.Join(dir, "keygen")).CombinedOutput(); err != nil {
			t.Fatalf("prepare.sh: %v: %s", err, out)
		}
	}
	prepare()
	want := strings.NewReplacer("AAAA=", `"szgw="`, `"B+/B="`, `"hkgw="`, "CCCC=", `"gzgw="`).Replace(document)
	var keys []string
	for _, name := range []string{"sz-gw", "hk-gw", "gz-gw"} {
		got, err := os.ReadFile(filepath.Join(dir, ".run", name, "fabric.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s: document (-want +got):\n%s", name, diff)
		}
		found, err := filepath.Glob(filepath.Join(dir, ".run", name, "keys", "*"))
		if err != nil || len(found) != 1 || filepath.Base(found[0]) != name+".key" {
			t.Fatalf("%s: keys %v, %v: want its own alone", name, found, err)
		}
		key, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, string(key))
	}
	prepare()
	for i, name := range []string{"sz-gw", "hk-gw", "gz-gw"} {
		if key, _ := os.ReadFile(filepath.Join(dir, ".run", name, "keys", name+".key")); string(key) != keys[i] {
			t.Errorf("%s: the second run changed the key", name)
		}
	}

	broken := strings.Replace(document, "name: hk-gw", "name: gone", 1)
	if err := os.WriteFile(filepath.Join(dir, "fabric.yaml"), []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", filepath.Join(dir, "prepare.sh"), dir, filepath.Join(dir, "keygen")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no public-key for hk-gw") {
		t.Errorf("a document without hk-gw: %v: %s", err, out)
	}
}
