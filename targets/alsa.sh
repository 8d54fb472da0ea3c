#!/usr/bin/env bash
# Unpacks Debian's ALSA library of another architecture into DIR, to build the feature `mic` for it; nothing is installed.
#
#   usage: targets/alsa.sh arm64|armhf DIR        then source DIR/env.sh and run targets/build.sh … --features mic
#
# Packages come from where apt on this system takes its own. With `dpkg --add-architecture` and libasound2-dev:arm64 installed it is not needed.
set -euo pipefail
arch=$1 folder=$(mkdir -p "$2" && realpath "$2")
case $arch in
    arm64) gnu=aarch64-linux-gnu target=aarch64_unknown_linux_gnu ;;
    armhf) gnu=arm-linux-gnueabihf target=armv7_unknown_linux_gnueabihf ;;
    *) echo "unknown architecture $arch: arm64 or armhf" >&2; exit 2 ;;
esac
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -1)
[ -n "$mirror" ] || mirror=$(awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /^http/) { print $i; exit } }' /etc/apt/sources.list)

# apt with a state of its own, which knows no other architecture and has nothing installed.
state=$folder/apt
mkdir -p "$state"/{lists/partial,cache/archives/partial,parts}
: >"$state/status"
echo "deb [arch=$arch signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$state/sources.list"
cat >"$state/apt.conf" <<CONF
Dir::State::Lists "$state/lists";
Dir::State::status "$state/status";
Dir::Cache "$state/cache";
Dir::Etc::SourceList "$state/sources.list";
Dir::Etc::SourceParts "$state/parts";
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Sandbox::User "root";
CONF
export APT_CONFIG=$state/apt.conf
apt-get update -qq
(cd "$state/cache" && apt-get download -qq "libasound2:$arch" "libasound2-dev:$arch")
for package in "$state"/cache/libasound2*_"$arch".deb; do dpkg -x "$package" "$folder"; done

cat >"$folder/env.sh" <<ENV
export PKG_CONFIG_ALLOW_CROSS=1 PKG_CONFIG_SYSROOT_DIR_$target=$folder PKG_CONFIG_LIBDIR_$target=$folder/usr/lib/$gnu/pkgconfig
ENV
echo "ready: . $folder/env.sh"
