#!/usr/bin/env python3
"""Makes the model files of this folder.

    python make.py                 # all of them
    python make.py --only digits   # one of them

The `config.pbtxt` and `labels.txt` files are written by hand and stay as they are; this script writes each model's
`model.onnx`, and `digits/heldout.json`, the images that the digits network was not trained on.

Needs numpy 2.4.6, onnx 1.23.2 and, for `digits` and `iris` only, scikit-learn 1.9.1 (its bundled data sets; nothing
is downloaded). Other versions, or another machine's matrix products, may change the trained weights in their last bits;
all random numbers come from fixed seeds, so a second run on the same machine writes the same bytes. The networks are
trained in plain numpy; all of it takes about half a minute.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
F32 = TensorProto.FLOAT


# --- the plain models -------------------------------------------------------------------------------------------------


def make_add_sub():
    """OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1."""
    shape = ["batch", 16]
    write(
        "add_sub/1",
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        inputs=[("INPUT0", F32, shape), ("INPUT1", F32, shape)],
        outputs=[("OUTPUT0", F32, shape), ("OUTPUT1", F32, shape)],
    )


def make_scale():
    """Version 1 doubles, version 2 triples."""
    for version, factor in ((1, 2), (2, 3)):
        write(
            f"scale/{version}",
            [helper.make_node("Mul", ["x", "factor"], ["y"])],
            inputs=[("x", F32, ["n"])],
            outputs=[("y", F32, ["n"])],
            weights={"factor": np.float32(factor)},
        )


def make_half():
    """y = x * 0.5 + 1, all of it in FP16."""
    shape = ["batch", 4]
    write(
        "half/1",
        [
            helper.make_node("Mul", ["x", "half"], ["halved"]),
            helper.make_node("Add", ["halved", "one"], ["y"]),
        ],
        inputs=[("x", TensorProto.FLOAT16, shape)],
        outputs=[("y", TensorProto.FLOAT16, shape)],
        weights={"half": np.float16(0.5), "one": np.float16(1)},
    )


def make_grey():
    """Grey levels 0 to 16 as the digits network wants them: image = PIXELS / 16, with a channel."""
    write(
        "grey/1",
        [
            helper.make_node("Cast", ["PIXELS"], ["levels"], to=F32),
            helper.make_node("Mul", ["levels", "scale"], ["scaled"]),
            helper.make_node("Unsqueeze", ["scaled", "channel"], ["image"]),
        ],
        inputs=[("PIXELS", TensorProto.UINT8, ["batch", 8, 8])],
        outputs=[("image", F32, ["batch", 1, 8, 8])],
        weights={"scale": np.float32(1 / 16), "channel": np.array([1], np.int64)},
    )


def make_text():
    """Greets each TEXT, counts its words and says whether it is a number."""
    write(
        "text/1",
        [
            helper.make_node("StringConcat", ["before", "TEXT"], ["opened"]),
            helper.make_node("StringConcat", ["opened", "after"], ["GREETING"]),
            helper.make_node("StringSplit", ["TEXT"], ["words", "WORDS"]),
            helper.make_node("RegexFullMatch", ["TEXT"], ["IS_NUMBER"], pattern=r"[+-]?[0-9]+([.][0-9]+)?"),
        ],
        inputs=[("TEXT", TensorProto.STRING, ["n"])],
        outputs=[
            ("GREETING", TensorProto.STRING, ["n"]),
            ("WORDS", TensorProto.INT64, ["n"]),
            ("IS_NUMBER", TensorProto.BOOL, ["n"]),
        ],
        weights={"before": np.array("Hello, ", dtype=object), "after": np.array("!", dtype=object)},
        opset=20,
    )


def make_every_type():
    """IN_x -> OUT_x, unchanged, for each tensor type of the protocol."""
    types = {
        "BOOL": TensorProto.BOOL,
        "UINT8": TensorProto.UINT8,
        "UINT16": TensorProto.UINT16,
        "UINT32": TensorProto.UINT32,
        "UINT64": TensorProto.UINT64,
        "INT8": TensorProto.INT8,
        "INT16": TensorProto.INT16,
        "INT32": TensorProto.INT32,
        "INT64": TensorProto.INT64,
        "FP16": TensorProto.FLOAT16,
        "BF16": TensorProto.BFLOAT16,
        "FP32": TensorProto.FLOAT,
        "FP64": TensorProto.DOUBLE,
        "BYTES": TensorProto.STRING,
    }
    write(
        "every_type/1",
        [helper.make_node("Identity", [f"IN_{name}"], [f"OUT_{name}"]) for name in types],
        inputs=[(f"IN_{name}", kind, [f"n_{name}"]) for name, kind in types.items()],
        outputs=[(f"OUT_{name}", kind, [f"n_{name}"]) for name, kind in types.items()],
    )


# --- the trained models -----------------------------------------------------------------------------------------------


def make_digits():
    """Two 3x3 convolutions, a 2x2 maximum, two dense layers, on 8x8 pictures of handwritten digits."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # 1,797 pictures, grey levels 0..16
    order = np.random.default_rng(20).permutation(len(labels))
    held_out, training = order[:360], order[360:]
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)

    random = np.random.default_rng(7)
    network = Network(random, conv=[(16, 1), (32, 16)], dense=[(512, 32), (32, 10)])
    epochs = 60
    for epoch in range(epochs):
        rate = 0.002 * (1 - epoch / epochs)
        for batch in np.split(random.permutation(training), range(64, len(training), 64)):
            network.train(shifted(images[batch], random), labels[batch], rate)

    accuracy = np.mean(network.scores(images[held_out]).argmax(axis=1) == labels[held_out])
    print(f"digits: {accuracy:.2%} of {len(held_out)} held-out images right")
    if accuracy < 0.97:
        raise SystemExit("digits: below 97 %, not written")

    weights = dict(network.weights, flat=np.array([0, -1], np.int64))
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    write(
        "digits/1",
        [
            helper.make_node("Conv", ["image", "conv0.w", "conv0.b"], ["c0"], **same),
            helper.make_node("Relu", ["c0"], ["r0"]),
            helper.make_node("Conv", ["r0", "conv1.w", "conv1.b"], ["c1"], **same),
            helper.make_node("Relu", ["c1"], ["r1"]),
            helper.make_node("MaxPool", ["r1"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Reshape", ["pooled", "flat"], ["f"]),
            helper.make_node("Gemm", ["f", "dense0.w", "dense0.b"], ["d0"]),
            helper.make_node("Relu", ["d0"], ["r2"]),
            helper.make_node("Gemm", ["r2", "dense1.w", "dense1.b"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
        ],
        inputs=[("image", F32, ["batch", 1, 8, 8])],
        outputs=[("scores", F32, ["batch", 10])],
        weights=weights,
    )
    lines = [
        json.dumps(
            {"index": int(i), "label": int(labels[i]), "pixels": [int(p) for p in pixels[i]]}, separators=(",", ":")
        )
        for i in sorted(held_out)
    ]
    (HERE / "digits/heldout.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


def make_iris():
    """A small dense network over the four measures of Fisher's irises; it scales them itself."""
    from sklearn.datasets import load_iris

    measures, labels = load_iris(return_X_y=True)
    measures = measures.astype(np.float32)
    order = np.random.default_rng(3).permutation(len(labels))
    held_out, training = order[:30], order[30:]
    mean = measures[training].mean(axis=0)
    spread = measures[training].std(axis=0)

    random = np.random.default_rng(1)
    network = Network(random, conv=[], dense=[(4, 16), (16, 3)])
    for _ in range(200):
        for batch in np.split(random.permutation(training), range(32, len(training), 32)):
            network.train((measures[batch] - mean) / spread, labels[batch], 0.005)
    right = network.scores((measures[held_out] - mean) / spread).argmax(axis=1) == labels[held_out]
    print(f"iris: {right.mean():.2%} of {len(held_out)} held-out flowers right")

    write(
        "iris/1",
        [
            helper.make_node("Sub", ["x", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "spread"], ["scaled"]),
            helper.make_node("Gemm", ["scaled", "dense0.w", "dense0.b"], ["d0"]),
            helper.make_node("Relu", ["d0"], ["r0"]),
            helper.make_node("Gemm", ["r0", "dense1.w", "dense1.b"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        ],
        inputs=[("x", F32, ["batch", 4])],
        outputs=[("probabilities", F32, ["batch", 3])],
        weights=dict(network.weights, mean=mean, spread=spread),
    )


class Network:
    """3x3 convolutions with ReLU, a 2x2 maximum after them, dense layers with ReLU between, softmax; with Adam."""

    def __init__(self, random, conv, dense):
        self.convs, self.denses = len(conv), len(dense)
        self.weights = {}
        for i, (outs, ins) in enumerate(conv):
            self.weights[f"conv{i}.w"] = self._initial(random, (outs, ins, 3, 3), fan_in=ins * 9)
            self.weights[f"conv{i}.b"] = np.zeros(outs, np.float32)
        for i, (ins, outs) in enumerate(dense):
            self.weights[f"dense{i}.w"] = self._initial(random, (ins, outs), fan_in=ins)
            self.weights[f"dense{i}.b"] = np.zeros(outs, np.float32)
        self._moments = {name: [np.zeros_like(w), np.zeros_like(w)] for name, w in self.weights.items()}
        self._steps = 0

    @staticmethod
    def _initial(random, shape, fan_in):
        return (random.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    def scores(self, x):
        return self._forward(x)[0]

    def _forward(self, x):
        """The softmax, and what the backward pass needs of each layer."""
        seen = []
        w = self.weights
        for i in range(self.convs):
            columns = windows(x)
            x = columns @ w[f"conv{i}.w"].reshape(len(w[f"conv{i}.b"]), -1).T + w[f"conv{i}.b"]
            x = np.maximum(x, 0).transpose(0, 3, 1, 2)
            seen.append((columns, x))
        if self.convs:
            n, c, height, width = x.shape
            blocks = x.reshape(n, c, height // 2, 2, width // 2, 2)
            pooled = blocks.max(axis=(3, 5))
            seen.append((blocks, pooled))
            x = pooled.reshape(n, -1)
        for i in range(self.denses):
            before = x
            x = before @ w[f"dense{i}.w"] + w[f"dense{i}.b"]
            if i + 1 < self.denses:
                x = np.maximum(x, 0)
            seen.append((before, x))
        x = np.exp(x - x.max(axis=1, keepdims=True))
        return x / x.sum(axis=1, keepdims=True), seen

    def train(self, x, labels, rate):
        """One step on one batch, down the gradient of the cross-entropy."""
        probabilities, seen = self._forward(x)
        gradients = {}
        back = probabilities.copy()
        back[np.arange(len(labels)), labels] -= 1
        back /= len(labels)
        for i in reversed(range(self.denses)):
            before, after = seen.pop()
            if i + 1 < self.denses:
                back = back * (after > 0)
            gradients[f"dense{i}.w"] = before.T @ back
            gradients[f"dense{i}.b"] = back.sum(axis=0)
            back = back @ self.weights[f"dense{i}.w"].T
        if self.convs:
            blocks, pooled = seen.pop()
            largest = blocks == pooled[:, :, :, None, :, None]
            back = back.reshape(pooled.shape)[:, :, :, None, :, None] * largest
            n, c, h, _, w, _ = blocks.shape
            back = back.reshape(n, c, h * 2, w * 2)
        for i in reversed(range(self.convs)):
            columns, after = seen.pop()
            back = (back * (after > 0)).transpose(0, 2, 3, 1)
            kernel = self.weights[f"conv{i}.w"]
            flat = back.reshape(-1, back.shape[-1])
            gradients[f"conv{i}.w"] = (flat.T @ columns.reshape(len(flat), -1)).reshape(kernel.shape)
            gradients[f"conv{i}.b"] = flat.sum(axis=0)
            if i:
                back = scattered(back @ kernel.reshape(len(kernel), -1), channels=kernel.shape[1])
        self._adam(gradients, rate)

    def _adam(self, gradients, rate):
        self._steps += 1
        for name, gradient in gradients.items():
            first, second = self._moments[name]
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            step = (first / (1 - 0.9**self._steps)) / (np.sqrt(second / (1 - 0.999**self._steps)) + 1e-8)
            self.weights[name] -= (rate * step).astype(np.float32)


def windows(x):
    """[n, c, h, w] -> [n, h, w, c * 9]: the zero-padded 3x3 window around each pixel."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return view.transpose(0, 2, 3, 1, 4, 5).reshape(n, h, w, c * 9)


def scattered(columns, channels):
    """The transpose of `windows`: adds each window back to the pixels that it was taken from."""
    n, h, w, _ = columns.shape
    columns = columns.reshape(n, h, w, channels, 3, 3)
    padded = np.zeros((n, channels, h + 2, w + 2), columns.dtype)
    for row in range(3):
        for column in range(3):
            padded[:, :, row : row + h, column : column + w] += columns[..., row, column].transpose(0, 3, 1, 2)
    return padded[:, :, 1:-1, 1:-1]


def shifted(images, random):
    """Each image moved by up to one pixel, so that the network learns shapes rather than places."""
    moved = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = random.integers(0, 3, (2, len(images)))
    return np.stack([image[:, r : r + 8, c : c + 8] for image, r, c in zip(moved, rows, columns)])


# --- writing ----------------------------------------------------------------------------------------------------------


def write(folder, nodes, inputs, outputs, weights=None, opset=17):
    """Checks the graph and writes it to `folder`/model.onnx."""
    graph = helper.make_graph(
        nodes,
        folder.split("/")[0],
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(
        graph,
        producer_name="roundhouse models-examples",
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=9 if opset > 18 else 8,
    )
    onnx.checker.check_model(model, full_check=True)
    path = HERE / folder / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    print(f"{path.relative_to(HERE)}: {path.stat().st_size:,} bytes")


MODELS = {
    "add_sub": make_add_sub,
    "digits": make_digits,
    "every_type": make_every_type,
    "grey": make_grey,
    "half": make_half,
    "iris": make_iris,
    "scale": make_scale,
    "text": make_text,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS, help="make this model only")
    only = parser.parse_args().only
    started = time.monotonic()
    for name, make in MODELS.items():
        if only in (None, name):
            make()
    print(f"done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
