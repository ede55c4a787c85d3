package peercred_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"fabric/internal/peercred"
)

// pair is both ends of a connection over a unix socket.
func pair(t *testing.T) (server, client net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return server, client
}

// The kernel tells of this process, for it is at both ends.
func TestPeer(t *testing.T) {
	server, _ := pair(t)
	_, info, err := peercred.Transport{Admit: func(peercred.Peer) error { return nil }}.ServerHandshake(server)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := info.(peercred.Peer)
	if !ok || p.Refused != nil || int(p.PID) != os.Getpid() || int(p.UID) != os.Geteuid() || int(p.GID) != os.Getegid() {
		t.Errorf("peer %+v, this is process %d of user %d and group %d", info, os.Getpid(), os.Geteuid(), os.Getegid())
	}
	have, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range have {
		if !p.In(uint32(g)) {
			t.Errorf("not in group %d", g)
		}
	}
	if !p.In(uint32(os.Getegid())) || p.In(1<<31) {
		t.Errorf("groups %v", p.Groups)
	}
}

func TestRefused(t *testing.T) {
	no := errors.New("not today")
	server, client := pair(t)
	var asked []int32
	transport := peercred.Transport{Admit: func(p peercred.Peer) error { asked = append(asked, p.PID); return no }}
	if _, _, err := transport.ServerHandshake(server); !errors.Is(err, no) || !slices.Equal(asked, []int32{int32(os.Getpid())}) {
		t.Errorf("asked for %v, error %v", asked, err)
	}
	transport.Late = true
	if _, info, err := transport.ServerHandshake(server); err != nil || !errors.Is(info.(peercred.Peer).Refused, no) {
		t.Errorf("late: peer %+v, error %v", info, err)
	}
	if _, _, err := transport.ClientHandshake(t.Context(), "", client); err == nil {
		t.Error("it is no client's")
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, _, err := transport.ServerHandshake(a); err == nil {
		t.Error("a pipe has no peer credentials")
	}
}
