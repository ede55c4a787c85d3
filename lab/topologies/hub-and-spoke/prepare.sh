#!/bin/sh
# Keys and the gateways' folders, below .run/: sh prepare.sh [FABRIC-SITE]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec sh "$here/../scripts/prepare.sh" "$here" "$@"
