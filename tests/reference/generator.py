"""The deterministic tensors of the recordings: a name and a seed give the same numbers here and in Rust.

    state_0 = fnv1a64(utf8 name) XOR base_seed
    z_i     = splitmix64 output number i, i = 0, 1, …: s = state_0 + (i + 1)·0x9E3779B97F4A7C15 (mod 2⁶⁴);
              s = (s ^ s>>30)·0xBF58476D1CE4E5B9;  s = (s ^ s>>27)·0x94D049BB133111EB;  z_i = s ^ s>>31
    unit_i  = (z_i >> 40) as f32 / 2²³ − 1          in [-1, 1), exact in f32
    value_i = unit_i · scale + offset               in f32: one rounding after the product, one after the sum

Row-major, i is the flat index. `scale` and `offset` are f32. Labels: z_i mod classes.
"""
import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def fnv1a64(text: str) -> int:
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def splitmix64(name: str, base_seed: int, count: int) -> np.ndarray:
    """The first `count` outputs for `name`: u64 [count]."""
    start = np.uint64(fnv1a64(name) ^ base_seed)
    with np.errstate(over="ignore"):
        s = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        s = (s ^ (s >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        s = (s ^ (s >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return s ^ (s >> np.uint64(31))


def values(name: str, base_seed: int, shape, scale: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """f32 of `shape`, uniform in [offset - scale, offset + scale)."""
    z = splitmix64(name, base_seed, int(np.prod(shape)))
    unit = (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    return (unit * np.float32(scale) + np.float32(offset)).reshape(shape)


def labels(name: str, base_seed: int, count: int, classes: int) -> np.ndarray:
    return (splitmix64(name, base_seed, count) % np.uint64(classes)).astype(np.int64)


if __name__ == "__main__":
    print([hex(int(z)) for z in splitmix64("x", 1, 3)])
    print([repr(float(v)) for v in values("x", 1, [3])], [repr(float(v)) for v in values("fc.A", 7, [3], 0.5, 1.0)])
    print(labels("labels", 1, 8, 10).tolist())
