"""An ensemble of real models through the clients that users have, against its steps asked one after the other by hand."""

import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import requests
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from harness import EXAMPLES, binary, heldout, running_server

LABELS = (EXAMPLES / "digits/labels.txt").read_text().split()


def pixels(batch):
    """Held-out pictures as grey levels 0 to 16."""
    return np.rint(heldout()[0][:batch, 0] * 16).astype(np.uint8)


def tensor(library, name, array, kind):
    given = library.InferInput(name, list(array.shape), kind)
    given.set_data_from_numpy(array)
    return given


def by_hand(library, client, levels):
    image = client.infer("grey", [tensor(library, "PIXELS", levels, "UINT8")]).as_numpy("image")
    scores = client.infer("digits", [tensor(library, "image", image, "FP32")]).as_numpy("scores")
    return image, scores


@pytest.fixture(params=["http", "grpc"])
def triton(request, server):
    library = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    with library.InferenceServerClient(getattr(server, request.param)) as client:
        yield library, client


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_an_ensemble_gives_what_its_steps_give_by_hand(triton, batch):
    library, client = triton
    levels = pixels(batch)
    result = client.infer("digits_raw", [tensor(library, "PIXELS", levels, "UINT8")], request_id="r")
    image, scores = by_hand(library, client, levels)
    np.testing.assert_array_equal(result.as_numpy("image"), image)
    np.testing.assert_allclose(result.as_numpy("scores"), scores, rtol=1e-5, atol=1e-6)
    assert (result.as_numpy("scores").argmax(axis=1) == heldout()[1][:batch]).mean() > 0.9


def test_one_output_alone_and_classes_by_the_labels_of_the_step(triton):
    library, client = triton
    levels = pixels(1)
    wanted = [library.InferRequestedOutput("scores", class_count=2)]
    result = client.infer("digits_raw", [tensor(library, "PIXELS", levels, "UINT8")], outputs=wanted)
    best = result.as_numpy("scores")[0][0].decode().split(":")
    assert best[2] == LABELS[int(best[1])] and int(best[1]) == heldout()[1][0]
    assert result.as_numpy("image") is None


def test_metadata_configuration_and_statistics_are_those_of_an_ensemble(client):
    before = client.get_inference_statistics("digits_raw")["model_stats"] if client.is_model_ready("digits_raw") else []
    client.infer("digits_raw", [tensor(tritonclient.http, "PIXELS", pixels(4), "UINT8")])
    metadata = client.get_model_metadata("digits_raw")
    assert metadata["platform"] == "ensemble"
    assert metadata["outputs"][0] == {"name": "scores", "datatype": "FP32", "shape": [-1, 10]}
    config = client.get_model_config("digits_raw")
    assert (config["platform"], config["backend"]) == ("ensemble", "")
    assert [step["model_name"] for step in config["ensemble_scheduling"]["step"]] == ["grey", "digits"]
    after = client.get_inference_statistics("digits_raw")["model_stats"][0]
    assert after["inference_count"] - sum(row["inference_count"] for row in before) == 4


def test_generate_and_wrong_requests(url):
    levels = pixels(1).tolist()
    wrong = requests.post(f"{url}/v2/models/digits_raw/infer", timeout=30, json={
        "inputs": [{"name": "PIXELS", "datatype": "UINT8", "shape": [1, 8, 7], "data": [0] * 56}]})
    assert wrong.status_code == 400 and "unexpected shape for input 'PIXELS' for model 'digits_raw'" in wrong.json()["error"]
    batch = requests.post(f"{url}/v2/models/digits_raw/infer", timeout=30, json={
        "inputs": [{"name": "PIXELS", "datatype": "UINT8", "shape": [65, 8, 8], "data": [0] * 64 * 65}]})
    assert batch.status_code == 400 and "batch-size must be <= 64" in batch.json()["error"]
    right = requests.post(f"{url}/v2/models/digits_raw/infer", timeout=30, json={
        "inputs": [{"name": "PIXELS", "datatype": "UINT8", "shape": [1, 8, 8], "data": levels}]})
    assert right.status_code == 200


def test_loaded_explicitly_it_brings_its_steps_and_takes_them_where_it_is_told_to(tmp_path):
    with running_server(EXAMPLES, tmp_path, "--model-control", "explicit") as server:
        with tritonclient.http.InferenceServerClient(server.http) as client:
            ready = lambda: {name for name in ("grey", "digits", "digits_raw") if client.is_model_ready(name)}
            client.load_model("digits_raw")
            assert ready() == {"grey", "digits", "digits_raw"}
            client.unload_model("digits_raw")
            assert ready() == {"grey", "digits"}
            client.load_model("digits_raw")
            client.unload_model("grey")
            with pytest.raises(InferenceServerException, match="step 'grey' of ensemble 'digits_raw' is not loaded"):
                client.infer("digits_raw", [tensor(tritonclient.http, "PIXELS", pixels(1), "UINT8")])
            client.load_model("digits_raw")
            client.unload_model("digits_raw", unload_dependents=True)
            # The step that was unloaded by itself stays so until it is asked for.
            assert ready() == set()


@pytest.fixture
def archives(tmp_path):
    """A repository with the ensemble and its steps in two archives, packed as users do."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("one.tar.gz", "two.tar"):
        with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as archive:
            for model in ("digits", "grey", "digits_raw"):
                archive.add(EXAMPLES / model, f"./{model}")
    return folder


def test_archives_with_an_ensemble_and_its_steps_serve_side_by_side(archives, tmp_path):
    with running_server(archives, tmp_path, "--cache-dir", tmp_path / "cache") as server:
        with tritonclient.http.InferenceServerClient(server.http) as client:
            for model in ("one", "two"):
                result = client.infer(model, [tensor(tritonclient.http, "PIXELS", pixels(8), "UINT8")])
                assert (result.as_numpy("scores").argmax(axis=1) == heldout()[1][:8]).mean() > 0.8
            assert {row["name"] for row in client.get_model_repository_index()} == {"one", "two"}
            names = lambda: {row["name"] for row in requests.get(f"http://{server.http}/v1/residency", timeout=10).json()["models"]}
            assert names() == {"one", "one//grey", "one//digits", "two", "two//grey", "two//digits"}
            client.unload_model("one")
            assert "one//grey" not in names() and "two//grey" in names()


def test_check_knows_ensembles_in_folders_and_archives(archives, tmp_path):
    check = lambda path: subprocess.run([binary(), "check", path], capture_output=True, text=True, timeout=60)
    said = check(EXAMPLES / "digits_raw")
    assert said.returncode == 0 and "ensemble        of grey, digits" in said.stdout, said
    said = check(archives / "one.tar.gz")
    assert said.returncode == 0 and "one/grey: ok" in said.stdout and "one/digits: ok" in said.stdout, said
    wrong = tmp_path / "wrong"
    for model in ("digits", "grey", "digits_raw"):
        shutil.copytree(EXAMPLES / model, wrong / model)
    config = wrong / "grey/config.pbtxt"
    config.write_text(config.read_text().replace("TYPE_UINT8", "TYPE_INT8"))
    said = check(wrong / "digits_raw")
    assert said.returncode != 0 and "tensor 'PIXELS' is TYPE_INT8 for input 'PIXELS' of step 'grey'" in said.stdout, said
