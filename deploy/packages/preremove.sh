#!/bin/sh
# Before a removal, of deb (`remove`) and rpm (how many versions will be left: 0). An upgrade changes nothing here.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	# One that cannot be disabled must not keep the package; one that cannot be stopped does: it would run on without its file.
	units="kwitness-guard.service kwitness-export.service kwitness-cri-proxy.socket kwitness-cri-proxy.service kwitness.service"
	# shellcheck disable=SC2086
	systemctl --no-reload disable $units || true
	# shellcheck disable=SC2086
	systemctl stop $units
fi
# What would go on recording for the next daemon. A configuration with errors must not keep the package.
kwitness uninstall-pins || true
