package runner

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fabric/lab/clab"

	"github.com/google/go-cmp/cmp"
)

// fakes puts programs of these names alone into PATH; each writes its command line to the file that is returned, and then does
// what script says.
func fakes(t *testing.T, script string, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	said := filepath.Join(dir, "said")
	for _, name := range names {
		text := "#!/bin/sh\necho " + name + " \"$@\" >>" + said + "\n" + script + "\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	return said
}

func topology(t *testing.T, prefix string) *clab.Topology {
	t.Helper()
	text := "name: t\n" + prefix + "topology:\n  defaults: {kind: linux, image: \"fabric-lab:latest\", network-mode: none}\n  nodes: {a: }\n"
	file := filepath.Join(t.TempDir(), "t.clab.yml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	top, err := clab.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	return top
}

func read(t *testing.T, file string) []string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

// runs is a docker whose containers run.
const runs = `[ "$1" != inspect ] || echo "true "`

func TestContainerlabCommands(t *testing.T) {
	for prefix, container := range map[string]string{"": "clab-t-a", "prefix: \"\"\n": "a", "prefix: __lab-name\n": "t-a", "prefix: x\n": "x-t-a"} {
		said := fakes(t, runs, "containerlab", "docker")
		r := &Containers{Topology: topology(t, prefix)}
		if err := r.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Run(t.Context(), "a", "vtysh", "-c", "show version"); err != nil {
			t.Error(err)
		}
		if err := r.Down(t.Context()); err != nil {
			t.Error(err)
		}
		want := []string{
			"docker image inspect fabric-lab:latest",
			"containerlab deploy --topo " + r.Topology.File,
			"docker inspect --format {{.State.Running}} {{.State.Error}} " + container,
			"docker exec " + container + " vtysh -c show version",
			"containerlab destroy --topo " + r.Topology.File + " --cleanup",
		}
		if got := read(t, said); cmp.Diff(want, got) != "" {
			t.Errorf("prefix %q: %s", prefix, cmp.Diff(want, got))
		}
	}
}

// A lab that does not come up is taken down, and the error is what containerlab said.
func TestContainerlabFails(t *testing.T) {
	said := fakes(t, `[ "$1" != deploy ] || { echo "no bridge here" >&2; exit 1; }`, "containerlab", "docker")
	err := (&Containers{Topology: topology(t, "")}).Up(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no bridge here") {
		t.Errorf("%v", err)
	}
	if got := read(t, said); !strings.HasPrefix(got[len(got)-1], "containerlab destroy") {
		t.Errorf("%q", got)
	}
}

// A node without a running container is a lab that did not come up, whatever containerlab's exit code.
func TestContainerlabLosesANode(t *testing.T) {
	for script, want := range map[string]string{
		`[ "$1" != inspect ] || echo "false unable to apply caps"`:                "node a: its container does not run: unable to apply caps",
		`[ "$1" != inspect ] || { echo "No such object: clab-t-a" >&2; exit 1; }`: "No such object: clab-t-a",
	} {
		said := fakes(t, script, "containerlab", "docker")
		err := (&Containers{Topology: topology(t, "")}).Up(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if got := read(t, said); !strings.HasPrefix(got[len(got)-1], "containerlab destroy") {
			t.Errorf("%q", got)
		}
	}
}

// docker says on its standard output why it could not start a command.
func TestContainerRunSaysWhy(t *testing.T) {
	fakes(t, `echo "OCI runtime exec failed: no such file"; exit 126`, "containerlab", "docker")
	_, err := (&Containers{Topology: topology(t, "")}).Run(t.Context(), "a", "fabricctl")
	if err == nil || !strings.HasSuffix(err.Error(), "exit status 126: OCI runtime exec failed: no such file") {
		t.Errorf("%v", err)
	}
}

func TestContainerlabWithoutImage(t *testing.T) {
	said := fakes(t, `[ "$1" != image ]`, "containerlab", "docker")
	err := (&Containers{Topology: topology(t, "")}).Up(t.Context())
	if err == nil || !strings.Contains(err.Error(), "image.sh") || len(read(t, said)) != 1 {
		t.Errorf("%v", err)
	}
}

func TestContainerlabMissing(t *testing.T) {
	for missing, there := range map[string][]string{"containerlab": {"docker"}, "docker": {"containerlab"}, "containerlab and docker": nil} {
		fakes(t, "", there...)
		r := &Containers{Topology: topology(t, "")}
		for _, err := range []error{r.Up(t.Context()), r.Down(t.Context())} {
			if !errors.Is(err, exec.ErrNotFound) || !strings.HasPrefix(err.Error(), missing+": not on this host") {
				t.Errorf("without %s: %v", missing, err)
			}
		}
	}
}

func TestMachineRunsTheVMScript(t *testing.T) {
	root := t.TempDir()
	script := filepath.Join(root, "lab", "vm", "test.sh")
	if err := os.MkdirAll(filepath.Dir(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$PWD $*\" >said\n[ \"$1\" = topologies/good ]\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := InMachine(t.Context(), root, "good"); err != nil {
		t.Error(err)
	}
	if got := read(t, filepath.Join(root, "said")); got[0] != root+" topologies/good" {
		t.Errorf("%q", got)
	}
	var exit *exec.ExitError
	if err := InMachine(context.Background(), root, "bad"); !errors.As(err, &exit) {
		t.Errorf("%v", err)
	}
}

// The topology's own script runs before anything else, and its failure is told.
func TestPrepare(t *testing.T) {
	top := topology(t, "")
	if err := prepare(t.Context(), top.File); err != nil {
		t.Errorf("without a script: %v", err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(top.File), "prepare.sh"), []byte("echo no keys; exit 3"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := prepare(t.Context(), top.File); err == nil || !strings.Contains(err.Error(), "no keys") {
		t.Errorf("%v", err)
	}
}
