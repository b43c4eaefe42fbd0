"""What leaves a trace, over gRPC: repository control, shared memory, settings."""

import json

from tritonclient.grpc import service_pb2 as pb

from answers import over_grpc, pack
from cases_grpc import ask, call, infer, steps, stream, tensor
from cases_state import region, until_with
from repositories import BROKEN


def repository():
    load = lambda **values: call("RepositoryModelLoad", load_request("spare", **values))
    unload = call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="spare"))
    ready = call("ModelReady", pb.ModelReadyRequest(name="spare"))
    gone = until_with(ready, lambda answer: not answer.get("message", {}).get("ready"))

    def index(name, **options):
        def asking(target):
            answer = over_grpc(target.stub.RepositoryIndex, pb.RepositoryIndexRequest(**options))
            models = answer.get("message", {}).get("models", [])
            return answer | {"message": [model for model in models if name in (None, model["name"])]}

        return asking

    row = index("spare")
    two = infer(tensor(ask("spare"), "INPUT0", "FP32", [2], raw=bytes(8)))
    yield (
        "repository/load, infer, unload",
        steps(
            row,
            load(),
            row,
            two,
            unload,
            gone,
            until_with(row, lambda answer: answer["message"][0].get("state") == "UNAVAILABLE"),
            two,
        ),
    )
    yield "repository/load twice", steps(load(), load(), unload, gone)
    yield "repository/index/of one repository", index("wide", repository_name="r")
    yield "repository/index/ready", steps(index("wide", ready=True), index("spare", ready=True))
    yield "repository/load what does not exist", call("RepositoryModelLoad", load_request("nowhere"))
    yield (
        "repository/load/of one repository",
        call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(repository_name="r", model_name="spare")),
    )
    yield (
        "repository/unload/of one repository",
        call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(repository_name="r", model_name="spare")),
    )
    yield (
        "repository/unload what does not exist",
        call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="nowhere")),
    )
    for label, values in {
        "unknown parameter": {"colour": "red"}, "config is a number": {"config": 1}, "config is no JSON": {"config": "hello"}, "config is empty": {"config": ""},
        "a file without config": {"file:1/x": b"\0"}, "a file that is a text": {"config": "{}", "file:1/x": "a"},
    }.items():  # fmt: skip
        yield f"repository/load/{label}", steps(load(**values), unload, gone)
    for name in BROKEN:
        leave = call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=name))
        yield f"repository/broken/{name}", steps(call("RepositoryModelLoad", load_request(name)), leave)
    for label, value in {"true": True, "a text": "yes", "a number": 1}.items():
        request = pb.RepositoryModelUnloadRequest(model_name="spare")
        setattr(
            request.parameters["unload_dependents"],
            {bool: "bool_param", str: "string_param", int: "int64_param"}[type(value)],
            value,
        )
        yield (
            f"repository/unload_dependents is {label}",
            steps(load(), call("RepositoryModelUnload", request), unload, gone),
        )


def load_request(name, **values):
    request = pb.RepositoryModelLoadRequest(model_name=name)
    for key, value in values.items():
        kind = {bool: "bool_param", str: "string_param", int: "int64_param", bytes: "bytes_param"}[type(value)]
        setattr(request.parameters[key], kind, value)
    return request


# ---- Shared memory, settings -----------------------------------------------------------------------------------------


def shared():
    status = lambda name="": call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name=name))
    leave = lambda name="": call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name))
    enter = lambda key, **more: call(
        "SystemSharedMemoryRegister",
        pb.SystemSharedMemoryRegisterRequest(**{"name": "r", "key": key, "byte_size": 64, **more}),
    )
    placed = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    later = {**placed, "shared_memory_offset": 8}
    value = lambda outputs=(), more=None: tensor(
        ask(outputs=outputs), "INPUT0", "FP32", [1, 2], more=placed if more is None else more
    )

    def with_region(*asked, data=pack("FP32", [1.5, -2]) + bytes(56)):
        def asking(target):
            with region(target, data) as (key, _):
                answers = [(made(key) if getattr(made, "__name__", "") == "of_key" else made)(target) for made in asked]
                leave()(target)
            return json.loads(json.dumps(answers).replace(key[1:], "KEY"))

        return asking

    def of_key(key):
        return enter(key)

    def keyed(**more):
        def of_key(key):
            return enter(key, **more)

        return of_key

    yield (
        "shared/register, status, unregister",
        with_region(of_key, status(), status("r"), leave("r"), status(), status("r")),
    )
    yield "shared/register twice", with_region(of_key, of_key)
    yield "shared/unregister all", with_region(of_key, leave(), status())
    yield "shared/unregister what is not there", leave("none")
    yield "shared/status of what is not there", status("none")
    yield "shared/no such object", enter("/roundhouse-differential-none")
    for label, more in {
        "no name": {"name": ""},
        "size 0": {"byte_size": 0},
        "too large": {"byte_size": 65},
        "offset too large": {"offset": 1},
        "offset overflows": {"offset": 2**64 - 4},
    }.items():
        yield f"shared/register/{label}", with_region(keyed(**more))
    yield "shared/input", with_region(of_key, infer(value()))
    yield "shared/both", with_region(of_key, infer(value({"OUTPUT0": later})), infer(value(more=later)))
    yield (
        "shared/output that does not fit",
        with_region(of_key, infer(value({"OUTPUT0": {**later, "shared_memory_byte_size": 4}}))),
    )
    yield (
        "shared/output beyond the region",
        with_region(of_key, infer(value({"OUTPUT0": {**later, "shared_memory_offset": 60}}))),
    )
    yield (
        "shared/input beyond the region",
        with_region(of_key, infer(value(more={**placed, "shared_memory_offset": 60}))),
    )
    yield (
        "shared/input of another size",
        with_region(of_key, infer(value(more={**placed, "shared_memory_byte_size": 16}))),
    )
    yield "shared/input without a size", with_region(of_key, infer(value(more={"shared_memory_region": "r"})))
    yield "shared/no such region", infer(value())
    yield (
        "shared/input with raw contents too",
        with_region(of_key, infer(tensor(ask(), "INPUT0", "FP32", [1, 2], raw=bytes(8), more=placed))),
    )
    yield "shared/a stream", with_region(of_key, stream([value({"OUTPUT0": later}), value(more=later)]))
    yield "shared/CUDA/status", call("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest())
    yield (
        "shared/CUDA/status of what is not there",
        call("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name="none")),
    )
    yield "shared/CUDA/unregister", call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest())
    yield (
        "shared/CUDA/register",
        call(
            "CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=bytes(64), byte_size=8)
        ),
    )


def settings():
    def trace(model="", **values):
        request = pb.TraceSettingRequest(model_name=model)
        for key, value in values.items():
            request.settings[key].SetInParent()
            request.settings[key].value.extend([value] if isinstance(value, str) else value)
        return call("TraceSetting", request)

    def log(**values):
        request = pb.LogSettingsRequest()
        for key, value in values.items():
            kind = {bool: "bool_param", str: "string_param", int: "uint32_param"}[type(value)]
            setattr(request.settings[key], kind, value)
        return call("LogSettings", request)

    for model in ("", "wide"):
        name = "settings/trace of a model" if model else "settings/trace"
        reset = trace(model, trace_level=[], trace_rate=[], trace_count=[], log_frequency=[])
        yield f"{name}/read", trace(model)
        for label, values in {
            "rate": {"trace_rate": "5"}, "count": {"trace_count": "7"}, "level": {"trace_level": ["TIMESTAMPS"]}, "two levels": {"trace_level": ["TIMESTAMPS", "TENSORS"]},
            "off": {"trace_level": ["OFF"]}, "frequency": {"log_frequency": "9"}, "rate is a word": {"trace_rate": "x"}, "two rates": {"trace_rate": ["1", "2"]},
            "rate is 0": {"trace_rate": "0"}, "count is below -1": {"trace_count": "-2"}, "level is unknown": {"trace_level": ["LOUD"]}, "unknown": {"colour": "red"}, "file": {"trace_file": "/nowhere/x"}, "mode": {"trace_mode": "opentelemetry"},
        }.items():  # fmt: skip
            yield f"{name}/{label}", steps(trace(model, **values), reset)
    yield "settings/trace of a model/no such model", trace("nowhere")
    yield "settings/trace of a model/change of the unknown", trace("nowhere", trace_rate="5")
    reset = log(log_info=True, log_warning=True, log_error=True, log_verbose_level=0, log_format="default")
    yield "settings/log/read", steps(reset, log())
    for label, values in {
        "info": {"log_info": False}, "verbose": {"log_verbose_level": 1}, "format": {"log_format": "ISO8601"}, "unknown format": {"log_format": "loud"}, "file": {"log_file": "/nowhere/x"},
        "unknown": {"colour": 1}, "info is a text": {"log_info": "yes"}, "verbose is a bool": {"log_verbose_level": True},
    }.items():  # fmt: skip
        yield f"settings/log/{label}", steps(log(**values), reset)


def cases():
    for part in (shared, settings, repository):
        for name, run in part():
            yield f"grpc/{name}", run
