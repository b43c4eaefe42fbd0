"""What a server answered, as plain JSON that can be compared: without ids, times and the form that the bytes had."""

import gzip
import http.client
import json
import struct
import zlib

import grpc
from google.protobuf import json_format

FORMATS = {"BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h"}
FORMATS |= {"INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d"}
TIMES = {"ns", "last_inference"}


def pack(data_type, values):
    """A binary tensor, little-endian."""
    if data_type == "BYTES":
        texts = [text if isinstance(text, bytes) else text.encode() for text in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    if data_type == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{FORMATS[data_type]}", *values)


# ---- HTTP ------------------------------------------------------------------------------------------------------------


def exchange(target, method, path, body=None, headers=()):
    """Sends exactly this, and reads the answer's status, headers in lower case, and bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", target.http, timeout=60)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        headers = dict(headers)
        if body is not None and "Content-Length" not in headers and "Transfer-Encoding" not in headers:
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body or b"")
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def over_http(target, method, path, body=None, headers=()):
    """The answer: `status`, `type`, and `body`, `json`, `events` or `tensors` by what it is."""
    try:
        status, given, data = exchange(target, method, path, body, headers)
    except http.client.HTTPException as error:
        return {"status": f"no answer: {type(error).__name__}"}
    except (ConnectionError, TimeoutError) as error:
        return {"status": f"no answer: {type(error).__name__}"}
    answer = {"status": status, "type": given.get("content-type", "").replace("charset=UTF-8", "charset=utf-8")}
    if encoding := given.get("content-encoding"):
        answer["encoding"] = encoding
        data = gzip.decompress(data) if encoding == "gzip" else zlib.decompress(data)
    head = given.get("inference-header-content-length")
    if head is not None:
        answer["json"] = normal(json.loads(data[: int(head)]))
        answer["binary"] = data[int(head) :].hex()
    elif answer["type"].startswith("text/event-stream"):
        parts = [part for part in data.decode().split("\n\n") if part]
        answer["events"] = [normal(json.loads(part[len("data: ") :])) for part in parts]
    else:
        try:
            answer["json"] = normal(json.loads(data))
        except ValueError:
            answer["body"] = data.decode(errors="replace")
    return answer


def normal(value):
    """Times are there or not there; whatever else there is, is what it is."""
    if isinstance(value, dict):
        return {key: bool(int(item)) if key in TIMES else normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [normal(item) for item in value]
    return value


# ---- gRPC ------------------------------------------------------------------------------------------------------------


def message(answer):
    """A message of an answer, the names as in the .proto and sorted, since maps have no order; bytes in base64, numbers
    of 64 bits as text."""
    fields = json_format.MessageToDict(answer, preserving_proto_field_name=True)
    return normal(json.loads(json.dumps(fields, sort_keys=True)))


def over_grpc(call, request, metadata=(), timeout=60):
    try:
        return {"code": "OK", "message": message(call(request, metadata=metadata, timeout=timeout))}
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}


def over_stream(target, requests, metadata=(), timeout=60):
    """The items of a ModelStreamInfer in the order in which they came, then how it ended."""
    items, end = [], {"code": "OK"}
    call = target.stub.ModelStreamInfer(iter(requests), metadata=metadata, timeout=timeout)
    try:
        for item in call:
            items.append(message(item))
    except grpc.RpcError as error:
        end = {"code": error.code().name, "details": error.details()}
    return {"items": items, "end": end}
