package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/pprof"
	"strconv"
	"time"

	"fabric/overlay/bfd"
)

// engineCommand is the hidden command that runs our engine as a process of its own.
const engineCommand = "bfd-engine"

// engine is our engine in a process of its own, which answers each line it gets with its counts.
type engine struct {
	*process
	in      io.WriteCloser
	answers *json.Decoder
	out     io.Closer
}

// startEngine starts our engine with n sessions in an end of the link.
func startEngine(_ context.Context, l *link, end, n int, profile string) (speaker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = inRead.Close() }()
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		_ = inWrite.Close()
		return nil, err
	}
	defer func() { _ = outWrite.Close() }()
	p, err := l.start(end, fmt.Sprint("engine", end), inRead, outWrite,
		self, engineCommand, "-end", strconv.Itoa(end), "-sessions", strconv.Itoa(n), "-cpuprofile", profile)
	if err != nil {
		_, _ = inWrite.Close(), outRead.Close()
		return nil, err
	}
	return &engine{process: p, in: inWrite, answers: json.NewDecoder(outRead), out: outRead}, nil
}

// counts asks the process.
func (e *engine) counts(context.Context) (counts, error) {
	var c counts
	_, err := e.in.Write([]byte("\n"))
	if err == nil {
		err = e.answers.Decode(&c)
	}
	if err != nil {
		return c, fmt.Errorf("our engine does not answer: %w: %s", err, e.lastWords())
	}
	return c, nil
}

func (e *engine) close() {
	_ = e.in.Close()
	e.process.close()
	_ = e.out.Close()
}

// engineProcess runs the engine until its input ends, so that it also ends with a bench that was killed.
func engineProcess(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	fs := flag.NewFlagSet(engineCommand, flag.ContinueOnError)
	end := fs.Int("end", 0, "0 or 1")
	n := fs.Int("sessions", 1, "how many")
	profile := fs.String("cpuprofile", "", "file")
	if err := fs.Parse(args); err != nil {
		return errUsage
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	e := bfd.New(bfd.Config{})
	if err := e.Configure(sessions(*end, *n)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go func() { cancel(answer(e, in, json.NewEncoder(out))) }()
	if err := e.Run(ctx); err != nil {
		return err
	}
	if err := context.Cause(ctx); !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// answer answers each line with the engine's counts; io.EOF at the end.
func answer(e *bfd.Engine, in io.Reader, out *json.Encoder) error {
	lines := bufio.NewReader(in)
	for {
		if _, err := lines.ReadString('\n'); err != nil {
			return err
		}
		if err := out.Encode(count(e.States())); err != nil {
			return err
		}
	}
}

func count(states []bfd.Status) counts {
	c := counts{Sessions: len(states)}
	const interval = intervalMs * time.Millisecond
	for _, s := range states {
		if s.State == bfd.Up {
			c.Up++
			if !s.Polling && s.TxInterval == interval && s.DetectionTime == multiplier*interval {
				c.Settled++
			}
		}
		c.Downs += s.Downs
		c.Sent += s.Sent
		c.Received += s.Received
	}
	return c
}

// sessions are those of an end.
func sessions(end, n int) []bfd.SessionConfig {
	want := make([]bfd.SessionConfig, n)
	for i := range want {
		want[i] = bfd.SessionConfig{
			Name: fmt.Sprint(i),
			Path: bfd.Path{Interface: device, Local: address(end, i), Peer: address(1-end, i)},
			Params: bfd.Params{
				DesiredMinTx: intervalMs * time.Millisecond, RequiredMinRx: intervalMs * time.Millisecond, DetectMult: multiplier,
				Independent: true,
			},
		}
	}
	return want
}
