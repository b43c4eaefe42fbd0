"""Every example model through the clients that users have, against Python's onnxruntime."""

import json
import re
import subprocess
import zlib

import ml_dtypes
import numpy as np
import pytest
import requests
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from harness import (
    ENSEMBLES,
    EXAMPLES,
    MODELS,
    STREAMING,
    TORCH,
    assert_same,
    expected,
    heldout,
    inputs_of,
    json_outputs,
    json_request,
    running_server,
)

BATCHES = [1, 3, 8]


def client_input(name, array, binary=True):
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return tensor.set_data_from_numpy(array, binary_data=binary)


def client_inputs(inputs, binary=True):
    return [client_input(name, array, binary) for name, array in inputs.items()]


def assert_result(result, wanted):
    for name, array in wanted.items():
        assert_same(result.as_numpy(name), array, name)


def post(url, model, request, **options):
    return requests.post(f"{url}/v2/models/{model}/infer", json=request, timeout=30, **options)


# --- right answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("model", MODELS)
def test_binary_tensors_give_what_onnxruntime_gives(client, model, batch):
    inputs = inputs_of(model, batch)
    wanted = expected(model, inputs)
    result = client.infer(model, client_inputs(inputs))
    assert_result(result, wanted)
    assert [output["name"] for output in result.get_response()["outputs"]] == list(wanted)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("model", [model for model in MODELS if model != "every_type"])
def test_json_tensors_of_the_triton_client_give_what_onnxruntime_gives(client, model, batch):
    inputs = inputs_of(model, batch)
    wanted = expected(model, inputs)
    outputs = [InferRequestedOutput(name, binary_data=False) for name in wanted]
    assert_result(client.infer(model, client_inputs(inputs, binary=False), outputs=outputs), wanted)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("model", MODELS)
def test_plain_json_gives_what_onnxruntime_gives(url, model, batch):
    inputs = inputs_of(model, batch)
    answer = post(url, model, json_request(inputs))
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    actual = json_outputs(answer.json())
    wanted = expected(model, inputs)
    assert list(actual) == list(wanted)
    for name, array in wanted.items():
        assert_same(actual[name], array, name)


def test_json_and_binary_tensors_mix_in_one_request_and_in_one_answer(client):
    inputs = inputs_of("add_sub", 3)
    mixed = [client_input("INPUT0", inputs["INPUT0"], binary=False), client_input("INPUT1", inputs["INPUT1"])]
    outputs = [InferRequestedOutput("OUTPUT0", binary_data=True), InferRequestedOutput("OUTPUT1", binary_data=False)]
    result = client.infer("add_sub", mixed, outputs=outputs)
    assert_result(result, expected("add_sub", inputs))
    assert "data" not in result.get_output("OUTPUT0") and len(result.get_output("OUTPUT1")["data"]) == 48


def test_a_nested_array_is_read_as_a_flat_one(url):
    row = [float(i) for i in range(16)]
    answers = []
    for data in (row + row, [row, row]):
        tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [2, 16], "data": data}
        answers.append(post(url, "identity", {"inputs": [tensor]}).json()["outputs"][0]["data"])
    assert answers == [row + row] * 2


def test_the_digits_model_recognises_97_percent_of_the_held_out_images(client):
    images, labels = heldout()
    right = 0
    for start in range(0, len(labels), 64):
        result = client.infer("digits", [client_input("image", images[start : start + 64])])
        right += int((result.as_numpy("scores").argmax(axis=1) == labels[start : start + 64]).sum())
    assert right / len(labels) >= 0.97


README = (EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize(
    "command, answer",
    re.findall(r"```sh\n(curl .*?)\n```.*?```json\n(.*?)\n```", README, re.DOTALL),
    ids=re.findall(r"^curl .*/v2/models/(\S+)/infer", README, re.MULTILINE),
)
def test_each_curl_of_the_readme_gives_the_answer_printed_below_it(server, command, answer):
    assert "http://localhost:8000/" in command
    command = command.replace("localhost:8000", server.http)
    actual = json.loads(subprocess.run(["bash", "-c", command], check=True, capture_output=True, timeout=30).stdout)
    printed = json.loads(answer)
    for output in (*actual["outputs"], *printed["outputs"]):
        output["data"] = [rounded(value) for value in output["data"]]
    assert actual == printed


def rounded(value):
    """Floats, and the scores before labels, to four places: README prints fewer than the server."""
    if isinstance(value, str) and value.count(":") == 2:
        score, rest = value.split(":", 1)
        return [rounded(float(score)), rest]
    return round(value, 4) if isinstance(value, float) else value


# --- tensors that are hard to carry -----------------------------------------------------------------------------------


def test_nan_infinity_and_signed_zero_come_back_bit_by_bit(client):
    bits = np.array(
        [[0x7FC00000, 0x7F800001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x80000000, 1, 0x7F7FFFFF]], np.uint32
    )
    result = client.infer("identity", [client_input("INPUT0", bits.view(np.float32))])
    assert np.array_equal(result.as_numpy("OUTPUT0").view(np.uint32), bits)


def test_nan_and_infinity_have_the_json_form_of_python_and_triton(url):
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [float("nan"), float("inf"), float("-inf"), 1.5]}
    answer = requests.post(f"{url}/v2/models/identity/infer", data=json.dumps({"inputs": [tensor]}), timeout=30)
    assert answer.status_code == 200 and "[NaN,Infinity,-Infinity,1.5]" in answer.text
    data = json.loads(answer.text)["outputs"][0]["data"]
    assert np.isnan(data[0]) and data[1:] == [np.inf, -np.inf, 1.5]


def test_a_nan_is_no_integer(url):
    tensor = {"name": "IN_INT32", "datatype": "INT32", "shape": [1], "data": [float("nan")]}
    answer = requests.post(f"{url}/v2/models/every_type/infer", data=json.dumps({"inputs": [tensor]}), timeout=30)
    assert answer.status_code == 400 and "IN_INT32" in answer.json()["error"]


@pytest.mark.parametrize("model", ["half", "every_type"])
def test_fp16_and_bf16_have_a_json_form(url, model):
    if model == "half":
        request = {"inputs": [{"name": "x", "datatype": "FP16", "shape": [1, 4], "data": [0, 65504, -0.5, 1e-7]}]}
        assert post(url, model, request).json()["outputs"][0]["data"] == [1, 32752, 0.75, 1]
        return
    inputs = inputs_of(model, 3) | {
        "IN_FP16": np.array([0.1, -65504, 6e-8], np.float16),
        "IN_BF16": np.array([0.1, -3e38, 1e-38], ml_dtypes.bfloat16),
    }
    outputs = json_outputs(post(url, model, json_request(inputs)).json())
    for kind in ("FP16", "BF16"):
        assert outputs[f"OUT_{kind}"].tobytes() == inputs[f"IN_{kind}"].tobytes()


def test_any_bytes_come_back_from_a_bytes_tensor(client):
    inputs = inputs_of("every_type", 8)
    inputs["IN_BYTES"] = np.array(
        [b"", b"\x00", b"a\x00b", b"\xff\xfe", bytes(range(256)), b"x" * 70_000], dtype=object
    )
    result = client.infer("every_type", client_inputs(inputs))
    assert list(result.as_numpy("OUT_BYTES")) == list(inputs["IN_BYTES"])


def test_escapes_and_every_plane_of_unicode_come_back_from_json(url):
    texts = ['"\\/\b\f\n\r\t', "\x00\x1f\x7f", "é", "€", "\U0001f600", "\u2028"]
    inputs = {"TEXT": np.array(texts, dtype=object)}
    for escape in (True, False):
        body = json.dumps(json_request(inputs), ensure_ascii=escape).encode()
        answer = requests.post(f"{url}/v2/models/text/infer", data=body, timeout=30)
        assert answer.json()["outputs"][0]["data"] == [f"Hello, {text}!" for text in texts]


def test_a_megabyte_goes_through_in_both_forms(client, url):
    inputs = {"INPUT0": np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)}
    result = client.infer("identity", client_inputs(inputs))
    assert np.array_equal(result.as_numpy("OUTPUT0"), inputs["INPUT0"])
    outputs = json_outputs(post(url, "identity", json_request(inputs)).json())
    assert np.array_equal(outputs["OUTPUT0"], inputs["INPUT0"]), "the shortest decimal must give back the same float"


# --- the ways of asking -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
def test_classification_gives_score_index_and_label_of_the_best(client, binary):
    inputs = inputs_of("digits", 3)
    scores = expected("digits", inputs)["scores"]
    output = InferRequestedOutput("scores", binary_data=binary, class_count=3)
    classes = client.infer("digits", client_inputs(inputs), outputs=[output]).as_numpy("scores")
    assert classes.shape == (3, 3)
    labels = (EXAMPLES / "digits/labels.txt").read_text().split()
    for row, best in zip(scores, classes):
        for place, text in zip(np.argsort(-row), best):
            score, index, label = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert (int(index), label) == (place, labels[place])
            assert float(score) == pytest.approx(row[place], abs=1e-5)


def test_classification_asked_for_more_classes_than_there_are_gives_all(client):
    output = InferRequestedOutput("scores", class_count=50)
    result = client.infer("digits", client_inputs(inputs_of("digits", 1)), outputs=[output])
    assert result.as_numpy("scores").shape == (1, 10)


def test_classification_without_labels_gives_score_and_index(client):
    output = InferRequestedOutput("probabilities", class_count=1)
    result = client.infer("iris", client_inputs(inputs_of("iris", 3)), outputs=[output])
    assert all(text.count(b":") == 1 for text in result.as_numpy("probabilities").ravel())


@pytest.mark.parametrize("answer", [None, "gzip", "deflate"])
@pytest.mark.parametrize("request_", [None, "gzip", "deflate"])
def test_requests_and_answers_may_be_compressed(client, request_, answer):
    inputs = {"INPUT0": np.tile(np.arange(64, dtype=np.float32), (64, 1))}
    for binary in (True, False):
        result = client.infer(
            "identity",
            client_inputs(inputs, binary),
            outputs=[InferRequestedOutput("OUTPUT0", binary_data=binary)],
            request_compression_algorithm=request_,
            response_compression_algorithm=answer,
        )
        assert_result(result, expected("identity", inputs))


@pytest.mark.parametrize(
    "accepted, used",
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.1, deflate;q=0.9", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("identity", None),
        ("br", None),
        ("", None),
    ],
)
def test_an_answer_is_compressed_as_the_client_accepts_it(url, accepted, used):
    inputs = {"INPUT0": np.zeros((64, 64), np.float32)}
    answer = post(url, "identity", json_request(inputs), headers={"Accept-Encoding": accepted})
    assert answer.headers.get("Content-Encoding") == used
    assert_same(json_outputs(answer.json())["OUTPUT0"], inputs["INPUT0"])


def test_a_deflated_answer_is_a_zlib_stream(url):
    request = json_request({"INPUT0": np.zeros((64, 64), np.float32)})
    with post(url, "identity", request, headers={"Accept-Encoding": "deflate"}, stream=True) as answer:
        assert json.loads(zlib.decompress(answer.raw.read(decode_content=False)))["model_name"] == "identity"


def test_requests_may_be_sent_without_waiting(client):
    batches = [inputs_of("add_sub", batch) for batch in range(1, 9)]
    sent = [client.async_infer("add_sub", client_inputs(inputs)) for inputs in batches]
    for inputs, pending in zip(batches, sent):
        assert_result(pending.get_result(), expected("add_sub", inputs))


def test_only_the_outputs_asked_for_are_given(client, url):
    inputs = inputs_of("add_sub", 1)
    result = client.infer("add_sub", client_inputs(inputs), outputs=[InferRequestedOutput("OUTPUT1")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["OUTPUT1"]
    assert_same(result.as_numpy("OUTPUT1"), expected("add_sub", inputs)["OUTPUT1"])
    answer = post(url, "add_sub", json_request(inputs, outputs=[{"name": "OUTPUT0"}]))
    assert list(json_outputs(answer.json())) == ["OUTPUT0"]


def test_the_request_id_comes_back(client):
    inputs = client_inputs(inputs_of("scale", 1))
    assert client.infer("scale", inputs, request_id="a/β 1").get_response()["id"] == "a/β 1"
    assert "id" not in client.infer("scale", inputs).get_response()


def test_parameters_that_mean_nothing_to_the_model_do_no_harm(client):
    inputs = inputs_of("scale", 3)
    result = client.infer(
        "scale", client_inputs(inputs), parameters={"colour": "blue", "weight": 1.5, "on": True}, timeout=10_000_000
    )
    assert_result(result, expected("scale", inputs))


def test_a_raw_body_is_the_one_input_of_the_model(url):
    def ask(model, body):
        headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
        answer = requests.post(f"{url}/v2/models/{model}/infer", data=body, headers=headers, timeout=30)
        assert answer.status_code == 200, answer.text
        length = int(answer.headers["Inference-Header-Content-Length"])
        return json.loads(answer.content[:length]), answer.content[length:]

    x = np.array([1, -2, 0.5], np.float32)
    head, data = ask("scale", x.tobytes())
    assert head["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [3], "parameters": {"binary_data_size": 12}}]
    assert_same(np.frombuffer(data, np.float32), x * 3)

    image = inputs_of("digits", 1)["image"]
    head, data = ask("digits", image.tobytes())
    assert head["outputs"][0]["shape"] == [1, 10]
    assert_same(np.frombuffer(data, np.float32), expected("digits", {"image": image})["scores"][0])


def test_both_versions_of_a_model_answer_under_their_numbers(client):
    inputs = inputs_of("scale", 8)
    for version in ("1", "2"):
        result = client.infer("scale", client_inputs(inputs), model_version=version)
        assert result.get_response()["model_version"] == version
        assert_result(result, expected("scale", inputs, version))
    assert client.infer("scale", client_inputs(inputs)).get_response()["model_version"] == "2"


def test_generate_takes_and_gives_plain_members(url):
    answer = requests.post(f"{url}/v2/models/text/generate", json={"TEXT": "two words", "id": "7"}, timeout=30)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["GREETING"], body["WORDS"], body["IS_NUMBER"]) == ("Hello, two words!", 2, False)
    assert (body["model_name"], body["model_version"]) == ("text", "1")


def test_generate_stream_gives_server_sent_events(url):
    answer = requests.post(f"{url}/v2/models/text/generate_stream", json={"TEXT": ["a b c", "1"]}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    answer.encoding = "utf-8"
    events = [event for event in answer.text.split("\n\n") if event]
    assert len(events) == 1 and events[0].startswith("data: ")
    body = json.loads(events[0].removeprefix("data: "))
    assert (body["GREETING"], body["WORDS"]) == (["Hello, a b c!", "Hello, 1!"], [3, 1])


# --- what the server says of itself and of its models -----------------------------------------------------------------

TENSORS = {
    "add_sub": ("INPUT0 FP32 -1,16; INPUT1 FP32 -1,16", "OUTPUT0 FP32 -1,16; OUTPUT1 FP32 -1,16"),
    "digits": ("image FP32 -1,1,8,8", "scores FP32 -1,10"),
    "half": ("x FP16 -1,4", "y FP16 -1,4"),
    "identity": ("INPUT0 FP32 -1,-1", "OUTPUT0 FP32 -1,-1"),
    "iris": ("x FP32 -1,4", "probabilities FP32 -1,3"),
    "scale": ("x FP32 -1", "y FP32 -1"),
    "text": ("TEXT BYTES -1", "GREETING BYTES -1; WORDS INT64 -1; IS_NUMBER BOOL -1"),
}


def tensors(text):
    for tensor in text.split("; "):
        name, datatype, shape = tensor.split()
        yield {"name": name, "datatype": datatype, "shape": [int(dim) for dim in shape.split(",")]}


def test_the_server_is_live_and_ready_and_says_what_it_is(client):
    assert client.is_server_live() and client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata["name"] == "roundhouse" and metadata["version"]
    assert {"classification", "binary_tensor_data", "model_repository", "statistics"} <= set(metadata["extensions"])


@pytest.mark.parametrize("model", TENSORS)
def test_model_metadata_names_versions_and_tensors(client, model):
    client.load_model(model)
    metadata = client.get_model_metadata(model)
    inputs, outputs = TENSORS[model]
    assert metadata["name"] == model
    assert metadata["versions"] == (["1", "2"] if model == "scale" else ["1"])
    assert metadata["platform"] in (["identity"] if model == "identity" else ["onnxruntime", "onnxruntime_onnx"])
    assert metadata["inputs"] == list(tensors(inputs))
    assert metadata["outputs"] == list(tensors(outputs))


def test_the_model_config_is_complete(client):
    for model in ("digits", "scale", "iris"):
        client.load_model(model)
    digits = client.get_model_config("digits")
    assert (digits["name"], digits["backend"], digits["max_batch_size"]) == ("digits", "onnxruntime", 64)
    assert digits["version_policy"] == {"latest": {"num_versions": 1}}
    image, scores = digits["input"][0], digits["output"][0]
    assert (image["name"], image["data_type"], image["dims"]) == ("image", "TYPE_FP32", [1, 8, 8])
    assert (scores["dims"], scores["label_filename"]) == ([10], "labels.txt")
    assert client.get_model_config("scale", "1")["version_policy"] == {"all": {}}
    iris = client.get_model_config("iris")
    assert [tensor["name"] for tensor in (*iris["input"], *iris["output"])] == ["x", "probabilities"]


def state_of(client, model):
    rows = [row for row in client.get_model_repository_index() if row["name"] == model]
    return {row.get("version"): row.get("state") for row in rows}


def test_the_index_lists_every_model_and_follows_loads_and_unloads(client):
    assert {row["name"] for row in client.get_model_repository_index()} == {*MODELS, *STREAMING, *ENSEMBLES, *TORCH}
    client.load_model("scale")
    assert state_of(client, "scale") == {"1": "READY", "2": "READY"}
    assert client.is_model_ready("scale") and client.is_model_ready("scale", "1")
    client.unload_model("scale")
    assert "READY" not in state_of(client, "scale").values()
    assert not client.is_model_ready("scale")
    assert client.is_server_ready()


def test_an_unloaded_model_comes_back_when_it_is_asked_for(client):
    inputs = inputs_of("half", 3)
    client.load_model("half")
    client.unload_model("half")
    assert_result(client.infer("half", client_inputs(inputs)), expected("half", inputs))
    assert state_of(client, "half") == {"1": "READY"}


def test_loading_a_loaded_model_and_unloading_twice_do_no_harm(client):
    for _ in range(2):
        client.load_model("add_sub")
    for _ in range(2):
        client.unload_model("add_sub")
    inputs = inputs_of("add_sub", 1)
    assert_result(client.infer("add_sub", client_inputs(inputs)), expected("add_sub", inputs))


def test_v2_models_lists_every_model(url):
    answer = requests.get(f"{url}/v2/models", timeout=30)
    assert answer.status_code == 200
    assert all(f'"{model}"' in answer.text for model in MODELS)


def test_statistics_count_requests_and_rows(client):
    def counts():
        (row,) = client.get_inference_statistics("digits", "1")["model_stats"]
        assert (row["name"], row["version"]) == ("digits", "1")
        success = row["inference_stats"]["success"]
        return np.array([row["inference_count"], row["execution_count"], success["count"]]), success["ns"]

    inputs = client_inputs(inputs_of("digits", 3))
    client.infer("digits", inputs)
    before, time_before = counts()
    for _ in range(4):
        client.infer("digits", inputs)
    after, time_after = counts()
    assert list(after - before) == [12, 4, 4]
    assert time_after > time_before
    everything = client.get_inference_statistics()["model_stats"]
    assert "digits" in {row["name"] for row in everything}


def test_metrics_count_requests_and_forget_unloaded_models(client, server):
    def series(model):
        return [line for line in server.scrape().splitlines() if f'model="{model}"' in line]

    def successes():
        return sum(
            float(line.split()[-1]) for line in series("iris") if line.startswith("nv_inference_request_success")
        )

    inputs = client_inputs(inputs_of("iris", 3))
    client.infer("iris", inputs)
    before = successes()
    client.infer("iris", inputs)
    assert successes() == before + 1
    client.unload_model("iris")
    assert series("iris") == []


# --- what the client is told when it is wrong -------------------------------------------------------------------------


def refusal(client, model, inputs, **options):
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, client_inputs(inputs), **options)
    return caught.value.status(), caught.value.message()


def test_an_unknown_model_is_named(client):
    status, message = refusal(client, "nowhere", inputs_of("scale", 1))
    assert status == "404" and "Request for unknown model: 'nowhere' is not found" in message
    assert not client.is_model_ready("nowhere")
    for call in (client.get_model_metadata, client.get_model_config):
        with pytest.raises(InferenceServerException, match="Request for unknown model: 'nowhere' is not found"):
            call("nowhere")
    with pytest.raises(InferenceServerException, match="requested model 'nowhere' is not available"):
        client.get_inference_statistics("nowhere")
    with pytest.raises(
        InferenceServerException, match="failed to load 'nowhere', failed to poll from model repository"
    ):
        client.load_model("nowhere")
    client.unload_model("nowhere")


def test_an_unknown_version_is_named(client):
    status, message = refusal(client, "scale", inputs_of("scale", 1), model_version="9")
    assert status == "404" and "Request for unknown model: 'scale' version 9 is not found" in message
    assert not client.is_model_ready("scale", "9")


def test_an_unknown_input_is_named(client):
    rows = inputs_of("add_sub", 1)
    status, message = refusal(client, "add_sub", {"INPUT0": rows["INPUT0"], "Z": rows["INPUT1"]})
    assert status == "400" and "unexpected inference input 'Z' for model 'add_sub'" in message


def test_a_missing_input_is_named(client):
    inputs = inputs_of("add_sub", 1)
    del inputs["INPUT1"]
    status, message = refusal(client, "add_sub", inputs)
    assert status == "400" and "expected 2 inputs but got 1 inputs for model 'add_sub'." in message
    assert "Got input(s) ['INPUT0'], but missing required input(s) ['INPUT1']." in message


def test_an_unknown_output_is_named(client):
    status, message = refusal(client, "scale", inputs_of("scale", 1), outputs=[InferRequestedOutput("Q")])
    assert status == "400" and "unexpected inference output 'Q' for model 'scale'" in message


def test_a_wrong_type_is_named(client):
    status, message = refusal(client, "scale", {"x": np.array([1], np.int32)})
    assert status == "400" and "inference input 'x' data-type is 'INT32', but model 'scale' expects 'FP32'" in message


@pytest.mark.parametrize("shape", [(1, 5), (1,), (1, 16, 1)])
def test_a_wrong_shape_is_printed_beside_the_right_one(client, shape):
    inputs = inputs_of("add_sub", 1) | {"INPUT1": np.zeros(shape, np.float32)}
    status, message = refusal(client, "add_sub", inputs)
    assert status == "400"
    assert "unexpected shape for input 'INPUT1' for model 'add_sub'. Expected [-1,16], got " in message
    assert f"got [{','.join(map(str, shape))}]." in message


def test_inputs_of_different_batch_sizes_are_refused(client):
    status, message = refusal(
        client, "add_sub", {"INPUT0": np.zeros((1, 16), np.float32), "INPUT1": np.zeros((2, 16), np.float32)}
    )
    assert status == "400" and "batch" in message


def test_too_large_a_batch_is_refused_with_its_limit(client):
    row = np.zeros((9, 16), np.float32)
    status, message = refusal(client, "add_sub", {"INPUT0": row, "INPUT1": row})
    assert status == "400" and "inference request batch-size must be <= 8 for 'add_sub'" in message


def test_a_refusal_carries_the_request_id(client):
    _, message = refusal(client, "scale", {"x": np.array([1], np.int32)}, request_id="r-1")
    assert message.startswith("[request id: r-1] ")
    _, message = refusal(client, "scale", {"x": np.array([1], np.int32)})
    assert message.startswith("[request id: <id_unknown>] ")


# --- the process ------------------------------------------------------------------------------------------------------


def test_sigterm_ends_an_idle_server_with_exit_code_0(tmp_path):
    repository = tmp_path / "models"
    repository.mkdir()
    with running_server(repository, tmp_path) as server:
        assert requests.get(f"http://{server.http}/v2/health/ready", timeout=10).status_code == 200
