#!/usr/bin/env bash
# Whether a binary starts with a glibc as old as VERSION: no symbol that it takes is newer.
#
#   usage: tests/arm/glibc.sh BINARY VERSION        e.g. tests/arm/glibc.sh target/aarch64-unknown-linux-gnu/dist/accentor 2.27
set -euo pipefail
binary=$1 floor=$2
# readelf reads every architecture; objdump -T of the binutils for the target says the same.
newest=$(readelf --wide --dyn-syms "$binary" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -1)
[ -n "$newest" ] || { echo "$binary takes no symbol of glibc: is it the right file?" >&2; exit 1; }
if [ "$(printf '%s\n%s\n' "$newest" "$floor" | sort -V | tail -1)" != "$floor" ]; then
    echo "$binary needs glibc $newest, more than $floor:" >&2
    readelf --wide --dyn-syms "$binary" | grep "GLIBC_${newest//./\\.}\b" >&2
    exit 1
fi
echo "glibc: $newest is the newest that is needed, $floor may be"
