package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "fabric"

// mayImport is the layering: what each package of the product may import of ours. The rooms are in docs/architecture.md. Tests may
// import more; see testPackages.
var mayImport = map[string][]string{
	"bgp":                   {"bgp/rib", "internal/config", "internal/reconcile", "policy"},
	"bgp/rib":               {},
	"policy":                {"bgp/rib", "internal/config"},
	"vrf":                   {"bgp/rib", "internal/config", "internal/kernel", "overlay", "policy"},
	"overlay":               {"internal/config", "internal/kernel"},
	"overlay/bfd":           {},
	"overlay/carrier":       {},
	"overlay/links":         {"internal/kernel", "internal/kernel/linux", "internal/peercred", "internal/reconcile", "internal/version", "overlay", "overlay/bfd", "overlay/carrier", "overlay/links/rotation", "proto/links/v1"},
	"cloud":                 {"bgp/rib", "internal/config", "internal/reconcile", "policy"},
	"cloud/alibaba":         {"cloud", "internal/config", "internal/reconcile"},
	"cloud/cloudtest":       {"cloud", "internal/reconcile"},
	"internal/check":        {"cloud", "internal/config", "internal/kernel", "internal/kernel/linux", "overlay", "overlay/bfd", "overlay/carrier", "vrf"},
	"internal/config":       {},
	"internal/daemon":       {},
	"internal/peercred":     {},
	"internal/reconcile":    {},
	"internal/version":      {},
	"internal/layout":       {},
	"internal/kernel":       {"internal/reconcile"},
	"internal/kernel/linux": {"internal/kernel", "internal/reconcile"},
	"internal/kernel/kerneltest": {
		"internal/kernel", "internal/reconcile",
	},
	"internal/site": {
		"bgp", "bgp/rib", "cloud", "cloud/alibaba", "internal/config", "internal/kernel", "internal/reconcile", "internal/version",
		"overlay", "overlay/links", "policy", "vrf",
	},
	// The words for tunnels and sessions are links' own, and are not said twice.
	"internal/api":         {"internal/config", "internal/peercred", "internal/site", "internal/version", "overlay/links", "proto/fabric/v1"},
	"internal/api/apitest": {"internal/config", "internal/site", "overlay/links"},
	"internal/web":         {"internal/api", "internal/config", "internal/site", "proto/fabric/v1"},
	"proto/fabric/v1":      {},
	"proto/links/v1":       {},
	// Commands wire: flags, exit codes, printing.
	"cmd/fabric-site": {
		"cloud", "cloud/alibaba", "internal/api", "internal/check", "internal/config", "internal/daemon", "internal/kernel", "internal/kernel/linux", "internal/site",
		"internal/version", "internal/web", "overlay/carrier", "overlay/links", "proto/fabric/v1",
	},
	"overlay/links/rotation": {"overlay"},

	"systemd/packaging/gen":       {"systemd/packaging/gen/pages"},
	"systemd/packaging/gen/pages": {},

	"cmd/fabric-links": {"internal/daemon", "internal/kernel/linux", "internal/version", "overlay", "overlay/bfd", "overlay/links", "overlay/links/rotation"},
	"cmd/fabricctl":    {"internal/version", "proto/fabric/v1"},
}

// testPackages exist for tests: no package of the product imports them, nor those of the standard library that are named here.
var testPackages = []string{
	"internal/kernel/kerneltest", "internal/api/apitest", "cloud/cloudtest", "internal/layout",
	"testing", "testing/fstest", "testing/iotest", "testing/quick", "testing/synctest", "net/http/httptest",
}

// testPackage says whether a package of ours exists for tests.
func testPackage(p string) bool { return slices.Contains(testPackages, p) }

// laboratory says whether a package is part of the lab. It may import anything of ours, and nothing may import it.
func laboratory(p string) bool { return p == "lab" || strings.HasPrefix(p, "lab/") }

// borders are libraries whose words stay in the packages named. The lab is free to use all but those marked.
var borders = []struct {
	library string
	inside  []string
	lab     bool
}{
	{"github.com/osrg/gobgp", []string{"bgp"}, false},
	{"github.com/vishvananda/netlink", []string{"internal/kernel/linux"}, true},
	{"github.com/vishvananda/netns", []string{"internal/kernel/linux"}, true},
	{"github.com/google/nftables", []string{"internal/kernel/linux"}, false},
	{"github.com/aliyun/alibaba-cloud-sdk-go", []string{"cloud/alibaba"}, false},
	{"github.com/coder/websocket", []string{"overlay/carrier"}, false},
}

type goPackage struct {
	ImportPath, Dir  string
	GoFiles, Imports []string
	Error            *struct{ Err string }
}

// room is the import path without the module.
func room(path string) string {
	if path == module {
		return ""
	}
	return strings.TrimPrefix(path, module+"/")
}

// ours says whether an import path is of this module.
func ours(path string) bool { return path == module || strings.HasPrefix(path, module+"/") }

// root is the module's folder.
func root(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,GoFiles,Imports,Error", "./...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	var ps []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Error != nil {
			t.Errorf("%s: %s", p.ImportPath, p.Error.Err)
		}
		ps = append(ps, p)
	}
	if len(ps) < 10 {
		t.Fatalf("go list names %d packages; is this the whole module?", len(ps))
	}
	return ps
}

func TestLayers(t *testing.T) {
	for _, p := range packages(t) {
		for _, problem := range layering(p) {
			t.Error(problem)
		}
	}
}

// layering says what is wrong with a package's imports.
func layering(p goPackage) (problems []string) {
	name := room(p.ImportPath)
	allowed, known := mayImport[name]
	if !known && !laboratory(name) && len(p.GoFiles) > 0 {
		return []string{name + " is not in the table of packages: say there what it may import"}
	}
	for _, i := range p.Imports {
		short := room(i)
		switch {
		case ours(i) && laboratory(short) && !laboratory(name):
			problems = append(problems, name+" imports "+short+": nothing but the lab imports the lab")
		case testPackage(short) && !testPackage(name):
			if !laboratory(name) {
				problems = append(problems, name+" imports "+short+", which is for tests")
			}
		case ours(i) && !laboratory(name) && !slices.Contains(allowed, short):
			problems = append(problems, name+" imports "+short+", which its line in the table does not allow")
		}
	}
	for _, b := range borders {
		if slices.Contains(b.inside, name) || b.lab && laboratory(name) {
			continue
		}
		// Tests may cross a border: an emulator is tested with the real client.
		for _, i := range p.Imports {
			if i == b.library || strings.HasPrefix(i, b.library+"/") {
				problems = append(problems, name+" imports "+i+", whose words stay inside "+strings.Join(b.inside, ", "))
			}
		}
	}
	return problems
}

// TestLayeringIsSeen breaks the rules, one at a time.
func TestLayeringIsSeen(t *testing.T) {
	for _, c := range []struct{ name, imports, want string }{
		{"bgp/rib", "fabric/policy", "bgp/rib imports policy, which its line in the table does not allow"},
		{"policy", "fabric/lab/clab", "policy imports lab/clab: nothing but the lab imports the lab"},
		{"internal/site", "fabric/internal/kernel/kerneltest", "internal/site imports internal/kernel/kerneltest, which is for tests"},
		{"bgp", "testing", "bgp imports testing, which is for tests"},
		{"internal/site", "github.com/osrg/gobgp/v4/api", "internal/site imports github.com/osrg/gobgp/v4/api, whose words stay inside bgp"},
		{"overlay/links", "github.com/vishvananda/netlink", "overlay/links imports github.com/vishvananda/netlink, whose words stay inside internal/kernel/linux"},
		{"lab/netns", "github.com/aliyun/alibaba-cloud-sdk-go/sdk", "lab/netns imports github.com/aliyun/alibaba-cloud-sdk-go/sdk, whose words stay inside cloud/alibaba"},
		{"internal/helpers", "fmt", "internal/helpers is not in the table of packages: say there what it may import"},
		{"lab/netns", "github.com/vishvananda/netlink", ""},
		{"internal/kernel/kerneltest", "testing", ""},
		{"vrf", "fabric/overlay", ""},
	} {
		got := strings.Join(layering(goPackage{ImportPath: module + "/" + c.name, GoFiles: []string{"x.go"}, Imports: []string{c.imports}}), "; ")
		if got != c.want {
			t.Errorf("%s importing %s: %q, want %q", c.name, c.imports, got, c.want)
		}
	}
}

// TestNames: a package's name says what it is about.
func TestNames(t *testing.T) {
	for _, p := range packages(t) {
		if last := filepath.Base(p.ImportPath); slices.Contains([]string{"util", "utils", "common", "types", "helper", "helpers", "misc", "base"}, last) {
			t.Errorf("%s: %q says nothing of what is in it", p.ImportPath, last)
		}
	}
}

func TestExportedNamesAreDocumented(t *testing.T) {
	for _, p := range packages(t) {
		var files []*ast.File
		fset := token.NewFileSet()
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
			if err != nil {
				t.Error(err)
				continue
			}
			if !ast.IsGenerated(f) {
				files = append(files, f)
			}
		}
		if len(files) == 0 {
			continue
		}
		bare, err := undocumented(fset, files, p.ImportPath)
		if err != nil {
			t.Error(err)
		}
		for _, s := range bare {
			t.Errorf("%s: %s has no comment", room(p.ImportPath), s)
		}
	}
}

// undocumented names the exported identifiers without a comment. A comment above a group of constants or variables stands for all in
// it. Fields and methods of interfaces are left to the eye.
func undocumented(fset *token.FileSet, files []*ast.File, path string) (names []string, err error) {
	d, err := doc.NewFromFiles(fset, files, path)
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(d.Doc) == "" {
		names = append(names, "package "+d.Name)
	}
	funcs := func(prefix string, list []*doc.Func) {
		for _, f := range list {
			if f.Doc == "" {
				names = append(names, prefix+f.Name)
			}
		}
	}
	values := func(list []*doc.Value) {
		for _, v := range list {
			for _, s := range v.Decl.Specs {
				spec, ok := s.(*ast.ValueSpec)
				if !ok || v.Doc != "" || spec.Doc != nil || spec.Comment != nil {
					continue
				}
				for _, n := range spec.Names {
					if n.IsExported() {
						names = append(names, n.Name)
					}
				}
			}
		}
	}
	funcs("", d.Funcs)
	values(d.Consts)
	values(d.Vars)
	for _, t := range d.Types {
		if t.Doc == "" && !specDocumented(t) {
			names = append(names, t.Name)
		}
		funcs("", t.Funcs)
		funcs(t.Name+".", t.Methods)
		values(t.Consts)
		values(t.Vars)
	}
	return names, nil
}

// specDocumented says whether a type in a group has a comment of its own.
func specDocumented(t *doc.Type) bool {
	for _, s := range t.Decl.Specs {
		if ts, ok := s.(*ast.TypeSpec); ok && ts.Name.Name == t.Name && (ts.Doc != nil || ts.Comment != nil) {
			return true
		}
	}
	return false
}

func TestUndocumentedIsSeen(t *testing.T) {
	const src = `package p
type T struct{}
// U is one.
type U struct{}
func (U) M() {}
func F() {}
func f() {}
const (
	A = 1
	// B is one.
	B = 2
)
// C and D are a group.
const (
	C = 3
	D = 4
)
var V int
`
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "p.go", src, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	got, err := undocumented(fset, []*ast.File{f}, "fabric/p")
	if want := []string{"package p", "F", "A", "V", "T", "U.M"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

// tracked are the files that belong to the project: those that git knows and those that it would take.
func tracked(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	files := strings.Split(strings.TrimRight(string(out), "\x00"), "\x00")
	slices.Sort(files)
	return slices.Compact(files)
}

// read returns a file's text; "" for one that is deleted in the work tree, or is no text.
func read(t *testing.T, name string) string {
	t.Helper()
	info, err := os.Lstat(name)
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Error(err)
		return ""
	}
	if !info.Mode().IsRegular() {
		return ""
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Error(err)
	}
	if bytes.IndexByte(b, 0) >= 0 {
		return ""
	}
	return string(b)
}

// maxLines is the length, in lines, of the longest Go file that is not generated.
const maxLines = 700

// unwanted are words that no file of the project holds: folders of the machine it was written on, and work put off. They are put
// together here so that this file does not hold them either.
var unwanted = []string{"/wo" + "rk/", "TO" + "DO", "FIX" + "ME"}

func TestFiles(t *testing.T) {
	dir := root(t)
	for _, name := range tracked(t) {
		for _, problem := range faults(name, read(t, filepath.Join(dir, name))) {
			t.Error(problem)
		}
	}
}

// faults says what is wrong with a file.
func faults(name, text string) (problems []string) {
	generated := strings.HasSuffix(name, ".pb.go")
	if n := strings.Count(text, "\n"); strings.HasSuffix(name, ".go") && !generated && n > maxLines {
		problems = append(problems, name+": more than 700 lines; what could be a file of its own?")
	}
	if generated || name == "go.sum" {
		return problems // hashes are random text
	}
	for number, line := range strings.Split(text, "\n") {
		for _, w := range unwanted {
			if strings.Contains(line, w) {
				problems = append(problems, name+":"+strconv.Itoa(number+1)+": "+w+": "+strings.TrimSpace(line))
			}
		}
	}
	return problems
}

func TestFaultsAreSeen(t *testing.T) {
	long := strings.Repeat("// line\n", maxLines+1)
	for _, c := range []struct {
		name, text string
		want       int
	}{
		{"a.go", long, 1}, {"a.pb.go", long, 0}, {"a.md", long, 0}, {"a.go", long[8:], 0},
		{"a.md", "one\n" + unwanted[0] + "main and " + unwanted[1], 2}, {"a.sh", "# " + unwanted[2], 1}, {"a.go", "// " + unwanted[1] + "\n", 1},
	} {
		if got := faults(c.name, c.text); len(got) != c.want {
			t.Errorf("%s: %q, want %d", c.name, got, c.want)
		}
	}
}
