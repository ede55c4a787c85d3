package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// faults are boots of hosts on which something is broken. Each must finish, say why, and leave the host reachable; and mended, the
// fabric must come up without another boot.
func faults() []boot {
	const key = "/etc/fabric/keys/a-gw.key"
	return []boot{
		{
			name: "broken key",
			before: func(ctx context.Context) error {
				return all(ctx, words("cp -p "+key+" "+lab+"/kept.key"), words("cp /etc/hostname "+key))
			},
			checks: []step{
				alive("running"),
				{"fabric-links names the key file", func(ctx context.Context) (string, error) {
					text, err := grepJournal(ctx, "fabric-links", key)
					return text, joined([]error{err, unitIs(ctx, "fabric-links", "active"), unitIs(ctx, "fabric-ready.target", "active")})
				}},
				{"with the key back the fabric comes up by itself", func(ctx context.Context) (string, error) {
					if err := all(ctx, words("cp -p "+lab+"/kept.key "+key)); err != nil {
						return "", err
					}
					return whole(ctx)
				}},
			},
		},
		{
			name:   "no VXLAN in the kernel",
			before: func(ctx context.Context) error { return hide(ctx, "vxlan") },
			checks: []step{
				alive("running", "degraded"), // what a missing module is for systemd-modules-load differs between versions
				{"fabric-site and systemd-modules-load name the module", func(ctx context.Context) (string, error) {
					load, err := grepJournal(ctx, "systemd-modules-load", "vxlan")
					site, err2 := grepJournal(ctx, "fabric-site", "vxlan")
					return load + "\n" + site, joined([]error{err, err2, unitIs(ctx, "fabric-links", "active")})
				}},
				{"with the module back the fabric comes up", func(ctx context.Context) (string, error) {
					if err := unhide(ctx, "vxlan"); err != nil {
						return "", err
					}
					return whole(ctx)
				}},
			},
		},
		{
			name:   "no VRF and no WireGuard in the kernel",
			before: func(ctx context.Context) error { return hide(ctx, "vrf", "wireguard") },
			checks: []step{
				alive("running", "degraded"),
				{"the fabric does without: rules and userspace tunnels, as units of their own", func(ctx context.Context) (string, error) {
					text, err := whole(ctx)
					if err != nil {
						return "", err
					}
					s, err := status(ctx)
					if err != nil {
						return text, err
					}
					units, err := output(ctx, "systemctl", "--no-legend", "--plain", "list-units", "fabric-tunnel@*")
					if err == nil && (s.Backend != "rules" || !strings.Contains(units, "active running")) {
						err = fmt.Errorf("backend %s, units %q", s.Backend, units)
					}
					return fmt.Sprintf("%s\nVRFs by %s; %s", text, s.Backend, strings.Join(strings.Fields(units), " ")), err
				}},
			},
		},
		{
			name: "an absent interface and dead peers",
			before: func(ctx context.Context) error {
				if err := unhide(ctx, "vrf", "wireguard"); err != nil {
					return err
				}
				good, err := os.ReadFile(document)
				if err != nil {
					return err
				}
				// One more VRF on a device that is not there; a neighbour that does not answer; and b-gw does not run.
				text := strings.Replace(string(good), "  - {name: CORE, table: 200, vni: 1000}\n", "  - {name: CORE, table: 200, vni: 1000}\n  - {name: OPS, table: 201, vni: 1001}\n", 1)
				text = strings.Replace(text, "            prefixes: [{prefix: 10.1.0.0/24}", "            peers: [{name: dead, address: 10.1.0.99, asn: 64999, bfd: {}}]\n            prefixes: [{prefix: 10.1.0.0/24}", 1)
				text = strings.Replace(text, "  - name: b\n", "          - vrf: OPS\n            interfaces: [{name: eth9, addresses: [10.9.0.1/24]}]\n  - name: b\n", 1)
				if err := all(ctx, words("systemctl disable far-links far-site")); err != nil {
					return err
				}
				return os.WriteFile(document, []byte(text), 0o644)
			},
			checks: []step{
				alive("running"),
				{"fabric-site names the interface and the peers, and serves what is there", func(ctx context.Context) (string, error) {
					s, err := status(ctx)
					problem := strings.Join(s.Problems, "; ")
					if err == nil && !strings.Contains(problem, "eth9") {
						err = fmt.Errorf("problems do not name eth9: %q", s.Problems)
					}
					peers, shown := output(ctx, "fabricctl", "peer", "list")
					tunnels, listed := output(ctx, "fabricctl", "tunnel", "list")
					said, told := grepJournal(ctx, "fabric-site", "eth9")
					routes, err2 := output(ctx, words("ip route show table 200 10.1.0.0/24")...)
					if err2 == nil && routes == "" {
						err2 = fmt.Errorf("VRF CORE has no route to its own network")
					}
					return strings.Join([]string{"problems: " + problem, said, peers, tunnels}, "\n"),
						joined([]error{err, shown, listed, told, err2, unitIs(ctx, "fabric-ready.target", "active")})
				}},
				{"with b-gw started the fabric comes up by itself", func(ctx context.Context) (string, error) {
					if err := all(ctx, words("systemctl enable --now far-links far-site")); err != nil {
						return "", err
					}
					return whole(ctx)
				}},
			},
		},
		{
			name: "a broken document and no earlier one",
			before: func(ctx context.Context) error {
				text := "fabric:\n  name: boot\n  nonsense: [\n"
				return joined([]error{os.WriteFile(document, []byte(text), 0o644), all(ctx, words("systemctl stop fabric-site")), os.RemoveAll("/var/lib/fabric-site")})
			},
			checks: []step{
				alive("degraded"),
				{"fabric-site names the line, is not ready, and does not hold up the boot", func(ctx context.Context) (string, error) {
					text, err := grepJournal(ctx, "fabric-site", document+":")
					p, shown := properties(ctx, "fabric-site", "ActiveState", "SubState", "Result", "NRestarts")
					text += fmt.Sprintf("\nfabric-site is %s (%s), result %s, %s restarts", p["ActiveState"], p["SubState"], p["Result"], p["NRestarts"])
					return text, joined([]error{err, shown, unitIs(ctx, "fabric-links", "active"), unitIs(ctx, "fabric-ready.target", "inactive"),
						givenUp(ctx), unitIs(ctx, "frr", "active"), unitIs(ctx, "cloud-agent.service", "active")})
				}},
				{"stopped by hand, it is not tried again", func(ctx context.Context) (string, error) {
					if err := joined([]error{givenUp(ctx), all(ctx, words("systemctl stop fabric-site")), unitIs(ctx, retry, "inactive")}); err != nil {
						return "", err
					}
					// It fails anew, and is tried anew.
					return "", joined([]error{all(ctx, words("systemctl reset-failed fabric-site"), words("systemctl start --no-block fabric-site")), givenUp(ctx)})
				}},
				{"with the document mended the fabric comes up by itself", func(ctx context.Context) (string, error) {
					if err := all(ctx, words("cp /opt/lab/fabric.yaml "+document)); err != nil {
						return "", err
					}
					began := time.Now()
					if err := until(ctx, 2*time.Minute, func() error { return unitIs(ctx, "fabric-site", "active") }); err != nil {
						return "", err
					}
					text := fmt.Sprintf("fabric-site is active %.1f s after the document was mended", time.Since(began).Seconds())
					said, err := whole(ctx)
					return text + "; " + said, joined([]error{err, unitIs(ctx, "fabric-ready.target", "active")})
				}},
			},
		},
	}
}

// retry is what tries fabric-site again after systemd has given it up.
const retry = "fabric-retry@fabric-site.timer"

// givenUp waits until systemd has given fabric-site up, between the retry timer's tries, and fails unless that timer runs.
func givenUp(ctx context.Context) error {
	return until(ctx, time.Minute, func() error {
		return joined([]error{unitIs(ctx, "fabric-site", "failed"), unitIs(ctx, retry, "active")})
	})
}

// alive is the check that a boot finished and that the host can be reached over the network.
func alive(states ...string) step {
	return step{"the boot finishes, and sshd answers over the network", func(ctx context.Context) (string, error) {
		text, err := finishes(ctx, states...)
		said, reached := output(ctx, "ip", "netns", "exec", "b-gw", filepath.Join(payload, "bin/boot"), "banner", "203.0.113.1:22")
		return text + "; " + said, joined([]error{err, reached})
	}}
}

// whole waits for all sessions, and for the hosts to reach each other.
func whole(ctx context.Context) (string, error) {
	text, err := again(ctx)
	if err != nil {
		return text, err
	}
	ping, err := reaches(ctx)
	return text + "; " + ping, err
}

// hide takes modules away from the kernel that boots next.
func hide(ctx context.Context, modules ...string) error {
	return move(ctx, "", ".away", modules)
}

func unhide(ctx context.Context, modules ...string) error {
	return move(ctx, ".away", "", modules)
}

func move(ctx context.Context, from, to string, modules []string) error {
	for _, m := range modules {
		found, err := output(ctx, "find", "/usr/lib/modules", "-name", m+".ko"+from)
		if err != nil {
			return err
		}
		if found == "" {
			return fmt.Errorf("there is no module file %s.ko%s", m, from)
		}
		if err := os.Rename(found, strings.TrimSuffix(found, from)+to); err != nil {
			return err
		}
	}
	return nil
}
