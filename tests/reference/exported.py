"""Weights of the networks that several exporters write: one table for export.py (torch) and export_tf.py (Keras).

Torch's layouts. BatchNorm's gain is sqrt(var + eps), so that folding it into the convolution leaves the weights alone (to f32 rounding):
exporters that fold and exporters that do not then adapt to the same result from the same A and B.
"""
import numpy as np

import generator

EPS = 1e-3  # of every BatchNorm
INPUTS = dict(cnn=[3, 12, 10], dscnn=[1, 20, 10], mlp=[13], conv1d=[3, 32])  # channels first, without the batch
CLASSES = dict(cnn=5, dscnn=6, mlp=7, conv1d=4)
SHAPES = dict(
    cnn={"conv1": [8, 3, 3, 3], "bn1": [8], "conv2": [13, 8, 3, 3], "bn2": [13], "fc": [5, 78]},
    dscnn={"stem": [8, 1, 10, 4], "dw1": [8, 1, 3, 3], "pw1": [13, 8, 1, 1], "dw2": [13, 1, 3, 3], "pw2": [10, 13, 1, 1], "fc": [6, 10]},
    mlp={"fc1": [16, 13], "fc2": [11, 16], "fc3": [7, 11]},
    conv1d={"conv1": [6, 3, 5], "conv2": [9, 6, 3], "fc": [4, 9]},
)


def weights(net):
    """name → f32 array, as the torch module's state_dict."""
    out = {}
    for layer, shape in SHAPES[net].items():
        make = lambda part, s, scale, offset=0.0: generator.values(f"{net}/{layer}.{part}", 0, s, scale, offset)  # noqa: E731
        if layer.startswith("bn"):
            var = make("running_var", shape, 0.5, 1.0)
            out[f"{layer}.weight"] = np.sqrt(var.astype(np.float64) + EPS).astype(np.float32)
            out[f"{layer}.bias"] = make("bias", shape, 0.25)
            out[f"{layer}.running_mean"], out[f"{layer}.running_var"] = make("running_mean", shape, 0.25), var
        else:
            out[f"{layer}.weight"] = make("weight", shape, float((3 / np.prod(shape[1:])) ** 0.5))
            if f"bn{layer[4:]}" not in SHAPES[net] or not layer.startswith("conv"):
                out[f"{layer}.bias"] = make("bias", shape[:1], 0.25)
    return out
