"""TorchScript models through the clients that users have, on the pytorch backend beside the server (`make libtorch-debug`)."""

import math
import shutil

import numpy as np
import pytest
import requests
from tritonclient.http import InferInput
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


def test_the_first_failure_of_a_client_is_its_own(client):
    with pytest.raises(InferenceServerException):
        client.infer("digits_torch", [tensor("image", np.zeros((1, 1, 8, 9), np.float32))])
