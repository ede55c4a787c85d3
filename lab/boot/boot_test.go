package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestInOrder(t *testing.T) {
	for _, c := range []struct {
		name    string
		moments []moment
		want    string // in the error, "" for none
	}{
		{"in order", []moment{{"a", time.Second}, {"b", time.Second}, {"c", 2 * time.Second}}, ""},
		{"swapped", []moment{{"a", 2 * time.Second}, {"b", time.Second}}, "b came before a"},
		{"never", []moment{{"a", time.Second}, {"b", 0}}, "b did not happen"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := inOrder(c.moments)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestCountPings(t *testing.T) {
	line := func(n string) string { return "64 bytes from 10.2.0.10: icmp_seq=" + n + " ttl=62 time=1.0 ms\n" }
	summary := func(n string) string {
		return "\n--- 10.2.0.10 ping statistics ---\n" + n + " packets transmitted, 3 received, 0% packet loss, time 200ms\n"
	}
	for _, c := range []struct {
		name, text string
		sent       int
		lost       []int
		bad        bool
	}{
		{"all answered", line("1") + line("2") + line("3") + summary("3"), 3, nil, false},
		{"the last one under way", line("1") + line("2") + summary("3"), 3, nil, false},
		{"one lost", line("1") + line("3") + summary("3"), 3, []int{2}, false},
		{"an answer twice", line("1") + line("1") + line("3") + summary("4"), 4, []int{2}, false},
		{"unreachable is no answer", line("1") + "From 10.1.0.1 icmp_seq=2 Destination Host Unreachable\n" + line("3") + summary("3"), 3, []int{2}, false},
		{"none answered", summary("3"), 3, nil, true},
		{"killed", line("1"), 0, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			sent, lost, err := countPings(c.text)
			if (err != nil) != c.bad || sent != c.sent || !slices.Equal(lost, c.lost) {
				t.Errorf("got %d sent, %v lost, %v", sent, lost, err)
			}
		})
	}
}

func TestRanges(t *testing.T) {
	for _, c := range []struct {
		numbers []int
		want    string
	}{{nil, ""}, {[]int{3}, "3"}, {[]int{1, 4, 5, 6, 9}, "1, 4-6, 9"}, {[]int{1, 2}, "1-2"}} {
		if got := ranges(c.numbers); got != c.want {
			t.Errorf("%v: got %q, want %q", c.numbers, got, c.want)
		}
	}
}

func TestRemovals(t *testing.T) {
	text := `Deleted 10.2.0.0/24 nhid 3909091328 dev fxv1000 table 200 proto 201 metric 20
Deleted 192.0.2.0/24 via 203.0.113.254 dev eth0 proto 4
10.2.0.0/24 nhid 3909091328 dev fxv1000 table 200 proto 201 metric 20
Deleted id 3909091328 dev fxv1000 scope link proto 202
Deleted 7: eth1    inet 10.1.0.1/24 scope global proto 201 eth1
Deleted 6: eth0    inet 203.0.113.1/24 scope global eth0
`
	if got := removals(text); len(got) != 3 {
		t.Errorf("removals: %q, want the route, the next hop and the address of ours", got)
	}
}

func TestAppeared(t *testing.T) {
	times, err := appeared("12000000 eth0\n12500000 CORE\n")
	if err != nil || times["CORE"] != 12500*time.Millisecond || len(times) != 2 {
		t.Errorf("got %v, %v", times, err)
	}
	if _, err := appeared("soon eth0\n"); err == nil {
		t.Error("a line without a time is taken")
	}
}

func TestBoots(t *testing.T) {
	names := func(plain int, parts ...string) (all []string) {
		list, err := boots(plain, parts)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range list {
			all = append(all, b.name)
		}
		return all
	}
	if got := names(2); len(got) != 9 || got[0] != "first" || got[1] != "plain" || got[8] != "package" {
		t.Errorf("all parts, two boots without a fault: %q", got)
	}
	if got := names(1, "disabled"); !slices.Equal(got, []string{"first", "disabled"}) {
		t.Errorf("disabled alone: %q", got)
	}
	if got := names(10, "managers"); len(got) != 10 {
		t.Errorf("ten boots: %q", got)
	}
	// What a boot does to the host ahead of it happens at the end of the one before.
	if list, err := boots(1, nil); err != nil || list[0].before != nil {
		t.Errorf("the first boot wants something done before it; %v", err)
	}
	if _, err := boots(1, []string{"nonsense"}); err == nil {
		t.Error("an unknown part is taken")
	}
}
