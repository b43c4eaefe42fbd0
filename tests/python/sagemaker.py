"""What the tests of SageMaker's front doors use: models as its platform lays them out, its calls, and its clients."""

import contextlib
import http.client
import json
import shutil
import socket
import sys
import threading
import urllib.parse

import boto3
import numpy as np
from botocore.config import Config
from harness import EXAMPLES, ROOT, json_request, running_server
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import np_to_triton_dtype

sys.path.append(str(ROOT / "benches/compare"))  # for made, which writes ONNX files

import made

TARGET = "X-Amzn-SageMaker-Target-Model"
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
BINARY = "application/vnd.sagemaker-triton.binary+json;json-header-size="
INT32 = 6
MIB = 1 << 20


# --- models -----------------------------------------------------------------------------------------------------------


def example(name):
    """A function that puts an example model into a folder."""
    return lambda folder: shutil.copytree(EXAMPLES / name, folder, dirs_exist_ok=True)


def onnx(content, config=""):
    """The same for an ONNX file of those bytes."""

    def write(folder):
        made.put(str(folder / "1/model.onnx"), content)
        if config:
            (folder / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{config}')

    return write


def identity(tensors, max_batch_size=0, **parameters):
    """The same for a model that answers what it is asked: `tensors` are (type, dims) by the input's name. The output of
    `x` is `x_out`."""
    lines = ['backend: "identity"', f"max_batch_size: {max_batch_size}"]
    for kind, ending in (("input", ""), ("output", "_out")):
        for name, (data_type, dims) in tensors.items():
            lines.append(f'{kind} {{ name: "{name}{ending}" data_type: TYPE_{data_type} dims: {dims} }}')
    for key, value in parameters.items():
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')

    def write(folder):
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text("\n".join(lines))

    return write


def slow(milliseconds):
    """The same for an identity model `x` -> `x_out` of FP32 that takes its time over each request."""
    return identity({"x": ("FP32", [-1])}, execute_delay_ms=milliseconds)


def weighing(mib, number=0):
    """The same for a model with weights of `mib` MiB: `y` of an `index` is `made.lookup_value(number, index)`."""
    return onnx(made.lookup(number, mib * MIB // 4))


def slow_to_load(steps=2500):
    """The same for a model whose load takes about a second."""
    return onnx(made.chain(steps))


def sums():
    """The same for `OUTPUT0 = INPUT0 + INPUT1`, `OUTPUT1 = INPUT0 - INPUT1` of 16 INT32s."""
    names = ["INPUT0", "INPUT1"]
    parts = [made.node("Add", names, ["OUTPUT0"]), made.node("Sub", names, ["OUTPUT1"])]
    parts += [made.value(11, name, INT32, ["n", 16]) for name in names]
    parts += [made.value(12, name, INT32, ["n", 16]) for name in ("OUTPUT0", "OUTPUT1")]
    return onnx(made.model(*parts))


# --- bodies -----------------------------------------------------------------------------------------------------------


def triton_body(inputs, outputs=None, binary=True, binary_outputs=True):
    """(body, content type) as tritonclient writes them."""
    tensors = []
    for name, array in inputs.items():
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensors.append(tensor.set_data_from_numpy(array, binary_data=binary))
    asked = outputs and [InferRequestedOutput(name, binary_data=binary_outputs) for name in outputs]
    body, size = InferenceServerClient.generate_request_body(tensors, outputs=asked)
    return body, "application/octet-stream" if size is None else f"{BINARY}{size}"


def json_body(inputs):
    """A request of plain JSON, which is answered with plain JSON."""
    return json.dumps(json_request(inputs)).encode()


def triton_result(body, content_type):
    """The answer as tritonclient reads it."""
    size = int(content_type.removeprefix(BINARY)) if content_type.startswith(BINARY) else None
    assert size is not None or content_type == "application/json", content_type
    return InferenceServerClient.parse_response_body(body, header_length=size)


def floats(*values):
    return {"x": np.array(values, np.float32)}


# --- calls ------------------------------------------------------------------------------------------------------------


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:500]!r}"


def call(address, method, path, body=b"", headers=None, timeout=60):
    """One request whose path goes out exactly as it is given."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def in_thread(function, *arguments, **named):
    """Runs the function in a thread; what is given back waits for what it returns."""
    ended = []
    thread = threading.Thread(target=lambda: ended.append(function(*arguments, **named)))
    thread.start()

    def result():
        thread.join()
        assert ended, "it ended with an exception"
        return ended[0]

    return result


def until(is_so, seconds=30):
    """Waits for what other threads and the server are about to do."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if outcome := is_so():
            return outcome
        pause.wait(0.01)
    raise AssertionError(f"not so after {seconds} s")


class Container:
    """A multi-model container, as the platform calls it: `root` stands for /opt/ml/models."""

    def __init__(self, server, root):
        self.server, self.root, self.address = server, root, server.sagemaker

    def call(self, method, path, body=b"", headers=None, **options):
        return call(self.address, method, path, body, headers, **options)

    def place(self, model, name="m", inner=None):
        """Lays a model out as the platform does, and gives the url that it would name."""
        folder = self.root / name / "model"
        model(folder / inner if inner else folder)
        return str(folder)

    def load(self, name, url, headers=None, **options):
        return self.call("POST", "/models", json.dumps({"model_name": name, "url": url}), headers, **options)

    def put(self, name, model, inner="inner"):
        """Lays the model out and loads it."""
        folder = name.replace("/", "_")[:64]
        answer = self.load(name, self.place(model, folder, inner))
        assert answer.status == 200, answer
        return answer

    def get(self, name):
        return self.call("GET", path_of(name))

    def delete(self, name):
        return self.call("DELETE", path_of(name))

    def invoke(self, name, inputs, headers=None, **options):
        headers = {"Content-Type": "application/octet-stream", **(headers or {})}
        return self.call("POST", f"{path_of(name)}/invoke", json_body(inputs), headers, **options)

    def listed(self, limit=None):
        """The rows of all pages."""
        rows, token = [], None
        while True:
            query = {"limit": limit, "next_page_token": token}
            query = urllib.parse.urlencode({key: value for key, value in query.items() if value is not None})
            answer = self.call("GET", f"/models?{query}" if query else "/models")
            assert answer.status == 200, answer
            rows += answer.json["models"]
            if (token := answer.json.get("nextPageToken")) is None:
                return rows

    def names(self):
        return [row["modelName"] for row in self.listed()]

    def booked(self):
        """Bytes of memory that are booked."""
        answer = call(self.server.http, "GET", "/v1/residency").json
        return sum(book["booked_bytes"] for book in answer["books"] if book["tier"] == "device")


def path_of(name):
    return f"/models/{urllib.parse.quote(name, safe='')}"


@contextlib.contextmanager
def container(folder, *arguments):
    """A server as SageMaker starts one for many models, but on free ports and this machine's own address."""
    root = folder / "models"
    root.mkdir()
    flags = ["--sagemaker", "multi-model", "--sagemaker-port", "0", "--sagemaker-model-root", root]
    flags += ["--address", "127.0.0.1", "--cache-dir", folder / "cache"]
    with running_server(None, folder, *flags, *arguments) as server:
        yield Container(server, root)


def runtime(address, *, key="AKIDANY", secret="any", retries=None, **options):
    """boto3's client, which asks once unless told otherwise."""
    config = Config(
        retries=retries or {"mode": "standard", "total_max_attempts": 1}, proxies={}, read_timeout=70, **options
    )
    return boto3.client(
        "sagemaker-runtime",
        endpoint_url=f"http://{address}",
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=config,
    )


def invoke(client, model, inputs, **options):
    """What the endpoint answers through boto3: (the answer, its tensors)."""
    if model is not None:
        options["TargetModel"] = model
    options = {"EndpointName": "ep", "ContentType": "application/octet-stream", "Body": json_body(inputs), **options}
    answer = client.invoke_endpoint(**options)
    return answer, triton_result(answer["Body"].read(), answer["ContentType"])


# --- a store that hangs -----------------------------------------------------------------------------------------------


class Gate:
    """A proxy before a store of S3: while it is shut, what is asked waits. `waiting` counts the requests that came then."""

    def __init__(self, port):
        self.port, self.is_open, self.waiting = port, threading.Event(), 0
        self.is_open.set()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self):
        return f"s3://http://127.0.0.1:{self.listener.getsockname()[1]}/models"

    def close(self):
        self.is_open.set()
        self.listener.close()

    def shut(self):
        self.waiting = 0
        self.is_open.clear()

    def open(self):
        self.is_open.set()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.port))
                threading.Thread(target=self._carry, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._carry, args=(far, near, False), daemon=True).start()

    def _carry(self, source, sink, is_request):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if is_request and not self.is_open.is_set():
                    self.waiting += 1
                    self.is_open.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
