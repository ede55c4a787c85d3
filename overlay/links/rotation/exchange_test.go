package rotation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// FuzzRead: nothing the other end sends makes reading it panic, what is taken for a message goes out as it came in, and words of its are shown
// without control characters.
func FuzzRead(f *testing.F) {
	for _, m := range []Message{{Verb: "propose", Generation: 3, Public: "AAAA", Preshared: "BBBB"}, {OK: true, Public: "CCCC"}, {Error: "no\x1b[2J"}} {
		var b bytes.Buffer
		if err := write(&b, m); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if s := printable(string(data)); len([]rune(s)) > 200 || strings.ContainsFunc(s, unicode.IsControl) {
			t.Errorf("shown is %q", s)
		}
		m, err := read(bytes.NewReader(data))
		if err != nil {
			if !errors.Is(err, errLine) {
				t.Errorf("error is %v", err)
			}
			return
		}
		var b bytes.Buffer
		if err := write(&b, m); err != nil {
			t.Fatal(err)
		}
		if b.Len() > maxLine {
			return // escapes made it longer than a line may be
		}
		if again, err := read(&b); err != nil || again != m {
			t.Errorf("%#v read again is %#v, error %v", m, again, err)
		}
	})
}

// inNamespace runs f on a thread in a network namespace of its own, in which veth0 (fe80::a) and veth1 (fe80::b) are joined.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			var out []byte
			if out, err = exec.Command("sh", "-c", "ip link set lo up && ip link add veth0 type veth peer name veth1 && "+
				"ip link set veth0 addrgenmode none up && ip link set veth1 addrgenmode none up && "+
				"ip addr add fe80::a/64 dev veth0 nodad && ip addr add fe80::c/64 dev veth0 nodad && ip addr add fe80::b/64 dev veth1 nodad").CombinedOutput(); err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

var (
	hereEnd  = End{Device: "veth0", Local: netip.MustParseAddr("fe80::a"), Remote: netip.MustParseAddr("fe80::b")}
	thereEnd = End{Device: "veth1", Local: netip.MustParseAddr("fe80::b"), Remote: netip.MustParseAddr("fe80::a")}
)

// Both ends are in one namespace, whose local table would join them: the answering socket is looked for on the device all the same.
func TestExchange(t *testing.T) {
	var log bytes.Buffer
	var mu sync.Mutex
	var asked atomic.Int32
	x := NewExchange(slog.New(slog.NewTextHandler(&lockedWriter{mu: &mu, w: &log}, &slog.HandlerOptions{Level: slog.LevelDebug})), func(_ context.Context, device string, m Message) Message {
		asked.Add(1)
		if m.Verb == "refuse" {
			return Message{Error: "no\x1b[31m, " + strings.Repeat("x", 1000)}
		}
		return Message{OK: true, Public: device + " " + m.Verb + " " + m.Preshared, Generation: m.Generation}
	})
	defer x.Close()
	inNamespace(t, func() {
		if err := x.Listen([]End{thereEnd, {Device: "fxwnone", Local: hereEnd.Local, Remote: hereEnd.Remote}}); err == nil || !strings.Contains(err.Error(), "fxwnone") {
			t.Errorf("a device that is not there: %v", err)
		}
		ctx := context.Background()
		answer, err := x.Ask(ctx, hereEnd, Message{Verb: "propose", Generation: 3, Preshared: "secret"})
		if err != nil || !answer.OK || answer.Public != "veth1 propose secret" || answer.Generation != 3 {
			t.Errorf("answer is %#v, error %v", answer.Public, err)
		}
		var refused *RefusedError
		if _, err := x.Ask(ctx, hereEnd, Message{Verb: "refuse"}); !errors.As(err, &refused) || len(err.Error()) > 300 || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("refusal is %q", err)
		}
		before := asked.Load()
		raw := func(from string, send string) string {
			d := net.Dialer{Timeout: 2 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from), Zone: "veth0"}}
			c, err := d.Dial("tcp6", "[fe80::b%veth0]:51819")
			if err != nil {
				return err.Error()
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(exchangeTime + 5*time.Second))
			_, _ = io.WriteString(c, send)
			got, _ := io.ReadAll(c)
			return string(got)
		}
		for name, send := range map[string]string{
			"garbage":             "\x00\xff\x17 hello\n",
			"not our version":     `{"version":2,"verb":"propose"}` + "\n",
			"no version":          `{"verb":"propose"}` + "\n",
			"another type":        `{"version":1,"verb":{}}` + "\n",
			"oversize":            `{"version":1,"verb":"` + strings.Repeat("x", 10*maxLine) + `"}` + "\n",
			"oversize, no end":    strings.Repeat("x", 10*maxLine),
			"a key in the errors": `{"version":1,"preshared-key":"topsecret"` + "\n",
		} {
			if got := raw("fe80::a", send); strings.Contains(got, `"ok":true`) || strings.Contains(got, "topsecret") {
				t.Errorf("%s: answer is %q", name, got)
			}
		}
		if got := raw("fe80::c", `{"version":1,"verb":"propose"}`+"\n"); got != "" {
			t.Errorf("a stranger on the device is answered: %q", got)
		}
		if asked.Load() != before {
			t.Errorf("%d of them were put through", asked.Load()-before)
		}
		// Who says nothing is left after a while, and does not keep others from being answered.
		began := time.Now()
		if got := raw("fe80::a", `{"version":1,`); strings.Contains(got, "ok\":true") || time.Since(began) > exchangeTime+4*time.Second {
			t.Errorf("half a line: %q after %s", got, time.Since(began))
		}
		if _, err := x.Ask(ctx, hereEnd, Message{Verb: "propose"}); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		// A device that is made anew has another index.
		if out, err := exec.Command("sh", "-c", "ip link del veth0 && ip link add veth0 type veth peer name veth1 && ip link set veth0 addrgenmode none up && ip link set veth1 addrgenmode none up && "+
			"ip addr add fe80::a/64 dev veth0 nodad && ip addr add fe80::b/64 dev veth1 nodad").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := x.Listen([]End{thereEnd}); err != nil {
			t.Error(err)
		}
		if _, err := x.Ask(ctx, hereEnd, Message{Verb: "propose"}); err != nil {
			t.Errorf("device made anew: %v", err)
		}
		if err := x.Listen(nil); err != nil {
			t.Error(err)
		}
		if _, err := x.Ask(ctx, hereEnd, Message{Verb: "propose"}); err == nil {
			t.Error("answered on a device that is none of ours any more")
		}
		quick, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		away := hereEnd
		away.Remote = netip.MustParseAddr("fe80::dead")
		if _, err := x.Ask(quick, away, Message{Verb: "propose"}); err == nil {
			t.Error("nobody has answered")
		}
	})
	mu.Lock()
	defer mu.Unlock()
	if strings.Contains(log.String(), "secret") {
		t.Errorf("the log has a secret:\n%s", log.String())
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func TestMessageKeepsItsSecret(t *testing.T) {
	m := Message{Verb: "propose", Generation: 3, Preshared: "topsecret"}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "m", m)
	for _, s := range []string{fmt.Sprint(m), fmt.Sprintf("%v %+v %#v %s %q", m, m, m, m, m), fmt.Sprintf("%v", &m), log.String()} {
		if strings.Contains(s, "topsecret") {
			t.Errorf("printed: %s", s)
		}
	}
}
