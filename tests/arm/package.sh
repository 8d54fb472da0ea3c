#!/usr/bin/env bash
# Installs a package into a Debian root of its architecture under qemu, and uses what it brings.
#
#   usage: tests/arm/package.sh PACKAGE.deb DIR [MIRROR]
#
# Needs root, debootstrap, qemu-user-static and binfmt-support. The root is made in DIR once (bookworm, from MIRROR, else from the one that apt uses here).
set -euo pipefail
package=$(realpath "$1") folder=$(mkdir -p "$2" && realpath "$2")
arch=$(dpkg-deb --field "$package" Architecture)
mirror=${3:-$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -1)}
root=$folder/$arch
case $arch in
    arm64) rule=qemu-aarch64 ;;
    armhf) rule=qemu-arm ;;
    *) echo "there is no emulator for $arch here" >&2; exit 1 ;;
esac
[ -e "/proc/sys/fs/binfmt_misc/$rule" ] || { echo "the kernel has no rule $rule: apt-get install qemu-user-static binfmt-support" >&2; exit 1; }

if [ ! -e "$root/ready" ]; then
    rm -rf "$root"
    debootstrap --arch="$arch" --variant=minbase --include=man-db,bash-completion bookworm "$root" "${mirror:-http://deb.debian.org/debian}" |
        tail -1
    touch "$root/ready"
fi

inside() { printf '\n== %s\n' "$*"; chroot "$root" env LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
cp "$package" "$root/tmp/accentor.deb"
chroot "$root" dpkg --purge accentor >/dev/null 2>&1 || true
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
trap 'umount "$root/proc"' EXIT
inside apt-get install -qq -y --no-install-recommends /tmp/accentor.deb
inside accentor --version
inside accentor doctor
inside accentor inspect /usr/share/accentor/models/kws-commands --clips 1
inside accentor demo
case $(dpkg-deb --field "$package" Depends) in *libasound2*) inside accentor devices ;; esac
inside bash -c 'man accentor | grep -q "device" && man accentor-adapt | grep -q target-profile && echo "man pages are shown"'
# What bash offers behind `accentor ad`.
inside bash -c '. /usr/share/bash-completion/bash_completion; . /usr/share/bash-completion/completions/accentor
    COMP_WORDS=(accentor ad) COMP_CWORD=1; _accentor accentor ad accentor; printf "%s\n" "${COMPREPLY[@]}"; [ "${COMPREPLY[*]}" = adapt ]'

# The daemon, on clips, as WAV files where there is something to decode them with; then told what was right, and stopped.
if [ -e "$root/usr/lib/systemd/system/accentor.service" ]; then
    inside id accentor
    inside dpkg-query --show --showformat '${Conffiles}\n' accentor
    work=$root/tmp/daemon
    rm -rf "$work" && mkdir "$work"
    clips=$root/usr/share/accentor/models/kws-commands/demo/us/test
    path=/usr/share/accentor/models/kws-commands/demo/us/test/stop
    if command -v flac >/dev/null; then
        path=/tmp/daemon/wav
        mkdir "$work/wav"
        find "$clips/stop" -name '*.flac' -exec flac --silent --decode --output-prefix "$work/wav/" {} +
    fi
    cat >"$work/config.toml" <<CONFIG
model = "/usr/share/accentor/models/kws-commands"
state = "/tmp/daemon/state"
socket = "/tmp/daemon/control"
[[input]]
name = "clips"
kind = "folder"
path = "$path"
real_time = false
CONFIG
    printf '\n== accentor serve, on %s\n' "$path"
    chroot "$root" accentor serve --config /tmp/daemon/config.toml >"$work/events" 2>"$work/log" &
    daemon=$!
    for _ in $(seq 120); do ! grep -q '"detected"' "$work/events" || break; sleep 1; done
    inside accentor ctl --socket /tmp/daemon/control status
    # qemu stands between: the signal goes to it, and it hands it on.
    kill -TERM "$daemon" && wait "$daemon" || { cat "$work/log"; exit 1; }
    cat "$work/log"
    grep -m1 '"detected"' "$work/events" || { echo "no word was heard" >&2; cat "$work/events" >&2; exit 1; }

    # `remove` keeps what was learned and the configuration, `purge` neither.
    mkdir -p "$root/var/lib/accentor"
    inside dpkg --remove accentor
    [ -e "$root/var/lib/accentor" ] && [ -e "$root/etc/accentor/accentor.toml" ] || { echo "remove took too much" >&2; exit 1; }
fi
inside dpkg --purge accentor
for left in /usr/share/accentor /var/lib/accentor /etc/accentor; do
    [ ! -e "$root$left" ] || { echo "purge left $left behind" >&2; exit 1; }
done
echo "the package installs, works and goes"
