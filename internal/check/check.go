// Package check looks at a host and says what would keep the fabric from working there, why it matters and which command mends
// it. Gather reads the host, Run judges: a pure function, so that every fault can be seeded. Nothing is changed.
package check

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"fabric/internal/config"
	"fabric/internal/kernel"
	"fabric/overlay"
	"fabric/vrf"
)

// Severity says how bad a finding is.
type Severity string

// The severities. Only errors make the command fail.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Info    Severity = "info"
)

// Finding is one thing to know about a host.
type Finding struct {
	Severity Severity `json:"severity"`
	// ID is the same for the same kind of fault, for programs and for docs.
	ID string `json:"id"`
	// What was found, Why it matters, Mend the command that mends it: lines for a shell, "" where there is nothing to do.
	What string `json:"what"`
	Why  string `json:"why"`
	Mend string `json:"mend,omitempty"`
}

// Report is what is printed as JSON.
type Report struct {
	Gateway  string    `json:"gateway"`
	Errors   int       `json:"errors"`
	Warnings int       `json:"warnings"`
	Findings []Finding `json:"findings"`
}

// NewReport counts the findings.
func NewReport(gateway string, findings []Finding) Report {
	r := Report{Gateway: gateway, Findings: append([]Finding{}, findings...)}
	for _, f := range findings {
		switch f.Severity {
		case Error:
			r.Errors++
		case Warning:
			r.Warnings++
		}
	}
	return r
}

// check is one kind of fault.
type check struct {
	id, why string
	look    func(s *subject) []fault
}

// fault is a finding without what its check knows.
type fault struct {
	severity   Severity
	what, mend string
}

// subject is what the checks look at: the facts, and what the document makes of this gateway.
type subject struct {
	Facts
	site *config.Site
	gw   *config.Gateway
	plan overlay.Plan
	// want is what the gateway's VRFs need on this host; empty where that cannot be told.
	want *vrf.Host
	// unfit is why the document cannot be compiled for this host.
	unfit error
}

// checks are all checks, in the order of the report within a severity.
var checks = slices.Concat(kernelChecks, hostChecks, tlsChecks, directChecks, foreignChecks, fileChecks, systemChecks, probeChecks, cloudChecks)

// pointless are the ids of errors with which a start of fabric-site is in vain: nothing it does would reach the kernel or be
// kept. All others leave something to do: a site without its tunnels still serves its own neighbours.
var pointless = []string{"kernel-too-old", "nexthops-missing", "nft-unusable", "state-not-writable"}

// PreventsStart reports whether fabric-site had better not be started with such a finding.
func PreventsStart(f Finding) bool { return f.Severity == Error && slices.Contains(pointless, f.ID) }

// IDs returns the ids of all checks.
func IDs() []string {
	var ids []string
	for _, c := range checks {
		ids = append(ids, c.id)
	}
	return ids
}

// Run judges the facts: errors first, then warnings, then what is good to know. It returns what it has when ctx ends.
func Run(ctx context.Context, f Facts) []Finding {
	s := newSubject(f)
	var found []Finding
	for _, c := range checks {
		if ctx.Err() != nil {
			break
		}
		for _, b := range c.look(s) {
			found = append(found, Finding{Severity: b.severity, ID: c.id, What: b.what, Why: c.why, Mend: b.mend})
		}
	}
	order := []Severity{Error, Warning, Info}
	slices.SortStableFunc(found, func(a, b Finding) int {
		return slices.Index(order, a.Severity) - slices.Index(order, b.Severity)
	})
	return found
}

func newSubject(f Facts) *subject {
	s := &subject{Facts: f, want: &vrf.Host{}}
	var ok bool
	if s.site, s.gw, ok = f.Document.Find(f.Gateway); !ok {
		s.site, s.gw = &config.Site{}, &config.Gateway{}
		s.unfit = fmt.Errorf("gateway %q is not in the document", f.Gateway)
		return s
	}
	var features kernel.Features
	if f.Features != nil {
		features = *f.Features
	}
	want, err := vrf.Compile(f.Document, f.Gateway, features)
	if err != nil {
		s.unfit = err
		return s
	}
	s.want = want
	s.plan, s.unfit = overlay.Compile(f.Document, f.Gateway, overlay.Host{VRFDevices: want.VRFDevices()})
	return s
}

// read reports whether a part of the host is known.
func (s *subject) read(part string) bool {
	is := func(u kernel.Unread) bool { return u.Part == part }
	return !slices.ContainsFunc(s.Host.Unread, is) && !slices.ContainsFunc(s.Unread, is)
}

// daemonMends is the severity of what fabric-site puts right itself when it starts: while it runs, it evidently could not.
func (s *subject) daemonMends() Severity {
	if s.Running {
		return Error
	}
	return Warning
}

// members are the interfaces of the document at this gateway.
func (s *subject) members() (all []config.Interface) {
	for _, v := range s.gw.VRFs {
		all = append(all, v.Interfaces...)
	}
	return all
}

// one is a single fault with a text like fmt.Sprintf's.
func one(severity Severity, mend, format string, args ...any) []fault {
	return []fault{{severity, fmt.Sprintf(format, args...), mend}}
}

// setSysctl is the command for a sysctl, now and at every boot.
func setSysctl(key, value string) string {
	return fmt.Sprintf("sysctl -w %s=%s && echo '%s = %s' >>/etc/sysctl.d/99-fabric-local.conf", key, value, key, value)
}

// quote lists names for a sentence.
func quote(names []string) string { return strings.Join(names, ", ") }
