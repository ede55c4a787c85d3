package site

import (
	"encoding/gob"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"fabric/bgp/rib"
)

// restarted is a gateway that has learnt routes, was stopped, and is there to be started again on the same kernel.
func restarted(t *testing.T, doc string) (g *gate, dir string) {
	t.Helper()
	dir = t.TempDir()
	first := newGateOn(t, doc, newKernel(t, doc, withoutVRF), dir).start().waitReady()
	first.rib.Update(fromFar("10.2.0.0/16"), fromFar("10.3.0.0/16"), fromCE("10.4.0.0/16", "10.1.0.2"))
	first.wantRoutes(static, "10.2.0.0/16 "+farRoute, "10.3.0.0/16 "+farRoute, "10.4.0.0/16 via 10.1.0.2")
	first.stop()
	return newGateOn(t, doc, first.kernel, dir), dir
}

// A second start within a boot takes up what neighbours said before it has been said again, touches no route, and prunes at each
// neighbour's End-of-RIB what was not.
func TestWarmStart(t *testing.T) {
	t.Parallel()
	g, _ := restarted(t, document)
	steps := len(g.kernel.Applied())
	g.start().waitReady()
	all := []string{static, "10.2.0.0/16 " + farRoute, "10.3.0.0/16 " + farRoute, "10.4.0.0/16 via 10.1.0.2"}
	g.wantRoutes(all...)
	g.wantHealthy()
	if more := g.kernel.Applied()[steps:]; len(more) > 0 {
		t.Errorf("a second start changed the host:\n%s", strings.Join(more, "\n"))
	}
	if stale := g.route(t, "10.2.0.0/16"); !stale.Stale {
		t.Errorf("%+v is not stale", stale)
	}
	g.rib.Update(fromFar("10.2.0.0/16"))
	g.rib.EndOfRIB(far)
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute, "10.4.0.0/16 via 10.1.0.2")
	if r := g.route(t, "10.2.0.0/16"); r.Stale {
		t.Errorf("%+v is stale although it was told again", r)
	}
	g.rib.EndOfRIB(ce)
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute)
}

// route is what the Site says of a route in CORE.
func (g *gate) route(t *testing.T, prefix string) (r RouteStatus) {
	t.Helper()
	err := g.Routes("CORE", func(x RouteStatus) bool {
		if x.Prefix.String() == prefix {
			r = x
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A neighbour that does not come back loses what it left after the restart time, though its speaker cannot even start.
func TestStaleTimer(t *testing.T) {
	t.Parallel()
	g, _ := restarted(t, strings.Replace(document, "restart-time: 300s", "restart-time: 2s", 1))
	g.start().waitReady()
	g.wantRoutes(static)
	if log := g.log.String(); !strings.Contains(log, "stale timer") || !strings.Contains(log, "ce, far") {
		t.Error("the log does not tell whom was waited for")
	}
}

// A checkpoint that is not this gateway's, of this boot and this program is none. Then the kernel's routes stay until all
// neighbours have said what they know.
func TestColdStart(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*checkpoint)
	}{
		{"another boot", func(c *checkpoint) { c.BootID = "of yesterday" }},
		{"another gateway", func(c *checkpoint) { c.Gateway = "far" }},
		{"another version", func(c *checkpoint) { c.Version++ }},
		{"garbage", nil},
		{"none", func(c *checkpoint) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g, dir := restarted(t, document)
			file := filepath.Join(dir, "state", checkpointFile)
			switch c.name {
			case "garbage":
				if err := os.WriteFile(file, []byte("\x07garbage"), 0o600); err != nil {
					t.Fatal(err)
				}
			case "none":
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			default:
				rewrite(t, file, c.change)
			}
			g.start().waitReady()
			if n := g.rib.SourceLen(far); n != 0 {
				t.Errorf("%d paths of far, from a checkpoint that does not count", n)
			}
			if warned := strings.Contains(g.log.String(), "starting cold"); warned != (c.name == "garbage") {
				t.Errorf("warned %v", warned)
			}
			// The kernel still forwards by what it has; one neighbour alone does not make the knowledge complete.
			g.rib.Update(fromFar("10.2.0.0/16"), fromFar("10.5.0.0/16"))
			g.rib.EndOfRIB(far)
			kept := []string{static, "10.2.0.0/16 " + farRoute, "10.3.0.0/16 " + farRoute, "10.4.0.0/16 via 10.1.0.2", "10.5.0.0/16 " + farRoute}
			g.wantRoutes(kept...)
			if err := g.fib.loop.Pass(t.Context()); err != nil {
				t.Fatal(err)
			}
			g.wantRoutes(kept...)
			g.rib.EndOfRIB(ce)
			g.wantRoutes(static, "10.2.0.0/16 "+farRoute, "10.5.0.0/16 "+farRoute)
		})
	}
}

func rewrite(t *testing.T, file string, change func(*checkpoint)) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var c checkpoint
	if err := gob.NewDecoder(f).Decode(&c); err != nil {
		t.Fatal(err)
	}
	if len(c.Paths) != 3 {
		t.Fatalf("%d paths in the checkpoint", len(c.Paths))
	}
	change(&c)
	if err := c.save(filepath.Dir(file)); err != nil {
		t.Fatal(err)
	}
}

// The checkpoint keeps paths with all their attributes, and only those of neighbours that are still wanted count.
func TestCheckpoint(t *testing.T) {
	t.Parallel()
	g, _ := restarted(t, document)
	want := map[rib.PathKey]rib.Path{}
	for _, p := range []rib.Path{fromFar("10.2.0.0/16"), fromFar("10.3.0.0/16"), fromCE("10.4.0.0/16", "10.1.0.2")} {
		p.Stale = true
		want[p.Key] = p
	}
	have, err := loadCheckpoint(g.cfg.StateDir, "gw", 1<<42)
	if err != nil || len(have) != len(want) {
		t.Fatalf("%v %v", have, err)
	}
	for _, p := range have {
		if !samePath(p, want[p.Key]) {
			t.Errorf("have %+v, want %+v", p, want[p.Key])
		}
	}
	info, err := os.Stat(filepath.Join(g.cfg.StateDir, checkpointFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	g.commit(peerDisable("ce"))
	g.start().waitReady()
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute, "10.3.0.0/16 "+farRoute, "10.4.0.0/16 via 10.1.0.2") // the last: not yet complete
	if n := g.rib.SourceLen(ce); n != 0 {
		t.Errorf("%d paths of a neighbour that is disabled", n)
	}
	g.rib.EndOfRIB(far)
	g.wantRoutes(static)
}

// Nobody waits for a neighbour that is taken out of the intent before it has said all it knows.
func TestAwaitedNeighbourGoes(t *testing.T) {
	t.Parallel()
	g, dir := restarted(t, document)
	if err := os.Remove(filepath.Join(dir, "state", checkpointFile)); err != nil {
		t.Fatal(err)
	}
	g.start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"))
	g.rib.EndOfRIB(far)
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute, "10.3.0.0/16 "+farRoute, "10.4.0.0/16 via 10.1.0.2")
	g.commit(peerDisable("ce"))
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute)
}

// A checkpoint that cannot be written is told and hurts nothing; what was there stays whole.
func TestCheckpointDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := checkpoint{Version: checkpointVersion, Gateway: "gw", BootID: bootID(), Paths: []rib.Path{fromFar("10.2.0.0/16")}}
	if err := c.save(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, checkpointFile+".new"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.save(dir); err == nil || !strings.HasPrefix(err.Error(), "checkpoint: ") {
		t.Errorf("error %v", err)
	}
	if ps, err := loadCheckpoint(dir, "gw", 1<<42); err != nil || len(ps) != 1 {
		t.Errorf("%v %v", ps, err)
	}
}

// Run ends with its context, returns nil, and leaves no goroutine.
func TestRunEnds(t *testing.T) {
	g := newGate(t, document).start().waitReady()
	g.rib.Update(fromFar("10.2.0.0/16"))
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute)
	wake, unsubscribe := g.Changed()
	unsubscribe()
	begun := time.Now()
	g.stop()
	if took := time.Since(begun); took > patience {
		t.Errorf("the end took %v", took)
	}
	select {
	case <-wake:
	default:
	}
	waitFor(t, "no goroutine of ours", func() (any, bool) {
		buf := make([]byte, 1<<20)
		var left []string
		for s := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if (strings.Contains(s, "fabric/") || strings.Contains(s, "gobgp")) && !strings.Contains(s, "testing.tRunner") {
				left = append(left, s)
			}
		}
		return strings.Join(left, "\n\n"), len(left) == 0
	})
	// What stands stays: a stop is a restart that has not come yet.
	g.wantRoutes(static, "10.2.0.0/16 "+farRoute)
}
