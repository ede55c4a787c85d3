package interop

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	fabricv1 "fabric/proto/fabric/v1"
)

// The features, in the order of the table.
const (
	featureV4          = "IPv4 unicast"
	featureV6          = "IPv6 unicast"
	featureASN         = "4-byte ASNs (RFC 6793)"
	featureCommunities = "communities"
	featureWithdraw    = "withdraw, both ways"
	featureLoopback    = "multihop between loopbacks, update source"
	featureMD5         = "TCP MD5 (RFC 2385)"
	featureGTSM        = "GTSM (RFC 5082)"
	featureRefresh     = "route refresh (RFC 2918)"
	featureMax         = "max-prefix: freeze"
	featureOverride    = "as-override"
	featureBFD         = "BFD down and up (RFC 5880)"
	featureMixed       = "IPv4 with an IPv6 next hop (RFC 8950)"
	featureTheyRestart = "neighbour restarts (RFC 4724)"
	featureWeRestart   = "we restart (RFC 4724)"
)

var features = []string{
	featureV4, featureV6, featureASN, featureCommunities, featureWithdraw, featureLoopback, featureMD5, featureGTSM, featureRefresh,
	featureMax, featureOverride, featureBFD, featureMixed, featureTheyRestart, featureWeRestart,
}

// known are results other than yes that are understood: neighbour/feature and why. They stay in the table and do not fail the test.
var known = map[string]string{}

// result is one cell of the table.
type result struct{ word, note string }

// check is one feature at one neighbour: "" when it works, else what was wrong; note is for the table.
type check struct {
	feature string
	run     func(l *lab, n *neighbour) (wrong, note string)
}

var checks = []check{
	{featureV4, checkV4}, {featureV6, checkV6}, {featureASN, checkASN}, {featureCommunities, checkCommunities}, {featureWithdraw, checkWithdraw},
	{featureLoopback, checkLoopback}, {featureMD5, checkMD5}, {featureGTSM, checkGTSM}, {featureRefresh, checkRefresh}, {featureMax, checkMax},
	{featureOverride, checkOverride}, {featureBFD, checkBFD}, {featureMixed, checkMixed}, {featureTheyRestart, checkTheyRestart},
}

// step is how long one state of a feature may take to come.
var step = slowly(20 * time.Second)

// candidate is our path from a session; nil where there is none.
func (l *lab) candidate(n *neighbour, name, prefix string) *fabricv1.Route {
	return l.g.candidates(n.vrf(), prefix)[name]
}

// has waits for our path from a session.
func (l *lab) has(n *neighbour, name, prefix string) string {
	if _, ok := reach(step, func() (string, bool) { return "", l.candidate(n, name, prefix) != nil }); !ok {
		return fmt.Sprintf("%s did not come on session %s: %v", prefix, name, l.g.peer(n.vrf(), name))
	}
	return ""
}

// heard waits for our prefix at the neighbour, from a session.
func (l *lab) heard(n *neighbour, name, prefix string) (seen, string) {
	var s seen
	if got, ok := reach(step, func() (string, bool) {
		ps := n.paths(prefix)
		var ok bool
		s, ok = ps[n.ours(sessionOf(name))]
		return fmt.Sprint(ps), ok
	}); !ok {
		return s, fmt.Sprintf("%s did not reach it on session %s; it has %s", prefix, name, got)
	}
	return s, ""
}

func sessionOf(name string) *session {
	return &sessions[slices.IndexFunc(sessions, func(s session) bool { return s.name == name })]
}

// both is the ordinary proof of a session: its prefix here and ours there.
func (l *lab) both(n *neighbour, name, theirs, ours string) string {
	if wrong := l.has(n, name, theirs); wrong != "" {
		return wrong
	}
	_, wrong := l.heard(n, name, ours)
	return wrong
}

func checkV4(l *lab, n *neighbour) (string, string) {
	own, _ := n.own()
	ours, _ := n.ourPrefixes()
	if wrong := l.both(n, "plain", own[0], ours); wrong != "" {
		return wrong, ""
	}
	if s, _ := l.heard(n, "plain", ours); s.nextHop != n.ours(sessionOf("plain")) {
		return "next hop of ours is " + s.nextHop, ""
	}
	return l.inKernel(n, own...), ""
}

// inKernel waits for prefixes in the VRF's table.
func (l *lab) inKernel(n *neighbour, prefixes ...string) string {
	got, ok := reach(step, func() (string, bool) {
		table := l.g.kernel(n.table())
		for _, p := range prefixes {
			if !slices.Contains(table, p) {
				return p + " is not in " + fmt.Sprint(table), false
			}
		}
		return "", true
	})
	if ok {
		return ""
	}
	return got
}

func checkV6(l *lab, n *neighbour) (string, string) {
	_, own := n.own()
	_, ours := n.ourPrefixes()
	if wrong := l.both(n, "six", own, ours); wrong != "" {
		return wrong, ""
	}
	return l.inKernel(n, own), ""
}

func checkASN(l *lab, n *neighbour) (string, string) {
	own, _ := n.own()
	ours, _ := n.ourPrefixes()
	if got := l.candidate(n, "plain", own[0]).GetAsPath(); got != fmt.Sprint(n.asn()) {
		return "AS path here is " + got, ""
	}
	if s, _ := l.heard(n, "plain", ours); s.asPath != fmt.Sprint(ourASN) {
		return "AS path there is " + s.asPath, ""
	}
	return "", ""
}

func checkCommunities(l *lab, n *neighbour) (string, string) {
	own, _ := n.own()
	ours, _ := n.ourPrefixes()
	got := fmt.Sprint(l.candidate(n, "plain", own[0]).GetCommunities())
	s, _ := l.heard(n, "plain", ours)
	for have, want := range map[string][]string{got: {"65000:1", "65000:2"}, s.communities: {"65010:7", "65010:8"}} {
		for _, w := range want {
			if !strings.Contains(have, w) {
				return fmt.Sprintf("no %s in %q", w, have), ""
			}
		}
	}
	return "", ""
}

func checkWithdraw(l *lab, n *neighbour) (string, string) {
	n.announce(n.extra())
	if wrong := l.has(n, "plain", n.extra()); wrong != "" {
		return wrong, ""
	}
	if wrong := l.inKernel(n, n.extra()); wrong != "" {
		return wrong, ""
	}
	n.withdraw(n.extra())
	if got, ok := reach(step, func() (string, bool) {
		table := l.g.kernel(n.table())
		return fmt.Sprint(table), !slices.Contains(table, n.extra())
	}); !ok {
		return fmt.Sprintf("withdrawn, but still in the kernel: %s; paths %v", got, l.g.candidates(n.vrf(), n.extra())), ""
	}
	ours := fmt.Sprintf("10.201.%d.0/24", n.number)
	_, err := l.g.client.AddPrefix(l.g.context(), &fabricv1.AddPrefixRequest{Vrf: n.vrf(), Prefix: &fabricv1.PrefixConfig{Prefix: ours, NextHop: n.theirs(sessionOf("plain"))}})
	if err != nil {
		return err.Error(), ""
	}
	if _, wrong := l.heard(n, "plain", ours); wrong != "" {
		return wrong, ""
	}
	if _, err := l.g.client.DeletePrefix(l.g.context(), &fabricv1.DeletePrefixRequest{Vrf: n.vrf(), Prefix: ours}); err != nil {
		return err.Error(), ""
	}
	if got, ok := reach(step, func() (string, bool) { ps := n.paths(ours); return fmt.Sprint(ps), len(ps) == 0 }); !ok {
		return "ours was withdrawn, but it still has " + got, ""
	}
	return "", ""
}

func checkLoopback(l *lab, n *neighbour) (string, string) { return l.session(n, "loopback"), "" }

// session proves a session of IPv4.
func (l *lab) session(n *neighbour, name string) string {
	own, _ := n.own()
	ours, _ := n.ourPrefixes()
	return l.both(n, name, own[0], ours)
}

// never says whether a session that must not be there is.
func (l *lab) never(n *neighbour, name string) string {
	if p := l.g.peer(n.vrf(), name); p.GetState() == "established" || p.GetFlaps() > 0 || p.GetReceived() > 0 {
		return "there is a session that must not be: " + p.String()
	}
	return ""
}

func checkMD5(l *lab, n *neighbour) (string, string) {
	if wrong := l.session(n, "md5"); wrong != "" {
		return wrong, ""
	}
	return l.never(n, "wrong-md5"), "another key: no session"
}

func checkGTSM(l *lab, n *neighbour) (string, string) {
	if wrong := l.session(n, "gtsm"); wrong != "" {
		return wrong, ""
	}
	return l.never(n, "wrong-ttl"), "ttl 1: no session"
}

func checkRefresh(l *lab, n *neighbour) (string, string) {
	before := n.updates()
	n.refresh()
	if got, ok := reach(step, func() (string, bool) { u := n.updates(); return fmt.Sprint(u), u > before }); !ok {
		return fmt.Sprintf("asked, and nothing came: %d updates before, %s after", before, got), ""
	}
	return "", "it asks, we send all again; we keep what it sent and need not ask"
}

func checkMax(l *lab, n *neighbour) (string, string) {
	got, ok := reach(step, func() (string, bool) {
		p := l.g.peer(n.vrf(), "max")
		return p.String(), p.GetState() == "established" && p.GetAdmitted() == 5 && p.GetFrozen()
	})
	if !ok {
		return got, ""
	}
	if p := l.g.peer(n.vrf(), "max"); p.GetFlaps() != 0 {
		return "the session was reset: " + p.String(), ""
	}
	return "", "5 of 8 admitted, session kept"
}

func checkOverride(l *lab, n *neighbour) (string, string) {
	own, _ := n.own()
	s, wrong := l.heard(n, "override", own[0])
	if wrong != "" {
		return wrong, ""
	}
	if want := fmt.Sprintf("%d %d", ourASN, ourASN); s.asPath != want {
		return "AS path there is " + s.asPath, ""
	}
	if _, sent := n.paths(own[0])[n.ours(sessionOf("md5"))]; sent {
		return "its own prefix came back without as-override", ""
	}
	return "", ""
}

func checkBFD(l *lab, n *neighbour) (string, string) {
	own, _ := n.own()
	if wrong := l.session(n, "bfd"); wrong != "" {
		return wrong, ""
	}
	n.sh("nft add table inet cut", "nft 'add chain inet cut in { type filter hook input priority 0; }'", "nft add rule inet cut in udp dport 3784 drop")
	began := time.Now()
	got, ok := reach(step, func() (string, bool) { return "its path is there", l.candidate(n, "bfd", own[0]) == nil })
	took := time.Since(began)
	n.sh("nft delete table inet cut")
	if !ok {
		return "BFD was cut: " + got, ""
	}
	if wrong := l.session(n, "bfd"); wrong != "" {
		return "BFD was let through again: " + wrong, ""
	}
	return "", fmt.Sprintf("%v x 4: path gone after %v", bfdInterval, took.Round(100*time.Millisecond))
}

func checkMixed(l *lab, n *neighbour) (string, string) {
	if _, six := n.own(); l.has(n, "mixed", six) != "" {
		return "not even IPv6 comes on session mixed", ""
	}
	own, _ := n.own()
	ours, _ := n.ourPrefixes()
	// They come together.
	var path *fabricv1.Route
	if got, ok := reach(slowly(5*time.Second), func() (string, bool) {
		path = l.candidate(n, "mixed", own[0])
		return fmt.Sprintf("%s did not come: %v", own[0], l.g.peer(n.vrf(), "mixed")), path != nil
	}); !ok {
		return got, ""
	}
	if !strings.Contains(path.GetNextHop(), ":") {
		return "its own has next hop " + path.GetNextHop(), ""
	}
	s, wrong := l.heard(n, "mixed", ours)
	if wrong == "" && !strings.Contains(s.nextHop, ":") {
		wrong = "ours has next hop " + s.nextHop
	}
	return wrong, "both ways"
}

// steady watches until done is closed that something holds, and returns when it did not.
func steady(done <-chan struct{}, holds func() (string, bool)) func() string {
	wrong := make(chan string, 1)
	go func() {
		for {
			select {
			case <-done:
				wrong <- ""
				return
			case <-time.After(200 * time.Millisecond):
			}
			if text, ok := holds(); !ok {
				wrong <- text
				return
			}
		}
	}()
	return func() string { return <-wrong }
}

func checkTheyRestart(l *lab, n *neighbour) (string, string) {
	own, _ := n.own()
	done := make(chan struct{})
	kept := steady(done, func() (string, bool) {
		table := l.g.kernel(n.table())
		return fmt.Sprintf("%s left the kernel; it has %v", own[0], table), slices.Contains(table, own[0])
	})
	n.crash()
	stale, wasStale := reach(step, func() (string, bool) {
		r := l.candidate(n, "plain", own[0])
		return r.String(), r != nil && r.GetStale()
	})
	time.Sleep(time.Second)
	n.up()
	fresh, isFresh := reach(patience, func() (string, bool) {
		r := l.candidate(n, "plain", own[0])
		return r.String(), r != nil && !r.GetStale() && l.g.peer(n.vrf(), "plain").GetState() == "established"
	})
	close(done)
	switch wrong := kept(); {
	case wrong != "":
		return wrong, ""
	case !wasStale:
		return "its path was not kept as stale: " + stale, ""
	case !isFresh:
		return "it did not come back: " + fresh, ""
	}
	return "", "killed and started again: its routes stayed in our kernel"
}

// restart kills fabric-site and starts it again, and says for each neighbour whether it kept our routes.
func (l *lab) restart() map[string]string {
	done := make(chan struct{})
	var kept []func() string
	for _, n := range l.neighbours {
		ours, _ := n.ourPrefixes()
		kept = append(kept, steady(done, func() (string, bool) {
			ps := n.paths(ours)
			_, ok := ps[n.ours(sessionOf("plain"))]
			return fmt.Sprintf("%s left it; it has %v", ours, ps), ok
		}))
	}
	l.g.site.kill()
	time.Sleep(2 * time.Second)
	l.g.startSite()
	for _, n := range l.neighbours {
		reach(step, func() (string, bool) { return "", l.g.peer(n.vrf(), "plain").GetState() == "established" })
	}
	time.Sleep(slowly(2 * time.Second)) // End-of-RIB, and what it would take away
	close(done)
	out := map[string]string{}
	for i, n := range l.neighbours {
		out[n.name] = kept[i]()
	}
	return out
}

// TestNeighbours is the table: each program, each feature. The short run has BIRD alone.
func TestNeighbours(t *testing.T) {
	needs(t, "bird")
	l := newLab(t)
	programs := []struct {
		name, needs string
		make        func(*neighbour) router
	}{{"BIRD", "bird", newBIRD}, {"FRR", "vtysh", newFRR}, {"GoBGP", "gobgpd", newGoBGP}, {"ExaBGP", "exabgp", newExaBGP}}
	for i, p := range programs {
		if !full() && !slices.Contains(strings.Split(getenv("INTEROP_WITH", "BIRD"), ","), p.name) {
			continue
		}
		if _, err := exec.LookPath(p.needs); err != nil {
			t.Fatal(err)
		}
		l.add(p.name, 11+i, p.make)
	}
	for _, n := range l.neighbours {
		n.up()
	}
	l.g.run(l.document())
	t.Logf("proved with backend %s", l.g.backend())
	table := map[string]map[string]result{}
	note := func(n *neighbour, feature, wrong, text string) {
		r := result{"yes", text}
		if wrong != "" {
			why, ok := known[n.name+"/"+feature]
			r = result{"no", why}
			if !ok {
				r.note = wrong
				t.Errorf("%s, %s: %s", n.name, feature, wrong)
			}
		}
		table[n.name][feature] = r
		t.Logf("%s, %s: %s %s", n.name, feature, r.word, r.note)
	}
	for _, n := range l.neighbours {
		table[n.name] = map[string]result{}
		for _, c := range checks {
			if why := n.lacks(c.feature); why != "" {
				table[n.name][c.feature] = result{"–", why}
				continue
			}
			wrong, text := c.run(l, n)
			note(n, c.feature, wrong, text)
		}
	}
	for name, wrong := range l.restart() {
		n := l.neighbours[slices.IndexFunc(l.neighbours, func(n *neighbour) bool { return n.name == name })]
		if why := n.lacks(featureWeRestart); why != "" {
			table[name][featureWeRestart] = result{"–", why}
			continue
		}
		note(n, featureWeRestart, wrong, "killed and started again: our routes stayed there")
	}
	for _, n := range l.neighbours {
		for _, s := range []string{"wrong-md5", "wrong-ttl"} {
			if wrong := l.never(n, s); wrong != "" {
				t.Errorf("%s: %s", n.name, wrong)
			}
		}
	}
	if full() {
		publish(t, "neighbours", l.g.backend(), func(b *strings.Builder) {
			b.WriteString("| Neighbour | Feature | Result | Note |\n|---|---|---|---|\n")
			for _, n := range l.neighbours {
				for _, f := range features {
					r := table[n.name][f]
					fmt.Fprintf(b, "| %s | %s | %s | %s |\n", n.version(), f, r.word, strings.ReplaceAll(r.note, "|", "/"))
				}
			}
		})
	}
}

// page is where the results go; where there is no such page, as outside the tree, they are only printed.
const page = "../../docs/interop.md"

// publish replaces a part of the page, between marks. The virtual machine, which is INTEROP_PLACE=vm, has parts of its own.
func publish(t *testing.T, part, backend string, write func(*strings.Builder)) {
	t.Helper()
	target := "make interop"
	if place := os.Getenv("INTEROP_PLACE"); place != "" {
		part, target = part+"-"+place, target+"-"+place
	}
	begin, end := fmt.Sprintf("<!-- %s: written by %s -->\n", part, target), fmt.Sprintf("<!-- end of %s -->\n", part)
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	var b strings.Builder
	fmt.Fprintf(&b, "%sKernel %s, backend %s.\n\n", begin, strings.TrimSpace(string(kernel)), backend)
	write(&b)
	b.WriteString("\n" + end)
	t.Log("\n" + b.String())
	text, err := os.ReadFile(page)
	if err != nil {
		return
	}
	before, rest, ok1 := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Errorf("%s has no marks for %s", page, part)
		return
	}
	if err := os.WriteFile(page, []byte(before+b.String()+after), 0o644); err != nil {
		t.Error(err)
	}
}
