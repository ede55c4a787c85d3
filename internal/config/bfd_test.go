package config

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

func timers(interval time.Duration, multiplier int) BFD {
	return BFD{Interval: Duration(interval), Multiplier: multiplier}
}

const (
	fabricPlace = "name: demo\n"                                          // BFD of the fabric goes after it
	tunnelPlace = "underlay-mtu: 1450}"                                   // of a tunnel
	peerPlace   = "                password-file: /etc/fabric/core.md5\n" // of core-router, line 86 of the example and on
	farPlace    = "                update-source: fd00:20::9\n"           // of the peer with multihop
	peerIndent  = "                "                                      // of a peer's keys
	corePeer    = `sites\[2\].gateways\[0\].vrfs\[0\].peers\[0\].bfd`     // path of core-router's BFD
	farPeer     = `sites\[2\].gateways\[0\].vrfs\[0\].peers\[1\].bfd`     // of the one with multihop
	pairTunnel  = `links.pairs\[0\].tunnels\[0\].bfd`                     // of the tunnel
	atAny       = `^fabric.yaml:[1-9][0-9]*:[1-9][0-9]*: `                // any place
)

func TestBFDDefaults(t *testing.T) {
	tests := []struct {
		name              string
		fabric, tun, peer string
		wantFabric        BFD
		wantTunnel        *BFD
		wantPeer          *PeerBFD
	}{
		{"nothing given", "", "", "", timers(300*time.Millisecond, 3), nil, nil},
		{"peer asks", "", "", "{}", timers(300*time.Millisecond, 3), nil, &PeerBFD{BFD: timers(300*time.Millisecond, 3)}},
		{"from the fabric", "{interval: 50ms, multiplier: 5}", "{}", "{}", timers(50*time.Millisecond, 5),
			new(timers(50*time.Millisecond, 5)), &PeerBFD{BFD: timers(50*time.Millisecond, 5)}},
		{"in part", "{interval: 50ms}", "{multiplier: 4}", "{interval: 1s, multiplier: 2}", timers(50*time.Millisecond, 3),
			new(timers(50*time.Millisecond, 4)), &PeerBFD{BFD: timers(time.Second, 2)}},
		{"ends of the ranges", "{interval: 10ms, multiplier: 255}", "{interval: 60s, multiplier: 1}", "{}", timers(10*time.Millisecond, 255),
			new(timers(time.Minute, 1)), &PeerBFD{BFD: timers(10*time.Millisecond, 255)}},
		{"with a key", "", "", "{auth: meticulous-sha1, key-id: 255, key-file: /etc/fabric/bfd.key}", timers(300*time.Millisecond, 3), nil,
			&PeerBFD{BFD: timers(300*time.Millisecond, 3), Auth: "meticulous-sha1", KeyID: 255, KeyFile: "/etc/fabric/bfd.key"}},
		{"key 0", "", "", "{auth: simple, key-file: /k}", timers(300*time.Millisecond, 3), nil,
			&PeerBFD{BFD: timers(300*time.Millisecond, 3), Auth: "simple", KeyFile: "/k"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := example(t)
			if tt.fabric != "" {
				text = replace(t, text, fabricPlace, fabricPlace+"  bfd: "+tt.fabric+"\n")
			}
			if tt.tun != "" {
				text = replace(t, text, tunnelPlace, "underlay-mtu: 1450, bfd: "+tt.tun+"}")
			}
			if tt.peer != "" {
				text = replace(t, text, peerPlace, peerPlace+peerIndent+"bfd: "+tt.peer+"\n")
			}
			d := mustParse(t, text)
			if d.Fabric.BFD != tt.wantFabric {
				t.Errorf("fabric has %+v", d.Fabric.BFD)
			}
			if got := d.Links.Pairs[0].Tunnels[0].BFD; !reflect.DeepEqual(got, tt.wantTunnel) {
				t.Errorf("tunnel has %+v", got)
			}
			if got := d.Sites[2].Gateways[0].VRFs[0].Peers[0].BFD; !reflect.DeepEqual(got, tt.wantPeer) {
				t.Errorf("peer has %+v", got)
			}
			// The canonical form is the same document, and says no more when its defaults are filled in again.
			text1, err := d.YAML()
			if err != nil {
				t.Fatal(err)
			}
			again := mustParse(t, string(text1))
			if !reflect.DeepEqual(again, d) {
				t.Errorf("read back differently:\n%s", text1)
			}
			again.setDefaults()
			if !reflect.DeepEqual(again, d) {
				t.Error("defaults are not idempotent")
			}
		})
	}
}

func TestBFDProblems(t *testing.T) {
	peer := func(keys string) func(testing.TB, string) string {
		return func(t testing.TB, text string) string {
			return replace(t, text, peerPlace, peerPlace+peerIndent+"bfd: "+keys+"\n")
		}
	}
	fabric := func(keys string) func(testing.TB, string) string {
		return func(t testing.TB, text string) string {
			return replace(t, text, fabricPlace, fabricPlace+"  bfd: "+keys+"\n")
		}
	}
	tunnel := func(keys string) func(testing.TB, string) string {
		return func(t testing.TB, text string) string {
			return replace(t, text, tunnelPlace, "underlay-mtu: 1450, bfd: "+keys+"}")
		}
	}
	tests := []struct {
		name   string
		change func(testing.TB, string) string
		want   []string
	}{
		{"short interval", fabric("{interval: 9ms}"), []string{`^fabric.yaml:4:19: fabric.bfd.interval: 9ms is out of range; write whole milliseconds from 10ms to 60s`}},
		{"long interval", fabric("{interval: 61s}"), []string{`1m1s is out of range`}},
		{"fraction of a millisecond", fabric("{interval: 10500us}"), []string{`10.5ms is out of range; write whole milliseconds`}},
		{"negative interval", fabric("{interval: -10ms}"), []string{`-10ms is out of range`}},
		{"interval without unit", fabric("{interval: 300}"), []string{`"300" is not a duration`}},
		{"large multiplier", fabric("{multiplier: 256}"), []string{`4:21: fabric.bfd.multiplier: 256 is out of range; write a number from 1 to 255`}},
		{"negative multiplier", fabric("{multiplier: -1}"), []string{`-1 is out of range`}},
		{"unknown key of the fabric", fabric("{auth: sha1}"), []string{`fabric.bfd.auth: unknown key "auth"; known here: interval, multiplier$`}},
		{"not a mapping", fabric("true"), []string{`fabric.bfd: must hold keys, not true or false`}},
		{"fabric's problem is told once", func(t testing.TB, text string) string {
			return tunnel("{}")(t, peer("{}")(t, fabric("{interval: 1ms, multiplier: 300}")(t, text)))
		}, []string{`fabric.bfd.interval: 1ms`, `fabric.bfd.multiplier: 300`}},
		{"tunnel", tunnel("{interval: 1ms, multiplier: 300}"), []string{atAny + pairTunnel + `.interval: 1ms is out of range`, atAny + pairTunnel + `.multiplier: 300 is out of range`}},
		{"tunnels of all links", func(t testing.TB, text string) string {
			return replace(t, text, "  mesh: communities", "  tunnels: [{kind: wireguard, bfd: {multiplier: 999}}]\n  mesh: communities")
		}, []string{`links.tunnels\[0\].bfd.multiplier: 999 is out of range`}},
		{"peer", peer("{interval: 2m, multiplier: 256}"), []string{atAny + corePeer + `.interval: 2m0s is out of range; write`, atAny + corePeer + `.multiplier: 256`}},
		{"unknown key", peer("{intervall: 1s}"), []string{`bfd.intervall: unknown key "intervall"; known here: interval, multiplier, auth, key-id, key-file`}},
		{"duplicate key", peer("{interval: 1s, interval: 1s}"), []string{`bfd.interval: duplicate key`}},
		{"empty", peer(""), []string{corePeer + `: has no value; give it a value`}},
		{"unknown auth", peer("{auth: md5, key-file: /k}"), []string{`bfd.auth: "md5" is not known; write simple or sha1 or meticulous-sha1`}},
		{"auth without key", peer("{auth: sha1, key-id: 1}"), []string{atAny + corePeer + `.key-file: auth "sha1" needs a key; name a file`}},
		{"relative key file", peer("{auth: sha1, key-file: k}"), []string{`bfd.key-file: "k" is not an absolute path; write the whole path`}},
		{"key id", peer("{auth: sha1, key-file: /k, key-id: 256}"), []string{`bfd.key-id: 256 is out of range; write a number from 0 to 255`}},
		{"negative key id", peer("{auth: sha1, key-file: /k, key-id: -1}"), []string{`-1 is out of range`}},
		{"key without auth", peer("{key-file: /k}"), []string{atAny + corePeer + `: a key without auth signs nothing; add auth: simple, sha1`}},
		{"key id without auth", peer("{key-id: 7}"), []string{`a key without auth signs nothing`}},
		{"several hops from nowhere", func(t testing.TB, text string) string {
			return replace(t, text, farPlace, peerIndent+"bfd: {}\n")
		}, []string{atAny + farPeer + `: a BFD session over several hops needs our address; add update-source`}},
		{"several hops to a link-local address", func(t testing.TB, text string) string {
			return peer("{}")(t, replace(t, text, "address: 172.20.0.1\n", "address: 'fe80::1'\n"+peerIndent+"multihop: 2\n"))
		}, []string{corePeer + `: link-local neighbour fe80::1 is not reached over several hops; remove multihop`}},
		{"several hops with our address", func(t testing.TB, text string) string {
			return replace(t, text, farPlace, farPlace+peerIndent+"bfd: {}\n")
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("fabric.yaml", []byte(tt.change(t, example(t))))
			if err == nil {
				if tt.want != nil {
					t.Fatal("was accepted")
				}
				return
			}
			var ps Problems
			if !errors.As(err, &ps) || len(ps) != len(tt.want) {
				t.Fatalf("want %d problems, got %v", len(tt.want), err)
			}
			for i, p := range ps {
				if !regexp.MustCompile(tt.want[i]).MatchString(p.String()) {
					t.Errorf("problem %d is %s", i, p)
				}
				if p.Line == 0 || p.Column == 0 || p.Mend == "" {
					t.Errorf("problem lacks a place or a mend: %+v", p)
				}
			}
		})
	}
}

// A peer added at run time keeps its BFD: as asked for in the list of mutations, with defaults in the document.
func TestBFDMutation(t *testing.T) {
	base := mustParse(t, replace(t, example(t), fabricPlace, fabricPlace+"  bfd: {interval: 50ms, multiplier: 5}\n"))
	add := peerAdd("CORE", "172.20.0.2", 65021)
	add.Peer.BFD = &PeerBFD{BFD: BFD{Multiplier: 7}, Auth: "sha1", KeyID: 3, KeyFile: "/etc/fabric/bfd.key"}
	asked := add.Clone()

	// Through the list as it lies on disk.
	data, err := json.Marshal(add)
	if err != nil {
		t.Fatal(err)
	}
	if want := `"bfd":{"multiplier":7,"auth":"sha1","key-id":3,"key-file":"/etc/fabric/bfd.key"}`; !strings.Contains(string(data), want) {
		t.Errorf("on disk it is %s", data)
	}
	var read Mutation
	if err := json.Unmarshal(data, &read); err != nil || !reflect.DeepEqual(read, add) {
		t.Fatalf("read back as %+v, %v", read, err)
	}

	d, kept, conflicts := replay(base, "gz-1-gw", []Mutation{read})
	if len(conflicts) > 0 || len(kept) != 1 {
		t.Fatalf("kept %v, conflicts %v", kept, conflicts)
	}
	want := &PeerBFD{BFD: timers(50*time.Millisecond, 7), Auth: "sha1", KeyID: 3, KeyFile: "/etc/fabric/bfd.key"}
	if got := d.Sites[2].Gateways[0].VRFs[0].Peers[2].BFD; !reflect.DeepEqual(got, want) {
		t.Errorf("peer has %+v", got)
	}

	// The same again is nothing new, another setting is a conflict, and neither changes what was asked for.
	if _, err := Apply(d, "gz-1-gw", add); !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "nothing to change") {
		t.Errorf("added twice: %v", err)
	}
	other := add.Clone()
	other.Peer.BFD = nil
	if _, err := Apply(d, "gz-1-gw", other); !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "other settings") {
		t.Errorf("added without BFD: %v", err)
	}
	if !reflect.DeepEqual(add, asked) || !reflect.DeepEqual(kept[0], asked) {
		t.Errorf("the mutation was changed: %+v", kept[0].Peer.BFD)
	}

	// An invalid one is refused as in the file.
	wrong := peerAdd("CORE", "172.20.0.3", 65021)
	wrong.Peer.BFD = &PeerBFD{KeyFile: "/k"}
	var ps Problems
	if _, err := Apply(base, "gz-1-gw", wrong); !errors.As(err, &ps) || !strings.Contains(err.Error(), "a key without auth") {
		t.Errorf("key without auth: %v", err)
	}
}

// Setting defaults on a copy of a peer, as comparing peers does, leaves the original alone.
func TestBFDDefaultsOfACopy(t *testing.T) {
	d := mustParse(t, example(t))
	p := Peer{Address: netip.MustParseAddr("192.0.2.1"), BFD: &PeerBFD{}}
	c := p
	c.setDefaults(&d.Fabric, &d.Sites[0].Gateways[0])
	if *p.BFD != (PeerBFD{}) || c.BFD.Multiplier != 3 {
		t.Errorf("the original has %+v, the copy %+v", p.BFD, c.BFD)
	}
}

// Through the store: a proposal shows the peer's BFD, and a restart brings it back from disk.
func TestBFDSurvivesRestart(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	add := peerAdd("CORE", "172.20.0.2", 65021)
	add.Peer.BFD = &PeerBFD{BFD: BFD{Interval: Duration(time.Second)}, Auth: "simple", KeyFile: "/k"}
	p, err := s.Propose(add)
	if err != nil {
		t.Fatal(err)
	}
	want := &PeerBFD{BFD: timers(time.Second, 3), Auth: "simple", KeyFile: "/k"}
	bfd := func(d *Document) *PeerBFD { return d.Sites[2].Gateways[0].VRFs[0].Peers[2].BFD }
	if !reflect.DeepEqual(bfd(p.Document), want) {
		t.Errorf("proposal has %+v", bfd(p.Document))
	}
	commit(t, s, add)
	if got := bfd(w.restart(s).Current().Document); !reflect.DeepEqual(got, want) {
		t.Errorf("after a restart the peer has %+v", got)
	}
}
