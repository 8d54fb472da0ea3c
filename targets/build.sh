#!/usr/bin/env bash
# Builds accentor for a board of this folder: one stripped binary that starts with the board's glibc.
#
#   usage: targets/build.sh BOARD [CARGO ARGUMENTS…]      e.g. targets/build.sh rpi4 --features mic
#
# Needs, beside Rust:
#   rustup target add aarch64-unknown-linux-gnu            (or armv7-unknown-linux-gnueabihf)
#   pip install ziglang cargo-zigbuild                     (links against the glibc that is named)
# PROFILE is the cargo profile (dist). The binary goes where cargo puts it, and its path is the last line said.
set -euo pipefail
cd "$(dirname "$0")/.."

# The daemon's configuration is no board.
boards=$(cd targets && ls *.toml | grep -vx accentor.toml | paste -sd" ")
board=${1:?"usage: targets/build.sh BOARD; there are ${boards//.toml/}"}
shift
file=targets/$board.toml
[[ " $boards " == *" $board.toml "* ]] || { echo "there is no board $board; there are ${boards//.toml/}" >&2; exit 1; }
cargo zigbuild --help >/dev/null 2>&1 || { echo "cargo-zigbuild is missing: pip install ziglang cargo-zigbuild" >&2; exit 1; }

value() { sed -n "s/^$1 = \"\(.*\)\"/\1/p" "$file"; }
triple=$(value triple) cpu=$(value cpu) floor=$(value glibc_floor) profile=${PROFILE:-dist}

# Zig's compiler for C and assembler of dependencies too, whatever other cross compiler is set up.
lower=${triple//-/_} upper=$(tr a-z- A-Z_ <<<"$triple")
unset "CARGO_TARGET_${upper}_LINKER" "CC_$lower" "CXX_$lower" "AR_$lower"
flags=CARGO_TARGET_${upper}_RUSTFLAGS
if [ "$cpu" != generic ]; then export "$flags=${!flags:-} -C target-cpu=$cpu"; fi
cargo zigbuild --locked --profile "$profile" --target "$triple.$floor" --bin accentor "$@"

binary=${CARGO_TARGET_DIR:-target}/$triple/$profile/accentor
tests/arm/glibc.sh "$binary" "$floor"
printf '%s: %s bytes\n' "$board" "$(stat -c %s "$binary")"
echo "$binary"
