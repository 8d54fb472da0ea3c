"""Makes the references of src/features/spectrum.rs: `python make.py` (numpy 2.4).

The signal is a chirp from 100 to 5000 Hz and noise from a 32-bit linear congruential generator, 16,000 samples at 16 kHz, as the test makes it.
The front ends are written from their formulas in f64, apart from the Rust code: mfcc.npy with the defaults (MLPerf Tiny's DS-CNN),
log_mel.npy and cepstrum.npy in the way of librosa (Slaney's mel, triangles in Hz, equal areas, power, Hamming, FFT of 400).
"""
import numpy as np


def signal():
    state, noise = 1, []
    for _ in range(16000):
        state = (1664525 * state + 1013904223) % 2**32
        noise.append(state / 2**32 - 0.5)
    t = np.arange(16000) / 16000
    return (0.4 * np.sin(2 * np.pi * (100 * t + 2450 * t * t)) + 0.05 * np.array(noise)).astype(np.float32).astype(np.float64)


def spectrum(x, window, hop, fft):
    count = (len(x) - len(window)) // hop + 1
    return np.abs(np.fft.rfft([x[i * hop:i * hop + len(window)] * window for i in range(count)], n=fft))


def mfcc(x):
    x = x / x.max()
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(480) / 480)
    mel = lambda hz: 1127.0 * np.log(1 + hz / 700.0)
    bins, edges = mel(np.arange(257) * 16000 / 512), np.linspace(mel(20.0), mel(4000.0), 42)
    weights = np.array([np.maximum(0, np.minimum((bins - a) / (b - a), (c - bins) / (c - b))) for a, b, c in zip(edges, edges[1:], edges[2:])])
    weights[:, 0] = 0
    logs = np.log(spectrum(x, hann, 320, 512) @ weights.T + 1e-6)
    dct = 2 * np.cos(np.pi * np.outer(np.arange(10), np.arange(40) + 0.5) / 40) / np.sqrt(80)
    return logs @ dct.T


def log_mel(x, bands=16):
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 400)
    mel = lambda hz: np.where(hz < 1000, hz * 3 / 200, 15 + np.log(np.maximum(hz, 1) / 1000) / (np.log(6.4) / 27))
    hz = lambda mel: np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
    bins, edges = np.arange(201) * 40.0, hz(np.linspace(mel(50.0), mel(7600.0), bands + 2))
    weights = np.array([2 / (c - a) * np.maximum(0, np.minimum((bins - a) / (b - a), (c - bins) / (c - b))) for a, b, c in zip(edges, edges[1:], edges[2:])])
    return np.log(np.maximum(spectrum(x, hamming, 800, 400) ** 2 @ weights.T, 1e-5))


x = signal()
logs = log_mel(x)
dct = np.cos(np.pi * np.outer(np.arange(16), np.arange(16) + 0.5) / 16) * np.sqrt(2 / 16)
dct[0] /= np.sqrt(2)
np.save("mfcc.npy", mfcc(x).astype(np.float32))
np.save("log_mel.npy", (logs * 4.5 - 0.25).astype(np.float32))
np.save("cepstrum.npy", (logs @ dct[:13].T).astype(np.float32))
