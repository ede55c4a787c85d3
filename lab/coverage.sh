# coverage.sh LOG PERCENT PACKAGE...: fail unless each package's line in a `go test -cover` log says at least PERCENT.
set -eu
log=$1 least=$2
shift 2
status=0
for package in "$@"; do
	got=$(awk -v p="fabric/$package" '$2 == p { for (i = 1; i <= NF; i++) if ($i ~ /%$/) { sub("%", "", $i); print $i; exit } }' "$log")
	if [ -z "$got" ] || awk -v g="$got" -v l="$least" 'BEGIN { exit !(g < l) }'; then
		echo "coverage of $package: ${got:-unknown} %, want at least $least %" >&2
		status=1
	else
		echo "coverage of $package: $got %"
	fi
done
exit $status
