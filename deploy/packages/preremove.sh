#!/bin/sh
# Before a removal, of deb (`remove`) and rpm (how many versions will be left: 0). An upgrade changes nothing here.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl disable --now kwitness-guard.service kwitness-export.service kwitness-cri-proxy.socket \
		kwitness-cri-proxy.service kwitness.service
fi
# What would go on recording for the next daemon. A configuration with errors must not keep the package.
kwitness uninstall-pins || true
