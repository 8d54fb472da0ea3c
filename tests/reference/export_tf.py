"""The Keras twins of export.py's networks, the same weights, through tf2onnx.

    python export_tf.py --out ../data/exports          (in the environment of requirements-tf.txt)

Inputs are channels last. Where the torch network flattens, the twin first goes back to channels first, so that the dense layer's
columns have one order.
"""
import argparse
import os
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import onnx  # noqa: E402
import tensorflow as tf  # noqa: E402
import tf2onnx  # noqa: E402

import exported  # noqa: E402

L = tf.keras.layers


def dense(w, name, **kw):
    weight = w[f"{name}.weight"]
    return L.Dense(weight.shape[0], name=name, weights=[weight.T, w[f"{name}.bias"]], **kw)


def conv2d(w, name, **kw):
    weight = w[f"{name}.weight"]
    bias = [w[f"{name}.bias"]] if f"{name}.bias" in w else []
    return L.Conv2D(weight.shape[0], weight.shape[2:], use_bias=bool(bias), name=name, weights=[weight.transpose(2, 3, 1, 0), *bias], **kw)


def depthwise(w, name, **kw):
    weight = w[f"{name}.weight"]
    return L.DepthwiseConv2D(weight.shape[2:], name=name, weights=[weight.transpose(2, 3, 0, 1), w[f"{name}.bias"]], **kw)


def conv1d(w, name, **kw):
    weight = w[f"{name}.weight"]
    return L.Conv1D(weight.shape[0], weight.shape[2], name=name, weights=[weight.transpose(2, 1, 0), w[f"{name}.bias"]], **kw)


def norm(w, name):
    return L.BatchNormalization(epsilon=exported.EPS, name=name, weights=[w[f"{name}.{p}"] for p in ("weight", "bias", "running_mean", "running_var")])


def cnn(w, x):
    x = L.ReLU()(norm(w, "bn1")(conv2d(w, "conv1", strides=2)(L.ZeroPadding2D(1)(x))))
    x = L.MaxPool2D(2)(L.ReLU()(norm(w, "bn2")(conv2d(w, "conv2", padding="same")(x))))
    return dense(w, "fc")(L.Flatten()(L.Permute((3, 1, 2))(x)))


def dscnn(w, x):
    x = L.ReLU()(conv2d(w, "stem", strides=2)(L.ZeroPadding2D(((4, 5), (1, 1)))(x)))
    x = L.ReLU(6.0)(depthwise(w, "dw1", padding="same")(x))
    x = L.ReLU(6.0)(conv2d(w, "pw1")(x))
    x = L.ReLU(6.0)(depthwise(w, "dw2", padding="same")(x))
    x = L.ReLU(6.0)(conv2d(w, "pw2")(x))
    return dense(w, "fc")(L.GlobalAveragePooling2D()(x))


def mlp(w, x):
    x = L.LeakyReLU(0.1)(dense(w, "fc1")(x))
    return L.Softmax()(dense(w, "fc3")(dense(w, "fc2", activation="tanh")(x)))


def conv1d_net(w, x):
    x = L.MaxPool1D(2)(L.ReLU()(conv1d(w, "conv1", strides=2)(L.ZeroPadding1D(2)(x))))
    x = conv1d(w, "conv2", dilation_rate=2, activation="sigmoid")(x)
    return dense(w, "fc")(L.GlobalAveragePooling1D()(x))


NETS = dict(cnn=cnn, dscnn=dscnn, mlp=mlp, conv1d=conv1d_net)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for net, build in NETS.items():
        channels, *spatial = exported.INPUTS[net]
        x = tf.keras.Input([*spatial, channels], name="x")
        model = tf.keras.Model(x, build(exported.weights(net), x), name=net)
        (args.out / net).mkdir(parents=True, exist_ok=True)
        for kind, batch in (("free", None), ("fixed", 1)):
            signature = [tf.TensorSpec([batch, *spatial, channels], tf.float32, name="x")]
            proto, _ = tf2onnx.convert.from_keras(model, signature, opset=13)
            onnx.save(proto, args.out / net / f"tf2onnx-{kind}.onnx")


if __name__ == "__main__":
    main()
