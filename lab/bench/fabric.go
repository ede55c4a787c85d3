package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"fabric/internal/config"
	"fabric/overlay/links"
	fabricv1 "fabric/proto/fabric/v1"
)

// programs are the daemons under test.
type programs struct{ site, links string }

// buildPrograms builds both into a folder; the version tells two builds apart.
func buildPrograms(ctx context.Context, dir, version string) (programs, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return programs{}, err
	}
	say("building fabric-site and fabric-links")
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", "-X fabric/internal/version.Version="+version,
		"-o", dir+"/", "fabric/cmd/fabric-site", "fabric/cmd/fabric-links")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return programs{}, ctx.Err()
		}
		return programs{}, fmt.Errorf("build: %w: %s", err, out)
	}
	return programs{filepath.Join(dir, "fabric-site"), filepath.Join(dir, "fabric-links")}, nil
}

// gateway is a node with fabric-links and fabric-site.
type gateway struct {
	*node
	name        string
	programs    programs
	key         string // public
	links, site *process
}

// newGateway makes the gateway's key; its daemons are started by start.
func newGateway(n *node, p programs) (*gateway, error) {
	g := &gateway{node: n, name: n.name, programs: p}
	var err error
	g.key, err = config.GenerateKey(g.keyFile())
	return g, err
}

func (g *gateway) keyFile() string     { return filepath.Join(g.dir, "wireguard.key") }
func (g *gateway) document() string    { return filepath.Join(g.dir, "fabric.yaml") }
func (g *gateway) siteSocket() string  { return filepath.Join(g.dir, "site.sock") }
func (g *gateway) linksSocket() string { return filepath.Join(g.dir, "run", "links.sock") }

// write stores the document, which is the same for all gateways: KEY-NAME stands for a gateway's public key, FILE-NAME for the file of
// the private one.
func write(document string, gateways ...*gateway) error {
	for _, g := range gateways {
		document = strings.NewReplacer("KEY-"+g.name, g.key, "FILE-"+g.name, g.keyFile()).Replace(document)
	}
	for _, g := range gateways {
		if err := os.WriteFile(g.document(), []byte(document), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// start starts both daemons, and returns when fabric-site is ready.
func (g *gateway) start(ctx context.Context) error {
	if err := g.startLinks(ctx); err != nil {
		return err
	}
	if err := g.startSite(); err != nil {
		return err
	}
	return until(ctx, 30*time.Second, "fabric-site in "+g.name+" is ready", func() error { return g.ready(ctx) })
}

func (g *gateway) startLinks(ctx context.Context) (err error) {
	g.links, err = g.startProcess("fabric-links", g.programs.links, "run", "--state-dir", filepath.Join(g.dir, "links"), "--run-dir", filepath.Dir(g.linksSocket()))
	if err != nil {
		return err
	}
	return until(ctx, 30*time.Second, "fabric-links in "+g.name+" answers", func() error {
		if err := g.links.alive("fabric-links"); err != nil {
			return err
		}
		_, err := g.state(ctx)
		return err
	})
}

func (g *gateway) startSite() (err error) {
	g.site, err = g.startProcess("fabric-site", g.programs.site, "run", "--gateway", g.name, "--config", g.document(),
		"--state-dir", filepath.Join(g.dir, "site"), "--socket", g.siteSocket(), "--links", g.linksSocket())
	return err
}

// restartLinks ends the engine and starts it anew: tunnels stay, the hold of a tunnel that went down is forgotten.
func (g *gateway) restartLinks(ctx context.Context) error {
	g.links.close()
	return g.startLinks(ctx)
}

func (p *process) alive(name string) error {
	select {
	case <-p.done:
		return fmt.Errorf("%s %w: %s", name, errEnded, p.lastWords())
	default:
		return nil
	}
}

// tell prints the lines of fabric-links' log with one of these texts: why something has happened that should not.
func (g *gateway) tell(texts ...string) {
	log, _ := os.ReadFile(filepath.Join(g.dir, "fabric-links.log"))
	for line := range strings.Lines(string(log)) {
		if slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(line, s) }) {
			say("%s: %s", g.name, strings.TrimSpace(line))
		}
	}
}

// state asks fabric-links.
func (g *gateway) state(ctx context.Context) (links.State, error) {
	c, err := links.Dial(g.linksSocket())
	if err != nil {
		return links.State{}, err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return c.Get(ctx)
}

// ask calls fabric-site's API.
func (g *gateway) ask(ctx context.Context, call func(context.Context, fabricv1.FabricServiceClient) error) error {
	conn, err := grpc.NewClient("unix:"+g.siteSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return call(ctx, fabricv1.NewFabricServiceClient(conn))
}

// ready is nil when fabric-site has told that it is.
func (g *gateway) ready(ctx context.Context) error {
	if err := g.site.alive("fabric-site"); err != nil {
		return err
	}
	return g.ask(ctx, func(ctx context.Context, c fabricv1.FabricServiceClient) error {
		r, err := c.GetSite(ctx, &fabricv1.GetSiteRequest{})
		if err != nil {
			return err
		}
		if !r.GetSite().GetReady() {
			return errNotYet
		}
		return nil
	})
}

// peers are fabric-site's BGP neighbours, by their addresses.
func (g *gateway) peers(ctx context.Context) (map[netip.Addr]*fabricv1.Peer, error) {
	peers := map[netip.Addr]*fabricv1.Peer{}
	err := g.ask(ctx, func(ctx context.Context, c fabricv1.FabricServiceClient) error {
		r, err := c.ListPeers(ctx, &fabricv1.ListPeersRequest{})
		if err != nil {
			return err
		}
		for _, p := range r.GetPeers() {
			a, err := netip.ParseAddr(p.GetAddress())
			if err != nil {
				return err
			}
			peers[a] = p
		}
		return nil
	})
	return peers, err
}

// flaps is how often sessions of fabric-site have left the established state, all in all.
func (g *gateway) flaps(ctx context.Context) (n int, err error) {
	peers, err := g.peers(ctx)
	for _, p := range peers {
		n += int(p.GetFlaps())
	}
	return n, err
}

// established is nil when the sessions with those addresses are, and each has that many prefixes admitted at least.
func (g *gateway) established(ctx context.Context, prefixes int, addresses ...netip.Addr) error {
	peers, err := g.peers(ctx)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		switch p := peers[a]; {
		case p == nil:
			return fmt.Errorf("%s has no peer %v", g.name, a)
		case p.GetState() != "established" || int(p.GetAdmitted()) < prefixes || p.GetRestarting() || p.GetBfd() != "" && p.GetBfd() != "up":
			return fmt.Errorf("peer %v of %s: %s, BFD %q, %d of %d prefixes, %s", a, g.name, p.GetState(), p.GetBfd(), p.GetAdmitted(), prefixes, p.GetLastError())
		}
	}
	return nil
}

// first is nil when the first tunnel carries and all tunnels are up.
func (g *gateway) first(ctx context.Context) error {
	s, err := g.state(ctx)
	if err != nil {
		return err
	}
	if len(s.Tunnels) == 0 {
		return errors.New("no tunnels yet")
	}
	for _, t := range s.Tunnels {
		if t.State != links.Up || t.Active != (t.Rank == 0) {
			return fmt.Errorf("tunnel %s of %s, rank %d: %s, active %v, %s", t.Name, g.name, t.Rank, t.State, t.Active, t.Reason)
		}
	}
	return nil
}
