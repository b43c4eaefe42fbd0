"""Models and stores made on the spot: ONNX files written byte by byte, archives, and a small S3. Standard library only."""

import array
import http.server
import os
import tarfile
import threading
import urllib.parse

FLOAT, INT64 = 1, 7


# ---- ONNX, as protobuf -----------------------------------------------------------------------------------------------


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number, value):
    """An integer, a text, bytes, or a message that is encoded already."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def node(operator, inputs, outputs):
    return field(1, b"".join([field(1, n) for n in inputs] + [field(2, n) for n in outputs] + [field(4, operator)]))


def initializer(name, shape, kind, data):
    return field(5, b"".join(field(1, n) for n in shape) + field(2, kind) + field(8, name) + field(9, data))


def value(number, name, kind, shape):
    """A graph's input (11) or output (12); a text in the shape is a free dimension."""
    dims = b"".join(field(1, field(1, dim) if isinstance(dim, int) else field(2, dim)) for dim in shape)
    return field(number, field(1, name) + field(2, field(1, field(1, kind) + field(2, dims))))


def model(*graph):
    opset = field(8, field(1, "") + field(2, 17))
    return field(1, 8) + field(7, b"".join(graph) + field(2, "made")) + opset


def lookup_value(number, index):
    """What `lookup(number, ..)` answers for an index: a 32-bit float without rounding."""
    return float(number * 4 + index % 1024 / 1024)


def lookup(number, rows):
    """y = w[index]: `rows` * 4 bytes of weights, next to no work, and an answer that says which model it was."""
    block = array.array("f", (lookup_value(number, index) for index in range(1024)))
    data = (block.tobytes() * (rows // 1024 + 1))[: rows * 4]
    return model(
        node("Gather", ["w", "index"], ["y"]),
        initializer("w", [rows], FLOAT, data),
        value(11, "index", INT64, ["n"]),
        value(12, "y", FLOAT, ["n"]),
    )


def chain(steps):
    """Many small operators: each step folds two constants, multiplies, adds and clips. Loading is rewriting the graph."""
    parts, last = [], "x"
    for step in range(steps):
        one = array.array("f", [0.5 + step % 7 / 16] * 16).tobytes()
        parts += [initializer(f"a{step}", [16], FLOAT, one), initializer(f"b{step}", [16], FLOAT, one)]
        parts += [
            node("Add", [f"a{step}", f"b{step}"], [f"c{step}"]),
            node("Mul", [last, f"c{step}"], [f"m{step}"]),
            node("Add", [f"m{step}", f"a{step}"], [f"s{step}"]),
            node("Relu", [f"s{step}"], [f"r{step}"]),
        ]
        last = f"r{step}"
    parts.append(node("Identity", [last], ["y"]))
    return model(*parts, value(11, "x", FLOAT, ["n", 16]), value(12, "y", FLOAT, ["n", 16]))


def put(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def pack(folder, archive, keep=1.0):
    """A plain tar of a model's folder; less than all of it where `keep` is below 1."""
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(folder, arcname=".")
    if keep < 1.0:
        os.truncate(archive, int(os.path.getsize(archive) * keep))


# ---- A small S3 ------------------------------------------------------------------------------------------------------


class S3(http.server.ThreadingHTTPServer):
    """GET and LIST of `objects` ({key: bytes}) in any bucket. What speaks of a key that begins with `hangs` never gets
    an answer; `waiting` counts those requests."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, objects, hangs=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects, self.hangs = objects, hangs
        self.waiting, self.over, self.lock = 0, threading.Event(), threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # a client that went away

    def uri(self):
        return f"s3://http://127.0.0.1:{self.server_port}/bucket"

    def stop(self):
        self.over.set()
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def hang(self):
        with self.server.lock:
            self.server.waiting += 1
        self.server.over.wait()
        self.close_connection = True

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, text in headers:
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        key = urllib.parse.unquote(url.path).lstrip("/").partition("/")[2]
        asked = query.get("prefix", "") if "list-type" in query else key
        if self.server.hangs and asked.startswith(self.server.hangs):
            return self.hang()
        return self.listing(query) if "list-type" in query else self.content(key)

    def content(self, key):
        content = self.server.objects.get(key)
        if content is None:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        headers = [("ETag", f'"{len(content):032x}"')]
        if wanted := self.headers.get("Range"):
            first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
            headers.append(("Content-Range", f"bytes {first}-{last}/{len(content)}"))
            return self.answer(206, content[first : last + 1], headers)
        return self.answer(200, content, headers)

    def listing(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        most, rows, folders, last, more = min(1000, int(query.get("max-keys", 1000))), [], set(), "", False
        for key in sorted(self.server.objects):
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            folder = prefix + rest.partition(delimiter)[0] + delimiter if delimiter and delimiter in rest else None
            item = folder or key
            if item <= after or key <= after or item in folders:
                continue
            if len(rows) == most:
                more = True
                break
            quoted = urllib.parse.quote(item)
            if folder:
                folders.add(folder)
                rows.append(f"<CommonPrefixes><Prefix>{quoted}</Prefix></CommonPrefixes>")
            else:
                size = len(self.server.objects[key])
                rows.append(f"<Contents><Key>{quoted}</Key><ETag>{size:032x}</ETag><Size>{size}</Size></Contents>")
            last = item
        token = f"<NextContinuationToken>{urllib.parse.quote(last)}</NextContinuationToken>" if more else ""
        truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        head = f"<ListBucketResult><EncodingType>url</EncodingType>{truncated}{token}"
        self.answer(200, f"{head}{''.join(rows)}</ListBucketResult>".encode())
