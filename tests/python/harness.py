"""What the test files use: the server as a process, the models' inputs, and the answers of Python's onnxruntime."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime
import requests
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "models-examples"

sys.path.append(str(EXAMPLES))  # for s3, which starts the store of `make run-s3`


# --- the server -------------------------------------------------------------------------------------------------------


class Server:
    """A running server: its process, the addresses it listens on, its log."""

    def __init__(self, process, log, addresses):
        self.process = process
        self.http = addresses["http"]
        self.grpc = addresses.get("grpc")
        self.metrics = addresses["metrics"]
        self.sagemaker = addresses.get("sagemaker")
        self.was_killed = False
        self._log = log

    def kill(self):
        """As a power cut does it."""
        self.was_killed = True
        self.process.kill()
        self.process.wait()

    def cli(self, *arguments, code=0):
        """What a subcommand of `roundhouse models` prints."""
        command = [binary(), "models", "--url", f"http://{self.http}", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert ended.returncode == code, ended.stderr
        return ended.stdout if code == 0 else ended.stdout + ended.stderr

    def log(self):
        return self._log.read_text(errors="replace")

    def scrape(self):
        answer = requests.get(f"http://{self.metrics}/metrics", timeout=10)
        assert answer.status_code == 200
        return answer.text

    def model_loads(self):
        """How many loads have succeeded since the start."""
        return self.metric("roundhouse_model_loads_total", 'outcome="ok"')

    def metric(self, family, label=""):
        """The sum of the samples of `family` that have the label."""
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in self.scrape().splitlines()
            if line.startswith(family) and line[len(family)] in " {" and label in line
        )


@contextlib.contextmanager
def running_server(repository, folder, *arguments, environment=None, port=0):
    """A server over `repository`, or over none; at the end SIGTERM must bring exit code 0, and no thread may have panicked."""
    port_file, log = folder / "ports.json", folder / "server.log"
    # That of a server before this one.
    port_file.unlink(missing_ok=True)
    command = [binary(), "serve", "--http-port", str(port), "--grpc-port", "0", "--metrics-port", "0"]
    if repository is not None:
        command += ["--model-repository", repository]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port-file", port_file, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    try:
        server = Server(process, log, wait_for_ports(process, port_file, log))
        yield server
        if not server.was_killed:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0, server.log()
        assert "panicked at" not in server.log(), server.log()
    finally:
        process.kill()
        process.wait()


def binary():
    named = os.environ.get("ROUNDHOUSE_BIN")
    candidates = (
        [Path(named).resolve()] if named else [ROOT / "target" / kind / "roundhouse" for kind in ("release", "debug")]
    )
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"no server binary: {', '.join(map(str, candidates))}")


def wait_for_ports(process, port_file, log):
    deadline = time.monotonic() + 30
    while not port_file.exists():
        if process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}:\n{log.read_text(errors='replace')}")
        if time.monotonic() > deadline:
            raise AssertionError(f"not listening after 30 s:\n{log.read_text(errors='replace')}")
        time.sleep(0.02)
    return json.loads(port_file.read_text())


# --- the models -------------------------------------------------------------------------------------------------------

MODELS = ["add_sub", "digits", "every_type", "half", "identity", "iris", "scale", "text"]

# Examples for the pytorch backend, which is a library of its own.
TORCH = ["digits_torch", "loudness"]

# Examples whose requests have any number of answers.
STREAMING = ["repeat"]

# An example made of others, and the step that is there for it alone.
ENSEMBLES = ["digits_raw", "grey"]
TEXTS = ["world", "two words", "12.5", "zwölf Boxkämpfer jagen", "", "日本 語", " spaces  around ", "+7"]


@functools.cache
def heldout():
    """The images of the digits model's held-out set, scaled as it wants them, and their labels."""
    rows = json.loads((EXAMPLES / "digits/heldout.json").read_text())
    pixels = np.array([row["pixels"] for row in rows], np.float32) / 16
    return pixels.reshape(-1, 1, 8, 8), np.array([row["label"] for row in rows])


def inputs_of(model, batch):
    """Inputs of `model` with `batch` rows, the same each time."""
    random = np.random.default_rng(batch)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    def integers(kind):
        limits = np.iinfo(kind)
        values = random.integers(limits.min, limits.max, batch, dtype=kind, endpoint=True)
        values[0] = limits.max
        values[-1] = limits.min
        return values

    texts = np.array(TEXTS[:batch], dtype=object)
    if model == "add_sub":
        return {"INPUT0": normal(batch, 16), "INPUT1": normal(batch, 16)}
    if model == "digits":
        return {"image": heldout()[0][:batch]}
    if model == "half":
        return {"x": normal(batch, 4).astype(np.float16)}
    if model == "identity":
        return {"INPUT0": normal(batch, 16)}
    if model == "iris":
        return {"x": np.abs(normal(batch, 4)) * 3}
    if model == "scale":
        return {"x": normal(batch)}
    if model == "text":
        return {"TEXT": texts}
    assert model == "every_type"
    whole = [np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64]
    arrays = [random.integers(0, 2, batch).astype(bool)]
    arrays += [integers(kind) for kind in whole]
    arrays += [normal(batch).astype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
    arrays += [texts]
    return {f"IN_{np_to_triton_dtype(array.dtype)}": array for array in arrays}


@functools.cache
def session(model, version):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(EXAMPLES / model / version / "model.onnx", options)


def expected(model, inputs, version=None):
    """What Python's onnxruntime makes of `inputs`; models that change nothing need not be asked."""
    if model == "identity":
        return {"OUTPUT0": inputs["INPUT0"]}
    if model == "every_type":
        return {name.replace("IN_", "OUT_"): array for name, array in inputs.items()}
    asked = session(model, version or ("2" if model == "scale" else "1"))
    return dict(zip([output.name for output in asked.get_outputs()], asked.run(None, inputs)))


def assert_same(actual, wanted, context=""):
    """Equal shapes and values: 1e-5 for floats, 1e-3 for FP16; text, integers and BF16 exactly."""
    assert actual.shape == wanted.shape, context
    if wanted.dtype == object:
        assert [as_bytes(text) for text in actual.ravel()] == [as_bytes(text) for text in wanted.ravel()], context
        return
    assert actual.dtype == wanted.dtype, context
    if wanted.dtype.kind == "f":
        tolerance = 1e-3 if wanted.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(actual, wanted, rtol=tolerance, atol=tolerance, err_msg=context)
    else:
        assert np.array_equal(actual, wanted), context


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


# --- plain JSON -------------------------------------------------------------------------------------------------------


def json_tensor(name, array):
    """The tensor as a member of a request's "inputs"."""
    data = array.astype(np.float64) if array.dtype in (np.float16, ml_dtypes.bfloat16) else array
    return {
        "name": name,
        "datatype": np_to_triton_dtype(array.dtype),
        "shape": list(array.shape),
        "data": data.tolist(),
    }


def json_request(inputs, **members):
    return {"inputs": [json_tensor(name, array) for name, array in inputs.items()], **members}


def json_outputs(answer):
    """The arrays of a JSON answer, by name."""
    return {
        output["name"]: np.array(output["data"], dtype=triton_to_np_dtype(output["datatype"])).reshape(output["shape"])
        for output in answer["outputs"]
    }
