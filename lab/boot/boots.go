package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// boot is one boot of the machine.
type boot struct {
	name string
	// before is what is done to the host ahead of it, at the end of the boot before.
	before func(context.Context) error
	checks []step
}

// healthy are the checks of every boot without a fault.
func healthy() []step {
	return []step{
		{"BGP and BFD sessions are up within 30 s", sessionsSoon},
		{"the boot finishes, and no unit failed", finished},
		{"network, fabric-links, VRF, fabric-site, fabric-ready.target, then cloud agents and FRR: in this order", order},
		{"the hosts reach each other", reaches},
	}
}

// parts are what can be asked for alone.
var parts = []string{"services", "managers", "faults", "disabled", "package"}

// boots are those of the wanted parts, of all if none is named; plain is how often the machine is booted without a fault. The first boot
// is one of these, whatever is wanted: it has no boot before it in which something could be broken.
func boots(plain int, wanted []string) ([]boot, error) {
	if len(wanted) == 0 {
		wanted = parts
	}
	for _, w := range wanted {
		if !slices.Contains(parts, w) {
			return nil, fmt.Errorf("part %q is not known; there are %s", w, strings.Join(parts, ", "))
		}
	}
	want := func(part string) bool { return slices.Contains(wanted, part) }
	first := boot{name: "first", checks: append(healthy(), step{"systemd-analyze verify has nothing to say, and there is no cycle", verified})}
	if want("services") {
		first.checks = append(first.checks, services()...)
	}
	if want("managers") {
		first.checks = append(first.checks, managers()...)
	}
	list := []boot{first}
	for len(list) < plain {
		list = append(list, boot{name: "plain", checks: healthy()})
	}
	if want("faults") {
		list = append(list, faults()...)
	}
	if want("disabled") {
		list = append(list, disabled())
	}
	if want("package") {
		list = append(list, boot{name: "package", checks: packaged()})
	}
	return list, nil
}
