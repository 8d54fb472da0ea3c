"""Looks into the hot loops of an aarch64 binary: multiply-adds by lane, no stack, few instructions beside them.

usage: loops.py BINARY        (a build with symbols: CARGO_PROFILE_RELEASE_STRIP=none)

A hot loop is an innermost loop of a dispatched kernel with a number of vector multiply-adds that only the main tiles have. Exits with 1 if one of
the expected loops is missing, touches the stack or copies a scalar into a vector.
"""
import os
import re
import subprocess
import sys

# Multiply-adds of the loop, by lane or not, and the most instructions that it may take.
EXPECTED = [
    ("5 x 4 vectors, four steps", 80, True, 104),
    ("4 x 4 vectors, four steps", 64, True, 88),
    ("8 x 2 vectors, four steps", 64, True, 88),
    ("outer products, 8 x 2 vectors", 16, True, 28),
    ("depthwise, 3 positions x 8 vectors", 24, False, 64),
    ("depthwise, 1 position x 16 vectors", 16, False, 52),
]


def loops(binary):
    """(multiply-adds, of these by lane, instructions, stack accesses, copies) of each innermost loop of a dispatch."""
    objdump = os.environ.get("OBJDUMP", "aarch64-linux-gnu-objdump")
    text = subprocess.run([objdump, "-d", "--no-show-raw-insn", binary], capture_output=True, text=True, check=True).stdout
    name, body = "", []

    def of_function():
        if "dispatch" not in name:
            return
        place = {address: i for i, (address, _) in enumerate(body)}
        jumps = []
        for i, (_, instruction) in enumerate(body):
            target = re.match(r"(?:b\.\w+|cbn?z|tbn?z|b)\s.*?\b([0-9a-f]{3,}) <", instruction)
            start = place.get(int(target.group(1), 16)) if target else None
            if start is not None and start < i:
                jumps.append((start, i))
        for start, end in jumps:
            if any(start <= s and e <= end and (s, e) != (start, end) for s, e in jumps):
                continue
            inside = [instruction for _, instruction in body[start:end + 1]]
            fused = [i for i in inside if i.startswith("fmla")]
            lanes = sum(bool(re.search(r"\.s\[\d\]$", i.split("//")[0].strip())) for i in fused)
            stack = sum("[sp" in i or "[x29" in i for i in inside)
            copies = sum(i.startswith(("dup", "ld1r")) for i in inside)
            yield len(fused), lanes, len(inside), stack, copies

    for line in text.splitlines():
        head = re.match(r"[0-9a-f]+ <(.*)>:", line)
        if head:
            yield from of_function()
            name, body = head.group(1), []
            continue
        instruction = re.match(r"\s+([0-9a-f]+):\t(.*)", line)
        if instruction:
            body.append((int(instruction.group(1), 16), instruction.group(2)))
    yield from of_function()


def main():
    found = list(loops(sys.argv[1]))
    wrong = 0
    for what, fused, by_lane, most in EXPECTED:
        fits = [l for l in found if l[0] == fused and l[1] == (fused if by_lane else 0)]
        best = min(fits, key=lambda l: (l[3], l[4], l[2]), default=None)
        good = best is not None and best[2] <= most and best[3] == 0 and best[4] == 0
        wrong += not good
        said = "no such loop" if best is None else f"{best[2]} instructions for {fused}, {best[3]} on the stack, {best[4]} copies"
        print(f"{'ok   ' if good else 'WRONG'} {what}: {said}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
