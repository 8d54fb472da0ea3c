#!/usr/bin/env bash
# Whether systemd takes the unit without a word, and how much it exposes: at most 2.0 of 10.
#
#   usage: targets/check-unit.sh [ROOT]
#
# Needs systemd-analyze, 252 or later, and no running systemd. With ROOT the unit is the one that is installed there, under the program that is
# installed there; without, the unit of this folder, under any program.
set -euo pipefail
cd "$(dirname "$0")/.."
most=2.0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

systemd-analyze --version | head -1
if [ $# -gt 0 ]; then
    systemd-analyze verify --man=no --root="$1" accentor.service 2>&1 | tee "$work/said"
    unit=$1/usr/lib/systemd/system/accentor.service
else
    unit=$work/accentor.service
    # verify wants the program to be there.
    sed "s|^ExecStart=/usr/bin/accentor|ExecStart=$(command -v true)|" targets/accentor.service >"$unit"
    systemd-analyze verify --man=no "$unit" 2>&1 | tee "$work/said"
fi
[ ! -s "$work/said" ] || { echo "verify has something to say" >&2; exit 1; }
echo "verify: clean"
systemd-analyze security --offline=true --no-pager --threshold="${most/./}" "$unit" | tail -1
