"""KServe v2 over gRPC: every call of `inference.GRPCInferenceService`, and grpc.health.v1."""

import grpc
from tritonclient.grpc import service_pb2 as pb

from answers import over_grpc, over_stream, pack
from cases_http import EXTREMES, VALUES
from repositories import MODELS, TYPES

CONTENTS = {"BOOL": "bool_contents", "UINT64": "uint64_contents", "INT64": "int64_contents", "FP32": "fp32_contents"}
CONTENTS |= {"FP64": "fp64_contents", "BYTES": "bytes_contents"}
CONTENTS |= {name: "uint_contents" for name in ("UINT8", "UINT16", "UINT32")}
CONTENTS |= {name: "int_contents" for name in ("INT8", "INT16", "INT32")}


def call(name, request, metadata=()):
    return lambda target: over_grpc(getattr(target.stub, name), request, metadata)


def steps(*asked):
    return lambda target: [ask(target) for ask in asked]


def parameters(holder, values):
    for key, value in values.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(holder.parameters[key], kind, value)


def tensor(request, name, data_type, shape, values=None, raw=None, more=None, field=None):
    """Adds an input: typed with `values`, or raw, or neither."""
    made = request.inputs.add(name=name, datatype=data_type, shape=shape)
    parameters(made, more or {})
    if values is not None:
        texts = [value.encode() if isinstance(value, str) else value for value in values]
        getattr(made.contents, field or CONTENTS[data_type]).extend(texts)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def ask(model="identity", version="", id="", outputs=(), **values):
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
    parameters(request, values)
    for name, more in dict(outputs).items():
        parameters(request.outputs.add(name=name), more)
    return request


def pair(**options):
    return tensor(ask(**options), "INPUT0", "FP32", [1, 2], raw=pack("FP32", [1.5, -2]))


def infer(request):
    return call("ModelInfer", request)


def documents():
    for name in ("ServerLive", "ServerReady", "ServerMetadata"):
        yield f"document/{name}", call(name, getattr(pb, f"{name}Request")())
    for model in [*MODELS, "nowhere", ""]:
        for version in ("", "9") if model in ("wide", "nowhere") else ("",):
            label = f"{model}{':' if version else ''}{version}"
            yield f"document/ModelReady/{label}", call("ModelReady", pb.ModelReadyRequest(name=model, version=version))
            yield (
                f"document/ModelMetadata/{label}",
                call("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version)),
            )
            yield (
                f"document/ModelConfig/{label}",
                call("ModelConfig", pb.ModelConfigRequest(name=model, version=version)),
            )
    for version in ("1", "2", "3", "x", "-1", "01"):
        yield (
            f"document/version {version}",
            call("ModelMetadata", pb.ModelMetadataRequest(name="versions", version=version)),
        )
        yield (
            f"document/ready of version {version}",
            call("ModelReady", pb.ModelReadyRequest(name="versions", version=version)),
        )
    for model, version in (
        ("counted", ""),
        ("counted", "1"),
        ("counted", "9"),
        ("counted", "x"),
        ("nowhere", ""),
        ("spare", ""),
    ):
        label = f"document/ModelStatistics/{model}:{version}"
        yield label, call("ModelStatistics", pb.ModelStatisticsRequest(name=model, version=version))
    for service in ("", "inference.GRPCInferenceService", "wide", "nowhere"):

        def health(target, service=service):
            # The message by hand: `service` is field 1, `status` of the answer too.
            data = b"\x0a" + bytes([len(service)]) + service.encode() if service else b""
            made = target.channel.unary_unary("/grpc.health.v1.Health/Check")
            return over_bytes(made, data)

        yield f"health/{service}", health
    yield (
        "unknown call",
        lambda target: over_bytes(target.channel.unary_unary("/inference.GRPCInferenceService/Nothing"), b""),
    )
    yield "unknown service", lambda target: over_bytes(target.channel.unary_unary("/nothing.Here/Nothing"), b"")
    for label, data in {
        "no message": b"\xff\xff\xff",
        "a string of another length": b"\x0a\x7fab",
        "an unknown field": b"\xf8\x07\x01",
    }.items():
        yield (
            f"bytes/{label}",
            lambda target, data=data: over_bytes(
                target.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer"), data
            ),
        )
        yield (
            f"bytes/metadata, {label}",
            lambda target, data=data: over_bytes(
                target.channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata"), data
            ),
        )


def over_bytes(made, data):
    """Bytes in the place of messages."""
    try:
        return {"code": "OK", "message": made(data, timeout=60).hex()}
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}


def types():
    def request(changed=None, form="raw", outputs=()):
        made = ask("every_type", outputs={f"OUT_{name}": {} for name in outputs})
        for name in TYPES:
            if changed and changed[0] == name:
                changed[1](made)
            elif form == "raw":
                tensor(made, f"IN_{name}", name, [3], raw=pack(name, VALUES[name]))
            elif name in CONTENTS:
                tensor(made, f"IN_{name}", name, [3], VALUES[name])
        return made

    yield "types/raw", infer(request())
    for name in TYPES:
        data = pack(name, VALUES[name])
        label = f"types/{name}"
        yield f"{label}/one output", infer(request(outputs=[name]))
        yield (
            f"{label}/too few bytes",
            infer(request((name, lambda made: tensor(made, f"IN_{name}", name, [3], raw=data[:-1])))),
        )
        yield (
            f"{label}/too many bytes",
            infer(request((name, lambda made: tensor(made, f"IN_{name}", name, [3], raw=data + b"\0")))),
        )
        yield f"{label}/no bytes", infer(request((name, lambda made: tensor(made, f"IN_{name}", name, [3], raw=b""))))
        other = "INT32" if name != "INT32" else "FP32"
        yield (
            f"{label}/called {other}",
            infer(request((name, lambda made: tensor(made, f"IN_{name}", other, [1], raw=bytes(4))))),
        )
    typed = [name for name in TYPES if name in CONTENTS]
    for name in typed:
        values = VALUES[name]
        model = {"FP32": "identity", "BYTES": "texts", "INT32": "unlabelled"}.get(name)
        if model is None:
            continue
        shape = {"FP32": [1, 3], "BYTES": [1, 3], "INT32": [5]}[name]
        values = values if name != "INT32" else [1, 2, 3, 4, 5]
        label = f"typed/{name}"
        one = lambda shape=shape, values=values, **more: infer(
            tensor(ask(model), "INPUT0", name, shape, values, **more)
        )
        yield f"{label}/good", one()
        yield f"{label}/too few", one(values=values[:-1])
        yield f"{label}/too many", one(values=[*values, values[0]])
        yield f"{label}/none", one(values=[])
        yield f"{label}/and raw", one(raw=pack(name, values))
        yield f"{label}/in bool_contents", one(values=[True] * len(values), field="bool_contents")
        yield f"{label}/in int_contents", one(values=[1] * len(values), field="int_contents")
        yield f"{label}/in uint64_contents", one(values=[1] * len(values), field="uint64_contents")
        both = tensor(ask(model), "INPUT0", name, shape, values)
        both.inputs[0].contents.bool_contents.append(True)
        yield f"{label}/in two fields", infer(both)
        yield (
            f"{label}/extremes",
            one(values=(EXTREMES[name] * 3)[: len(values)] if name in EXTREMES else [b"\0\xff"] * len(values)),
        )


def requests():
    yield "infer/good", infer(pair(id="42"))
    yield "infer/no name", infer(pair(model=""))
    yield "infer/unknown model", infer(pair(model="nowhere"))
    yield "infer/not loaded", infer(pair(model="spare"))
    for version in ("1", "9", "x", "-1", "01", "99999999999999999999"):
        yield f"infer/version {version}", infer(pair(version=version))
    yield "infer/nothing", infer(pb.ModelInferRequest())
    yield "infer/no inputs", infer(ask())
    yield "infer/raw contents missing", infer(tensor(ask(), "INPUT0", "FP32", [1, 2]))
    more = pair()
    more.raw_input_contents.append(bytes(4))
    yield "infer/raw contents too much", infer(more)
    yield "infer/raw contents alone", infer(pb.ModelInferRequest(model_name="identity", raw_input_contents=[bytes(8)]))
    yield "infer/unknown input", infer(tensor(ask(), "OTHER", "FP32", [1, 1], raw=bytes(4)))
    yield "infer/one input too much", infer(tensor(pair(), "OTHER", "FP32", [1, 1], raw=bytes(4)))
    yield "infer/an input twice", infer(tensor(pair(), "INPUT0", "FP32", [1, 2], raw=bytes(8)))
    yield "infer/one input missing", infer(tensor(ask("add_sub"), "INPUT0", "FP32", [1, 16], raw=bytes(64)))
    yield "infer/no input's name", infer(tensor(ask(), "", "FP32", [1, 1], raw=bytes(4)))
    yield "infer/unknown datatype", infer(tensor(ask(), "INPUT0", "FP31", [1, 1], raw=bytes(4)))
    yield "infer/no datatype", infer(tensor(ask(), "INPUT0", "", [1, 1], raw=bytes(4)))
    yield "infer/error with id", infer(tensor(ask(id="my id"), "OTHER", "FP32", [1, 1], raw=bytes(4)))
    for shape in ([2], [1, 1, 2], [], [-1, 2], [0, 4], [2**62, 4]):
        yield f"shape/{shape}", infer(tensor(ask(), "INPUT0", "FP32", shape, raw=bytes(8 if 0 not in shape else 0)))
    for shape in ([1, 4], [8, 4], [9, 4], [4], [0, 4], [1, 5]):
        count = shape[0] * shape[-1] if len(shape) > 1 else 4
        yield f"shape/batched {shape}", infer(tensor(ask("batched"), "INPUT0", "FP32", shape, raw=bytes(4 * count)))
    two = lambda **options: tensor(
        tensor(ask("add_sub", **options), "INPUT1", "FP32", [1, 16], raw=pack("FP32", range(16))),
        "INPUT0",
        "FP32",
        [1, 16],
        raw=pack("FP32", [1] * 16),
    )
    yield "outputs/all", infer(two())
    yield "outputs/the other way round", infer(two(outputs={"OUTPUT1": {}, "OUTPUT0": {}}))
    yield "outputs/one", infer(two(outputs={"OUTPUT1": {}}))
    yield "outputs/unknown", infer(two(outputs={"OUTPUT9": {}}))
    yield "outputs/unnamed", infer(two(outputs={"": {}}))
    for label, more in {
        "binary_data": {"binary_data": False},
        "unknown": {"colour": 1},
        "no region": {"shared_memory_region": "none", "shared_memory_byte_size": 8},
    }.items():
        yield f"output parameters/{label}", infer(pair(outputs={"OUTPUT0": more}))
    scores = lambda number, **more: tensor(
        ask("labelled", outputs={"OUTPUT0": {"classification": number, **more}}),
        "INPUT0",
        "FP32",
        [1, 5],
        raw=pack("FP32", [0.1, 0.5, 0.2, 0.15, 0.05]),
    )
    for number in (1, 3, 6, 0, -1, "2", True, 1.5):
        yield f"classification/{number}", infer(scores(number))
    for label, values in {
        "a text": {"mine": "x"}, "a number": {"mine": 1}, "a bool": {"mine": True}, "a double": {"mine": 1.5}, "triton_ in front": {"triton_mine": 1}, "priority": {"priority": 1},
        "priority 9": {"priority": 9}, "priority is negative": {"priority": -1}, "priority is a text": {"priority": "1"}, "timeout": {"timeout": 10_000_000}, "timeout is a text": {"timeout": "1"},
        "timeout is negative": {"timeout": -1}, "sequence_id without sequences": {"sequence_id": 7, "sequence_start": True}, "sequence_start is a number": {"sequence_start": 1},
        "binary_data_output": {"binary_data_output": True}, "an empty final response": {"triton_enable_empty_final_response": True},
    }.items():  # fmt: skip
        yield f"parameters/{label}", infer(pair(**values))
        yield (
            f"parameters of a model with levels/{label}",
            infer(tensor(ask("preferred", **values), "INPUT0", "FP32", [1, 4], raw=bytes(16))),
        )
    empty = pair()
    empty.parameters["mine"].SetInParent()
    yield "parameters/without a value", infer(empty)
    texts = {
        "good": pack("BYTES", ["a", "bc"]),
        "cut": pack("BYTES", ["a", "bc"])[:-1],
        "one too few": pack("BYTES", ["a"]),
        "too many": pack("BYTES", ["a", "b", "c"]),
    }
    for label, data in texts.items():
        yield f"texts/{label}", infer(tensor(ask("texts"), "INPUT0", "BYTES", [1, 2], raw=data))


def row(number, start=False, end=False, model="direct", rows=1, **more):
    request = ask(model, sequence_id=number, sequence_start=start, sequence_end=end, **more)
    return tensor(request, "INPUT0", "FP32", [rows, 1], raw=pack("FP32", [5] * rows))


def sequences():
    for model in ("direct", "oldest"):
        one = lambda number, start=False, end=False, **more: infer(row(number, start, end, model, **more))
        name = f"sequence/{model}"
        yield f"{name}/three requests", steps(one(107, True), one(107), one(107, end=True))
        yield f"{name}/no START", one(109)
        yield f"{name}/END without START", one(109, end=True)
        yield f"{name}/id 0", one(0, True)
        yield f"{name}/a text", one("seven", True, True)
        yield f"{name}/a negative id", one(-1, True, True)
        yield f"{name}/two rows", one(113, True, True, rows=2)
        yield (
            f"{name}/a stream",
            stream(
                [
                    row(114, True, model=model),
                    row(114, model=model),
                    row(114, end=True, model=model),
                    row(114, model=model),
                ]
            ),
        )
    yield "sequence/lettered/a text", infer(row("seven", True, True, "lettered"))
    yield "sequence/lettered/129 letters", infer(row("x" * 129, True, True, "lettered"))


def repeated(values, delays=None, **options):
    made = tensor(ask("repeat", **options), "IN", "INT32", [len(values)], raw=pack("INT32", values))
    tensor(made, "DELAY", "UINT32", [len(values)], raw=pack("UINT32", delays or [0] * len(values)))
    return tensor(made, "WAIT", "UINT32", [1], raw=bytes(4))


def stream(requests, metadata=()):
    return lambda target: over_stream(target, requests, metadata)


def streams():
    final = {"triton_enable_empty_final_response": True}
    yield "stream/nothing", stream([])
    yield "stream/one", stream([pair(id="1")])
    yield "stream/three", stream([pair(id=str(number)) for number in range(3)])
    yield "stream/one with a final response", stream([pair(id="1", **final)])
    yield "stream/unknown model", stream([pair(model="nowhere", id="1")])
    yield "stream/an error between two answers", stream([pair(id="1"), pair(model="nowhere", id="2"), pair(id="3")])
    yield "stream/a wrong input", stream([tensor(ask(id="1"), "OTHER", "FP32", [1, 1], raw=bytes(4)), pair(id="2")])
    for label, request in {
        "unknown model": pair(model="nowhere", id="1"),
        "wrong input": tensor(ask(id="1"), "OTHER", "FP32", [1, 1], raw=bytes(4)),
    }.items():
        yield f"stream/errors end it, {label}", stream([request], [("triton_grpc_error", "true")])
    yield "stream/errors end it, but there are none", stream([pair(id="1")], [("triton_grpc_error", "true")])
    yield "stream/a version that is no number", stream([pair(version="x", id="1")])
    yield "decoupled/unary", infer(repeated([1]))
    for label, values in {"no answer": [], "one": [5], "three": [1, 2, 3]}.items():
        yield f"decoupled/{label}", stream([repeated(values, id="1")])
        yield f"decoupled/{label} with a final response", stream([repeated(values, id="1", **final)])
        yield f"decoupled/{label}, one output", stream([repeated(values, id="1", outputs={"IDX": {}})])
    yield "decoupled/wrong input", stream([tensor(ask("repeat", id="1"), "IN", "INT32", [1], raw=bytes(4))])
    yield (
        "decoupled/a final response that is a text",
        stream([repeated([1], id="1", triton_enable_empty_final_response="true")]),
    )


def cases():
    for part in (documents, types, requests, sequences, streams):
        for name, run in part():
            yield f"grpc/{name}", run
