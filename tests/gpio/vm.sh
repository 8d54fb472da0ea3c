#!/usr/bin/env bash
# tests/gpio/run.sh in a virtual machine, for a machine whose own kernel has no gpio-sim.
#
#     tests/gpio/vm.sh KERNEL BINARY      a bzImage for x86-64, and the example gpio_button
#
# Needs qemu-system-x86 and busybox-static. A kernel of some 1 MB does, built from any source of 5.17 or later in a minute or two:
#
#     make tinyconfig
#     scripts/config $(sed -n 's/^#   kernel: //p' tests/gpio/vm.sh)
#     make olddefconfig bzImage
#
#   kernel: -e 64BIT -e BLK_DEV_INITRD -e RD_GZIP -e BINFMT_ELF -e BINFMT_SCRIPT -e TTY -e SERIAL_8250 -e SERIAL_8250_CONSOLE -e PRINTK
#   kernel: -e PROC_FS -e SYSFS -e TMPFS -e SHMEM -e DEVTMPFS -e FUTEX -e POSIX_TIMERS -e HIGH_RES_TIMERS -e EPOLL -e EVENTFD -e MULTIUSER
#   kernel: -e GPIOLIB -e GPIO_CDEV -e GPIO_CDEV_V1 -e CONFIGFS_FS -e GPIO_SIM
set -euo pipefail
kernel=$(realpath "$1") binary=$(realpath "$2")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

root=$work/root
install -Dm755 /bin/busybox "$root/bin/busybox"
install -Dm755 -t "$root/tests/gpio" tests/gpio/run.sh
install -Dm755 "$binary" "$root/gpio_button"
# The program's libraries, where it looks for them.
ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do install -D "$library" "$root$library"; done
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /tmp /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
status=0
sh /tests/gpio/run.sh /gpio_button || status=$?
echo "status $status"
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd"

# A kernel that cannot switch the machine off starts it again, which ends it here.
timeout 300 qemu-system-x86_64 -machine pc,accel=tcg -m 256 -nographic -no-reboot -nodefaults -serial stdio \
    -kernel "$kernel" -initrd "$work/initrd" -append "console=ttyS0 quiet panic=-1" | tr -d '\r' | tee "$work/said"
grep -q '^status 0$' "$work/said"
