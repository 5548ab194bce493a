#!/bin/sh
# After a removal, of deb and rpm. The group stays: files may belong to it.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ "$1" = purge ]; then
	rm -rf /var/lib/kwitness-export
fi
