"""The front end of the DS-CNN keyword models: 16 kHz samples -> MFCC [batch, 49, 10, 1].

16,000 samples, divided by the largest sample, frames of 480 every 320 (49 of them), periodic Hann, FFT of 512, magnitude, 40 mel bins
from 20 to 4000 Hz (HTK mel, triangles not normalised, DC bin zero), ln(mel + 1e-6), DCT-II, first 10 coefficients.
"""
import numpy as np

RATE_HZ = 16000
WINDOW_SAMPLES = 16000
FRAME, HOP, FFT, FRAMES = 480, 320, 512, 49
MELS, COEFFICIENTS = 40, 10
LOW_HZ, HIGH_HZ = 20.0, 4000.0
LOG_OFFSET = 1e-6

HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)).astype(np.float32)


def hz_to_mel(hz):
    return 1127.0 * np.log1p(np.asarray(hz, dtype=np.float64) / 700.0)


def mel_matrix(warp=1.0):
    """[257, 40]; a warp above 1 reads each bin as a higher frequency, as if the vocal tract were longer."""
    hz = np.arange(FFT // 2 + 1) * (RATE_HZ / FFT)
    bins = hz_to_mel(hz * warp)[:, None]
    edges = np.linspace(hz_to_mel(LOW_HZ), hz_to_mel(HIGH_HZ), MELS + 2)
    low, mid, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0, np.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)))
    triangles[0] = 0
    return triangles.astype(np.float32)


MEL = mel_matrix()
_n, _k = np.arange(MELS) + 0.5, np.arange(COEFFICIENTS)
DCT = (2 * np.cos(np.pi * np.outer(_n, _k) / MELS) / np.sqrt(2 * MELS)).astype(np.float32)


def align(samples, how):
    """Fits a clip of any length into the window: zeros around short ones, long ones cut by the same rule."""
    samples = np.asarray(samples, dtype=np.float32)
    extra = len(samples) - WINDOW_SAMPLES
    if extra > 0:
        if how == "loudest":
            energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
            start = int(np.argmax(energy[WINDOW_SAMPLES:] - energy[:-WINDOW_SAMPLES]))
        else:
            start = extra // 2 if how == "centre" else 0
        return samples[start:start + WINDOW_SAMPLES]
    before = 0 if how == "start" else -extra // 2
    return np.pad(samples, (before, -extra - before))


def normalise_max(clips):
    """[batch, samples] divided by each clip's largest (not largest absolute) sample."""
    top = clips.max(axis=1, keepdims=True)
    return clips / np.where(top > 0, top, 1.0).astype(np.float32)


def magnitudes(clips):
    """[batch, 16000] -> [batch, 49, 257]"""
    frames = np.lib.stride_tricks.sliding_window_view(clips, FRAME, axis=1)[:, ::HOP]
    return np.abs(np.fft.rfft(frames * HANN, n=FFT, axis=2)).astype(np.float32)


def mfcc(clips):
    """[batch, 16000] -> [batch, 49, 10, 1]"""
    mel = magnitudes(normalise_max(np.asarray(clips, dtype=np.float32))) @ MEL
    return (np.log(mel + LOG_OFFSET) @ DCT)[..., None].astype(np.float32)
