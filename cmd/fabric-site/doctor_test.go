package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"fabric/internal/check"
	fabricv1 "fabric/proto/fabric/v1"
)

// What the daemon finds is what `fabric-site check` finds beside it, before and after something breaks.
func TestDoctor(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.startLinks()
	n.startSite()
	api := n.api()
	n.wantApplied(api, 1)
	both := func() (daemon, command []string) {
		t.Helper()
		res, err := api.Doctor(t.Context(), &fabricv1.DoctorRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range res.GetFindings() {
			daemon = append(daemon, f.GetSeverity()+" "+f.GetId()+": "+f.GetWhat())
		}
		// The exit code is 1 where there is an error.
		out, _ := n.site(nil, "check", "-o", "json", "--socket", n.socket(), "--links", n.linksRun()+"/links.sock").Output()
		var r check.Report
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		for _, f := range r.Findings {
			command = append(command, string(f.Severity)+" "+f.ID+": "+f.What)
		}
		if int(res.GetErrors()) != r.Errors || int(res.GetWarnings()) != r.Warnings || res.GetGateway() != "gw" {
			t.Errorf("%v %v, %d errors and %d warnings by the command", res.GetErrors(), res.GetWarnings(), r.Errors, r.Warnings)
		}
		return daemon, command
	}
	const fault = "error interface-absent: interface eth1 of the document is not on this host"
	for _, broken := range []bool{false, true} {
		if broken {
			n.sh("ip link del eth1")
		}
		daemon, command := both()
		if !slices.Equal(daemon, command) || slices.Contains(daemon, fault) != broken {
			t.Errorf("broken %v: the daemon finds\n%s\nthe command\n%s", broken, strings.Join(daemon, "\n"), strings.Join(command, "\n"))
		}
	}
}
