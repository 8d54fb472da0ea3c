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
inside dpkg --purge accentor
[ ! -e "$root/usr/share/accentor" ] || { echo "purge left files behind" >&2; exit 1; }
echo "the package installs, works and goes"
