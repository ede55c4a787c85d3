package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// run runs a command in a node and returns what it printed.
func (d *demo) run(ctx context.Context, node string, argv ...string) (string, error) {
	out, err := d.lab.Node(node).Command(ctx, argv...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", node, strings.Join(argv, " "), err, bytes.TrimSpace(out))
	}
	return string(out), err
}

// ctl runs fabricctl on a gateway.
func (d *demo) ctl(ctx context.Context, gateway string, argv ...string) (string, error) {
	return d.run(ctx, gateway, append([]string{"/opt/fabric/bin/fabricctl"}, argv...)...)
}

// ctlJSON runs fabricctl -o json on a gateway and decodes its answer.
func (d *demo) ctlJSON(ctx context.Context, gateway string, into any, argv ...string) error {
	out, err := d.ctl(ctx, gateway, append(argv, "-o", "json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

// shell runs a shell line in a node.
func (d *demo) shell(ctx context.Context, node, line string) (string, error) {
	return d.run(ctx, node, "sh", "-c", line)
}

// until asks again and again until fn returns nil, and tells how long that took. It gives up after patience with fn's
// last error.
func until(ctx context.Context, patience time.Duration, fn func(context.Context) error) (time.Duration, error) {
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	for {
		err := fn(bounded)
		took := time.Since(began)
		if err == nil {
			return took, nil
		}
		// What the end of the wait broke off says nothing.
		if last == nil || bounded.Err() == nil {
			last = err
		}
		select {
		case <-bounded.Done():
			return took, fmt.Errorf("not so after %.1fs: %w", took.Seconds(), last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

var (
	ttlPattern      = regexp.MustCompile(`ttl=(\d+)`)
	receivedPattern = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)
	countPattern    = regexp.MustCompile(`\d+/(\d+) packets`)
	answerPattern   = regexp.MustCompile(`(?m)^\d+ bytes from .* icmp_seq=(\d+) `)
)

// ping sends a few echo requests and returns the ttl of the answers, or an error when any is missing.
func (d *demo) ping(ctx context.Context, node, dst string, options ...string) (ttl int, err error) {
	argv := append([]string{"ping", "-n", "-c", "2", "-i", "0.1", "-W", "1"}, options...)
	out, err := d.run(ctx, node, append(argv, dst)...)
	if err != nil {
		return 0, err
	}
	m := ttlPattern.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("%s: no ttl in: %s", node, out)
	}
	return strconv.Atoi(m[1])
}

// silent pings and wants no answer at all to what was sent: a ping that the node itself refuses proves nothing.
func (d *demo) silent(ctx context.Context, node, dst string, options ...string) error {
	argv := append([]string{"ping", "-n", "-c", "2", "-i", "0.1", "-W", "1"}, options...)
	out, err := d.run(ctx, node, append(argv, dst)...)
	if err == nil {
		return fmt.Errorf("%s reached %s: %s", node, dst, strings.TrimSpace(out))
	}
	m := receivedPattern.FindStringSubmatch(out)
	if m == nil || m[1] == "0" || strings.Contains(out, "ping: ") {
		return fmt.Errorf("%s: ping %s was not sent: %s", node, dst, out)
	}
	if m[2] != "0" {
		return fmt.Errorf("%s reached %s: %s", node, dst, out)
	}
	return nil
}

// capture is a running tcpdump.
type capture struct {
	cmd  *exec.Cmd
	out  shared
	once sync.Once
}

// shared is a buffer that is read while it is written.
type shared struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

// String is what was written so far.
func (s *shared) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// listen starts to capture on a node's interface and returns once packets are seen.
func (d *demo) listen(ctx context.Context, node, device, filter string) (*capture, error) {
	c := &capture{cmd: d.lab.Node(node).Command(ctx, "tcpdump", "-lnnv", "--immediate-mode", "-i", device, filter)}
	c.cmd.Stdout = &c.out
	stderr, err := c.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	// tcpdump says "listening on" once its socket is open.
	buf := make([]byte, 4096)
	var said string
	for !strings.Contains(said, "listening on") {
		n, err := stderr.Read(buf)
		said += string(buf[:n])
		if err != nil {
			return nil, errors.Join(fmt.Errorf("tcpdump on %s: %s: %w", node, said, err), c.cmd.Wait())
		}
	}
	// Read on, so that tcpdump never waits for us; it ends with the process.
	go func() {
		for {
			if _, err := stderr.Read(buf); err != nil {
				return
			}
		}
	}()
	return c, nil
}

// stop ends the capture and returns its text.
func (c *capture) stop() string {
	c.once.Do(func() {
		// Let the last packets come through the socket.
		time.Sleep(200 * time.Millisecond)
		_ = c.cmd.Process.Signal(interrupt)
		_ = c.cmd.Wait()
	})
	return c.out.String()
}

// emulator calls the control API of a VPC's emulator.
func (d *demo) emulator(ctx context.Context, node, method, path string, body, into any) error {
	socket := d.lab.Node(node).Path("/run/cloudemu.sock")
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	var buf bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&buf).Encode(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://emulator/_emu/"+path, &buf)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var text bytes.Buffer
		_, _ = text.ReadFrom(resp.Body)
		return fmt.Errorf("emulator of %s: %s: %s", node, resp.Status, text.String())
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// route is a line of `ip -j route`.
type route struct {
	Dst      string `json:"dst"`
	Type     string `json:"type"`
	Table    string `json:"table"`
	Protocol string `json:"protocol"`
	Metric   int    `json:"metric"`
	Dev      string `json:"dev"`
	Gateway  string `json:"gateway"`
	NHID     int    `json:"nhid"`
}

// routes lists a node's routes of a table ("all" for every table), of both families.
func (d *demo) routes(ctx context.Context, node, table string) ([]route, error) {
	var all []route
	for _, family := range []string{"-4", "-6"} {
		out, err := d.run(ctx, node, "ip", "-j", family, "route", "show", "table", table)
		if err != nil {
			return nil, err
		}
		var rs []route
		if strings.TrimSpace(out) != "" {
			if err := json.Unmarshal([]byte(out), &rs); err != nil {
				return nil, fmt.Errorf("%s: ip route: %w: %s", node, err, out)
			}
		}
		for _, r := range rs {
			if r.Dst == "default" {
				r.Dst = map[string]string{"-4": "0.0.0.0/0", "-6": "::/0"}[family]
			}
			if !strings.Contains(r.Dst, "/") {
				r.Dst += map[bool]string{true: "/128", false: "/32"}[strings.Contains(r.Dst, ":")]
			}
			all = append(all, r)
		}
	}
	return all, nil
}

// daemonPid is the process id of a gateway's daemon, as seen from outside the node.
func (d *demo) daemonPid(ctx context.Context, gateway, daemon string) (int, error) {
	out, err := d.run(ctx, gateway, "sh", "/opt/fabric/gateway.sh", "pid", daemon)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out))
}

// signal sends a signal to a gateway's daemon.
func (d *demo) signal(ctx context.Context, gateway, daemon, name string) error {
	pid, err := d.daemonPid(ctx, gateway, daemon)
	if err != nil {
		return err
	}
	_, err = d.run(ctx, gateway, "kill", "-"+name, strconv.Itoa(pid))
	return err
}

// freeze stops a daemon on some gateways until resume is called, which may be called twice.
func (d *demo) freeze(ctx context.Context, daemon string, gateways ...string) (resume func(), err error) {
	var stopped []string
	resume = func() {
		for _, g := range stopped {
			_ = d.signal(context.WithoutCancel(ctx), g, daemon, "CONT")
		}
		stopped = nil
	}
	for _, g := range gateways {
		if err := d.signal(ctx, g, daemon, "STOP"); err != nil {
			return resume, err
		}
		stopped = append(stopped, g)
	}
	return resume, nil
}
