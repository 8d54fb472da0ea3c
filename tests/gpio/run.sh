#!/usr/bin/env bash
# The button and the LED against the kernel's own simulated GPIO chip (gpio-sim, Linux 5.17 or later): presses are made by pulling a line,
# the LED is read back from its line.
#
#     tests/gpio/run.sh [BINARY]      the example gpio_button; built where it is not named
#
# Needs root and a kernel with CONFIG_GPIO_SIM. On one without, it says so and ends with 0; tests/gpio/vm.sh takes such a kernel along.
set -eu
cd "$(dirname "$0")/../.."
binary=${1:-}
config=/sys/kernel/config
modprobe gpio-sim 2>/dev/null || true
[ -d $config/gpio-sim ] || mount -t configfs configfs $config 2>/dev/null || true
if [ ! -d $config/gpio-sim ]; then
    echo "skipped: Linux $(uname -r) has no gpio-sim (CONFIG_GPIO_SIM, modprobe gpio-sim, as root)"
    exit 0
fi
if [ -z "$binary" ]; then
    cargo build --release --locked --features gpio --example gpio_button
    binary=${CARGO_TARGET_DIR:-target}/release/examples/gpio_button
fi

work=$(mktemp -d)
sim=$config/gpio-sim/accentor-test
running=
finish() {
    [ -z "$running" ] || kill "$running" 2>/dev/null || true
    echo 0 > $sim/live 2>/dev/null || true
    rmdir $sim/bank0/line3/hog $sim/bank0/line3 $sim/bank0 $sim 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
fail() { echo "FAILED: $*" >&2; [ ! -f "$work/out" ] || cat "$work/out" >&2; exit 1; }

# Eight lines: the button on 1, the LED on 2, and 3 is taken by something else.
mkdir -p $sim/bank0/line3/hog
echo 8 > $sim/bank0/num_lines
echo accentor-test > $sim/bank0/label
echo kettle > $sim/bank0/line3/hog/name
echo input > $sim/bank0/line3/hog/direction
echo 1 > $sim/live
chip=/dev/$(cat $sim/bank0/chip_name)
lines=/sys/devices/platform/$(cat $sim/dev_name)/$(cat $sim/bank0/chip_name)
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -e "$chip" ] || sleep 0.1; done
echo "chip: $chip, Linux $(uname -r)"

up() { echo pull-up > "$lines/sim_gpio1/pull"; }
down() { echo pull-down > "$lines/sim_gpio1/pull"; }
start() { "$binary" "$work/button.toml" "$1" > "$work/out" 2>&1 & running=$!; for _ in 1 2 3 4 5 6 7 8 9 10; do ! grep -q ready "$work/out" || break; sleep 0.2; done; }
count() { grep -c "^$1" "$work/out" || true; }
# How often the LED goes on within so many hundredths of a second.
blinks() {
    n=0 was=0 i=0
    while [ $i -lt "$1" ]; do
        is=$(cat "$lines/sim_gpio2/value")
        if [ "$is" = 1 ] && [ $was = 0 ]; then n=$((n + 1)); fi
        was=$is i=$((i + 1))
        sleep 0.01
    done
    echo $n
}

printf 'chip = "accentor-test"\nbutton_line = 1\nled_line = 2\n' > "$work/button.toml"

# 1. Presses, with contacts that bounce.
up
start 60
down; up; down; up; down; sleep 0.3; up; down; up; sleep 0.3
[ "$(count short)" = 1 ] || fail "one short press with bounces"
down; sleep 2.5
[ "$(count long)" = 1 ] || fail "a long press is known while it is held"
sleep 1.5; up; sleep 0.3
[ "$(count long)" = 1 ] && [ "$(count short)" = 1 ] || fail "a very long press is one"
fast=$(blinks 100)
echo "LED: $fast flashes in about a second after a rollback"
[ "$fast" -ge 3 ] || fail "fast blinking"
# Stopped for a while: the kernel keeps the edges with their times, so short stays short and long long.
kill -STOP "$running"
down; sleep 0.2; up; sleep 0.2; down; sleep 1.3; up; sleep 1
kill -CONT "$running"; sleep 0.3
[ "$(count short)" = 2 ] && [ "$(count long)" = 2 ] || fail "presses while the process was stopped"
kill "$running"; wait "$running" 2>/dev/null || true; running=
echo "presses: $(count short) short, $(count long) long"

# 2. Held when it starts.
down
start 3
sleep 1.5; up; sleep 0.3
wait "$running" || fail "status $?"
running=
[ "$(count short)" = 0 ] && [ "$(count long)" = 0 ] || fail "what was held at the start is no press"
[ "$(cat "$lines/sim_gpio2/value")" = 0 ] || fail "the LED is out at the end"
echo "held at the start: ignored; the LED is out at the end"

# 3. What cannot be used is refused with a reason.
refused() {
    printf '%b' "$1" > "$work/button.toml"
    ! "$binary" "$work/button.toml" 1 > "$work/out" 2>&1 || fail "taken: $1"
    grep -q "$2" "$work/out" || fail "expected \"$2\""
    echo "refused: $2"
}
refused "chip = \"$chip\"\nbutton_line = 3\n" kettle
refused "chip = \"$chip\"\nbutton_line = 8\n" "lines: 8"
refused 'chip = "/dev/gpiochip99"\nbutton_line = 1\n' accentor-test
refused 'chip = "other"\nbutton_line = 1\n' accentor-test
refused 'chip = "/dev/null"\nbutton_line = 1\n' NotAChip

# 4. A chip that goes away is an error, not a panic and not a wait for ever.
printf 'chip = "%s"\nbutton_line = 1\nled_line = 2\n' "$chip" > "$work/button.toml"
up
start 20
echo 0 > $sim/live
status=0; wait "$running" || status=$?
running=
[ $status = 1 ] || fail "a chip that is pulled out: status $status"
! grep -q panicked "$work/out" || fail "panic"
echo "pulled out: $(tail -1 "$work/out" | cut -c1-110)"
echo "the button and the LED work on gpio-sim"
