#!/usr/bin/env bash
# Makes a Debian package and a tarball of a binary that targets/build.sh made.
#
#   usage: targets/package.sh BINARY arm64|armhf|amd64 DIR
#
# The tree is staged and packed by dpkg-deb: one script that can be read through, no other tool. Depends follows from the binary itself: the
# newest symbol of glibc that it takes, and the libraries that it is linked with. Man pages and completions are written by the binary
# (`accentor manual`); of another architecture it runs under QEMU, e.g. "qemu-aarch64-static -L /usr/aarch64-linux-gnu".
set -euo pipefail
binary=$(realpath "$1") arch=$2 out=$(mkdir -p "$3" && realpath "$3")
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
needed=$(readelf --wide --dynamic "$binary" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
glibc=$(readelf --wide --dyn-syms "$binary" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -1)
depends="libc6 (>= $glibc)"
case $needed in *libgcc_s.so.1*) depends+=", libgcc-s1 | libgcc1" ;; esac
# Debian 13 and Ubuntu 24.04 call it libasound2t64.
case $needed in *libasound.so.2*) depends+=", libasound2 | libasound2t64" ;; esac

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/root share=$stage/root/usr/share
install -Dm755 "$binary" "$root/usr/bin/accentor"
model=$share/accentor/models/kws-commands
install -Dm644 -t "$model" models/kws-commands/{README.md,model.toml,kws-commands.onnx}
(cd models/kws-commands && find demo -name '*.flac' -exec install -Dm644 {} "$model/{}" \;)
for board in targets/*.toml; do
    [ "$board" = targets/accentor.toml ] || install -Dm644 -t "$share/accentor/targets" "$board"
done
install -Dm644 -t "$share/doc/accentor" README.md docs/boards.md
# The daemon: its unit and its commented configuration.
config=
if [ -f targets/accentor.toml ]; then
    config=/etc/accentor/accentor.toml
    install -Dm644 targets/accentor.toml "$root$config"
    install -Dm644 -t "$share/doc/accentor/examples" targets/accentor.toml
    install -Dm644 -t "$root/usr/lib/systemd/system" targets/accentor.service
fi
gzip -9n <CHANGELOG.md >"$share/doc/accentor/changelog.gz"
{
    printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: accentor\n\nFiles: *\n'
    printf 'Copyright: the accentor authors\nLicense: Expat or Apache-2.0\n On Debian systems Apache-2.0 is in /usr/share/common-licenses/Apache-2.0.\n .\n'
    sed 's/^$/./; s/^/ /' LICENSE-MIT
} >"$share/doc/accentor/copyright"

# Runs the binary to have it describe itself.
${QEMU:-} "$binary" manual --out "$stage/pages" >/dev/null
install -d "$share/man/man1"
for page in "$stage"/pages/*.1; do gzip -9n <"$page" >"$share/man/man1/$(basename "$page").gz"; done
install -Dm644 "$stage/pages/accentor.bash" "$share/bash-completion/completions/accentor"
install -Dm644 "$stage/pages/_accentor" "$share/zsh/vendor-completions/_accentor"
install -Dm644 "$stage/pages/accentor.fish" "$share/fish/vendor_completions.d/accentor.fish"

# Files bear the time of the last commit, so that the same commit gives the same package.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C "$root" -c usr | gzip -9n >"$out/accentor-$version-$arch.tar.gz"

install -d "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<CONTROL
Package: accentor
Version: $version
Architecture: $arch
Maintainer: accentor maintainers <maintainers@accentor.invalid>
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: $depends
Section: sound
Priority: optional
Description: teaches an ONNX speech or vision model the local accent or camera
 Trains small LoRA matrices on an unmodified ONNX model, on the device, on the
 CPU: one binary, one ONNX file, a few labelled clips, and out comes an adapter
 of some kilobytes. A keyword model of ten words is in the package.
CONTROL
if [ -n "$config" ]; then
    echo "$config" >"$root/DEBIAN/conffiles"
    install -m755 targets/debian/{postinst,prerm,postrm} "$root/DEBIAN"
fi
(cd "$root" && find * -path DEBIAN -prune -o -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
dpkg-deb --root-owner-group -Zxz --build "$root" "$out/accentor_${version}_$arch.deb" >/dev/null
ls -l "$out/accentor_${version}_$arch.deb" "$out/accentor-$version-$arch.tar.gz"
