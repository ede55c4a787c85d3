#!/bin/sh
# build.sh DIR [ARCH...]: the Debian packages for amd64 and arm64 (or those named) into DIR, from the module's root. Equal sources give equal
# bytes: all times are the commit's. VERSION in the environment takes the place of what git says.
set -eu
umask 022
export LC_ALL=C TZ=UTC CGO_ENABLED=0
out=$1
shift
here=$(dirname "$0")
# v2.42.0 of nfpm cannot be used: its checksum does not verify.
nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
described=$(git describe --tags --long --always --dirty)
VERSION=${VERSION:-$(sh "$here/version.sh" "$described" "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S)")}
export SOURCE_DATE_EPOCH VERSION

STAGE=$(mktemp -d)
export STAGE
trap 'rm -rf "$STAGE"' EXIT
mkdir -p "$out" "$STAGE/tool"
# Built for this machine, whatever it is asked to package for.
GOBIN=$STAGE/tool GOFLAGS=-mod=mod go install "$nfpm"

go run ./systemd/packaging/gen "$STAGE"
gzip -9n "$STAGE"/man/*
gzip -9nc CHANGELOG.md >"$STAGE/changelog.gz"
maintainer=$(sed -n 's/^maintainer: //p' "$here/nfpm.yaml")
printf 'fabric (%s-1) unstable; urgency=medium\n\n  * Built from %s. What is new is in changelog.gz.\n\n -- %s  %s\n' \
	"$VERSION" "$described" "$maintainer" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9nc >"$STAGE/changelog.Debian.gz"

[ $# -gt 0 ] || set -- amd64 arm64
for ARCH; do
	export ARCH
	rm -rf "${STAGE:?}/bin"
	mkdir "$STAGE/bin"
	GOARCH=$ARCH go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X fabric/internal/version.Version=$VERSION" \
		-o "$STAGE/bin/" ./cmd/fabric-site ./cmd/fabric-links ./cmd/fabricctl
	"$STAGE/tool/nfpm" package --config "$here/nfpm.yaml" --packager deb --target "$out/fabric_$VERSION-1_$ARCH.deb"
done
