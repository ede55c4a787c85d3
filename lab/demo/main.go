// Command demo brings the three-sites fabric up in network namespaces of this host, proves with real traffic that it does what
// it should, prints each check with its evidence, and takes it down again.
//
//	demo [--keep] [--down] [--limit DURATION] [--dir FOLDER] [--rotations ROUNDS] [TOPOLOGY.clab.yml]
//
// Exit code 0: every check held; its last line is then "demo: ok, N checks".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"fabric/internal/config"
	"fabric/lab/netns"
	"fabric/vrf"
)

func main() {
	keep := flag.Bool("keep", false, "leave the fabric up and say how to look around")
	down := flag.Bool("down", false, "only take down what --keep left")
	limit := flag.Duration("limit", 4*time.Minute, "end after so long: it is a check, not a wait")
	timing := flag.Int("timing", 0, "after the checks, add and delete a prefix so many times and print the times as JSON")
	rounds := flag.Int("rotations", 3, "replace the keys of all tunnels so many times under traffic")
	dir := flag.String("dir", "", "the lab's folder (default "+netns.DefaultRoot+"/NAME), so that two demos can run beside each other")
	flag.Parse()
	if *rounds < 1 {
		fmt.Fprintln(os.Stderr, "demo: -rotations: from 1 on")
		os.Exit(2)
	}
	topology := "lab/topologies/three-sites/three-sites.clab.yml"
	if flag.NArg() == 1 {
		topology = flag.Arg(0)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, topology, netns.Options{Dir: *dir}, *keep, *down, *timing, *rounds, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, topology string, opts netns.Options, keep, down bool, timing, rounds int, limit time.Duration) (err error) {
	// What an earlier demo left is in the way, and ours to remove.
	if err := netns.Down(ctx, topology, opts); err != nil || down {
		return err
	}
	prepare := exec.CommandContext(ctx, "sh", filepath.Join(filepath.Dir(topology), "prepare.sh"))
	if out, err := prepare.CombinedOutput(); err != nil {
		return fmt.Errorf("prepare the gateways' folders: %w: %s", err, out)
	}
	d := &demo{out: os.Stdout, started: time.Now(), rounds: rounds, backends: map[string]vrf.Backend{}}
	if d.doc, err = readDocument(filepath.Join(filepath.Dir(topology), ".run", "fabric.yaml")); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if d.lab, err = netns.Up(bounded, topology, opts); err != nil {
		return err
	}
	if !keep {
		defer func() {
			// The context may be over; what was started must go all the same.
			ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
			defer cancel()
			err = errors.Join(err, d.lab.Down(ending))
		}()
	}
	for _, c := range d.checks() {
		d.check(bounded, c.name, c.run)
	}
	if timing > 0 && d.failed == 0 {
		if err := d.timing(ctx, timing); err != nil {
			return err
		}
	}
	if keep {
		d.guide(topology, opts.Dir)
	}
	if d.failed > 0 {
		d.logs()
		return fmt.Errorf("%d of %d checks failed", d.failed, d.done)
	}
	fmt.Fprintf(d.out, "demo: ok, %d checks\n", d.done)
	return nil
}

func readDocument(file string) (*config.Document, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return config.Parse(file, data)
}

// demo is the fabric under proof.
type demo struct {
	lab          *netns.Lab
	doc          *config.Document
	out          io.Writer
	started      time.Time
	done, failed int
	// rounds is how often the keys of all tunnels are replaced.
	rounds int
	// backends tells how each gateway makes VRFs, once it is up.
	backends map[string]vrf.Backend
}

// check runs one proof and prints it with its evidence.
func (d *demo) check(ctx context.Context, name string, fn func(context.Context) (string, error)) {
	began := time.Now()
	evidence, err := fn(ctx)
	d.done++
	word := "ok  "
	if err != nil {
		word, d.failed = "FAIL", d.failed+1
		evidence = strings.TrimSpace(evidence + "\n" + err.Error())
	}
	fmt.Fprintf(d.out, "%s  %s  (%.1fs)\n", word, name, time.Since(began).Seconds())
	for line := range strings.SplitSeq(strings.TrimSpace(evidence), "\n") {
		if line != "" {
			fmt.Fprintf(d.out, "        %s\n", line)
		}
	}
}

// logs prints the end of every daemon's log, for the one who has to find out.
func (d *demo) logs() {
	for _, node := range d.lab.Topology.Nodes {
		files, _ := filepath.Glob(filepath.Join(d.lab.Node(node.Name).LogDir(), "fabric-*.log"))
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			lines := strings.Split(strings.TrimSpace(string(data)), "\n")
			fmt.Fprintf(d.out, "--- %s: %s\n%s\n", node.Name, filepath.Base(f), strings.Join(lines[max(0, len(lines)-15):], "\n"))
		}
	}
}

// guide says how to look around in a fabric that was left up.
func (d *demo) guide(topology, dir string) {
	lab, down := "go run ./lab exec", "make demo-down"
	if dir != "" {
		lab, down = "go run ./lab --dir "+dir+" exec", "go run ./lab/demo --down --dir "+dir+" "+topology
	}
	fmt.Fprintf(d.out, "\nThe fabric stays up. Look around, for example:\n")
	for _, line := range []string{
		"sz-gw -- /opt/fabric/bin/fabricctl site status",
		"sz-gw -- /opt/fabric/bin/fabricctl peer list",
		"sz-gw -- /opt/fabric/bin/fabricctl route list --vrf CORE",
		"sz-gw -- /opt/fabric/bin/fabricctl route explain 172.20.128.13 --vrf CORE",
		"sz-gw -- /opt/fabric/bin/fabricctl tunnel list",
		"sz-gw -- /opt/fabric/bin/fabricctl cloud list --entries",
		"sz-host -- ping -c 3 172.31.185.159",
		"gz-core -- vtysh -c 'show bgp ipv4 unicast'",
	} {
		fmt.Fprintf(d.out, "  %s %s %s\n", lab, topology, line)
	}
	fmt.Fprintf(d.out, "  %s   # removes it\n\n", down)
}
