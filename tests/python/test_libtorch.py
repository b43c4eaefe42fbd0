"""TorchScript models through the clients that users have, on the pytorch backend beside the server (`make libtorch-debug`)."""

import json
import math
import os
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
import requests
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from harness import EXAMPLES, ROOT, binary, heldout, running_server

FIXTURES = ROOT / "tests/fixtures/torch"


def tensor(name, array):
    made = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return made.set_data_from_numpy(array)


@pytest.fixture(autouse=True, scope="module")
def plugin():
    path = binary().parent / "backends/libroundhouse_pytorch.so"
    if not path.exists():
        pytest.fail(f"there is no {path}: run `make libtorch-debug`")


def test_torchscript_and_onnx_give_the_same_answers(client):
    images, labels = heldout()
    right = 0
    for start in range(0, len(labels), 60):
        inputs = [tensor("image", images[start : start + 60])]
        torch, onnx = (client.infer(model, inputs).as_numpy("scores") for model in ("digits_torch", "digits"))
        np.testing.assert_allclose(torch, onnx, rtol=1e-4, atol=1e-6)
        right += int((torch.argmax(axis=1) == labels[start : start + 60]).sum())
    assert right / len(labels) >= 0.97


def test_a_sequence_keeps_its_state(client):
    random = np.random.default_rng(3)
    power = 0.0
    for step in range(20):
        sound = random.standard_normal((1, 160)).astype(np.float32)
        power = 0.8 * power + 0.2 * float(np.mean(np.square(sound, dtype=np.float64)))
        answer = client.infer(
            "loudness", [tensor("sound", sound)], sequence_id=7, sequence_start=step == 0, sequence_end=step == 19
        )
        assert answer.as_numpy("level")[0, 0] == pytest.approx(10 * math.log10(power), abs=1e-3)


ACROSS = """
platform: "ensemble"
max_batch_size: 64
input [ { name: "image" data_type: TYPE_FP32 dims: [ 1, 8, 8 ] } ]
output [
  { name: "by_onnx" data_type: TYPE_FP32 dims: [ 10 ] },
  { name: "by_torch" data_type: TYPE_FP32 dims: [ 10 ] },
  { name: "sum" data_type: TYPE_FP32 dims: [ 10 ] }
]
ensemble_scheduling { step [
  { model_name: "digits" input_map { key: "image" value: "image" } output_map { key: "scores" value: "by_onnx" } },
  { model_name: "digits_torch" input_map { key: "image" value: "image" } output_map { key: "scores" value: "by_torch" } },
  { model_name: "sum" input_map { key: "x" value: "by_onnx" } input_map { key: "y" value: "by_torch" }
    output_map { key: "OUTPUT__0" value: "sum" } }
] }
"""


def test_an_ensemble_runs_steps_of_both_backends(tmp_path):
    rows = '{} {{ name: "{}" data_type: TYPE_FP32 dims: [ 10 ] }}\n'
    config = "max_batch_size: 64\n" + rows.format("input", "x") + rows.format("input", "y")
    models = repository(tmp_path / "models", sum=("add.pt", config + rows.format("output", "OUTPUT__0")))
    for name in ("digits", "digits_torch"):
        shutil.copytree(EXAMPLES / name, models / name)
    (models / "across/1").mkdir(parents=True)
    (models / "across/config.pbtxt").write_text(ACROSS)
    images, labels = heldout()
    with running_server(models, tmp_path) as server, InferenceServerClient(server.http) as client:
        answer = client.infer("across", [tensor("image", images[:60])])
        onnx, torch, total = (answer.as_numpy(name) for name in ("by_onnx", "by_torch", "sum"))
        np.testing.assert_allclose(torch, onnx, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(total, onnx + torch)
        assert (total.argmax(axis=1) == labels[:60]).mean() > 0.9
        # The steps came with it, each on its own backend.
        listed = {row["name"]: row["state"] for row in client.get_model_repository_index()}
        assert all(listed[name] == "READY" for name in ("across", "digits", "digits_torch", "sum")), listed


def repository(folder, **models):
    for name, (file, config) in models.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(f'backend: "pytorch"\n{config}')
        shutil.copy(FIXTURES / file, folder / name / "1/model.pt")
    return folder


def vectors(inputs, outputs):
    one = '{} {{ name: "{}" data_type: TYPE_FP32 dims: [ -1 ] }}\n'
    return "".join(one.format("input", name) for name in inputs) + "".join(one.format("output", name) for name in outputs)


def ask(url, model, **inputs):
    tensors = [
        {"name": name, "datatype": "FP32", "shape": [len(values)], "data": values} for name, values in inputs.items()
    ]
    return requests.post(f"{url}/v2/models/{model}/infer", json={"inputs": tensors}, timeout=60)


def test_models_that_fail_say_why_and_others_answer(tmp_path):
    models = repository(
        tmp_path / "models",
        add=("add.pt", vectors(["INPUT__0", "INPUT__1"], ["OUTPUT__0"])),
        throws=("throws.pt", vectors(["x"], ["y"])),
        weights=("weights.pt", vectors(["x"], ["y"])),
        missing=("missing.pt", vectors(["x"], ["y"])),
        nested=("nested.pt", vectors(["x"], ["OUTPUT__0", "OUTPUT__1"])),
    )
    shutil.copy(FIXTURES / "traced.pt", models / "bare.pt")
    with running_server(models, tmp_path) as server:
        wrong = {
            "throws": (500, "below nothing"),
            "weights": (503, "save the model as TorchScript"),
            "missing": (503, "roundhouse::missing"),
            "nested": (400, "only tensors can be served"),
        }
        for _ in range(2):
            for model, (status, text) in wrong.items():
                answer = ask(f"http://{server.http}", model, x=[-1.0])
                assert (answer.status_code, text in answer.json()["error"]) == (status, True), answer.text
            answer = ask(f"http://{server.http}", "add", INPUT__0=[1.0, 2.0], INPUT__1=[3.0, 4.0])
            assert answer.json()["outputs"][0]["data"] == [4.0, 6.0]
            assert ask(f"http://{server.http}", "throws", x=[1.5]).json()["outputs"][0]["data"] == [3.0]
        metadata = requests.get(f"http://{server.http}/v2/models/bare", timeout=60).json()
        if "error" in metadata:  # a model is loaded by its first request
            requests.post(f"http://{server.http}/v2/repository/models/bare/load", timeout=60).raise_for_status()
            metadata = requests.get(f"http://{server.http}/v2/models/bare", timeout=60).json()
        assert [(one["datatype"], one["shape"]) for one in metadata["inputs"]] == [("FP32", [-1, -1])]
        assert [one["name"] for one in metadata["outputs"]] == ["OUTPUT__0"]


def test_without_libtorch_onnx_is_served_and_the_mend_is_told(tmp_path):
    with running_server(EXAMPLES, tmp_path, "--libtorch-dir", tmp_path / "nowhere") as server:
        answer = ask(f"http://{server.http}", "digits_torch", image=[0.0])
        assert answer.status_code == 503, answer.text
        assert "roundhouse runtime install libtorch" in answer.json()["error"], answer.text
        scaled = ask(f"http://{server.http}", "scale", x=[1.0, 2.0])
        assert scaled.json()["outputs"][0]["data"] == [3.0, 6.0]
    with running_server(EXAMPLES, tmp_path, "--backend-directory", tmp_path) as server:
        assert "make libtorch" in ask(f"http://{server.http}", "digits_torch", image=[0.0]).json()["error"]


def test_strings_are_refused(tmp_path):
    config = vectors(["x"], ["y"]).replace("TYPE_FP32", "TYPE_STRING")
    with running_server(repository(tmp_path / "models", text=("throws.pt", config)), tmp_path) as server:
        answer = ask(f"http://{server.http}", "text", x=[1.0])
        assert answer.status_code in (400, 501) and "torch has no tensors of strings" in answer.text


PACKAGE = """
backend: "pytorch"
default_model_filename: "model.pt2"
max_batch_size: 64
input [ {{ name: "INPUT__0" data_type: TYPE_FP32 dims: [ {width} ] }}, {{ name: "INPUT__1" data_type: TYPE_FP32 dims: [ {width} ] }} ]
output [ {{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ -1 ] }}, {{ name: "OUTPUT__1" data_type: TYPE_FP32 dims: [ 1 ] }} ]
"""


def package(models, name, width):
    (models / name / "1").mkdir(parents=True)
    (models / name / "config.pbtxt").write_text(PACKAGE.format(width=width))
    return models / name / "1/model.pt2"


def test_packages_of_aotinductor_are_refused_unless_the_operator_allows_them(tmp_path):
    models = tmp_path / "models"
    members = {"library": "m/data/aotinductor/model/m.so", "source": "m/data/aotinductor/model/m.cpp"}
    for name, member in members.items():
        with zipfile.ZipFile(package(models, name, 4), "w") as archive:
            archive.writestr(member, b"no library")
    expected = {
        "library": ["start it with --allow-aotinductor if all", "libtorch cannot load model.pt2"],
        "source": ["start it with --allow-aotinductor if all", "holds no shared library"],
    }
    for at, arguments in enumerate([[], ["--allow-aotinductor"]]):
        with running_server(models, tmp_path, *arguments) as server:
            for name, texts in expected.items():
                load = requests.post(f"http://{server.http}/v2/repository/models/{name}/load", timeout=60)
                assert load.status_code in (400, 501) and texts[at] in load.text, load.text
                assert str(tmp_path) not in load.text


@pytest.mark.skipif("ROUNDHOUSE_TORCH_PYTHON" not in os.environ, reason="ROUNDHOUSE_TORCH_PYTHON names no Python with torch 2.11")
def test_packages_of_aotinductor_answer_as_torch_does_and_leave_nothing_behind(tmp_path):
    made, models = tmp_path / "made", tmp_path / "models"
    made.mkdir()
    subprocess.run([os.environ["ROUNDHOUSE_TORCH_PYTHON"], FIXTURES / "make_packages.py", made], check=True, timeout=600)
    for name, width in [("small", 4), ("big", 3584), ("wrong", 3)]:
        shutil.copy(made / f"{'small' if name == 'wrong' else name}.pt2", package(models, name, width))
    expected = {name: json.loads((made / f"{name}.json").read_text()) for name in ("small", "big")}
    inputs = {}
    for name, values in expected.items():
        x = np.array(values["x"], np.float32)
        inputs[name] = [tensor("INPUT__0", x), tensor("INPUT__1", x)]
    with running_server(models, tmp_path, "--allow-aotinductor") as server, InferenceServerClient(server.http) as client:

        def resident():
            lines = open(f"/proc/{server.process.pid}/status").read().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

        left = []
        # The first package that a process loads is the one that torch would keep.
        for _ in range(3):
            for name in ("big", "small"):
                answer = client.infer(name, inputs[name])
                for output in ("OUTPUT__0", "OUTPUT__1"):
                    np.testing.assert_allclose(answer.as_numpy(output), expected[name][output], rtol=1e-4, atol=1e-5)
            loaded = resident()
            client.unload_model("big")
            left.append(resident())
            assert loaded - left[-1] > 45, (loaded, left)
        assert left[-1] - left[0] < 12, left
        # Compiled for a width of four: without a look at the shapes it would read past the end.
        narrow = np.ones((1, 3), np.float32)
        with pytest.raises(InferenceServerException, match="refuses its inputs"):
            client.infer("wrong", [tensor("INPUT__0", narrow), tensor("INPUT__1", narrow)])
        assert client.infer("small", inputs["small"]).as_numpy("OUTPUT__1").shape == (3, 1)


def test_the_first_failure_of_a_client_is_its_own(client):
    with pytest.raises(InferenceServerException):
        client.infer("digits_torch", [tensor("image", np.zeros((1, 1, 8, 9), np.float32))])
