package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"fabric/overlay"
	"fabric/overlay/links"
)

// flow is 1,000 datagrams a second each way between two VTEPs, each with a number; fewer on a slow machine.
type flow struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	ways   [2]way
}

type way struct {
	mu   sync.Mutex
	sent int
	got  map[uint64]time.Time
}

func startFlow(t *testing.T, a, b *node) *flow {
	t.Helper()
	dial := func(n, to *node, port, toPort int) net.Conn {
		fd := inNode(t, n, func() (int, error) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return 0, err
			}
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
			if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: n.vtep.As4()}); err != nil {
				return 0, err
			}
			return fd, unix.Connect(fd, &unix.SockaddrInet4{Port: toPort, Addr: to.vtep.As4()})
		})
		f := os.NewFile(uintptr(fd), "flow")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	conns := []net.Conn{dial(a, b, 7101, 7102), dial(b, a, 7102, 7101)}
	ctx, cancel := context.WithCancel(context.Background())
	f := &flow{cancel: cancel}
	for i := range f.ways {
		w := &f.ways[i]
		w.got = map[uint64]time.Time{}
		f.wg.Go(func() {
			began := time.Now()
			tick := time.NewTicker(slowly(time.Millisecond))
			defer tick.Stop()
			for ctx.Err() == nil {
				<-tick.C
				due := int(time.Since(began) / slowly(time.Millisecond))
				w.mu.Lock()
				// What a busy host has not let go out in time is not sent in one burst: it would overflow queues.
				for n := 0; w.sent < due && n < 20; n++ {
					_, _ = conns[i].Write(binary.BigEndian.AppendUint64(nil, uint64(w.sent)))
					w.sent++
				}
				w.mu.Unlock()
			}
		})
		f.wg.Go(func() {
			buf := make([]byte, 64)
			for ctx.Err() == nil {
				if n, err := conns[1-i].Read(buf); err == nil && n == 8 {
					w.mu.Lock()
					w.got[binary.BigEndian.Uint64(buf)] = time.Now()
					w.mu.Unlock()
				}
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		for _, c := range conns {
			c.Close()
		}
		f.wg.Wait()
	})
	return f
}

// during runs fn and says how many of the datagrams sent meanwhile did not arrive within two seconds, each way, and how many were sent.
func (f *flow) during(fn func()) (sent, lost [2]int) {
	var from, to [2]int
	mark := func(at *[2]int) {
		for i := range f.ways {
			f.ways[i].mu.Lock()
			at[i] = f.ways[i].sent
			f.ways[i].mu.Unlock()
		}
	}
	mark(&from)
	fn()
	mark(&to)
	deadline := time.Now().Add(2 * time.Second)
	for {
		for i := range f.ways {
			w := &f.ways[i]
			sent[i], lost[i] = to[i]-from[i], 0
			w.mu.Lock()
			for n := from[i]; n < to[i]; n++ {
				if _, ok := w.got[uint64(n)]; !ok {
					lost[i]++
				}
			}
			w.mu.Unlock()
		}
		if lost == [2]int{} || time.Now().After(deadline) {
			return sent, lost
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// favour gives this process, and what it starts from now on, more of a busy host's time: userspace tunnels that are starved lose packets by
// themselves, and what is lost here must be the rotation's fault.
func favour(t *testing.T, nice int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if id, err := strconv.Atoi(task.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, id, nice)
		}
	}
}

// rotatingPair is two nodes with BFD of 300 ms x 3 on their one tunnel. a's name sorts first: it proposes.
func rotatingPair(t *testing.T) (a, b *node, plans [2]overlay.Plan) {
	t.Helper()
	a, b, plans = twoNodes(t)
	for i := range plans {
		plans[i].Tunnels[0].BFD = &overlay.BFD{IntervalMs: 300 * slow, Multiplier: 3}
	}
	bringUp(t, a, b, plans)
	for _, n := range []*node{a, b} {
		n.wait("tunnel is up", func() error { return generation(n, 0) })
	}
	return a, b, plans
}

// generation says whether a node's one tunnel is up, active and quiet with that generation of keys.
func generation(n *node, want int) error {
	s, err := n.state()
	if err != nil {
		return err
	}
	if len(s.Tunnels) != 1 {
		return fmt.Errorf("tunnels are %+v", s.Tunnels)
	}
	if one := s.Tunnels[0]; one.State != links.Up || !one.Active || one.KeyGeneration != want || one.Rotation != "" || one.Err != "" {
		return fmt.Errorf("tunnel is %+v", one)
	}
	return nil
}

func (n *node) rotate(t *testing.T, device string) int {
	t.Helper()
	client, err := links.Dial(n.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	was, err := client.Rotate(ctx, device)
	if err != nil {
		t.Fatal(err)
	}
	return was
}

// intruder is who has got hold of a's keys and speaks to b's port with them, from a's host.
type intruder struct{ d *device.Device }

func newIntruder(t *testing.T, a *node, privateFile, presharedFile, public, endpoint string) *intruder {
	t.Helper()
	plain := func(file string) string {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return unbase64(t, strings.TrimSpace(string(data)))
	}
	config := "private_key=" + plain(privateFile) + "\npublic_key=" + unbase64(t, public) + "\nendpoint=" + endpoint + "\npersistent_keepalive_interval=1\nallowed_ip=0.0.0.0/0\n"
	if presharedFile != "" {
		config += "preshared_key=" + plain(presharedFile) + "\n"
	}
	i := &intruder{device.NewDevice(silentTUN(make(chan struct{})), conn.NewStdNetBind(), device.NewLogger(device.LogLevelSilent, ""))}
	t.Cleanup(i.d.Close)
	inNode(t, a, func() (int, error) {
		if err := i.d.IpcSet(config); err != nil {
			return 0, err
		}
		return 0, i.d.Up()
	})
	return i
}

// silentTUN is a TUN device that never has a packet, nor an event: one would make the device open its sockets outside the namespace.
type silentTUN chan struct{}

func (s silentTUN) File() *os.File { return nil }
func (s silentTUN) Read([][]byte, []int, int) (int, error) {
	<-s
	return 0, os.ErrClosed
}
func (s silentTUN) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }
func (s silentTUN) MTU() (int, error)                       { return 1420, nil }
func (s silentTUN) Name() (string, error)                   { return "silent", nil }
func (s silentTUN) Events() <-chan tun.Event                { return make(chan tun.Event) }
func (s silentTUN) BatchSize() int                          { return 1 }
func (s silentTUN) Close() error {
	close(s)
	return nil
}

func unbase64(t *testing.T, s string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b)
}

// answered waits for a handshake.
func (i *intruder) answered(t *testing.T, within time.Duration) bool {
	t.Helper()
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		out, err := i.d.IpcGet()
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(strings.NewReader(out)); lines.Scan(); {
			if v, ok := strings.CutPrefix(lines.Text(), "last_handshake_time_sec="); ok && v != "0" {
				return true
			}
		}
	}
	return false
}

// keyFiles are those of a node's tunnel, by ending.
func keyFiles(t *testing.T, n *node, ending string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(links.KeysDir(filepath.Join(n.dir, "state")), "*"+ending))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// copyOf keeps what an intruder has read before it is gone.
func copyOf(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Keys are replaced three times under traffic; nothing is lost, and former keys are refused soon after.
func TestRotateKeys(t *testing.T) {
	favour(t, -15)
	t.Cleanup(func() { favour(t, 0) })
	a, b, plans := rotatingPair(t)
	d := plans[0].Tunnels[0].Device
	f := startFlow(t, a, b)
	f.during(func() { time.Sleep(300 * time.Millisecond) })
	rounds := 3
	var captured [2]string
	var public string
	for round := 1; round <= rounds; round++ {
		asked := []*node{a, b}[round%2]
		if round == rounds {
			// By now the tunnel has keys of its own: they are read by an intruder.
			captured = [2]string{copyOf(t, keyFiles(t, a, ".key")[0]), copyOf(t, keyFiles(t, a, ".psk")[0])}
			public = recorded(t, a, `"public-key": "`)
		}
		machine := watchMachine()
		sent, lost := f.during(func() {
			began := time.Now()
			device := d
			if asked == b {
				device = plans[1].Tunnels[0].Device
			}
			if was := asked.rotate(t, device); was != round-1 {
				t.Errorf("generation before is %d", was)
			}
			for _, n := range []*node{a, b} {
				n.wait("the next keys are in use", func() error { return generation(n, round) })
			}
			t.Logf("round %d took %s, former keys gone included", round, time.Since(began).Round(time.Millisecond))
			if took := time.Since(began); took > slowly(10*time.Second) {
				machine.errorf(t, "round %d took %s", round, took)
			}
		})
		t.Logf("round %d: sent %v, lost %v", round, sent, lost)
		if lost != [2]int{} || sent[0] < 1000/slow {
			machine.errorf(t, "round %d: lost %v of %v", round, lost, sent)
		}
	}
	slot := func(generation int) int { return 51820 + 256*overlay.SlotOf(generation) }
	t.Run("former keys are refused", func(t *testing.T) {
		for _, old := range []struct {
			what                                string
			private, preshared, public, address string
		}{
			{"identity keys", a.keyFile, "", b.pk, fmt.Sprintf("192.0.2.2:%d", slot(0))},
			{"identity keys at the present port", a.keyFile, "", b.pk, fmt.Sprintf("192.0.2.2:%d", slot(rounds))},
			{"keys before the present ones", captured[0], captured[1], public, fmt.Sprintf("192.0.2.2:%d", slot(rounds-1))},
			{"keys before the present ones at the present port", captured[0], captured[1], public, fmt.Sprintf("192.0.2.2:%d", slot(rounds))},
		} {
			if newIntruder(t, a, old.private, old.preshared, old.public, old.address).answered(t, 1500*time.Millisecond) {
				t.Errorf("%s are answered", old.what)
			}
		}
	})
	t.Run("on disk and in the log", func(t *testing.T) {
		for _, n := range []*node{a, b} {
			log, err := os.ReadFile(n.log.Name())
			if err != nil {
				t.Fatal(err)
			}
			var files []string
			err = filepath.WalkDir(links.KeysDir(filepath.Join(n.dir, "state")), func(path string, e fs.DirEntry, err error) error {
				if err != nil || e.IsDir() {
					return err
				}
				files = append(files, filepath.Ext(path))
				if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s has mode %v, error %v", path, info.Mode(), err)
				}
				if ext := filepath.Ext(path); ext == ".key" || ext == ".psk" {
					if data, _ := os.ReadFile(path); strings.Contains(string(log), strings.TrimSpace(string(data))) {
						t.Errorf("the log of %s has a key", n.name)
					}
				}
				return nil
			})
			if slices.Sort(files); err != nil || !slices.Equal(files, []string{".json", ".key", ".psk"}) {
				t.Errorf("files of %s are %v, error %v", n.name, files, err)
			}
		}
	})
	t.Run("the present keys are answered", func(t *testing.T) {
		// So the intruder would be seen. It takes the tunnel from a for a while, which the captured key of the present allows. a is silent
		// meanwhile: WireGuard answers to where the peer was last heard, and a packet of a between request and answer would turn the answer to a.
		f.cancel()
		if err := a.engine.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = a.engine.Process.Signal(syscall.SIGCONT) }()
		i := newIntruder(t, a, keyFiles(t, a, ".key")[0], keyFiles(t, a, ".psk")[0], recorded(t, a, `"public-key": "`), fmt.Sprintf("192.0.2.2:%d", slot(rounds)))
		if !i.answered(t, 10*time.Second) {
			t.Error("nobody is ever answered")
		}
	})
}

// recorded is the value behind a key in a node's record.
func recorded(t *testing.T, n *node, key string) string {
	t.Helper()
	data, err := os.ReadFile(keyFiles(t, n, ".json")[0])
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), key)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// An engine is killed in the middle: it goes on where it was, and traffic stands still for no longer than a restart takes anyhow.
func TestRotateKilled(t *testing.T) {
	t.Parallel()
	a, b, plans := rotatingPair(t)
	want := 0
	for _, victim := range []*node{a, b} {
		for _, moment := range []string{"is brought up", "goes"} {
			want++
			a.rotate(t, plans[0].Tunnels[0].Device)
			victim.wait("the rotation is under way", func() error {
				s, err := victim.state()
				if err != nil || !strings.Contains(s.Tunnels[0].Rotation, moment) && s.Tunnels[0].KeyGeneration < want {
					return fmt.Errorf("state is %+v, error %v", s.Tunnels, err)
				}
				return nil
			})
			victim.stop(syscall.SIGKILL)
			stopped := time.Now()
			victim.start()
			for _, n := range []*node{a, b} {
				n.wait(fmt.Sprintf("after %s was killed when it %s", victim.name, moment), func() error { return settled(n, want) })
			}
			if err := a.ping(b); err != nil {
				t.Error(err)
			}
			t.Logf("%s killed when it %s: all is well after %s", victim.name, moment, time.Since(stopped).Round(time.Millisecond))
			s, _ := a.state()
			want = s.Tunnels[0].KeyGeneration
		}
	}
}

// settled says whether the tunnel is up and quiet with that generation or the one before: what was killed before it was agreed is tried again
// only on demand.
func settled(n *node, want int) error {
	if err := generation(n, want); err == nil {
		return nil
	}
	return generation(n, want-1)
}

// A gateway that was made anew, with only its identity keys, is reached again by itself, and soon has keys of the tunnel's own.
func TestRotateLostState(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for a minute")
	}
	a, b, plans := rotatingPair(t)
	a.rotate(t, plans[0].Tunnels[0].Device)
	for _, n := range []*node{a, b} {
		n.wait("the next keys are in use", func() error { return generation(n, 1) })
	}
	b.stop(syscall.SIGKILL)
	// With the host go its tunnels, which outlive fabric-links otherwise.
	one, ok := plans[1].Tunnels[0].In(overlay.SlotOf(1))
	if !ok {
		t.Fatal("the tunnel has no second place")
	}
	b.breakTunnel(one.Device)
	if err := a.ping(b); err == nil {
		t.Fatal("reached without the tunnel")
	}
	if err := os.RemoveAll(links.KeysDir(filepath.Join(b.dir, "state"))); err != nil {
		t.Fatal(err)
	}
	lost := time.Now()
	b.start()
	deadline := lost.Add(100 * time.Second)
	for a.ping(b) != nil {
		if time.Now().After(deadline) {
			t.Fatal("not healed")
		}
	}
	t.Logf("reached again after %s", time.Since(lost).Round(time.Second))
	for _, n := range []*node{a, b} {
		n.wait("keys of the tunnel's own", func() error { return generation(n, 2) })
	}
}

// What stands where the keys of tunnels should be does not keep fabric-links from its work; a folder that is open to others is closed.
func TestStartWithoutKeys(t *testing.T) {
	t.Parallel()
	a, b, plans := twoNodes(t)
	for n, make := range map[*node]func(dir string) error{
		a: func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
		b: func(dir string) error { return os.Mkdir(dir, 0o755) },
	} {
		dir := links.KeysDir(filepath.Join(n.dir, "state"))
		if err := errors.Join(os.MkdirAll(filepath.Dir(dir), 0o700), make(dir)); err != nil {
			t.Fatal(err)
		}
	}
	a.start()
	b.start()
	b.apply(plans[1])
	told := slices.ContainsFunc(a.apply(plans[0]).Problems(), func(o links.Object) bool {
		return o.Kind == "keys" && strings.Contains(o.Message, "not a directory")
	})
	if !told || len(a.logged("level=ERROR")) != 1 {
		t.Errorf("told: %v; log %q", told, a.logged("level=ERROR"))
	}
	if info, err := os.Stat(links.KeysDir(filepath.Join(b.dir, "state"))); err != nil || info.Mode().Perm() != 0o700 || len(b.logged("closed to others")) != 1 {
		t.Errorf("mode is %v, error %v", info.Mode(), err)
	}
	a.wait("VTEP to VTEP", func() error { return a.ping(b) })
}
