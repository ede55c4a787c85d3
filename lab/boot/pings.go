package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

var interrupt = syscall.SIGINT

var (
	sequence    = regexp.MustCompile(`(?m)^\d+ bytes from .* icmp_seq=(\d+) ttl=`)
	transmitted = regexp.MustCompile(`(?m)^(\d+) packets transmitted`)
)

// countPings reads what ping printed: how many it sent, and the numbers of those without an answer. The last one may
// have been under way when ping was ended, and does not count.
func countPings(text string) (sent int, lost []int, err error) {
	m := transmitted.FindStringSubmatch(text)
	if m == nil {
		return 0, nil, fmt.Errorf("no summary in what ping printed: %q", text)
	}
	if sent, err = strconv.Atoi(m[1]); err != nil {
		return 0, nil, err
	}
	answered := map[int]bool{}
	for _, m := range sequence.FindAllStringSubmatch(text, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			return 0, nil, err
		}
		answered[n] = true
	}
	if len(answered) == 0 {
		return sent, nil, fmt.Errorf("none of %d packets was answered", sent)
	}
	for n := 1; n < sent; n++ {
		if !answered[n] {
			lost = append(lost, n)
		}
	}
	return sent, lost, nil
}

// ranges writes ascending numbers shortly: "1, 4-7".
func ranges(numbers []int) string {
	var parts []string
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		part := strconv.Itoa(numbers[i])
		if j > i {
			part += "-" + strconv.Itoa(numbers[j])
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, ", ")
}
