#!/bin/sh
# version.sh DESCRIBED DATE: the Debian upstream version for what `git describe --tags --long --always --dirty` says and the commit's
# UTC time (YYYYMMDDhhmmss). Versions grow with the history:
#   a1b2c3d                 0~git20261121141655.a1b2c3d    before the first tag
#   v1.2.0-0-ga1b2c3d       1.2.0
#   v1.2.0-rc1-0-ga1b2c3d   1.2.0~rc1                      before 1.2.0
#   v1.2.0-7-ga1b2c3d       1.2.0+7.ga1b2c3d               after it
set -eu
described=$1
dirty=
case $described in
*-dirty)
	dirty=+dirty
	described=${described%-dirty}
	;;
esac
case $described in
*-*-g*)
	commit=${described##*-}
	rest=${described%-*}
	count=${rest##*-}
	tag=${rest%-*}
	version=$(echo "${tag#v}" | tr - '~')
	if [ "$count" != 0 ]; then
		version=$version+$count.$commit
	fi
	;;
*)
	version=0~git$2.$described
	;;
esac
echo "$version$dirty"
