"""KServe v2 over HTTP: routes and methods, documents, inference in JSON and in binary, compression, generate."""

import gzip
import json
import zlib

from answers import over_http, pack
from repositories import MODELS, TYPES

VALUES = {name: [0, 1, 2] for name in TYPES} | {"BOOL": [True, False, True], "BYTES": ["a", "", "zwölf"]}
VALUES |= {name: [0.5, -1.5, 3.25] for name in ("FP16", "BF16", "FP32", "FP64")}
IN_JSON = [name for name in TYPES if name not in ("FP16", "BF16")]
EXTREMES = {
    "UINT8": [0, 255], "UINT16": [0, 65535], "UINT32": [0, 2**32 - 1], "UINT64": [0, 2**64 - 1], "INT8": [-128, 127],
    "INT16": [-32768, 32767], "INT32": [-(2**31), 2**31 - 1], "INT64": [-(2**63), 2**63 - 1],
    "FP32": [3.4028234663852886e38, 1.401298464324817e-45], "FP64": [1.7976931348623157e308, 5e-324],
}  # fmt: skip
WRONG = {
    "text": '"x"',
    "null": "null",
    "object": "{}",
    "fraction": "1.5",
    "true": "true",
    "number": "1",
    "huge": "1e400",
}


def get(path, **headers):
    return lambda target: over_http(target, "GET", path, headers=headers)


def post(path, body=b"", **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda target: over_http(
        target, "POST", path, data, {name.replace("_", "-"): value for name, value in headers.items()}
    )


def tensor(name, data_type, shape, data=None, **parameters):
    made = {"name": name, "datatype": data_type, "shape": shape}
    if data is not None:
        made["data"] = data
    return made | ({"parameters": parameters} if parameters else {})


def infer(model, inputs, binary=None, version=None, headers=None, **members):
    """An inference; `binary` is what follows the JSON."""
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
    head = json.dumps({"inputs": inputs, **members}).encode()
    headers = dict(headers or {})
    if binary is not None:
        headers["Inference-Header-Content-Length"] = str(len(head))
    return lambda target: over_http(target, "POST", path, head + (binary or b""), headers)


PAIR = [tensor("INPUT0", "FP32", [1, 2], [1.5, -2])]
ROUTES = [
    "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models", "/v2/models/stats", "/v2/models/wide", "/v2/models/wide/versions/1",
    "/v2/models/wide/ready", "/v2/models/wide/versions/1/ready", "/v2/models/wide/config", "/v2/models/wide/versions/1/config",
    "/v2/models/spare/stats", "/v2/models/wide/infer", "/v2/models/wide/versions/1/infer", "/v2/models/prompt/generate",
    "/v2/models/prompt/generate_stream", "/v2/models/wide/versions/1/generate", "/v2/repository/index", "/v2/repository/r/index",
    "/v2/repository/models/nowhere/load", "/v2/repository/models/nowhere/unload", "/v2/repository/r/models/nowhere/load",
    "/v2/repository/r/models/nowhere/unload", "/v2/systemsharedmemory/status",
    "/v2/systemsharedmemory/region/none/status", "/v2/systemsharedmemory/region/none/register",
    "/v2/systemsharedmemory/region/none/unregister", "/v2/systemsharedmemory/unregister", "/v2/cudasharedmemory/status",
    "/v2/cudasharedmemory/region/none/status", "/v2/cudasharedmemory/region/none/register",
    "/v2/cudasharedmemory/region/none/unregister", "/v2/cudasharedmemory/unregister", "/v2/trace/setting",
    "/v2/models/wide/trace/setting", "/v2/logging",
]  # fmt: skip
ODD_PATHS = [
    "/", "/v2/", "/v1", "/v3/health/live", "/v2/health", "/v2/health/live/", "/v2/health/live?x=1", "//v2/health/live",
    "/v2/models/wide/", "/v2/models/wide/versions", "/v2/models/wide/versions/", "/v2/models/wide/versions/x", "/v2/models/wide/versions/0",
    "/v2/models/wide/versions/01", "/v2/models/wide/versions/-1", "/v2/models/wide/versions/99999999999999999999", "/v2/models/",
    "/v2/models/nowhere", "/v2/models/nowhere/config", "/v2/models/nowhere/stats", "/v2/models/nowhere/ready", "/v2/models/wide/versions/9",
    "/v2/models/wide/versions/9/config", "/v2/models/wide/versions/9/ready", "/v2/models/wide/versions/9/stats", "/v2/models/spare",
    "/v2/models/spare/config", "/v2/models/spare/ready", "/v2/models/spare/stats", "/v2/models/w%69de", "/v2/models/wide/unknown",
    "/v2/models/a b", "/v2/models/%ff", "/V2/health/live", "/v2/models/WIDE", "/v2/repository", "/v2/repository/models",
    "/v2/repository/models/wide", "/v2/trace", "/v2/logging/", "/v2/systemsharedmemory", "/v2/systemsharedmemory/region",
]  # fmt: skip


def routes():
    for path in ROUTES:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            yield (
                f"http/route/{method} {path}",
                lambda target, method=method, path=path: over_http(
                    target, method, path, b"" if method in ("POST", "PUT") else None
                ),
            )
    for path in ODD_PATHS:
        yield f"http/path/{path}", get(path.replace(" ", "%20"))


def documents():
    for model in MODELS:
        yield f"http/metadata/{model}", get(f"/v2/models/{model}")
        yield f"http/config/{model}", get(f"/v2/models/{model}/config")
        yield f"http/ready/{model}", get(f"/v2/models/{model}/ready")
    for version in ("1", "2", "3"):
        for end in ("", "/config", "/ready"):
            yield f"http/version/{version}{end}", get(f"/v2/models/versions/versions/{version}{end}")
        yield (
            f"http/version/{version}/infer",
            infer("versions", [tensor("INPUT0", "FP32", [2], [1, 2])], version=version),
        )


def every(changed=None, form="json"):
    """The inputs of `every_type`, one of them changed, and what follows them where they are binary."""
    inputs, binary = [], b""
    for name in TYPES:
        values = VALUES[name]
        made = tensor(f"IN_{name}", name, [len(values)])
        if form == "binary" or name not in IN_JSON:
            data = pack(name, values)
            made["parameters"] = {"binary_data_size": len(data)}
            binary += data
        else:
            made["data"] = values
        if changed and changed["name"] == made["name"]:
            made = changed
        inputs.append(made)
    return inputs, binary


def types():
    without_json = [{"name": f"OUT_{name}", "parameters": {"binary_data": name not in IN_JSON}} for name in TYPES]
    for form in ("json", "binary"):
        inputs, binary = every(form=form)
        yield (
            f"http/types/{form} in, binary out",
            infer("every_type", inputs, binary, parameters={"binary_data_output": True}),
        )
        yield f"http/types/{form} in, JSON out", infer("every_type", inputs, binary, outputs=without_json)
    for name in TYPES:
        one = {"outputs": [{"name": f"OUT_{name}", "parameters": {"binary_data": False}}]}
        inputs, binary = every()
        yield f"http/types/{name}/JSON out", infer("every_type", inputs, binary, **one)
        yield f"http/types/{name}/JSON in", infer("every_type", *every(tensor(f"IN_{name}", name, [3], VALUES[name])))
        for label, text in WRONG.items():
            changed = tensor(f"IN_{name}", name, [1], ["HERE"])
            inputs, binary = every(changed)
            head = json.dumps({"inputs": inputs, **one}).replace('"HERE"', text).encode()
            size = str(len(head))
            if name in IN_JSON:
                yield (
                    f"http/types/{name}/JSON holds {label}",
                    post("/v2/models/every_type/infer", head + binary, Inference_Header_Content_Length=size),
                )
        changed = tensor(f"IN_{name}", name, [2], [VALUES[name][0]] * 3)
        yield f"http/types/{name}/more elements than the shape says", infer("every_type", *every(changed), **one)
        changed = tensor(f"IN_{name}", name, [3], [VALUES[name][0]] * 2)
        yield f"http/types/{name}/fewer elements than the shape says", infer("every_type", *every(changed), **one)
        other = "INT32" if name != "INT32" else "FP32"
        yield (
            f"http/types/{name}/called {other}",
            infer("every_type", *every(tensor(f"IN_{name}", other, [1], [1])), **one),
        )
        if name in EXTREMES:
            changed = tensor(f"IN_{name}", name, [2], EXTREMES[name])
            yield f"http/types/{name}/extremes", infer("every_type", *every(changed), **one)
        if name.strip("U").startswith("INT"):
            for label, value in (("above", EXTREMES[name][1] + 1), ("below", EXTREMES[name][0] - 1)):
                changed = tensor(f"IN_{name}", name, [1], [value])
                yield f"http/types/{name}/one {label} its range", infer("every_type", *every(changed), **one)
    for label, values in {
        "NaN": float("nan"),
        "Infinity": float("inf"),
        "-Infinity": float("-inf"),
        "-0": -0.0,
    }.items():
        yield f"http/types/FP32/{label}", infer("identity", [tensor("INPUT0", "FP32", [1, 1], [values])])


def bodies():
    path = "/v2/models/identity/infer"
    texts = {
        "nothing": b"", "spaces": b"   ", "null": b"null", "a number": b"1", "an array": b"[]", "a text": b'"x"', "an empty object": b"{}",
        "no end": b'{"inputs":[', "no JSON": b"hello", "two objects": b"{}{}", "not UTF-8": b'{"id":"\xff"}', "a comma too much": b'{"inputs":[],}',
        "inputs is no array": b'{"inputs":{}}', "inputs is null": b'{"inputs":null}', "an input is no object": b'{"inputs":[1]}',
        "no name": b'{"inputs":[{"datatype":"FP32","shape":[1,1],"data":[1]}]}', "no datatype": b'{"inputs":[{"name":"INPUT0","shape":[1,1],"data":[1]}]}',
        "no shape": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","data":[1]}]}', "no data": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1]}]}',
        "name is a number": b'{"inputs":[{"name":1,"datatype":"FP32","shape":[1,1],"data":[1]}]}',
        "datatype is unknown": b'{"inputs":[{"name":"INPUT0","datatype":"FP31","shape":[1,1],"data":[1]}]}',
        "datatype is a number": b'{"inputs":[{"name":"INPUT0","datatype":1,"shape":[1,1],"data":[1]}]}',
        "shape is no array": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":1,"data":[1]}]}',
        "shape holds a text": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":["1",1],"data":[1]}]}',
        "shape holds a fraction": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1.5,1],"data":[1]}]}',
        "shape is negative": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[-1,1],"data":[1]}]}',
        "shape overflows": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[4611686018427387904,4],"data":[1]}]}',
        "data is no array": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":1}]}',
        "data is null": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":null}]}',
        "data is ragged": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[2,2],"data":[[1,2,3],[4]]}]}',
        "data is nested deeper than the shape": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,2],"data":[[[1],[2]]]}]}',
        "data is nested by another shape": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,4],"data":[[1,2],[3,4]]}]}',
        "a member twice": b'{"id":"a","id":"b","inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[1]}]}',
        "unknown members": b'{"colour":3,"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[1],"x":{}}]}',
        "an empty tensor": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[0,4],"data":[]}]}',
        "id is a number": b'{"id":7,"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[1]}]}',
        "id is null": b'{"id":null,"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[1]}]}',
        "id is empty": b'{"id":"","inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[1]}]}',
        "parameters is no object": b'{"parameters":[],"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[1]}]}',
        "outputs is no array": b'{"outputs":{},"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[1]}]}',
        "an output without a name": b'{"outputs":[{}],"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[1]}]}',
    }  # fmt: skip
    for label, text in texts.items():
        yield f"http/body/{label}", post(path, text)
    deep = b"[" * 200 + b"1" + b"]" * 200
    yield (
        "http/body/nested 200 deep",
        post(path, b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":' + deep + b"}]}"),
    )
    for label, encoding, data in [
        ("gzip", "gzip", gzip.compress), ("deflate", "deflate", zlib.compress), ("identity", "identity", bytes),
        ("an unknown one", "br", bytes), ("gzip that is none", "gzip", bytes), ("deflate that is none", "deflate", bytes),
        ("gzip cut short", "gzip", lambda body: gzip.compress(body)[:-9]), ("two", "gzip, deflate", bytes), ("empty", "", bytes),
    ]:  # fmt: skip
        body = data(json.dumps({"inputs": PAIR}).encode())
        yield f"http/compressed request/{label}", post(path, body, Content_Encoding=encoding)
    for accepted in (
        "gzip",
        "deflate",
        "identity",
        "*",
        "br",
        "gzip;q=0",
        "gzip;q=0.5, deflate",
        "deflate, gzip",
        "",
        "gzip;q=2",
        "identity;q=0",
    ):
        yield f"http/compressed answer/{accepted}", infer("identity", PAIR, headers={"Accept-Encoding": accepted})
    for kind in (
        "application/json",
        "text/plain",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "nonsense",
    ):
        yield f"http/content type/{kind}", infer("identity", PAIR, headers={"Content-Type": kind})


def requests():
    value = lambda **more: tensor("INPUT0", "FP32", [1, 2], [1, 2], **more)
    yield "http/infer/a matrix", infer("identity", PAIR, id="42")
    yield "http/infer/nested", infer("identity", [tensor("INPUT0", "FP32", [2, 2], [[1, 2], [3, 4]])])
    yield "http/infer/unknown model", infer("nowhere", PAIR)
    yield "http/infer/not loaded", infer("spare", PAIR)
    yield "http/infer/unknown version", infer("identity", PAIR, version="9")
    yield "http/infer/version that is no number", infer("identity", PAIR, version="x")
    yield "http/infer/no inputs", infer("identity", [])
    yield "http/infer/unknown input", infer("identity", [tensor("OTHER", "FP32", [1, 1], [1])])
    yield "http/infer/one input too much", infer("identity", [*PAIR, tensor("OTHER", "FP32", [1, 1], [1])])
    yield "http/infer/an input twice", infer("identity", [*PAIR, *PAIR])
    yield "http/infer/one input missing", infer("add_sub", [tensor("INPUT0", "FP32", [1, 16], [1] * 16)])
    yield "http/infer/id in errors", infer("identity", [tensor("OTHER", "FP32", [1, 1], [1])], id="my id")
    yield "http/infer/id of 10,000 letters", infer("identity", PAIR, id="x" * 10_000)
    for label, shape in {"one dimension": [2], "three dimensions": [1, 1, 2], "none": []}.items():
        yield f"http/shape/{label}", infer("identity", [tensor("INPUT0", "FP32", shape, [1, 2])])
    for shape in ([2, 3], [3, 2], [6], [2, 4], [1, 2, 3]):
        count = 1
        for size in shape:
            count *= size
        yield f"http/shape/fixed {shape}", infer("wide", [tensor("INPUT0", "FP32", shape, [1] * count)])
    for shape in ([1, 4], [8, 4], [9, 4], [4], [0, 4], [1, 5], [2, 2, 4]):
        count = 1
        for size in shape:
            count *= size
        yield f"http/shape/batched {shape}", infer("batched", [tensor("INPUT0", "FP32", shape, [1] * count)])
        yield f"http/shape/preferred {shape}", infer("preferred", [tensor("INPUT0", "FP32", shape, [1] * count)])
    for shape in ([1], [1, 1], [2, 1], [5, 1]):
        count = shape[0]
        yield f"http/shape/reshaped {shape}", infer("reshaped", [tensor("INPUT0", "FP32", shape, [1] * count)])
    yield (
        "http/optional/left out",
        infer("optional", [tensor("INPUT0", "FP32", [2], [1, 2])], outputs=[{"name": "OUTPUT0"}]),
    )
    yield "http/optional/given", infer("optional", [tensor(f"INPUT{number}", "FP32", [2], [1, 2]) for number in (0, 1)])
    yield "http/optional/only it", infer("optional", [tensor("INPUT1", "FP32", [2], [1, 2])])
    two = [tensor(f"INPUT{number}", "FP32", [1, 16], list(range(16))) for number in (0, 1)]
    yield "http/outputs/all", infer("add_sub", two)
    yield (
        "http/outputs/the other way round",
        infer("add_sub", two[::-1], outputs=[{"name": "OUTPUT1"}, {"name": "OUTPUT0"}]),
    )
    yield "http/outputs/one", infer("add_sub", two, outputs=[{"name": "OUTPUT1"}])
    yield "http/outputs/unknown", infer("add_sub", two, outputs=[{"name": "OUTPUT9"}])
    yield "http/outputs/twice", infer("add_sub", two, outputs=[{"name": "OUTPUT1"}, {"name": "OUTPUT1"}])
    yield "http/outputs/none", infer("add_sub", two, outputs=[])
    yield (
        "http/outputs/one binary",
        infer("add_sub", two, outputs=[{"name": "OUTPUT0", "parameters": {"binary_data": True}}, {"name": "OUTPUT1"}]),
    )
    yield (
        "http/outputs/all binary but one",
        infer(
            "add_sub",
            two,
            parameters={"binary_data_output": True},
            outputs=[{"name": "OUTPUT0", "parameters": {"binary_data": False}}, {"name": "OUTPUT1"}],
        ),
    )
    for label, wanted in {
        "binary_data is a text": {"binary_data": "yes"},
        "unknown": {"colour": 1},
        "binary_data is a number": {"binary_data": 1},
    }.items():
        yield (
            f"http/output parameters/{label}",
            infer("identity", PAIR, outputs=[{"name": "OUTPUT0", "parameters": wanted}]),
        )
    for label, parameters in {
        "a text": {"mine": "x"}, "a number": {"mine": 1}, "a fraction": {"mine": 1.5}, "a bool": {"mine": True}, "null": {"mine": None},
        "an object": {"mine": {}}, "an array": {"mine": []}, "triton_ in front": {"triton_mine": 1}, "priority": {"priority": 1}, "priority 9": {"priority": 9},
        "priority is negative": {"priority": -1}, "priority is a text": {"priority": "1"}, "timeout": {"timeout": 10_000_000}, "timeout is a text": {"timeout": "1"},
        "timeout is negative": {"timeout": -1}, "timeout is a fraction": {"timeout": 1.5}, "sequence_id 0": {"sequence_id": 0},
        "sequence_id without sequences": {"sequence_id": 7, "sequence_start": True}, "sequence_start is a number": {"sequence_start": 1},
        "binary_data_output is a text": {"binary_data_output": "yes"},
    }.items():  # fmt: skip
        yield f"http/parameters/{label}", infer("identity", PAIR, parameters=parameters)
        yield (
            f"http/parameters of a model with levels/{label}",
            infer("preferred", [tensor("INPUT0", "FP32", [1, 4], [1] * 4)], parameters=parameters),
        )
    for label, parameters in {
        "unknown": {"x": 1},
        "binary_data_size and data": {"binary_data_size": 8},
        "region and data": {"shared_memory_region": "r", "shared_memory_byte_size": 8},
    }.items():
        yield f"http/input parameters/{label}", infer("identity", [value(**parameters)])


def classes():
    scores = [tensor("INPUT0", "FP32", [2, 5], [0.1, 0.5, 0.2, 0.15, 0.05, 5, 4, 3, 2, 1])]
    for number in (1, 3, 5, 6, 0, -1, 100):
        wanted = [{"name": "OUTPUT0", "parameters": {"classification": number}}]
        yield f"http/classification/{number}", infer("labelled", scores, outputs=wanted)
    for label, more in {
        "binary": {"binary_data": True},
        "a region": {"shared_memory_region": "none", "shared_memory_byte_size": 8},
    }.items():
        yield (
            f"http/classification/with {label}",
            infer("labelled", scores, outputs=[{"name": "OUTPUT0", "parameters": {"classification": 2, **more}}]),
        )
    for label, number in {"a text": "2", "a fraction": 1.5, "null": None, "true": True}.items():
        yield (
            f"http/classification/as {label}",
            infer("labelled", scores, outputs=[{"name": "OUTPUT0", "parameters": {"classification": number}}]),
        )
    ties = [tensor("INPUT0", "FP32", [1, 5], [1, 1, 1, 1, 1])]
    yield (
        "http/classification/ties",
        infer("labelled", ties, outputs=[{"name": "OUTPUT0", "parameters": {"classification": 3}}]),
    )
    whole = [tensor("INPUT0", "INT32", [5], [3, 1, 4, 1, 5])]
    yield (
        "http/classification/without labels",
        infer("unlabelled", whole, outputs=[{"name": "OUTPUT0", "parameters": {"classification": 2}}]),
    )
    texts = [tensor("INPUT0", "BYTES", [1, 2], ["a", "b"])]
    yield (
        "http/classification/of texts",
        infer("texts", texts, outputs=[{"name": "OUTPUT0", "parameters": {"classification": 1}}]),
    )


def binaries():
    four = pack("FP32", [1, 2, 3, 4])
    binary = lambda size, shape=(1, 4), name="INPUT0": tensor(name, "FP32", list(shape), binary_data_size=size)
    yield "http/binary/in", infer("identity", [binary(16)], four)
    yield "http/binary/both", infer("identity", [binary(16)], four, parameters={"binary_data_output": True}, id="7")
    yield "http/binary/too few bytes", infer("identity", [binary(16)], four[:8])
    yield "http/binary/too many bytes", infer("identity", [binary(16)], four * 2)
    yield "http/binary/size below the shape's", infer("identity", [binary(8)], four[:8])
    yield "http/binary/size above the shape's", infer("identity", [binary(32)], four * 2)
    for label, size in {"negative": -1, "a text": "16", "a fraction": 16.5, "null": None, "0": 0}.items():
        yield f"http/binary/size is {label}", infer("identity", [binary(size)], four)
    yield "http/binary/size without the header", infer("identity", [binary(16)])
    yield (
        "http/binary/empty tensor",
        infer("identity", [binary(0, (0, 4))], b"", parameters={"binary_data_output": True}),
    )
    for label, header in {
        "too large": "100000",
        "negative": "-1",
        "no number": "x",
        "a fraction": "1.5",
        "overflows": "99999999999999999999",
    }.items():
        yield (
            f"http/binary/header is {label}",
            post(
                "/v2/models/identity/infer",
                json.dumps({"inputs": PAIR}).encode(),
                Inference_Header_Content_Length=header,
            ),
        )
    for label, data in {
        "lengths": pack("BYTES", ["a", "bc"]),
        "cut": pack("BYTES", ["a", "bc"])[:-1],
        "one too few": pack("BYTES", ["a"]),
        "a length too large": b"\xff\xff\xff\x7fab",
        "half a length": b"\x01\x00",
    }.items():
        yield (
            f"http/binary/texts: {label}",
            infer("texts", [tensor("INPUT0", "BYTES", [1, 2], binary_data_size=len(data))], data),
        )
    for label, model, body in [
        ("a fixed shape", "wide", pack("FP32", range(6))), ("too few", "wide", pack("FP32", range(5))), ("too many", "wide", pack("FP32", range(7))),
        ("two open dimensions", "identity", four), ("two inputs", "add_sub", four), ("a batch of one", "batched", four), ("two rows", "batched", four * 2),
        ("nothing", "wide", b""), ("one text", "texts", pack("BYTES", ["hello"])), ("two texts", "texts", pack("BYTES", ["a", "b"])), ("an element not whole", "unlabelled", b"\1" * 19),
    ]:  # fmt: skip
        yield f"http/raw/{label}", post(f"/v2/models/{model}/infer", body, Inference_Header_Content_Length="0")


def generates():
    path = "/v2/models/prompt"
    bodies = {
        "both": {"INPUT0": "hello", "INPUT1": 7}, "arrays": {"INPUT0": ["hello"], "INPUT1": [7]}, "an array of two": {"INPUT0": ["a", "b"], "INPUT1": 1},
        "one missing": {"INPUT0": "x"}, "empty": {}, "id": {"id": "9", "INPUT0": "x", "INPUT1": 1}, "more members": {"INPUT0": "x", "INPUT1": 1, "colour": "red", "n": 3},
        "parameters": {"INPUT0": "x", "INPUT1": 1, "parameters": {"temperature": 0.5, "flag": True}}, "a wrong type": {"INPUT0": 5, "INPUT1": 1},
        "a text for a number": {"INPUT0": "x", "INPUT1": "y"}, "a fraction for a whole number": {"INPUT0": "x", "INPUT1": 1.5}, "null": {"INPUT0": None, "INPUT1": 1},
        "an object": {"INPUT0": {"a": 1}, "INPUT1": 1}, "nested": {"INPUT0": [["x"]], "INPUT1": 1}, "a member that is an object": {"INPUT0": "x", "INPUT1": 1, "more": {"a": 1}},
        "an empty array": {"INPUT0": [], "INPUT1": 1}, "a priority": {"INPUT0": "x", "INPUT1": 1, "priority": 1},
    }  # fmt: skip
    for route in ("generate", "generate_stream"):
        for label, body in bodies.items():
            yield f"http/{route}/{label}", post(f"{path}/{route}", body)
        yield f"http/{route}/no JSON", post(f"{path}/{route}", b"hello")
        yield f"http/{route}/an array", post(f"{path}/{route}", b"[]")
        yield f"http/{route}/nothing", post(f"{path}/{route}", b"")
        yield (
            f"http/{route}/compressed",
            post(f"{path}/{route}", gzip.compress(json.dumps(bodies["both"]).encode()), Content_Encoding="gzip"),
        )
        yield f"http/{route}/unknown model", post(f"/v2/models/nowhere/{route}", bodies["both"])
        yield f"http/{route}/unknown version", post(f"/v2/models/prompt/versions/9/{route}", bodies["both"])
        yield f"http/{route}/a version", post(f"/v2/models/prompt/versions/1/{route}", bodies["both"])
        yield f"http/{route}/fixed shape", post(f"/v2/models/wide/{route}", {"INPUT0": [1, 2, 3, 4, 5, 6]})
        yield f"http/{route}/open shape", post(f"/v2/models/identity/{route}", {"INPUT0": [1, 2, 3, 4]})
        yield f"http/{route}/batched", post(f"/v2/models/batched/{route}", {"INPUT0": [1, 2, 3, 4]})
        for label, values in {"one answer": [5], "three answers": [1, 2, 3], "no answer": []}.items():
            body = {"IN": values, "DELAY": [0] * len(values), "WAIT": 0}
            yield f"http/{route}/decoupled, {label}", post(f"/v2/models/repeat/{route}", body)


def cases():
    for part in (routes, documents, types, bodies, requests, classes, binaries, generates):
        yield from part()
