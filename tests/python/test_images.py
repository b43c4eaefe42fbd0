"""Inputs made of pixels: against ONNX Runtime's own Resize, and the digits network on pictures of another size."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton

from harness import EXAMPLES, running_server

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
SCALE = np.array([0.0171247538, 0.0175070028, 0.0174291938], np.float32)
HEIGHT, WIDTH = 20, 31


def parameter(key, value):
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    numbers = {"image_mean": ",".join(map(str, MEAN)), "image_scale": ",".join(map(str, SCALE))}
    for kind in ("FP32", "FP16"):
        folder = root / "models" / f"given_{kind}" / "1"
        folder.mkdir(parents=True)
        tensor = f"data_type: TYPE_{kind} dims: [ 3, -1, -1 ] }}\n"
        text = 'backend: "identity" max_batch_size: 8 dynamic_batching { }\n'
        text += 'input { name: "x" ' + tensor + 'output { name: "y" ' + tensor
        text += parameter("image_input", "x") + parameter("image_size", f"{HEIGHT}x{WIDTH}")
        (folder.parent / "config.pbtxt").write_text(text + "".join(parameter(*pair) for pair in numbers.items()))
    digits = root / "models" / "digits"
    shutil.copytree(EXAMPLES / "digits", digits)
    with (digits / "config.pbtxt").open("a") as config:
        # Grey levels of 0 to 255 as the 0 to 1 that the network was trained on.
        config.write(parameter("image_input", "image") + parameter("image_scale", 1 / 255))
    with running_server(root / "models", root) as server:
        yield server


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.http, concurrency=8) as client:
        yield client


def send(client, model, name, pixels):
    request = triton.InferInput(name, list(pixels.shape), "UINT8").set_data_from_numpy(pixels)
    return client.async_infer(model, [request])


def varint(number):
    rest = number >> 7
    return bytes([number & 127 | 128]) + varint(rest) if rest else bytes([number])


def field(number, value):
    """A field of a protobuf message: an integer, or bytes under their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def resize_model(sizes):
    """An ONNX model of one Resize as the README names it (numbers of the fields: onnx.proto), without the onnx package."""
    attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    node = b"".join(field(1, name) for name in ("x", "", "", "sizes")) + field(2, "y") + field(4, "Resize")
    for name, value in attributes.items():
        node += field(5, field(1, name) + field(4, value) + field(20, 3))
    weights = field(1, len(sizes)) + field(2, 7) + field(8, "sizes") + field(9, np.array(sizes, np.int64).tobytes())
    shape = b"".join(field(1, field(2, f"d{axis}")) for axis in range(len(sizes)))
    tensor = field(2, field(1, field(1, 1) + field(2, shape)))
    graph = field(1, node) + field(2, "resize") + field(5, weights)
    graph += field(11, field(1, "x") + tensor) + field(12, field(1, "y") + tensor)
    return field(1, 9) + field(7, graph) + field(8, field(2, 18))


def resized_by_onnxruntime(pixels):
    model = resize_model([len(pixels), pixels.shape[3], HEIGHT, WIDTH])
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)})[0]


@pytest.mark.parametrize("size", [(20, 31), (40, 62), (7, 5), (1, 1), (19, 200), (333, 30)])
def test_pictures_are_what_onnxruntimes_resize_makes_of_them(client, size):
    pixels = np.random.default_rng(5).integers(0, 256, (2, *size, 3), np.uint8)
    expected = (resized_by_onnxruntime(pixels) - MEAN[:, None, None]) * SCALE[:, None, None]
    found = send(client, "given_FP32", "x", pixels).get_result().as_numpy("y")
    # In grey levels: ONNX Runtime takes the place of a pixel in FP32, which is off by a few millionths of the side.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2 * SCALE.max())
    half = send(client, "given_FP16", "x", pixels).get_result().as_numpy("y")
    np.testing.assert_array_equal(half, found.astype(np.float16))


def test_a_picture_of_the_right_size_is_numpys_arithmetic_to_the_bit(client):
    pixels = np.random.default_rng(6).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
    expected = ((pixels.astype(np.float32) - MEAN) * SCALE).transpose(0, 3, 1, 2)
    found = send(client, "given_FP32", "x", pixels).get_result().as_numpy("y")
    np.testing.assert_array_equal(found, expected)


def test_the_digits_network_reads_pictures_of_other_sizes(client):
    pictures = json.loads((EXAMPLES / "digits" / "heldout.json").read_text())
    metadata = client.get_model_metadata("digits")
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 1]}]
    answers = []
    for number, picture in enumerate(pictures[:40]):
        levels = np.array(picture["pixels"], np.float64).reshape(8, 8) * 255 / 16
        # Each request of another size: they share batches all the same.
        times = 2 + number % 4
        pixels = np.kron(levels, np.ones((times, times))).astype(np.uint8)[None, :, :, None]
        answers.append((send(client, "digits", "image", pixels), picture))
    right = [answer.get_result().as_numpy("scores")[0].argmax() == picture["label"] for answer, picture in answers]
    assert sum(right) >= 36
