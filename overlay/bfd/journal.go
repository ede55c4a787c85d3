package bfd

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"
)

// quiet is how long after a log line of one kind the next is held back.
const quiet = 10 * time.Second

// journal takes log lines from the engine's thread without ever making it wait. One goroutine writes them.
type journal struct {
	log   *slog.Logger
	lines chan line
	lost  atomic.Uint64
	// drops limits lines about dropped packets, by reason.
	drops [dropReasons]limit
}

// line is what is to be logged, as values: formatting is the writer's work.
type line struct {
	kind lineKind
	name string
	path Path
	// of a change
	change Transition
	// of a drop
	drop     Drop
	src, dst netip.Addr
	held     uint64
	// of a problem, in words
	text string
}

type lineKind uint8

const (
	lineChange lineKind = iota
	lineDrop
	lineProblem
	lineSolved
	lineNote
)

// limit lets one event through per quiet time and counts the others.
type limit struct {
	until time.Time
	held  uint64
}

// pass says whether to log, and how many were held back since the last time.
func (l *limit) pass(now time.Time) (held uint64, ok bool) {
	if now.Before(l.until) {
		l.held++
		return 0, false
	}
	held, l.held = l.held, 0
	l.until = now.Add(quiet)
	return held, true
}

func newJournal(log *slog.Logger) *journal {
	return &journal{log: log, lines: make(chan line, 256)}
}

func (j *journal) put(l line) {
	select {
	case j.lines <- l:
	default:
		j.lost.Add(1)
	}
}

// dropped notes a packet that was not used; s may be nil.
func (j *journal) dropped(now time.Time, d Drop, s *session, src, dst netip.Addr) {
	held, ok := j.drops[d].pass(now)
	if !ok {
		return
	}
	l := line{kind: lineDrop, drop: d, src: src, dst: dst, held: held}
	if s != nil {
		l.name = s.cfg.Name
	}
	j.put(l)
}

// close ends write, after the lines put so far.
func (j *journal) close() { close(j.lines) }

func (j *journal) write() {
	for l := range j.lines {
		switch l.kind {
		case lineChange:
			level := slog.LevelInfo
			if l.change.From == Up {
				level = slog.LevelWarn
			}
			j.log.Log(context.Background(), level, "BFD session changed", "session", l.name, "path", l.path.String(), "from", l.change.From.String(),
				"to", l.change.To.String(), "diag", l.change.Diag.String(), "reason", l.change.Reason)
		case lineDrop:
			j.log.Warn("BFD packet dropped", "reason", l.drop.String(), "from", l.src.String(), "to", l.dst.String(),
				"session", l.name, "more_since_last", l.held)
		case lineProblem:
			j.log.Warn("BFD session has a problem", "session", l.name, "path", l.path.String(), "problem", l.text)
		case lineSolved:
			j.log.Info("BFD session has no problem any more", "session", l.name, "path", l.path.String())
		case lineNote:
			j.log.Info(l.text)
		}
	}
}
