"""SageMaker's runtime API through boto3 and plain HTTP; each way into a model with the bodies that users really send."""

import gzip
import json
import os
import shutil
import tarfile
import threading
import time

import numpy as np
import pytest
import requests
from botocore import UNSIGNED
from botocore.exceptions import ClientError
from harness import EXAMPLES, assert_same, binary, expected, inputs_of, running_server
from proxies import wait_until
from s3 import pack
from sagemaker import (
    BINARY,
    MIB,
    TARGET,
    Gate,
    call,
    container,
    example,
    floats,
    identity,
    in_thread,
    invoke,
    json_body,
    made,
    onnx,
    path_of,
    runtime,
    slow,
    slow_to_load,
    sums,
    triton_body,
    triton_result,
    until,
    weighing,
)

VECTOR = identity({"x": ("FP32", [-1])})


# --- the bodies that users send, through each way in ------------------------------------------------------------------


def image_mean():
    """`y`, the mean of each channel of an image `input`: a large request, a small answer."""
    return onnx(
        made.model(
            made.node("GlobalAveragePool", ["input"], ["y"]),
            made.value(11, "input", made.FLOAT, ["n", 3, 224, 224]),
            made.value(12, "y", made.FLOAT, ["n", 3, 1, 1]),
        )
    )


COLUMNS = {f"column_{number}": ("STRING" if number % 3 == 0 else "FP32", [1]) for number in range(14)}

# What users send, as the notebooks of AWS have it: R1 an image as JSON, R2 with binary tensors, R3 two inputs of a BERT,
# R4 three of another one with free dimensions, R5 the columns of a table, R6 the bytes of a file.
SHAPES = {
    "R1": image_mean(),
    "R2": sums(),
    "R3": identity({"token_ids": ("INT32", [128]), "attn_mask": ("INT32", [128])}, 8),
    "R3-torch": identity({"INPUT__0": ("INT32", [512]), "INPUT__1": ("INT32", [512])}, 8),
    "R4": identity({name: ("INT64", [-1, -1]) for name in ("input_ids", "token_type_ids", "attention_mask")}),
    "R5": identity(COLUMNS, 882_352),
    "R6": identity({"DALI_INPUT_0": ("UINT8", [-1])}, 16),
    "digits": example("digits"),
    "every_type": example("every_type"),
    "text": example("text"),
}


def shape_inputs(shape):
    random = np.random.default_rng(7)
    if shape == "R1":
        return {"input": random.random((1, 3, 224, 224), np.float32)}
    if shape == "R2":
        return {name: random.integers(-999, 999, (3, 16), np.int32) for name in ("INPUT0", "INPUT1")}
    if shape.startswith("R3"):
        length = 512 if shape.endswith("torch") else 128
        names = ("INPUT__0", "INPUT__1") if length == 512 else ("token_ids", "attn_mask")
        return {name: random.integers(0, 30_522, (1, length), np.int32) for name in names}
    if shape == "R4":
        return {name: random.integers(0, 30_522, (2, 17)) for name in ("input_ids", "token_type_ids", "attention_mask")}
    if shape == "R5":
        texts = np.array([["Bau"], ["größe"], [""], ["a,b"], ["NaN"]], object)
        return {
            name: texts if kind == "STRING" else random.random((5, 1), np.float32)
            for name, (kind, _) in COLUMNS.items()
        }
    if shape == "R6":
        return {"DALI_INPUT_0": np.frombuffer(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" * 3000, np.uint8)[None]}
    return inputs_of(shape, 3)


def shape_outputs(shape, inputs):
    if shape == "R1":
        return {"y": inputs["input"].mean((2, 3), np.float64, keepdims=True).astype(np.float32)}
    if shape == "R2":
        return {"OUTPUT0": inputs["INPUT0"] + inputs["INPUT1"], "OUTPUT1": inputs["INPUT0"] - inputs["INPUT1"]}
    if shape.startswith("R"):
        return {f"{name}_out": array for name, array in inputs.items()}
    return expected(shape, inputs)


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    """Each way into the models: a function of name, body and content type that gives (content type, body)."""
    inside, outside = tmp_path_factory.mktemp("inside"), tmp_path_factory.mktemp("outside")
    for name, model in SHAPES.items():
        model(outside / "models" / name)
    with container(inside) as platform, running_server(outside / "models", outside, "--sagemaker-port", "0") as server:
        for name, model in SHAPES.items():
            platform.put(name, model, name)
        clients = {"container, runtime": platform.address, "server": server.sagemaker, "kserve port": server.http}
        clients = {way: runtime(address) for way, address in clients.items()}

        def ask(way, name, body, content_type):
            if way == "container":
                headers = {"Content-Type": content_type}
                answer = requests.post(
                    f"http://{platform.address}{path_of(name)}/invoke", data=body, headers=headers, timeout=60
                )
                assert answer.status_code == 200, answer.text
                return answer.headers["Content-Type"], answer.content
            options = {"EndpointName": "ep", "TargetModel": name, "ContentType": content_type, "Body": body}
            answer = clients[way].invoke_endpoint(**options)
            return answer["ContentType"], answer["Body"].read()

        yield ask


WAYS = ["container", "container, runtime", "server", "kserve port"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["json", "binary", "binary in", "binary out"])
@pytest.mark.parametrize("shape", SHAPES)
def test_A02_each_body_that_users_send_has_the_reference_answer(ways, shape, form, way):
    inputs = shape_inputs(shape)
    wanted = shape_outputs(shape, inputs)
    is_binary_out = form in ("binary", "binary out")
    if form == "json":
        body, content_type = json_body(inputs), "application/octet-stream"
    elif shape == "every_type" and form == "binary out":
        pytest.skip("tritonclient has no JSON for BF16")
    else:
        body, content_type = triton_body(inputs, list(wanted), form != "binary out", is_binary_out)
    got_type, got = ways(way, shape, body, content_type)
    assert got_type.startswith(BINARY) == is_binary_out
    if form != "json" or shape != "every_type":
        result = triton_result(got, got_type)
        for name, array in wanted.items():
            assert_same(result.as_numpy(name), array, f"{name} of {shape}")
    answer = json.loads(got[: int(got_type.removeprefix(BINARY))] if is_binary_out else got)
    assert answer["model_name"] == shape and answer["model_version"] == "1"
    assert [output["name"] for output in answer["outputs"]] == list(wanted)


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize(
    "content_type, body",
    [("text/csv", "5.1,3.5,1.4,0.2\n"), ("application/json", "[[0.5]]"), ("application/x-npy", b"\x93NUMPY\x01\x00v"),
     ("application/x-image", b"\xff\xd8\xff\xe0"), ("application/json", '{"image": "aGVsbG8="}')],
)  # fmt: skip
def test_R7_bodies_of_other_servers_are_the_models_error(ways, way, content_type, body):
    with pytest.raises(ClientError) as raised:
        ways(way, "R2", body, content_type)
    answer = raised.value.response
    assert (answer["Error"]["Code"], answer["OriginalStatusCode"]) == ("ModelError", 400), answer
    assert answer["OriginalMessage"]


# --- a server with models of its own ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Models as they lie below an endpoint's prefix: folders and archives, some in folders of their own."""
    root = tmp_path_factory.mktemp("repository")
    made_in = tmp_path_factory.mktemp("archives")
    for name in ("digits", "scale", "iris"):
        example(name)(root / name)
    VECTOR(root / "vector")
    identity({"x": ("FP32", [-1])}, inference_type="generate")(root / "generating")
    identity({"x": ("FP32", [-1])}, inference_type="generate_stream")(root / "streaming")
    slow(600)(root / "slow")
    VECTOR(root / "company_a/one")
    VECTOR(root / "company_b/one")
    slow_to_load()(root / "chain")
    onnx(b"not a model" * 100)(root / "broken")
    # As users pack them: `tar -C repository -czf x.tar.gz model`, and with a dot.
    example("add_sub")(made_in / "one/sentence")
    config = made_in / "one/sentence/config.pbtxt"
    config.write_text(config.read_text().replace('"add_sub"', '"sentence_onnx"'))
    (root / "model_store").mkdir()
    with tarfile.open(root / "model_store/custom_1.tar.gz", "w:gz") as tar:
        tar.add(made_in / "one/sentence", "sentence")
    with tarfile.open(root / "dotted.tar.gz", "w:gz") as tar:
        tar.add(made_in / "one", ".")
    return root


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    flags = ["--sagemaker-port", "0", "--cache-dir", folder / "cache", "--load-retry-ms", "0"]
    with running_server(repository, folder, *flags) as server:
        yield server


@pytest.fixture
def client(server):
    return runtime(server.sagemaker)


def refused(code, status, asked, *arguments, **options):
    """The error that boto3 raises: its class by name, its status, and the answer behind it."""
    with pytest.raises(ClientError) as raised:
        asked(*arguments, **options)
    answer = raised.value.response
    assert (answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]) == (code, status), answer
    assert answer["Error"]["Message"]
    assert answer["ResponseMetadata"]["RequestId"]
    return raised.value


def test_an_invocation_has_the_headers_of_the_service(client):
    seen = set()
    for variant in (None, "blue"):
        options = {"TargetVariant": variant} if variant else {}
        answer, result = invoke(client, "scale", floats(1, 2), CustomAttributes="trace=1;x", **options)
        assert list(result.as_numpy("y")) == [3, 6]
        assert answer["ContentType"] == "application/json"
        assert answer["InvokedProductionVariant"] == (variant or "AllTraffic")
        assert answer["CustomAttributes"] == "trace=1;x"
        seen.add(answer["ResponseMetadata"]["RequestId"])
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        assert headers["x-model-state"] in ("device", "disk") and int(headers["x-load-ms"]) >= 0
    assert len(seen) == 2 and "" not in seen
    answer, _ = invoke(client, "scale", floats(1))
    assert "CustomAttributes" not in answer


def test_everything_else_that_boto3_may_send_is_taken(client):
    options = {
        "Accept": "application/json",
        "TargetContainerHostname": "h",
        "InferenceId": "id-1",
        "EnableExplanations": "`true`",
        "InferenceComponentName": "component",
        "SessionId": "s-1",
    }
    assert invoke(client, "scale", floats(1), **options)[1].as_numpy("y") == [3]


@pytest.mark.parametrize(
    "target",
    ["model_store/custom_1.tar.gz", "model_store/custom_1", "/model_store/custom_1.tar.gz", "dotted.tar.gz", "dotted"],
)
def test_A04_archives_are_found_by_their_keys_however_they_were_packed(client, target):
    inputs = inputs_of("add_sub", 3)
    _, result = invoke(client, target, inputs)
    for name, array in expected("add_sub", inputs).items():
        assert_same(result.as_numpy(name), array, name)
    assert result.get_response()["model_name"] == target.removeprefix("/")


def test_an_archive_that_is_put_there_later_is_found(client, repository, tmp_path):
    refused("ValidationError", 400, invoke, client, "late.tar.zst", floats(1))
    pack(binary(), EXAMPLES / "scale", tmp_path / "late.tar.zst")
    shutil.copy(tmp_path / "late.tar.zst", repository / "late.tar.zst")
    assert invoke(client, "late.tar.zst", floats(1))[1].as_numpy("y") == [3]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_are_the_classes_of_the_client(client):
    def raised(kind, *arguments, **options):
        with pytest.raises(kind) as error:
            invoke(client, *arguments, **options)
        return error.value.response

    exceptions = client.exceptions
    answer = raised(exceptions.ValidationError, "nowhere", floats(1))
    assert "nowhere" in answer["Error"]["Message"]
    answer = raised(exceptions.ModelError, "scale", {"wrong": np.ones(1, np.float32)})
    assert answer["OriginalStatusCode"] == 400 and "wrong" in answer["OriginalMessage"]
    assert answer["OriginalMessage"] in answer["Message"] and "LogStreamArn" in answer
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 424
    answer = raised(exceptions.ModelError, "broken", floats(1))
    assert 400 <= answer["OriginalStatusCode"] < 600 and "broken" in answer["OriginalMessage"]


def test_a_target_model_must_be_named_where_there_are_several(client):
    error = refused("ValidationError", 400, invoke, client, None, floats(1))
    assert "TargetModel" in str(error)


BAD_TARGETS = [
    "/", "//scale", "..", "../scale", "a/../scale", "scale/..", "scale/", ".", "./scale", "a\\b", "x" * 1025,
    "%2e%2e/scale", "scale%2f..", "file:///etc/passwd", "s3://bucket/x", "/etc/passwd", "etc/passwd", "scale/config.pbtxt",
    "scale/2", "model_store", "company_a", "*", "scale?x=1",
]  # fmt: skip


@pytest.mark.parametrize("target", BAD_TARGETS, ids=lambda target: target[:30])
def test_a_target_that_is_no_model_is_a_validation_error(client, target):
    error = refused("ValidationError", 400, invoke, client, target, floats(1))
    assert "passwd:" not in str(error) and len(str(error)) < 2000
    assert invoke(client, "scale", floats(1))[1].as_numpy("y") == [3]


def test_custom_attributes_have_the_services_limit(client):
    assert invoke(client, "scale", floats(1), CustomAttributes="c" * 1024)[0]["CustomAttributes"] == "c" * 1024
    refused("ValidationError", 400, invoke, client, "scale", floats(1), CustomAttributes="c" * 1025)


def padded(size):
    """A request of that many bytes."""
    body = json_body(floats(1))
    return body + b" " * (size - len(body))


def test_a_body_over_the_limit_is_413_and_the_connection_goes_on(server, client):
    assert invoke(client, "scale", {}, Body=padded(6_291_456))[1].as_numpy("y") == [3], "6 MiB as SageMaker has it"
    for size in (6_291_457, 12_000_000, 40_000_000):
        error = refused("RequestEntityTooLargeException", 413, invoke, client, "scale", {}, Body=padded(size))
        assert "6291456" in str(error)
        assert invoke(client, "scale", floats(1))[1].as_numpy("y") == [3]
    answer = call(server.sagemaker, "POST", "/models/scale/invoke", padded(7_000_000))
    assert answer.status == 200, "the container's limit is another one"


def test_a_body_whose_length_nobody_announced_has_the_same_limit(server):
    def ask(size):
        pieces = (padded(size)[at : at + 60_000] for at in range(0, size, 60_000))
        url = f"http://{server.sagemaker}/endpoints/ep/invocations"
        return requests.post(url, data=pieces, headers={TARGET: "scale"}, timeout=30)

    assert ask(6_291_456).json()["outputs"][0]["data"] == [3]
    answer = ask(6_291_457)
    assert (answer.status_code, answer.headers["x-amzn-ErrorType"]) == (413, "RequestEntityTooLargeException")


def test_the_limit_and_the_endpoints_name_are_settings(repository, tmp_path):
    flags = ["--sagemaker-port", "0", "--endpoint-max-payload-bytes", "1000", "--endpoint-name", "ep"]
    with running_server(repository, tmp_path, *flags, "--sagemaker-model", "scale") as server:
        client = runtime(server.sagemaker)
        assert invoke(client, None, floats(1))[1].as_numpy("y") == [3], "the model that is configured"
        assert invoke(client, "vector", floats(1))[1].as_numpy("x_out") == [1]
        refused("RequestEntityTooLargeException", 413, invoke, client, "scale", {}, Body=padded(1001))
        error = refused("ValidationError", 400, invoke, client, "scale", floats(1), EndpointName="another")
        assert "another" in str(error)


def post(server, path="/endpoints/ep/invocations", body=b"", headers=None, method="POST"):
    """Plain HTTP, for what no client would send."""
    return call(server.sagemaker, method, path, body, headers)


@pytest.mark.parametrize(
    "headers",
    [{TARGET: ""}, {TARGET: "größe\xff".encode("latin-1")}, {TARGET: "scale\tx"}, {TARGET: "a,b"}, {TARGET: '"scale"'}],
    ids=["empty", "no UTF-8", "tab", "comma", "quoted"],
)
def test_a_target_header_that_is_no_name_is_a_validation_error(server, headers):
    answer = post(server, body=json_body(floats(1)), headers=headers)
    assert answer.status == 400 and answer.headers["x-amzn-ErrorType"] == "ValidationError", answer
    assert answer.json["Message"] and answer.headers["x-amzn-RequestId"]


@pytest.mark.parametrize(
    "method, path",
    [("GET", "/endpoints/ep/invocations"), ("PUT", "/endpoints/ep/invocations"), ("POST", "/endpoints/ep"),
     ("POST", "/endpoints/"), ("POST", "/endpoints//invocations"), ("POST", "/endpoints/a/b/invocations"),
     ("POST", "/endpoints/%2e%2e/../invocations/x"), ("POST", "/endpoints/ep/async-invocations")],
)  # fmt: skip
def test_what_the_endpoint_does_not_offer_is_refused(server, method, path):
    answer = post(server, path, json_body(floats(1)) if method != "GET" else b"", {TARGET: "scale"}, method)
    assert answer.status in (400, 404, 405), answer


@pytest.mark.parametrize("content_type", [BINARY + "x", BINARY + "-1", BINARY, BINARY + "999999", "x" + BINARY + "9"])
def test_a_header_size_that_lies_is_the_models_error(client, content_type):
    error = refused("ModelError", 424, invoke, client, "scale", floats(1), ContentType=content_type)
    assert error.response["OriginalStatusCode"] == 400


def test_compressed_bodies_are_understood_and_other_codings_are_415_behind_a_model_error(server):
    body = json_body(floats(1))
    answer = post(server, body=gzip.compress(body), headers={TARGET: "scale", "Content-Encoding": "gzip"})
    assert answer.status == 200, answer
    answer = post(server, body=body, headers={TARGET: "scale", "Content-Encoding": "br"})
    assert (answer.status, answer.json["OriginalStatusCode"]) == (424, 415), answer
    answer = post(server, body=body, headers={TARGET: "scale", "Content-Encoding": "gzip"})
    assert (answer.status, answer.json["OriginalStatusCode"]) == (424, 400), answer


def test_a_thousand_refusals_leave_no_file_and_no_thread_behind(server):
    def held():
        process = f"/proc/{server.process.pid}"
        return len(os.listdir(f"{process}/fd")), len(os.listdir(f"{process}/task"))

    good = json_body(floats(1))
    for warm in (True, False):
        files, threads = held()
        for _ in range(100):
            assert post(server, body=good).status == 400
            assert post(server, body=good, headers={TARGET: "../x"}).status == 400
            assert post(server, body=good, headers={TARGET: "nowhere"}).status == 400
            assert post(server, body=b"{", headers={TARGET: "scale"}).status == 424
            assert post(server, body=good, headers={TARGET: "scale", "Content-Type": BINARY + "x"}).status == 424
        if not warm:
            files_after, threads_after = held()
            assert files_after <= files + 2 and threads_after <= threads + 2


# --- keys -------------------------------------------------------------------------------------------------------------

SECRET, OTHER_SECRET, TOKEN = "wJalrXUtnFEMI/K7MDENG", "another/secret+of/others", "0123456789abcdef-token"
KEYS = f"""
[[key]]
id = "AKIDALL"
secret = "{SECRET}"

[[key]]
id = "AKIDCOMPANYA"
secret = "{OTHER_SECRET}"
models = ["company_a/*", "scal?"]

[[token]]
name = "ci"
token = "{TOKEN}"
models = ["company_b/*"]
"""


@pytest.fixture(scope="module")
def guarded(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys.toml").write_text(KEYS)
    (folder / "keys.toml").chmod(0o600)
    with running_server(repository, folder, "--sagemaker-port", "0", "--endpoint-keys", folder / "keys.toml") as server:
        yield server
        assert not any(secret in server.log() for secret in (SECRET, OTHER_SECRET, TOKEN))


@pytest.mark.parametrize("port", ["sagemaker", "http"])
def test_a_key_that_is_known_signs_any_invocation(guarded, port):
    client = runtime(getattr(guarded, port), key="AKIDALL", secret=SECRET)
    for target in ("scale", "/model_store/custom_1.tar.gz"):
        inputs = inputs_of("add_sub" if "store" in target else "scale", 3)
        assert invoke(client, target, inputs, CustomAttributes="a  b", TargetVariant="blue")
    _, parts = stream(client, "scale", json_body(floats(1)), ContentType="application/json")
    assert parts
    body, content_type = triton_body({"x": np.random.default_rng(0).random(100_000, np.float32)}, ["x_out"])
    assert invoke(client, "vector", {}, Body=body, ContentType=content_type)


@pytest.mark.parametrize("port", ["sagemaker", "http"])
@pytest.mark.parametrize(
    "key, secret, code",
    [("AKIDALL", "wrong" + SECRET, "InvalidSignatureException"), ("AKIDALL", OTHER_SECRET, "InvalidSignatureException"),
     ("AKIDNOBODY", SECRET, "UnrecognizedClientException")],
)  # fmt: skip
def test_a_signature_of_anybody_else_is_403(guarded, port, key, secret, code):
    client = runtime(getattr(guarded, port), key=key, secret=secret)
    for target in ("scale", "nowhere"):
        error = refused(code, 403, invoke, client, target, floats(1))
        assert secret not in str(error.response)


def test_a_request_without_a_signature_is_403_only_where_there_are_keys(guarded, server):
    client = runtime(guarded.sagemaker, signature_version=UNSIGNED)
    refused("MissingAuthenticationTokenException", 403, invoke, client, "scale", floats(1))
    assert invoke(runtime(server.sagemaker, signature_version=UNSIGNED), "scale", floats(1))


def test_a_key_is_for_the_models_of_its_patterns(guarded):
    client = runtime(guarded.sagemaker, key="AKIDCOMPANYA", secret=OTHER_SECRET)
    assert invoke(client, "company_a/one", floats(1)) and invoke(client, "scale", floats(1))
    for target in ("company_b/one", "vector", "company_b/nowhere", "company_a", "scales"):
        refused("AccessDeniedException", 403, invoke, client, target, floats(1))
    refused("ValidationError", 400, invoke, client, "company_a/nowhere", floats(1))
    refused("ValidationError", 400, invoke, client, "company_a/../company_b/one", floats(1))


def test_a_bearer_token_does_for_plain_http(guarded):
    def status(token, target="company_b/one"):
        headers = {"Authorization": token} if token else {}
        return post(guarded, body=json_body(floats(1)), headers={TARGET: target, **headers}).status

    assert status(f"Bearer {TOKEN}") == 200 and status(f"bearer {TOKEN}") == 200
    assert status(f"Bearer {TOKEN}", "company_a/one") == 403
    for token in (None, "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer {SECRET}"):
        assert status(token) == 403, token
    for token in (TOKEN, f"Basic {TOKEN}", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=AKIDALL"):
        assert status(token) in (400, 403), token


@pytest.mark.parametrize("change", ["body", "target", "date", "path", "none"])
def test_what_was_signed_may_not_be_changed_on_the_way(guarded, change):
    """A request that boto3 signed, changed before it goes out."""
    client = runtime(guarded.sagemaker, key="AKIDALL", secret=SECRET)

    def tamper(request, **_):
        if change == "body":
            request.body = request.body.replace(b"1.0", b"2.0")
        elif change == "target":
            request.headers[TARGET] = "vector"
        elif change == "date":
            request.headers["X-Amz-Date"] = "20200101T000000Z"
        elif change == "path":
            request.url = request.url.replace("/ep/", "/another/")

    client.meta.events.register("before-send.sagemaker-runtime", tamper)
    if change == "none":
        assert invoke(client, "scale", floats(1))
    else:
        refused("InvalidSignatureException", 403, invoke, client, "scale", floats(1))


def test_keys_that_cannot_be_read_stop_the_start_with_their_line(repository, tmp_path):
    (tmp_path / "keys.toml").write_text(KEYS.replace("models = ", "modles = "))
    with pytest.raises(AssertionError, match=r"ended with 64[\s\S]*keys.toml[\s\S]*line 9") as raised:
        with running_server(repository, tmp_path, "--sagemaker-port", "0", "--endpoint-keys", tmp_path / "keys.toml"):
            pass
    assert SECRET not in str(raised.value) and OTHER_SECRET not in str(raised.value)


# --- generate, streams ------------------------------------------------------------------------------------------------


def test_a_model_that_generates_takes_plain_members(client):
    options = {"EndpointName": "ep", "TargetModel": "generating", "Body": json.dumps({"x": [1, 2]})}
    answer = client.invoke_endpoint(**options)
    assert answer["ContentType"] == "application/json"
    assert json.loads(answer["Body"].read())["x_out"] == [1, 2]


def stream(client, model, body, **options):
    """What a stream brings: (its head, its parts). boto3 has no TargetModel for streams: the header goes in beside it."""

    def name(params, **_):
        if model is not None:
            params["headers"][TARGET] = model

    event = "before-call.sagemaker-runtime.InvokeEndpointWithResponseStream"
    client.meta.events.register(event, name)
    try:
        answer = client.invoke_endpoint_with_response_stream(EndpointName="ep", Body=body, **options)
    finally:
        client.meta.events.unregister(event, name)
    parts = [event["PayloadPart"]["Bytes"] for event in answer["Body"]]
    return answer, parts


def test_a_response_stream_carries_the_answer_in_parts(client):
    answer, parts = stream(client, "scale", json_body(floats(1, 2)), CustomAttributes="trace=1")
    assert list(triton_result(b"".join(parts), answer["ContentType"]).as_numpy("y")) == [3, 6]
    assert (answer["CustomAttributes"], answer["InvokedProductionVariant"]) == ("trace=1", "AllTraffic")
    numbers = np.random.default_rng(1).random(1_500_000, np.float32)
    body, content_type = triton_body({"x": numbers}, ["x_out"], binary_outputs=False)
    answer, parts = stream(client, "vector", body, ContentType=content_type)
    assert np.array_equal(triton_result(b"".join(parts), answer["ContentType"]).as_numpy("x_out"), numbers)
    assert len(parts) > 1 and max(len(part) for part in parts) <= 16 * MIB, "clients take no larger frames"


def test_a_model_that_streams_sends_its_events_in_the_stream(client):
    answer, parts = stream(client, "streaming", json.dumps({"x": [1, 2]}))
    assert answer["ContentType"].startswith("text/event-stream")
    text = b"".join(parts)
    assert text.startswith(b"data:") and text.endswith(b"\n\n")
    assert json.loads(text.removeprefix(b"data:"))["x_out"] == [1, 2]


def test_a_response_stream_needs_no_target_where_a_model_is_configured(repository, tmp_path):
    with running_server(repository, tmp_path, "--sagemaker-port", "0", "--sagemaker-model", "streaming") as server:
        for address in (server.sagemaker, server.http):
            _, parts = stream(runtime(address), None, json.dumps({"x": [5]}))
            assert json.loads(b"".join(parts).removeprefix(b"data:"))["x_out"] == 5


def test_what_goes_wrong_before_a_stream_begins_is_an_error_as_elsewhere(client):
    refused("ModelError", 424, stream, client, "scale", b"{")
    refused("ValidationError", 400, stream, client, "nowhere", json_body(floats(1)))
    refused("RequestEntityTooLargeException", 413, stream, client, "scale", padded(6_291_457))


# --- models come and go -----------------------------------------------------------------------------------------------


def unload(server, model):
    assert requests.post(f"http://{server.http}/v2/repository/models/{model}/unload", timeout=30).ok


def test_A05_a_hundred_first_invocations_make_one_load(server, client):
    client = runtime(server.sagemaker, max_pool_connections=100)
    unload(server, "chain")
    loads, start, answers = server.model_loads(), threading.Barrier(100, timeout=60), []
    inputs = {"x": np.linspace(0, 1, 16, dtype=np.float32)[None]}

    def ask():
        start.wait()
        _, result = invoke(client, "chain", inputs)
        answers.append(tuple(result.as_numpy("y").ravel()))

    threads = [threading.Thread(target=ask) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 100 and len(set(answers)) == 1
    assert server.model_loads() == loads + 1


@pytest.fixture
def gate(store):
    gate = Gate(store.port)
    yield gate
    gate.close()


def slow_store(gate, store, folder, *arguments):
    """A server over the store behind the gate, whose endpoint waits 300 ms for a load."""
    flags = ["--cache-dir", folder / "cache", "--sagemaker-port", "0", *arguments]
    if "--endpoint-load-wait-ms" not in arguments:
        flags += ["--endpoint-load-wait-ms", "300"]
    return running_server(gate.uri, folder, *flags, environment=store.environment)


def test_A07_a_load_that_takes_long_is_429_and_goes_on_until_a_retry_finds_it(gate, store, tmp_path):
    with slow_store(gate, store, tmp_path) as server:
        client = runtime(server.sagemaker)
        assert invoke(client, "iris.tar.zst", inputs_of("iris", 1))
        gate.shut()
        for _ in range(2):
            begin = time.monotonic()
            error = refused("ModelNotReadyException", 429, invoke, client, "digits.tar.zst", inputs_of("digits", 1))
            assert 0.25 < time.monotonic() - begin < 5
            assert isinstance(error, client.exceptions.ModelNotReadyException)
            assert int(error.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) >= 1
        assert invoke(client, "iris.tar.zst", inputs_of("iris", 1)), "what is in memory answers meanwhile"
        loads = server.model_loads()
        gate.open()
        # The load goes on without anybody who waits.
        until(lambda: server.model_loads() == loads + 1)
        _, result = invoke(client, "digits.tar.zst", inputs_of("digits", 1))
        assert_same(result.as_numpy("scores"), expected("digits", inputs_of("digits", 1))["scores"])
        assert server.model_loads() == loads + 1


def test_A07_retries_of_boto3s_legacy_mode_get_over_a_slow_load_by_themselves(gate, store, tmp_path):
    with slow_store(gate, store, tmp_path) as server:
        client = runtime(server.sagemaker, retries={"mode": "legacy", "total_max_attempts": 6})
        gate.shut()
        asked = in_thread(invoke, client, "digits.tar.zst", inputs_of("digits", 1))
        until(lambda: gate.waiting >= 1)
        threading.Event().wait(0.5)
        gate.open()
        answer, _ = asked()
        assert answer["ResponseMetadata"]["RetryAttempts"] >= 1


def test_A07_in_boto3s_standard_mode_the_caller_tries_again(gate, store, tmp_path):
    """It retries no error that the service's model names without calling it retryable, as ModelNotReadyException is."""
    with slow_store(gate, store, tmp_path) as server:
        client = runtime(server.sagemaker, retries={"mode": "standard", "total_max_attempts": 5})
        gate.shut()
        tries = 0
        while True:
            try:
                answer, _ = invoke(client, "digits.tar.zst", inputs_of("digits", 1))
                break
            except client.exceptions.ModelNotReadyException as error:
                assert error.response["ResponseMetadata"]["RetryAttempts"] == 0
                tries += 1
                if tries == 2:
                    gate.open()
        assert tries >= 2 and answer["ResponseMetadata"]["HTTPHeaders"]["x-model-state"] in ("remote", "disk", "device")


def test_a_load_ends_when_its_own_limit_is_over(gate, store, tmp_path):
    with slow_store(gate, store, tmp_path, "--endpoint-load-limit-ms", "900") as server:
        client = runtime(server.sagemaker)
        gate.shut()
        refused("ModelNotReadyException", 429, invoke, client, "digits.tar.zst", inputs_of("digits", 1))
        until(lambda: server.metric("roundhouse_model_loads_total", 'outcome="cancelled"') == 1)
        gate.open()
        until(lambda: succeeds(client, "digits.tar.zst"))


def succeeds(client, model):
    try:
        return invoke(client, model, inputs_of(model.split(".")[0], 1))
    except client.exceptions.ModelNotReadyException:
        return None


def test_A19_ping_answers_at_once_while_eight_loads_hang(gate, store, tmp_path):
    with slow_store(gate, store, tmp_path, "--endpoint-load-wait-ms", "60000") as server:
        client = runtime(server.sagemaker, max_pool_connections=9)
        gate.shut()
        models = [
            "add_sub.tar.gz",
            "digits.tar.zst",
            "every_type.tgz",
            "half",
            "identity.tar",
            "iris.tar.zst",
            "scale",
            "text.tar.gz",
        ]
        asked = [in_thread(invoke, client, model, inputs_of(model.split(".")[0], 1)) for model in models]
        until(lambda: gate.waiting >= 1)
        for _ in range(20):
            begin = time.monotonic()
            assert post(server, "/ping", method="GET").status == 200
            assert time.monotonic() - begin < 2
        gate.open()
        assert all(answer() for answer in asked)


def put_scale(store, key, version, folder):
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(EXAMPLES / "scale" / version, model / "1")
    pack(binary(), model, folder / key)
    store.put(key, (folder / key).read_bytes())


def test_A10_a_key_that_is_overwritten_is_served_anew_when_it_is_asked_for(store, tmp_path):
    put_scale(store, "overwritten.tar.gz", "1", tmp_path)
    flags = ["--cache-dir", tmp_path / "cache", "--sagemaker-port", "0"]
    with running_server(store.uri, tmp_path, *flags, environment=store.environment) as server:
        client = runtime(server.sagemaker)
        assert invoke(client, "overwritten.tar.gz", floats(1))[1].as_numpy("y") == [2]
        put_scale(store, "overwritten.tar.gz", "2", tmp_path)
        assert requests.post(f"http://{server.http}/v2/repository/models/overwritten.tar.gz/load", timeout=30).ok
        assert invoke(client, "overwritten.tar.gz", floats(1))[1].as_numpy("y") == [3]
        store.delete("overwritten.tar.gz")


def test_A10_A18_the_poll_serves_it_anew_and_no_invocation_fails(store, tmp_path):
    put_scale(store, "watched-too.tar.gz", "1", tmp_path)
    flags = ["--cache-dir", tmp_path / "cache", "--sagemaker-port", "0", "--repository-poll-s", "1"]
    with running_server(store.uri, tmp_path, *flags, environment=store.environment) as server:
        client, seen = runtime(server.sagemaker), []

        def factor():
            seen.append(invoke(client, "watched-too.tar.gz", floats(1))[1].as_numpy("y")[0])
            return seen[-1]

        assert factor() == 2
        put_scale(store, "watched-too.tar.gz", "2", tmp_path)
        until(lambda: factor() == 3)
        assert seen == sorted(seen)
        store.delete("watched-too.tar.gz")


def test_A18_a_model_is_changed_under_load_and_no_invocation_fails(store, tmp_path):
    put_scale(store, "changed-too.tar.gz", "1", tmp_path)
    flags = ["--cache-dir", tmp_path / "cache", "--sagemaker-port", "0"]
    with running_server(store.uri, tmp_path, *flags, environment=store.environment) as server:
        client, seen, stop = runtime(server.sagemaker), [], threading.Event()

        def ask():
            while not stop.is_set():
                seen.append(invoke(client, "changed-too.tar.gz", floats(1))[1].as_numpy("y")[0])
            return True

        asking = in_thread(ask)
        until(lambda: len(seen) > 20)
        put_scale(store, "changed-too.tar.gz", "2", tmp_path)
        assert requests.post(f"http://{server.http}/v2/repository/models/changed-too.tar.gz/load", timeout=30).ok
        until(lambda: seen[-1] == 3)
        stop.set()
        assert asking(), "no invocation failed"
        assert set(seen) == {2, 3} and seen == sorted(seen)
        store.delete("changed-too.tar.gz")


def in_memory(server):
    rows = requests.get(f"http://{server.http}/v1/residency", timeout=10).json()["models"]
    return {row["name"] for row in rows if row["tier"] == "device"}


def test_A11_with_the_models_cache_disabled_each_invocation_loads(repository, tmp_path):
    with running_server(repository, tmp_path, "--sagemaker-port", "0", "--retain", "false") as server:
        client = runtime(server.sagemaker)
        for _ in range(3):
            answer, result = invoke(client, "scale", floats(1))
            assert result.as_numpy("y") == [3]
            assert answer["ResponseMetadata"]["HTTPHeaders"]["x-model-state"] == "disk"
            # It leaves once nobody uses it; who asks before that is answered by what is still there.
            until(lambda: not in_memory(server))
        assert server.model_loads() == 3


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    root = tmp_path_factory.mktemp("heavy")
    for number, name in enumerate("abcd"):
        weighing(16, number)(root / name)
    weighing(64)(root / "large")
    return root


def weight_of(client, model):
    return invoke(client, model, {"index": np.array([5])})[1].as_numpy("y")[0]


def test_A17_a_pinned_model_never_leaves(heavy, tmp_path):
    flags = ["--sagemaker-port", "0", "--memory-limit", "cpu=40MiB", "--min-residency-ms", "0", "--pin-model", "a"]
    with running_server(heavy, tmp_path, *flags) as server:
        client = runtime(server.sagemaker)
        wait_until("the pinned model is loaded", lambda: "a" in in_memory(server))
        for model in "bcdbcd":
            assert weight_of(client, model) == made.lookup_value("abcd".index(model), 5)
            assert "a" in in_memory(server)


def test_A09_a_model_that_can_never_fit_is_the_models_error_and_nobody_leaves(heavy, tmp_path):
    flags = ["--sagemaker-port", "0", "--memory-limit", "cpu=40MiB", "--min-residency-ms", "0"]
    with running_server(heavy, tmp_path, *flags) as server:
        client = runtime(server.sagemaker)
        assert weight_of(client, "a") == made.lookup_value(0, 5) and weight_of(client, "b") == made.lookup_value(1, 5)
        error = refused("ModelError", 424, weight_of, client, "large")
        assert error.response["OriginalStatusCode"] == 400 and "too large" in error.response["OriginalMessage"]
        assert in_memory(server) == {"a", "b"}


def test_models_take_turns_in_memory_that_holds_two_of_them(heavy, tmp_path):
    flags = ["--sagemaker-port", "0", "--memory-limit", "cpu=40MiB", "--min-residency-ms", "0"]
    with running_server(heavy, tmp_path, *flags) as server:
        client = runtime(server.sagemaker)
        for turn in range(12):
            assert weight_of(client, "abcd"[turn % 4]) == made.lookup_value(turn % 4, 5)
        assert server.metric("roundhouse_evictions_total", 'reason="room"') >= 6


def test_want_of_room_is_unavailable_for_a_while(heavy, tmp_path):
    flags = ["--sagemaker-port", "0", "--memory-limit", "cpu=40MiB", "--eviction", "external"]
    with running_server(heavy, tmp_path, *flags) as server:
        client = runtime(server.sagemaker)
        for model in "ab":
            weight_of(client, model)
        error = refused("ServiceUnavailable", 503, weight_of, client, "c")
        assert int(error.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) >= 1
        assert in_memory(server) == {"a", "b"}
