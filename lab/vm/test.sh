#!/bin/bash
# Proves the project on Debian's kernel, with VRF devices and WireGuard in the kernel: lab/vm/test.sh [SUITE...]
#
# SUITES are those of payload.sh. One line "SUITE: N passed, N failed, N skipped" each; exit code 0 only if all passed and none
# was skipped. Logs are left in .cache/vm/results.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=.cache/vm
mkdir -p "$cache"
exec 9>"$cache/lock"
flock -n 9 || { echo "test.sh: another run goes on in this checkout" >&2; exit 1; }
sh lab/vm/deps.sh
lab/vm/build-image.sh "$cache"
lab/vm/payload.sh "$cache/payload" "$@"
code=0
lab/vm/vmrun.sh -t "${LIMIT:-1200}" -o "$cache/results" "$cache" "$cache/payload" || code=$?
if [ "$code" = 0 ]; then
	echo "test-vm: ok"
else
	echo "test-vm: FAILED (exit code $code), logs in $cache/results" >&2
fi
exit "$code"
