#!/bin/sh
# After an installation and after an upgrade, of deb and rpm. Enables and starts nothing.
set -e
# The group of the API's socket: for the units, which need systemd as well.
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers kwitness.conf
fi
if [ -d /run/systemd/system ]; then
	systemd-tmpfiles --create kwitness.conf
	systemctl daemon-reload
	# Of those that run, the new version. What one cannot do is in its log; the package is installed all the same.
	systemctl try-restart kwitness.service kwitness-export.service kwitness-guard.service kwitness-cri-proxy.service || true
fi
