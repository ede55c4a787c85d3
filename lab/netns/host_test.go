package netns

import (
	"bytes"
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A host has what its setup made, and nothing that was started in it outlives it.
func TestHost(t *testing.T) {
	needRoot(t)
	h, err := NewHost("ip link add eth1 type veth peer name eth2")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Within(func() error { _, err := net.InterfaceByName("eth1"); return err }); err != nil {
		t.Error(err)
	}
	// Its /run is its own, and the program that setsid leaves behind is not a child of ours.
	out, err := h.Command("sh", "-c", "ls /run; setsid sleep 1000 >/dev/null 2>&1 & echo $!").Output()
	words := strings.Fields(string(out))
	if err != nil || !slices.Contains(words, "wireguard") {
		t.Fatalf("%q, %v", out, err)
	}
	last := words[len(words)-1]
	pid, err := strconv.Atoi(last)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("sleep: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(h.NetNS()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the holder lives on: %v", err)
	}
	// The process that adopts it may not have waited for it yet.
	if state, err := os.ReadFile("/proc/" + last + "/stat"); err == nil && !bytes.Contains(state, []byte(") Z ")) {
		t.Errorf("it lives on: %s", state)
	}
}

func TestHostSetupFails(t *testing.T) {
	needRoot(t)
	if _, err := NewHost("ip link set nothing up", "true"); err == nil || !strings.Contains(err.Error(), `"nothing"`) {
		t.Errorf("error %v", err)
	}
}
