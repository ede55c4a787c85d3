package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing wrong with a document.
type Problem struct {
	// File, Line and Column say where; Line is 0 where the document did not come from a file (a mutation).
	// Line and Column count from 1; columns are characters.
	File         string
	Line, Column int
	// Path names the value: sites[0].gateways[1].asn. It is empty for the document as a whole.
	Path string
	// Message says what is wrong, Mend what to do about it.
	Message, Mend string
}

// String is "file:line:col: path: message; mend".
func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "%s:%d:%d: ", p.File, p.Line, p.Column)
	} else if p.File != "" {
		fmt.Fprintf(&b, "%s: ", p.File)
	}
	if p.Path != "" {
		fmt.Fprintf(&b, "%s: ", p.Path)
	}
	b.WriteString(p.Message)
	if p.Mend != "" {
		b.WriteString("; " + p.Mend)
	}
	return b.String()
}

// Problems is all that is wrong with a document, in the order of the file. As an error it has one line for each.
type Problems []Problem

// Error has one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// maxProblems bounds a report: what a broken generator writes may be wrong on every line.
const maxProblems = 500

// sorted returns ps in the order of the file, without repetitions, bounded.
func (ps Problems) sorted() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	ps = slices.Compact(ps)
	if n := len(ps); n > maxProblems {
		last := Problem{File: ps[0].File, Message: fmt.Sprintf("and %d more problems", n-maxProblems), Mend: "mend those above first"}
		ps = append(ps[:maxProblems:maxProblems], last)
	}
	return ps
}

// position is a place in a file; the zero value is unknown.
type position struct{ line, column int }

// report collects problems and knows where in the file each value stands.
type report struct {
	file string
	at   map[string]position
	list Problems
	// seen are the paths that have a problem: one cause is not reported twice.
	seen map[string]bool
}

func newReport(file string) *report {
	return &report{file: file, at: map[string]position{}, seen: map[string]bool{}}
}

// add notes a problem at a path, unless that value or one that holds it has one already.
func (r *report) add(path, mend, format string, args ...any) {
	for p := path; p != ""; p = parent(p) {
		if r.seen[p] {
			return
		}
	}
	r.addAt(r.find(path), path, mend, format, args...)
}

// addAt notes a problem at a position.
func (r *report) addAt(pos position, path, mend, format string, args ...any) {
	r.seen[path] = true
	r.list = append(r.list, Problem{File: r.file, Line: pos.line, Column: pos.column, Path: path,
		Message: fmt.Sprintf(format, args...), Mend: mend})
}

// find returns the position of the value at a path, or of the nearest one that holds it.
func (r *report) find(path string) position {
	for p := path; ; p = parent(p) {
		if pos, ok := r.at[p]; ok || p == "" {
			return pos
		}
	}
}

// parent is the path of what holds the value at path.
func parent(path string) string {
	if i := strings.LastIndexAny(path, ".["); i >= 0 {
		return path[:i]
	}
	return ""
}

// join is the path of a key under path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// index is the path of the i-th element under path.
func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }
