"""What leaves a trace, over HTTP: repository control, statistics, queues, sequences, shared memory, settings. Each case
does all it needs itself, in one go, and leaves the server as it was.
"""

import base64
import concurrent.futures
import contextlib
import json
import os
import time

from answers import over_http, pack
from cases_http import infer, post, tensor
from repositories import BROKEN

TWO = [tensor("INPUT0", "FP32", [2], [1, 2])]
ROW = [tensor("INPUT0", "FP32", [1, 2], [1, 2])]
ONE = [tensor("INPUT0", "FP32", [1, 1], [1])]


def steps(*asked):
    """Several requests, one after the other."""
    return lambda target: [ask(target) for ask in asked]


def get(path):
    return lambda target: over_http(target, "GET", path)


def until(ask, wanted):
    return until_with(ask, lambda answer: answer["status"] == wanted)


def until_with(ask, is_wanted):
    """Asks until the answer is as wanted: Triton answers before it has unloaded."""

    def asking(target):
        end = time.monotonic() + 20
        while not is_wanted(answer := ask(target)) and time.monotonic() < end:
            time.sleep(0.05)
        return answer

    return asking


# ---- Repository ------------------------------------------------------------------------------------------------------


def of_model(name, ask):
    """Of an index only the rows of one model."""

    def asking(target):
        answer = ask(target)
        if isinstance(answer.get("json"), list):
            answer["json"] = [row for row in answer["json"] if row.get("name") == name]
        return answer

    return asking


def repository():
    load, unload = post("/v2/repository/models/spare/load"), post("/v2/repository/models/spare/unload")
    index = post("/v2/repository/index")
    ready = get("/v2/models/spare/ready")
    yield "repository/index", index
    for label, body in {
        "ready": {"ready": True},
        "all": {"ready": False},
        "ready is a text": {"ready": "yes"},
        "more members": {"colour": 1},
        "an array": [1],
    }.items():
        yield f"repository/index/{label}", post("/v2/repository/index", body)
    yield "repository/index/no JSON", post("/v2/repository/index", b"hello")
    row = of_model("spare", index)
    gone = until_with(row, lambda answer: answer["json"][0].get("state") == "UNAVAILABLE")
    yield (
        "repository/load, infer, unload",
        steps(row, load, row, infer("spare", TWO), unload, until(ready, 400), gone, infer("spare", TWO)),
    )
    yield "repository/load twice", steps(load, load, ready, unload, until(ready, 400))
    yield "repository/unload what is not loaded", steps(unload, ready)
    yield "repository/unload what does not exist", post("/v2/repository/models/nowhere/unload")
    yield "repository/load what does not exist", post("/v2/repository/models/nowhere/load")
    for label, body in {
        "an empty object": {}, "parameters are empty": {"parameters": {}}, "parameters are no object": {"parameters": []}, "unknown parameter": {"parameters": {"colour": "red"}},
        "config is no text": {"parameters": {"config": {}}}, "config is no JSON": {"parameters": {"config": "hello"}}, "config is empty": {"parameters": {"config": ""}},
        "a file without config": {"parameters": {"file:1/model.py": "AA=="}}, "unload_dependents": {"parameters": {"unload_dependents": True}},
        "more members": {"colour": 1},
    }.items():  # fmt: skip
        yield (
            f"repository/load/{label}",
            steps(post("/v2/repository/models/spare/load", body), unload, until(ready, 400)),
        )
        yield (
            f"repository/unload/{label}",
            steps(load, post("/v2/repository/models/spare/unload", body), unload, until(ready, 400)),
        )
    yield (
        "repository/load/no JSON",
        steps(post("/v2/repository/models/spare/load", b"hello"), unload, until(ready, 400)),
    )

    def with_config(target):
        backend = "python" if target.name == "triton" else "identity"
        config = {"backend": backend, "max_batch_size": 2}
        config |= {
            kind: [{"name": f"{kind.upper()}0", "data_type": "TYPE_FP32", "dims": [2]}] for kind in ("input", "output")
        }
        changed = post("/v2/repository/models/spare/load", {"parameters": {"config": json.dumps(config)}})
        return steps(
            changed,
            infer("spare", ROW),
            infer("spare", TWO),
            get("/v2/models/spare"),
            load,
            infer("spare", TWO),
            unload,
            until(ready, 400),
        )(target)

    yield "repository/load with another configuration", with_config
    for name in BROKEN:
        yield (
            f"repository/broken/{name}",
            steps(
                post(f"/v2/repository/models/{name}/load"),
                of_model(name, index),
                get(f"/v2/models/{name}/ready"),
                infer(name, TWO),
            ),
        )
    yield "repository/ready after failed loads", get("/v2/health/ready")
    for name in BROKEN:
        yield f"repository/unload the broken/{name}", post(f"/v2/repository/models/{name}/unload")


# ---- Statistics ------------------------------------------------------------------------------------------------------


def statistics():
    path = "/v2/models/counted"
    two_rows = [tensor("INPUT0", "FP32", [2, 2], [1, 2, 3, 4])]
    fresh = get(f"{path}/stats")
    yield "statistics/before", fresh
    yield "statistics/after", steps(infer("counted", ROW), infer("counted", ROW), infer("counted", two_rows), fresh)
    yield (
        "statistics/after a wrong request",
        steps(infer("counted", TWO), infer("counted", [tensor("X", "FP32", [1, 2], [1, 2])]), fresh),
    )
    yield "statistics/of a version", get(f"{path}/versions/1/stats")
    yield "statistics/of a sequence", get("/v2/models/direct/stats")
    everything = get("/v2/models/stats")

    def names(target):
        answer = everything(target)
        return sorted((row["name"], row["version"]) for row in answer["json"]["model_stats"])

    yield "statistics/of all", names


# ---- Queues ----------------------------------------------------------------------------------------------------------


def together(*asked):
    """Begins each a little after the one before; the answers in that order."""

    def asking(target):
        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            running = []
            for ask in asked:
                running.append(pool.submit(ask, target))
                time.sleep(0.15)
            return [future.result() for future in running]

    return asking


def queues():
    def timed(model, **parameters):
        return infer(model, ONE, parameters=parameters)

    yield "queue/full", together(*[timed("limited")] * 3)
    yield "queue/timeout of the policy", together(timed("impatient"), timed("impatient"))
    yield "queue/timeout of the request", together(timed("impatient"), timed("impatient", timeout=20_000))
    yield "queue/timeout where none may be given", together(timed("limited"), timed("limited", timeout=20_000))
    yield "queue/timeout that is long", together(timed("impatient"), timed("impatient", timeout=60_000_000))


# ---- Sequences -------------------------------------------------------------------------------------------------------


def sequence(model, number, start=False, end=False, rows=1, **more):
    parameters = {"sequence_id": number, "sequence_start": start, "sequence_end": end, **more}
    return infer(model, [tensor("INPUT0", "FP32", [rows, 1], [5] * rows)], parameters=parameters)


def sequences():
    for model in ("direct", "oldest"):
        name = f"sequence/{model}"
        yield (
            f"{name}/three requests",
            steps(sequence(model, 7, start=True), sequence(model, 7), sequence(model, 7, end=True)),
        )
        yield f"{name}/one that starts and ends", sequence(model, 8, start=True, end=True)
        yield f"{name}/no START", sequence(model, 9)
        yield f"{name}/END without START", sequence(model, 9, end=True)
        yield (
            f"{name}/after END",
            steps(sequence(model, 10, start=True), sequence(model, 10, end=True), sequence(model, 10)),
        )
        yield (
            f"{name}/START twice",
            steps(sequence(model, 11, start=True), sequence(model, 11, start=True), sequence(model, 11, end=True)),
        )
        yield f"{name}/id 0", sequence(model, 0, start=True)
        yield f"{name}/no id", infer(model, ONE)
        yield f"{name}/a text", sequence(model, "seven", start=True, end=True)
        yield f"{name}/an empty text", sequence(model, "", start=True, end=True)
        yield f"{name}/the largest id", sequence(model, 2**64 - 1, start=True, end=True)
        yield f"{name}/a negative id", sequence(model, -1, start=True, end=True)
        yield f"{name}/a fraction", sequence(model, 1.5, start=True, end=True)
        yield (
            f"{name}/start as a number",
            infer(model, ONE, parameters={"sequence_id": 12, "sequence_start": 1, "sequence_end": 1}),
        )
        yield f"{name}/two rows", sequence(model, 13, start=True, end=True, rows=2)
        yield (
            f"{name}/two in turns",
            steps(*[sequence(model, number, start=at == 0, end=at == 2) for at in range(3) for number in (21, 22)]),
        )
        yield (
            f"{name}/a control among the inputs",
            infer(
                model,
                [*ONE, tensor("START", "INT32", [1, 1], [1])],
                parameters={"sequence_id": 14, "sequence_start": True, "sequence_end": True},
            ),
        )
    for label, number in {
        "a text": "seven",
        "128 letters": "x" * 128,
        "129 letters": "x" * 129,
        "a number": 7,
        "not ASCII": "größer",
        "empty": "",
    }.items():
        yield f"sequence/lettered/{label}", sequence("lettered", number, start=True, end=True)


# ---- Decoupled -------------------------------------------------------------------------------------------------------


def decoupled():
    inputs = [
        tensor("IN", "INT32", [2], [4, 2]),
        tensor("DELAY", "UINT32", [2], [0, 0]),
        tensor("WAIT", "UINT32", [1], [0]),
    ]
    yield "decoupled/infer", infer("repeat", inputs)
    yield "decoupled/infer that is wrong", infer("repeat", inputs[:1])


# ---- Shared memory ---------------------------------------------------------------------------------------------------

SHARED = "/v2/systemsharedmemory"


def register(name, key, byte_size=64, **more):
    return post(f"{SHARED}/region/{name}/register", {"key": key, "byte_size": byte_size, **more})


@contextlib.contextmanager
def region(target, data=bytes(64)):
    """An object in shared memory of this server's own; the key."""
    key = f"roundhouse-differential-{os.getpid()}-{target.name}"
    path = f"/dev/shm/{key}"
    with open(path, "wb") as file:
        file.write(data)
    try:
        yield f"/{key}", path
    finally:
        os.unlink(path)


def with_region(*asked, data=bytes(64)):
    """Steps, each made from the region's key; the keys are told apart no more in what comes back."""

    def asking(target):
        with region(target, data) as (key, _):
            answers = [ask(key)(target) for ask in asked]
            over_http(target, "POST", f"{SHARED}/unregister", b"")
        return json.loads(json.dumps(answers).replace(key[1:], "KEY"))

    return asking


def shared():
    status, one = get(f"{SHARED}/status"), get(f"{SHARED}/region/r/status")
    placed = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    taken = {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 8}
    value = lambda **more: tensor("INPUT0", "FP32", [1, 2], **more)
    data = pack("FP32", [1.5, -2]) + bytes(56)
    ask = lambda inputs, outputs=None, **members: (
        lambda key: infer("identity", inputs, **({"outputs": outputs} if outputs else {}), **members)
    )
    plain = [{"name": "OUTPUT0"}]
    out = lambda **more: [{"name": "OUTPUT0", "parameters": {**taken, **more}}]
    r = lambda size=64, **more: lambda key: register("r", key, size, **more)
    always = lambda ask: lambda key: ask
    yield (
        "shared/register, status, unregister",
        with_region(
            r(), always(status), always(one), always(post(f"{SHARED}/region/r/unregister")), always(status), always(one)
        ),
    )
    yield "shared/register twice", with_region(r(), r())
    yield (
        "shared/unregister twice",
        with_region(r(), always(post(f"{SHARED}/region/r/unregister")), always(post(f"{SHARED}/region/r/unregister"))),
    )
    yield "shared/unregister all", with_region(r(), always(post(f"{SHARED}/unregister")), always(status))
    yield "shared/offset", with_region(r(32, offset=32), always(one))
    yield "shared/no such object", register("r", "/roundhouse-differential-none")
    yield "shared/key without a slash in front", with_region(lambda key: register("r", key[1:]), always(one))
    for label, body in {
        "no key": {"byte_size": 8}, "no size": {"key": "KEY"}, "size is a text": {"key": "KEY", "byte_size": "8"}, "size is negative": {"key": "KEY", "byte_size": -8},
        "size is 0": {"key": "KEY", "byte_size": 0}, "size is too large": {"key": "KEY", "byte_size": 65}, "offset is too large": {"key": "KEY", "byte_size": 64, "offset": 1},
        "offset overflows": {"key": "KEY", "byte_size": 8, "offset": 2**64 - 4}, "key is a number": {"key": 1, "byte_size": 8}, "key is empty": {"key": "", "byte_size": 8},
        "key is slashes": {"key": "///", "byte_size": 8}, "key holds a slash": {"key": "/a/b", "byte_size": 8}, "key goes up": {"key": "/../x", "byte_size": 8},
        "Triton's own prefix": {"key": "/triton_python_backend_shm_region_x", "byte_size": 8},
    }.items():  # fmt: skip
        yield (
            f"shared/register/{label}",
            with_region(
                lambda key, body=body: post(
                    f"{SHARED}/region/r/register",
                    {name: key if value == "KEY" else value for name, value in body.items()},
                )
            ),
        )
    yield "shared/register/no JSON", post(f"{SHARED}/region/r/register", b"hello")
    yield "shared/input", with_region(r(), ask([value(**placed)], plain), data=data)
    yield (
        "shared/both",
        with_region(
            r(),
            ask([value(**placed)], out()),
            ask([value(shared_memory_region="r", shared_memory_byte_size=8, shared_memory_offset=8)], plain),
            data=data,
        ),
    )
    yield (
        "shared/output",
        with_region(
            r(),
            ask(ROW, out()),
            ask([value(shared_memory_region="r", shared_memory_byte_size=8, shared_memory_offset=8)], plain),
        ),
    )
    yield "shared/output that does not fit", with_region(r(), ask(ROW, out(shared_memory_byte_size=4)))
    yield "shared/output with room to spare", with_region(r(), ask(ROW, out(shared_memory_byte_size=32)))
    yield "shared/output beyond the region", with_region(r(), ask(ROW, out(shared_memory_offset=60)))
    yield "shared/output with binary_data", with_region(r(), ask(ROW, out(binary_data=True)))
    yield "shared/no such region", ask([value(**placed)])("")
    yield "shared/no such region for the output", ask(ROW, out())("")
    yield "shared/input beyond the region", with_region(r(), ask([value(**{**placed, "shared_memory_offset": 60})]))
    yield (
        "shared/input of another size",
        with_region(r(), ask([value(shared_memory_region="r", shared_memory_byte_size=16)])),
    )
    yield "shared/input without a size", with_region(r(), ask([value(shared_memory_region="r")]))
    yield (
        "shared/input with an overflowing offset",
        with_region(r(), ask([value(**{**placed, "shared_memory_offset": 2**64 - 4})])),
    )
    yield "shared/input with data too", with_region(r(), ask([value(data=[1, 2], **placed)]))
    texts = pack("BYTES", ["a", "bc"])
    yield (
        "shared/texts",
        with_region(
            r(),
            always(
                infer(
                    "texts",
                    [tensor("INPUT0", "BYTES", [1, 2], shared_memory_region="r", shared_memory_byte_size=len(texts))],
                )
            ),
            data=texts + bytes(64),
        ),
    )
    for label, handle in {
        "no handle": None,
        "not base64": "!",
        "too short": "AAAA",
        "64 zeros": base64.b64encode(bytes(64)).decode(),
    }.items():
        body = {"device_id": 0, "byte_size": 8} | ({"raw_handle": {"b64": handle}} if handle else {})
        yield f"shared/CUDA/{label}", post("/v2/cudasharedmemory/region/r/register", body)


# ---- Settings --------------------------------------------------------------------------------------------------------


def settings():
    for path, name in (("/v2/trace/setting", "trace"), ("/v2/models/wide/trace/setting", "trace of a model")):
        yield f"settings/{name}/read", get(path)
        reset = post(path, {"trace_level": None, "trace_rate": None, "trace_count": None, "log_frequency": None})
        for label, body in {
            "rate": {"trace_rate": "5"}, "count": {"trace_count": "7"}, "level": {"trace_level": ["TIMESTAMPS"]}, "two levels": {"trace_level": ["TIMESTAMPS", "TENSORS"]},
            "off": {"trace_level": ["OFF"]}, "off and more": {"trace_level": ["OFF", "TENSORS"]}, "frequency": {"log_frequency": "9"}, "everything": {"trace_level": ["TENSORS"], "trace_rate": "2", "trace_count": "3", "log_frequency": "4"},
            "nothing": {}, "rate is a number": {"trace_rate": 5}, "rate is a word": {"trace_rate": "x"}, "rate is 0": {"trace_rate": "0"}, "rate is negative": {"trace_rate": "-1"},
            "count is below -1": {"trace_count": "-2"}, "level is a text": {"trace_level": "TIMESTAMPS"}, "level is unknown": {"trace_level": ["LOUD"]}, "level is in small letters": {"trace_level": ["timestamps"]},
            "MIN": {"trace_level": ["MIN"]}, "MAX": {"trace_level": ["MAX"]}, "unknown": {"colour": "red"}, "file": {"trace_file": "/nowhere/x"}, "mode": {"trace_mode": "opentelemetry"},
            "all null": {"trace_level": None, "trace_rate": None, "trace_count": None, "log_frequency": None}, "an array": [],
        }.items():  # fmt: skip
            yield f"settings/{name}/{label}", steps(post(path, body), reset)
        yield f"settings/{name}/no JSON", steps(post(path, b"hello"), reset)
        yield f"settings/{name}/an empty body", steps(post(path, b""), reset)
    yield "settings/trace of a model/follows the server", steps(
        post("/v2/trace/setting", {"trace_rate": "3"}), get("/v2/models/wide/trace/setting"), post("/v2/models/wide/trace/setting", {"trace_rate": "4"}),
        get("/v2/trace/setting"), post("/v2/models/wide/trace/setting", {"trace_rate": None}), post("/v2/trace/setting", {"trace_rate": None}),
    )  # fmt: skip
    yield "settings/trace of a model/no such model", get("/v2/models/nowhere/trace/setting")
    yield (
        "settings/trace of a model/change of the unknown",
        post("/v2/models/nowhere/trace/setting", {"trace_rate": "3"}),
    )
    yield "settings/trace of a model/not loaded", get("/v2/models/spare/trace/setting")
    yield "settings/log/read", get("/v2/logging")
    reset = post(
        "/v2/logging",
        {"log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0, "log_format": "default"},
    )
    yield "settings/log/set all", reset
    for label, body in {
        "info": {"log_info": False}, "warning": {"log_warning": False}, "error": {"log_error": False}, "verbose": {"log_verbose_level": 1}, "format": {"log_format": "ISO8601"},
        "format default": {"log_format": "default"}, "unknown format": {"log_format": "loud"}, "file": {"log_file": "/nowhere/x"}, "unknown": {"colour": 1}, "info is a text": {"log_info": "yes"},
        "info is a number": {"log_info": 1}, "verbose is negative": {"log_verbose_level": -1}, "verbose is a text": {"log_verbose_level": "1"}, "verbose is a bool": {"log_verbose_level": True},
        "nothing": {}, "null": {"log_info": None}, "an array": [],
    }.items():  # fmt: skip
        yield f"settings/log/{label}", steps(post("/v2/logging", body), reset)
    yield "settings/log/no JSON", steps(post("/v2/logging", b"hello"), reset)


def cases():
    for part in (statistics, sequences, decoupled, shared, settings, queues, repository):
        for name, run in part():
            yield f"http/{name}", run
