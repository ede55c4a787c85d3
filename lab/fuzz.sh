#!/bin/bash
# Runs one fuzz target for a time, on one processor: lab/fuzz.sh PACKAGE TARGET TIME. What it has to say comes at its end.
#
# Before Go 1.27 the end of -fuzztime may itself be reported as the failure "context deadline exceeded" (golang/go#75804). That, alone and
# with no failing input, is passed over; every other failure is one.
set -uo pipefail
package=$1 target=$2 time=$3
log=$(mktemp)
trap 'rm -f "$log"' EXIT
${GO:-go} test "$package" -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 20x -parallel 1 >"$log" 2>&1
code=$?
if [ "$code" = 0 ]; then grep -E '^fuzz: elapsed: ' "$log" | tail -n 1 | sed "s|^fuzz:|fuzz: $target of $package:|"; else cat "$log"; fi
[ "$code" = 0 ] && exit 0
# What is left of the report when progress and the known end are taken away.
rest=$(grep -vE '^fuzz: elapsed: |^warning: starting with empty corpus$|^--- FAIL: '"$target"' \([0-9.]+s\)$|^    context deadline exceeded$|^FAIL$|^exit status 1$|^FAIL[[:space:]]' "$log")
if [ -z "$rest" ] && grep -qx '    context deadline exceeded' "$log"; then
	echo "fuzz.sh: $target: the time ran out (golang/go#75804), no failing input"
	exit 0
fi
exit "$code"
