"""Wrong, lying and hostile requests: each gets a clear 4xx, and the connection, the model and the server go on."""

import errno
import gzip
import http.client
import json
import os
import shutil
import socket
import threading

import numpy as np
import pytest
import requests

from harness import EXAMPLES, assert_same, expected, inputs_of, json_outputs, json_request, json_tensor, running_server

SCALE = "/v2/models/scale/infer"
ADD_SUB = "/v2/models/add_sub/infer"
IDENTITY = "/v2/models/identity/infer"
EVERY_TYPE = "/v2/models/every_type/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture
def connection(server):
    connection = http.client.HTTPConnection(server.http, timeout=60)
    connection.connect()
    yield connection
    connection.close()


def ask(connection, path, body=b"", headers=None, method="POST"):
    connection.request(method, path, body=body, headers=headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def assert_refused(connection, path, body=b"", headers=None, method="POST", status=(400,), text=""):
    """The request is refused in the error form, and the same connection then gets a right answer."""
    socket_before = connection.sock
    actual, answer, _ = ask(connection, path, body, headers, method)
    assert actual in status, answer
    error = json.loads(answer)
    assert set(error) == {"error", "code"}, error
    assert error["error"] and error["code"]
    assert text in error["error"]
    assert_works(connection)
    assert connection.sock is socket_before, "the connection was closed"


def assert_works(connection):
    actual, answer, _ = ask(connection, SCALE, json.dumps(json_request({"x": np.array([1, 2], np.float32)})))
    assert (actual, json.loads(answer)["outputs"][0]["data"]) == (200, [3, 6])


def scale_input(**members):
    """A request to `scale`, right but for `members`; a member that is None is left out."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]} | members
    return json.dumps({"inputs": [{key: value for key, value in tensor.items() if value is not None}]})


# --- JSON -------------------------------------------------------------------------------------------------------------

GOOD = scale_input()


@pytest.mark.parametrize(
    "body",
    [
        "",
        " ",
        "{",
        GOOD[:-1],
        GOOD + "x",
        GOOD.replace("1", "1,,"),
        GOOD.replace("1", "01"),
        GOOD.replace("1", "+1"),
        GOOD.replace("1", "1."),
        GOOD.replace("1", "nan"),
        GOOD.replace("1", "-NaN"),
        GOOD.replace('"x"', "'x'"),
        GOOD.replace('"x"', '"x\n"'),
        GOOD.replace('"x"', '"\\ud800"'),
        GOOD.encode().replace(b'"x"', b'"\xff"'),
        "\x00",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_what_is_not_json_is_refused(connection, body):
    assert_refused(connection, SCALE, body)


@pytest.mark.parametrize("body", ["null", "1", '"x"', "[]", "{}", '{"inputs":1}', '{"inputs":{}}', '{"inputs":[1]}'])
def test_json_that_is_no_request_is_refused(connection, body):
    assert_refused(connection, SCALE, body)


@pytest.mark.parametrize("place", ["data", "parameters", "unknown"])
def test_json_ten_thousand_deep_is_refused(connection, place):
    body = GOOD[:-3] + f', "{place}": ' + "[" * 10_000 + "]" * 10_000 + "}]}"
    if place == "data":
        body = body.replace('"data": [1, 2], ', "")
    assert_refused(connection, SCALE, body)
    assert_refused(connection, SCALE, "[" * 10_000)
    assert_refused(connection, SCALE, '{"a":' * 10_000)


@pytest.mark.parametrize(
    "members",
    [
        {"name": None},
        {"name": 1},
        {"datatype": None},
        {"datatype": "FP31"},
        {"datatype": "fp32"},
        {"datatype": 1},
        {"shape": None},
        {"shape": 2},
        {"shape": "2"},
        {"shape": ["2"]},
        {"shape": [2.5]},
        {"shape": [-2]},
        {"shape": [-1]},
        {"shape": []},
        {"shape": [1, 2]},
        {"shape": [3]},
        {"shape": [1]},
        {"shape": [2**62]},
        {"shape": [2**63]},
        {"shape": [2**64]},
        {"data": None},
        {"data": 1},
        {"data": {}},
        {"data": "12"},
        {"data": []},
        {"data": [1]},
        {"data": [1, 2, 3]},
        {"data": [[1], [2, 3]]},
        {"data": [1, "2"]},
        {"data": [1, None]},
        {"data": [1, True]},
        {"data": [1, {}]},
        {"parameters": 1},
        {"parameters": {"binary_data_size": 8}},
    ],
    ids=lambda members: json.dumps(members)[:60],
)
def test_an_input_that_contradicts_itself_is_refused(connection, members):
    assert_refused(connection, SCALE, scale_input(**members))


def test_limits_and_what_is_not_offered_have_their_own_status(connection):
    assert_refused(connection, SCALE, scale_input(shape=[1] * 10_000), status=(413,))
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    assert_refused(connection, SCALE, scale_input(parameters=region, data=None), status=(501,))


def test_shapes_whose_product_overflows_are_refused(connection):
    for shape in ([2**32, 2**32], [2**40, 2**30], [0, 2**63], [2**31, 2**31]):
        tensor = {"name": "INPUT0", "datatype": "FP32", "shape": shape, "data": [1, 2]}
        assert_refused(connection, IDENTITY, json.dumps({"inputs": [tensor]}))


def test_an_input_given_twice_is_refused(connection):
    tensor = json_tensor("x", np.array([1, 2], np.float32))
    assert_refused(connection, SCALE, json.dumps({"inputs": [tensor, tensor]}))


def test_an_empty_tensor_is_answered_empty_or_refused(connection):
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [0, 16], "data": []}
    status, answer, _ = ask(connection, IDENTITY, json.dumps({"inputs": [tensor]}))
    body = json.loads(answer)
    if status == 200:
        assert (body["outputs"][0]["shape"], body["outputs"][0]["data"]) == ([0, 16], [])
    else:
        assert status == 400 and body["error"]
    assert_works(connection)


RANGES = {
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, 2**64 - 1),
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}


@pytest.mark.parametrize("kind", RANGES)
def test_an_integer_out_of_range_is_refused_not_cut(connection, kind):
    low, high = RANGES[kind]
    request = json_request(inputs_of("every_type", 1))
    (tensor,) = [tensor for tensor in request["inputs"] if tensor["datatype"] == kind]
    for value in (low, high):
        tensor["data"] = [value]
        status, answer, _ = ask(connection, EVERY_TYPE, json.dumps(request))
        outputs = {output["name"]: output["data"] for output in json.loads(answer)["outputs"]}
        assert (status, outputs[f"OUT_{kind}"]) == (200, [value])
    for value in (low - 1, high + 1, 2**70, -(2**70), 0.5, "1", True, None):
        tensor["data"] = [value]
        assert_refused(connection, EVERY_TYPE, json.dumps(request))


@pytest.mark.parametrize(
    "kind, value", [("BOOL", "true"), ("BOOL", None), ("BYTES", 1), ("BYTES", None), ("FP64", "1")]
)
def test_a_value_of_the_wrong_kind_is_refused(connection, kind, value):
    request = json_request(inputs_of("every_type", 1))
    (tensor,) = [tensor for tensor in request["inputs"] if tensor["datatype"] == kind]
    tensor["data"] = [value]
    assert_refused(connection, EVERY_TYPE, json.dumps(request))


@pytest.mark.parametrize(
    "members",
    [
        {"id": 1.5},
        {"outputs": 1},
        {"outputs": [{}]},
        {"outputs": [{"name": "nothing"}]},
        {"outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]},
        {"outputs": [{"name": "y", "parameters": {"classification": -1}}]},
        {"outputs": [{"name": "y", "parameters": {"classification": "3"}}]},
        {"parameters": [1]},
        {"parameters": {"triton_secret": 1}},
        {"parameters": {"binary_data_output": "yes"}},
        {"parameters": {"timeout": -1}},
        {"parameters": {"timeout": "soon"}},
    ],
    ids=lambda members: json.dumps(members)[:60],
)
def test_a_wrong_member_of_the_request_is_refused(connection, members):
    assert_refused(connection, SCALE, json.dumps(json.loads(GOOD) | members))


# --- the binary extension ---------------------------------------------------------------------------------------------


def binary_request(data=b"\0" * 8, size=8):
    """Head, and head with data, of a binary request to `scale` that declares `size` bytes and carries `data`."""
    head = scale_input(data=None, parameters={"binary_data_size": size}).encode()
    return head, head + data


@pytest.mark.parametrize(
    "length", ["-1", "x", "", "1.5", "5", "0x10", "1 2", str(2**31), str(2**63), str(2**64), "9" * 40]
)
def test_a_lying_header_length_is_refused(connection, length):
    _, body = binary_request()
    assert_refused(connection, SCALE, body, {LENGTH: length})


@pytest.mark.parametrize("off_by", [-1, 1, 7, 9, 1000])
def test_a_header_length_that_is_a_little_off_is_refused(connection, off_by):
    head, body = binary_request()
    assert_refused(connection, SCALE, body, {LENGTH: str(len(head) + off_by)})


@pytest.mark.parametrize("size", [0, 4, 7, 9, 12, -8, 2**31, 2**63, 2**64, 8.5, "8", None])
def test_a_binary_size_that_is_not_the_tensors_is_refused(connection, size):
    head, body = binary_request(size=size)
    assert_refused(connection, SCALE, body, {LENGTH: str(len(head))})


def test_too_little_and_too_much_binary_data_are_refused(connection):
    for data in (b"", b"\0" * 7):
        head, body = binary_request(data)
        assert_refused(connection, SCALE, body, {LENGTH: str(len(head))}, text="unexpected size for input")
    head, body = binary_request(b"\0" * 9)
    assert_refused(connection, SCALE, body, {LENGTH: str(len(head))}, text="unexpected additional input data")


def test_data_and_a_binary_size_together_are_refused(connection):
    body = scale_input(parameters={"binary_data_size": 8}).encode()
    assert_refused(connection, SCALE, body + b"\0" * 8, {LENGTH: str(len(body))})


@pytest.mark.parametrize(
    "data",
    [b"\x05\0\0\0abc", b"\x05\0\0", b"\xff\xff\xff\xffabc", b"\x01\0\0\0ab", b"\x01\0\0\0a\x01\0\0\0b", b""],
)
def test_a_bytes_tensor_whose_lengths_lie_is_refused(connection, data):
    tensor = {"name": "TEXT", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    assert_refused(connection, "/v2/models/text/infer", head + data, {LENGTH: str(len(head))})


@pytest.mark.parametrize(
    "path, body", [(ADD_SUB, b"\0" * 64), (SCALE, b"\0" * 7), ("/v2/models/digits/infer", b"\0" * 255)]
)
def test_a_raw_body_that_does_not_fit_the_model_is_refused(connection, path, body):
    assert_refused(connection, path, body, {LENGTH: "0"})


# --- HTTP -------------------------------------------------------------------------------------------------------------


def test_a_body_that_is_not_what_its_encoding_says_is_refused(connection):
    whole = gzip.compress(GOOD.encode())
    for body in (b"", GOOD.encode(), whole[:-9], whole[:5], whole[:12] + b"\xff" * 20):
        assert_refused(connection, SCALE, body, {"Content-Encoding": "gzip"})
    assert_refused(connection, SCALE, GOOD.encode(), {"Content-Encoding": "deflate"})


def test_an_unknown_encoding_is_refused_with_those_that_are_known(connection):
    status, answer, headers = ask(connection, SCALE, GOOD, {"Content-Encoding": "br"})
    assert status == 501 and json.loads(answer)["error"]
    assert headers["Accept-Encoding"] == "gzip, deflate"
    assert_works(connection)


def test_a_small_body_that_unpacks_to_a_huge_one_is_refused(connection):
    bomb = gzip.compress(GOOD.encode()[:-1] + b" " * 100_000_000, compresslevel=9)
    assert len(bomb) < 200_000
    assert_refused(connection, SCALE, bomb, {"Content-Encoding": "gzip"}, status=(400, 413))


@pytest.mark.parametrize(
    "path", ["/", "/v2/", "/v3", "/v2/models/scale/infer/", "/v2/models//infer", "/v2/models/a/b/c/infer"]
)
def test_an_unknown_path_is_not_found(connection, path):
    assert_refused(connection, path, GOOD, status=(400, 404))


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/../../etc/infer",
        "/v2/models/..%2f..%2fetc%2fpasswd/infer",
        "/v2/models/%2e%2e/infer",
        "/v2/models/%00/infer",
        "/v2/models/%ff/infer",
        "/v2/models/" + "a" * 5_000 + "/infer",
        "/v2/models/scale/versions/-1/infer",
        "/v2/models/scale/versions/x/infer",
        "/v2/models/scale/versions/99999999999999999999/infer",
    ],
)
def test_a_hostile_name_finds_nothing(connection, path):
    assert_refused(connection, path, GOOD, status=(400, 404))


def test_the_wrong_method_is_refused(connection):
    assert_refused(connection, SCALE, method="GET", status=(405,))
    assert_refused(connection, "/v2/health/live", b"", method="POST", status=(405,))


@pytest.mark.parametrize(
    "body", ["{", "[]", '{"parameters": 1}', '{"parameters": {"unload_dependents": "yes"}}', "[" * 10_000]
)
def test_a_wrong_body_to_the_repository_is_refused(connection, body):
    assert_refused(connection, "/v2/repository/models/half/unload", body)


def test_the_index_refuses_a_ready_that_is_no_bool(connection):
    assert_refused(connection, "/v2/repository/index", '{"ready": "yes"}')


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"POST " + SCALE.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
        b"POST " + SCALE.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{",
        b"POST " + SCALE.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{",
        b"POST " + SCALE.encode() + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST " + SCALE.encode() + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 1_000_000 + b"\r\n\r\n",
    ],
    ids=["TLS", "no version", "hangs up", "negative", "endless", "no chunk", "huge chunk", "long header"],
)
def test_a_client_that_breaks_http_harms_nobody_else(server, connection, sent):
    host, port = server.http.rsplit(":", 1)
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.settimeout(10)
            try:
                raw.sendall(sent)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(65536):
                    pass
            except OSError as error:
                # The server may have hung up already.
                assert error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN), error
    assert_works(connection)


# --- many at once -----------------------------------------------------------------------------------------------------


def test_a_hundred_first_requests_to_a_cold_model_make_one_load(server, connection):
    assert ask(connection, "/v2/repository/models/add_sub/load")[0] == 200
    for _ in range(3):
        assert ask(connection, "/v2/repository/models/add_sub/unload")[0] == 200
        loads = server.model_loads()
        answers = all_at_once(server, 100)
        for inputs, (status, body) in answers:
            assert status == 200, body
            for name, array in expected("add_sub", inputs).items():
                assert_same(json_outputs(json.loads(body))[name], array, name)
        assert server.model_loads() == loads + 1


def all_at_once(server, count):
    """`count` clients, each with numbers of its own, let go at the same moment: (inputs, (status, body)) of each."""
    start = threading.Barrier(count, timeout=60)
    answers = [None] * count

    def client(i):
        inputs = {name: array + i for name, array in inputs_of("add_sub", 1).items()}
        body = json.dumps(json_request(inputs))
        connection = http.client.HTTPConnection(server.http, timeout=60)
        connection.connect()
        start.wait()
        answers[i] = inputs, ask(connection, ADD_SUB, body)[:2]
        connection.close()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_good_requests_among_bad_ones_all_get_right_answers(server):
    stop = threading.Event()
    statuses = set()

    def nuisance():
        connection = http.client.HTTPConnection(server.http, timeout=60)
        while not stop.is_set():
            for body in ("{", scale_input(shape=[3]), scale_input(datatype="INT8"), "[" * 10_000):
                statuses.add(ask(connection, SCALE, body)[0])
        connection.close()

    threads = [threading.Thread(target=nuisance) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        connection = http.client.HTTPConnection(server.http, timeout=60)
        for _ in range(200):
            assert_works(connection)
        connection.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert statuses == {400}


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_a_thousand_refusals_leave_no_file_and_no_thread_behind(server, connection):
    def held():
        process = f"/proc/{server.process.pid}"
        return len(os.listdir(f"{process}/fd")), len(os.listdir(f"{process}/task"))

    assert_works(connection)
    for warm in (True, False):
        files, threads = held()
        for _ in range(200):
            for body in ("{", scale_input(shape=[3]), scale_input(data=["a", "b"])):
                assert ask(connection, SCALE, body)[0] == 400
            assert ask(connection, "/v2/models/nowhere/infer", GOOD)[0] == 404
            assert ask(connection, SCALE, b"\x1f\x8b", {"Content-Encoding": "gzip"})[0] == 400
        if not warm:
            files_after, threads_after = held()
            assert files_after <= files + 2 and threads_after <= threads + 2


# --- models that are broken -------------------------------------------------------------------------------------------


def no_file(model):
    (model / "1/model.onnx").unlink()


def not_onnx(model):
    (model / "1/model.onnx").write_bytes(b"not a model" * 100)


def cut_short(model):
    path = model / "1/model.onnx"
    path.write_bytes(path.read_bytes()[:-40])


def empty_file(model):
    (model / "1/model.onnx").write_bytes(b"")


def no_version(model):
    shutil.rmtree(model / "1")


def edited(old, new):
    def edit(model):
        path = model / "config.pbtxt"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    edit.__name__ = f"{old} -> {new}"
    return edit


@pytest.mark.parametrize(
    "damage",
    [
        no_file,
        not_onnx,
        cut_short,
        empty_file,
        no_version,
        edited("TYPE_FP32", "TYPE_INT8"),
        edited("dims: [ 10 ]", "dims: [ 11 ]"),
        edited('"scores"', '"marks"'),
        edited("dims: [ 1, 8, 8 ]", "dims: [ 64 ]"),
        edited("max_batch_size: 64", "max_batch_size: 64 max_batch_size 3 }"),
        edited('"onnxruntime"', '"no such backend"'),
        edited('"labels.txt"', '"../../../../etc/passwd"'),
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_broken_model_gets_an_error_and_disturbs_no_other(tmp_path, damage):
    repository = tmp_path / "models"
    for model in ("digits", "scale"):
        shutil.copytree(EXAMPLES / model, repository / model)
    damage(repository / "digits")
    request = json_request(inputs_of("digits", 1))
    with running_server(repository, tmp_path) as server:
        connection = http.client.HTTPConnection(server.http, timeout=60)
        for _ in range(2):
            status, answer, _ = ask(connection, "/v2/models/digits/infer", json.dumps(request))
            assert 400 <= status < 600
            error = json.loads(answer)
            assert set(error) == {"error", "code"} and "digits" in error["error"]
            assert_works(connection)
        assert ask(connection, "/v2/health/ready", method="GET")[0] == 200
        connection.close()


def test_a_mended_model_loads_without_a_restart(tmp_path):
    repository = tmp_path / "models"
    shutil.copytree(EXAMPLES / "digits", repository / "digits")
    not_onnx(repository / "digits")
    inputs = inputs_of("digits", 1)
    with running_server(repository, tmp_path) as server:
        url = f"http://{server.http}/v2"
        assert requests.post(f"{url}/models/digits/infer", json=json_request(inputs), timeout=30).status_code >= 400
        shutil.copy(EXAMPLES / "digits/1/model.onnx", repository / "digits/1/model.onnx")
        load = requests.post(f"{url}/repository/models/digits/load", timeout=30)
        assert load.status_code == 200, load.text
        answer = requests.post(f"{url}/models/digits/infer", json=json_request(inputs), timeout=30)
        assert_same(json_outputs(answer.json())["scores"], expected("digits", inputs)["scores"])


def test_a_model_folder_that_vanishes_is_not_found(tmp_path):
    repository = tmp_path / "models"
    for model in ("digits", "scale"):
        shutil.copytree(EXAMPLES / model, repository / model)
    with running_server(repository, tmp_path) as server:
        connection = http.client.HTTPConnection(server.http, timeout=60)
        shutil.rmtree(repository / "digits")
        status, answer, _ = ask(connection, "/v2/models/digits/infer", json.dumps(json_request(inputs_of("digits", 1))))
        assert status == 404 and "digits" in json.loads(answer)["error"]
        assert_works(connection)
        connection.close()


# --- bodies of other requests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["scale", "generate"])
def test_a_control_request_is_small_whatever_the_model_is_called(connection, model):
    path = f"/v2/repository/models/{model}/load"
    assert_refused(connection, path, b" " * (5 << 20), status=(413,), text="limit of control requests")


def test_a_control_request_may_not_grow_by_decompression(connection):
    bomb = gzip.compress(b" " * (5 << 20))
    headers = {"Content-Encoding": "gzip"}
    assert_refused(connection, "/v2/repository/index", bomb, headers, status=(413,), text="decompressed")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_a_request_without_a_body_may_name_any_encoding(connection, encoding):
    status, _, _ = ask(connection, "/v2/health/live", headers={"Content-Encoding": encoding}, method="GET")
    assert status == 200
    assert_works(connection)


def test_an_encoding_that_is_not_offered_says_what_is(connection):
    status, _, headers = ask(connection, "/v2/repository/index", b"{}", {"Content-Encoding": "br"})
    assert (status, headers["Accept-Encoding"]) == (501, "gzip, deflate")
    assert_works(connection)


def test_a_refused_body_that_never_comes_holds_nothing(server):
    host, port = server.http.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as stalled:
        stalled.sendall(
            b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\nx-request-timeout-ms: 100\r\n\r\n{"
        )
        assert stalled.recv(4096).startswith(b"HTTP/1.1 413 ")
        while stalled.recv(4096):
            pass
