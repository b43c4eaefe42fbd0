"""The book of memory held against what the process takes: ONNX models of 16 to 64 MiB, their eviction and their end."""

import json

import numpy as np
import pytest
import requests

from harness import running_server

MIB = 1 << 20


# --- models with weights ----------------------------------------------------------------------------------------------


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    """A field of a protobuf message: a number, text, or the bytes of a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_info(name, *shape):
    dims = b"".join(field(1, field(1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def weights(mib):
    """A matrix of `mib` MiB."""
    rows, columns = 1024, mib * MIB // 4096
    return np.random.default_rng(mib).standard_normal((rows, columns), dtype=np.float32)


def write_model(folder, mib, config=""):
    """`y = x W` with a W of `mib` MiB, written as the bytes of an ONNX file: this needs no package for it."""
    matrix = weights(mib)
    initializer = b"".join(field(1, size) for size in matrix.shape) + field(2, 1) + field(8, "W")
    node = field(1, "x") + field(1, "W") + field(2, "y") + field(4, "MatMul")
    graph = field(1, node) + field(2, "g") + field(5, initializer + field(9, matrix.tobytes()))
    graph += field(11, tensor_info("x", 1, matrix.shape[0])) + field(12, tensor_info("y", 1, matrix.shape[1]))
    (folder / "1").mkdir(parents=True)
    (folder / "1/model.onnx").write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 17)))
    if config:
        (folder / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{config}')


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in "abcd":
        write_model(folder / name, 16)
    write_model(folder / "middle", 32)
    write_model(folder / "large", 64)
    write_model(folder / "passing", 16, 'parameters { key: "retain" value { string_value: "false" } }\n')
    write_model(folder / "declared", 16, f'parameters {{ key: "memory_bytes" value {{ string_value: "{30 * MIB}" }} }}\n')
    return folder


SIZES = {**dict.fromkeys("abcd", 16), "middle": 32, "large": 64, "passing": 16, "declared": 16}


# --- asking -----------------------------------------------------------------------------------------------------------


def infer(server, model):
    """The answer for the first unit vector, which picks the first row of the weights."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1024], "data": [1.0] + [0.0] * 1023}
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]})
    answer = requests.post(f"http://{server.http}/v2/models/{model}/infer", data=body, timeout=30)
    if answer.ok:
        tail = answer.content[int(answer.headers["Inference-Header-Content-Length"]) :]
        np.testing.assert_allclose(np.frombuffer(tail, np.float32), weights(SIZES[model])[0], rtol=1e-5)
    return answer


def order(server, model, what):
    answer = requests.post(f"http://{server.http}/v2/repository/models/{model}/{what}", timeout=30)
    assert answer.status_code == 200, answer.text


def residency(server):
    return requests.get(f"http://{server.http}/v1/residency", timeout=10).json()


def device_book(server):
    return next(book for book in residency(server)["books"] if book["tier"] == "device")


def in_memory(server):
    return {row["name"] for row in residency(server)["models"] if row["tier"] == "device"}


def rss(server):
    """Bytes of RAM that are the process's own: what it mapped of files is left out."""
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


# --- the book ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["cost-aware", "lru"])
def test_models_take_turns_in_memory_that_holds_two_of_them(repository, tmp_path, policy):
    flags = ["--memory-limit", "cpu=40MiB", "--min-residency-ms", "0", "--eviction-policy", policy]
    with running_server(repository, tmp_path, *flags) as server:
        limit = device_book(server)["limit_bytes"]
        assert limit == 40 * MIB
        for turn in range(12):
            answer = infer(server, "abcd"[turn % 4])
            assert answer.status_code == 200, answer.text
            book = device_book(server)
            assert book["booked_bytes"] <= limit and len(in_memory(server)) <= 2, book
        assert server.metric("roundhouse_evictions_total", 'reason="room"') >= 6
        before = in_memory(server)
        answer = infer(server, "large")
        assert (answer.status_code, answer.json()["code"]) == (503, "out_of_device_memory"), answer.text
        assert "too large for cpu" in answer.json()["error"] and "Retry-After" not in answer.headers
        assert in_memory(server) == before, "what can never fit evicts nobody"


def test_the_memory_of_a_model_comes_back_when_it_is_unloaded(repository, tmp_path):
    with running_server(repository, tmp_path) as server:
        after = []
        for _ in range(10):
            assert infer(server, "large").ok
            assert rss(server) > 64 * MIB
            order(server, "large", "unload")
            after.append(rss(server) / MIB)
            assert device_book(server)["booked_bytes"] == 0
        # What the runtime keeps for good comes with the first rounds, and a thread that loads for the first time brings
        # an arena of 4 MiB with it: in all less than a round loads.
        assert max(after[3:]) - after[3] < 12 and max(after) < 40, after


def test_the_book_is_near_what_the_process_grows_by(repository, tmp_path):
    with running_server(repository, tmp_path) as server:
        assert infer(server, "a").ok  # what the first model brings with it is the runtime's
        order(server, "a", "unload")
        empty = rss(server)
        for model in ("a", "middle", "large"):
            assert infer(server, model).ok
        booked, grown = device_book(server)["booked_bytes"], rss(server) - empty
        assert abs(booked - grown) < 0.05 * grown, (booked / MIB, grown / MIB)
        for model in ("a", "middle", "large"):
            order(server, model, "unload")
        # malloc may keep the end of one thread's arena, where 16 MiB fit and 32 do not.
        assert rss(server) - empty < 24 * MIB


def test_with_external_eviction_a_load_without_room_fails_and_nobody_leaves(repository, tmp_path):
    flags = ["--memory-limit", "cpu=40MiB", "--eviction", "external"]
    with running_server(repository, tmp_path, *flags) as server:
        assert infer(server, "a").ok and infer(server, "b").ok
        answer = infer(server, "c")
        assert (answer.status_code, answer.json()["code"]) == (503, "out_of_device_memory"), answer.text
        assert in_memory(server) == {"a", "b"}
        order(server, "a", "unload")
        assert infer(server, "c").ok


def test_pinned_models_stay_and_the_others_make_room(repository, tmp_path):
    flags = ["--memory-limit", "cpu=40MiB", "--min-residency-ms", "0", "--pin-model", "a"]
    with running_server(repository, tmp_path, *flags) as server:
        for model in "bcdbcd":
            assert infer(server, model).ok
            assert "a" in in_memory(server)
        answer = infer(server, "middle")
        assert (answer.status_code, answer.json()["code"]) == (503, "out_of_device_memory"), answer.text


def test_parameters_of_a_model_say_whether_it_stays_and_what_it_needs(repository, tmp_path):
    with running_server(repository, tmp_path, "--memory-limit", "cpu=25MiB") as server:
        for _ in range(2):
            answer = infer(server, "passing")
            assert answer.ok and answer.headers["x-model-state"] == "disk", "it leaves when it has answered"
        answer = infer(server, "declared")
        assert (answer.status_code, answer.json()["code"]) == (503, "out_of_device_memory"), answer.text
        assert infer(server, "a").ok
