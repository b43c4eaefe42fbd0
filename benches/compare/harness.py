"""Starts the servers, drives them with wrk, reads what they cost out of /proc. Standard library only."""

import array
import glob
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PEERS_HOME = os.environ.get("PEERS_HOME") or os.path.join(os.environ.get("TMPDIR", "/tmp"), "peers")
TICK = os.sysconf("SC_CLK_TCK")
CPUS = os.cpu_count() or 1


class Skipped(Exception):
    """A server that is not installed here; the text says what is missing."""


class Died(Exception):
    """A server that ended while it was measured."""


# ---- Cores -----------------------------------------------------------------------------------------------------------


class Cores:
    """Which core the server and which the load generator may use; None leaves it to the scheduler."""

    def __init__(self, pin, server=1, generator=0):
        allowed = sorted(os.sched_getaffinity(0))
        if pin and not {server, generator} <= set(allowed):
            raise SystemExit(
                f"cores {server} and {generator} are asked for, this process may use {allowed}; see --cores, --no-pin"
            )
        self.server = ["taskset", "-c", str(server)] if pin else []
        self.generator = ["taskset", "-c", str(generator)] if pin else []


# ---- /proc -----------------------------------------------------------------------------------------------------------


def stat(pid):
    """The fields of /proc/PID/stat after the command name: [0] state, [1] parent, [11] user, [12] system ticks ..."""
    with open(f"/proc/{pid}/stat", encoding="latin1") as file:
        return file.read().rpartition(")")[2].split()


def tree(root):
    """A process and all that descend from it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(stat(entry)[1])
            except (OSError, IndexError):
                continue
    found = {root} if root in parents else set()
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found
        found |= more


def cpu_seconds(root):
    """User and system time of a process tree, threads that have ended included."""
    total = 0
    for pid in tree(root):
        try:
            fields = stat(pid)
            total += int(fields[11]) + int(fields[12])
        except OSError:
            continue
    return total / TICK


def status(root, field):
    """The sum of a number in /proc/PID/status over a process tree: Threads, VmRSS (kB) ..."""
    total = 0
    for pid in tree(root):
        try:
            with open(f"/proc/{pid}/status", encoding="latin1") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith(field + ":"))
        except OSError:
            continue
    return total


def machine_busy():
    """Seconds that the machine's cores have worked, whoever used them."""
    with open("/proc/stat", encoding="latin1") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(x) for x in file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICK


# ---- HTTP ------------------------------------------------------------------------------------------------------------


def call(port, method, path, body=None, headers=None, timeout=60):
    """One request on a connection of its own: (status, body, headers in lower case)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, data, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- Servers ---------------------------------------------------------------------------------------------------------


class Server:
    """A process that listens on `port`; `start` returns once it is ready, `stop` ends the whole tree."""

    def __init__(
        self, name, command, port=None, env=None, cores=None, folder=".", ready="/v2/health/ready", port_file=None
    ):
        self.name, self.command, self.port, self.ready, self.port_file = name, command, port, ready, port_file
        self.env = dict(os.environ, **(env or {}))
        self.cores = cores or Cores(False)
        self.log = os.path.join(folder, f"{name}.log")
        self.folder = folder
        self.process = None
        self.metrics_port = self.sagemaker_port = self.grpc_port = None

    def start(self, limit=60):
        """Seconds from start to ready."""
        if self.port_file and os.path.exists(self.port_file):
            os.remove(self.port_file)
        begin = time.perf_counter()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.cores.server + self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.env,
                cwd=self.folder,
                start_new_session=True,
            )
        while time.perf_counter() - begin < limit:
            if self.process.poll() is not None:
                raise Died(f"{self.name} ended with {self.process.returncode} at its start:\n{self.last_words()}")
            if self.is_ready():
                return time.perf_counter() - begin
            time.sleep(0.002)
        self.stop()
        raise Died(f"{self.name} was not ready within {limit} s:\n{self.last_words()}")

    def is_ready(self):
        if self.port_file:
            try:
                with open(self.port_file, encoding="utf-8") as file:
                    ports = {name: int(address.rpartition(":")[2]) for name, address in json.load(file).items()}
                self.port, self.metrics_port, self.sagemaker_port = ports["http"], ports.get("metrics"), ports.get("sagemaker")
                self.grpc_port = ports.get("grpc")
            except (OSError, ValueError, KeyError):  # not there yet, or half written
                return False
        try:
            return call(self.port, "GET", self.ready, timeout=2)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def last_words(self):
        with open(self.log, "rb") as log:
            return b"\n".join(log.read().splitlines()[-8:]).decode(errors="replace")

    def stop(self):
        if self.process is None:
            return
        for sign, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            try:
                os.killpg(self.process.pid, sign)
            except ProcessLookupError:
                pass
            try:
                self.process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue

    @property
    def pid(self):
        return self.process.pid


def target_folder():
    return os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")


def default_binary():
    return os.path.join(target_folder(), "release", "roundhouse")


def socket_floor(folder, cores):
    """The least that an HTTP server can do: one blocking thread a connection, no dependencies (the peers' `floor`)."""
    binary = os.path.join(PEERS_HOME, "run", "floor")
    if not os.path.exists(binary):
        raise Skipped(f"no {binary}: the peers' setup (part `tool`) builds it")
    port = free_port()
    return Server("socket", [binary, str(port)], port, cores=cores, folder=folder, ready="/")


def echo_floor(folder, cores, binary=None):
    """A bare hyper server that answers each request with its own body."""
    if binary is None:
        target = os.path.join(target_folder(), "compare-echo")
        binary = os.path.join(target, "release", "echo")
        source = os.path.join(HERE, "echo")
        newest = max(os.path.getmtime(os.path.join(source, file)) for file in ("Cargo.toml", "src/main.rs"))
        if not os.path.exists(binary) or os.path.getmtime(binary) < newest:
            print("building the hyper echo ...", file=sys.stderr, flush=True)
            subprocess.run(
                ["cargo", "build", "--quiet", "--release", "--manifest-path", os.path.join(source, "Cargo.toml")],
                env=dict(os.environ, CARGO_TARGET_DIR=target),
                check=True,
            )
    port = free_port()
    return Server("echo", [os.path.abspath(binary), str(port)], port, cores=cores, folder=folder, ready="/")


def onnxruntime_library():
    """ORT_DYLIB_PATH, else the library beside the peers' Triton, so that both servers run the same one; else none."""
    named = os.environ.get("ORT_DYLIB_PATH")
    found = glob.glob(f"{PEERS_HOME}/venv/triton/lib/python3.*/site-packages/onnxruntime/capi/libonnxruntime.so.*")
    return named or (found[0] if found else None)


def roundhouse(binary, repository, folder, cores, arguments=()):
    binary = os.path.abspath(binary)
    if not os.path.exists(binary):
        raise Skipped(f"no {binary}: build it with `cargo build --release`, or name it with --roundhouse")
    port_file = os.path.join(folder, "roundhouse.ports")
    library = onnxruntime_library()
    command = [
        binary,
        "serve",
        *(["--model-repository", repository] if repository else []),
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--metrics-port",
        "0",
        "--port-file",
        port_file,
    ]
    return Server(
        "roundhouse",
        [*command, *arguments],
        env={"ORT_DYLIB_PATH": library} if library else {},
        cores=cores,
        folder=folder,
        port_file=port_file,
    )


def triton(repository, folder, cores, arguments=()):
    """NVIDIA's tritonserver where the peers' setup (parts `tool` and `triton`) put it."""
    found = glob.glob(f"{PEERS_HOME}/venv/triton/lib/python3.*/site-packages/pytriton/tritonserver/bin/tritonserver")
    backends = os.path.join(PEERS_HOME, "run", "triton", "backends")
    if not found or not os.path.exists(os.path.join(backends, "peer", "libtriton_peer.so")):
        raise Skipped(
            f"nothing under {PEERS_HOME}/venv/triton and {backends}: "
            "the peers' setup (parts `tool` and `triton`) installs it"
        )
    packages = found[0].split("/pytriton/")[0]
    port, metrics, grpc = free_port(), free_port(), free_port()
    env = {"LD_LIBRARY_PATH": f"{packages}/nvidia_pytriton.libs", "PYTHONPATH": packages}
    if library := onnxruntime_library():
        env["ORT_DYLIB_PATH"] = library
    command = [
        found[0],
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--allow-gpu-metrics=false",
        "--log-info=false",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc}",
        "--allow-sagemaker=false",
        "--http-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        f"--http-port={port}",
        f"--metrics-port={metrics}",
        "--exit-timeout-secs=2",
    ]
    server = Server("triton", [*command, *arguments], port, env=env, cores=cores, folder=folder)
    server.metrics_port, server.grpc_port = metrics, grpc
    return server


# ---- Model repositories ----------------------------------------------------------------------------------------------


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def add_identity(repository, name="identity", backend="identity"):
    """A model that answers its input; `backend` is `identity` for us, `peer` (in its identity mode) for Triton."""
    text = f'name: "{name}"\nbackend: "{backend}"\nmax_batch_size: 0\n'
    text += 'input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1, -1 ] } ]\n'
    text += 'output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1, -1 ] } ]\n'
    if backend == "peer":
        text += "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
        text += 'parameters { key: "mode" value { string_value: "identity" } }\n'
    write(f"{repository}/{name}/config.pbtxt", text)
    os.makedirs(f"{repository}/{name}/1", exist_ok=True)


def mlp_file():
    path = os.path.join(PEERS_HOME, "models", "onnx", "mlp.onnx")
    return path if os.path.exists(path) else None


def add_mlp(repository, name="mlp", triton_config=None):
    """The peers' `mlp`; for Triton with a config (`batching` or `plain`), for us without any."""
    os.makedirs(f"{repository}/{name}/1", exist_ok=True)
    shutil.copy(mlp_file(), f"{repository}/{name}/1/model.onnx")
    if triton_config:
        text = f'name: "{name}"\nbackend: "peer"\nmax_batch_size: 32\n'
        text += 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 64 ] } ]\n'
        text += 'output [ { name: "y" data_type: TYPE_FP32 dims: [ 16 ] } ]\n'
        text += "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
        if triton_config == "batching":
            text += "dynamic_batching { }\n"
        write(f"{repository}/{name}/config.pbtxt", text)


# ---- Bodies and answers ----------------------------------------------------------------------------------------------


def infer_json(name, shape, values, binary_output=False):
    """A KServe v2 request in JSON, the data nested as `shape` says."""
    data = list(values)
    for size in reversed(shape[1:]):
        data = [data[i : i + size] for i in range(0, len(data), size)]
    request = {"inputs": [{"name": name, "shape": shape, "datatype": "FP32", "data": data}]}
    if binary_output:
        request["parameters"] = {"binary_data_output": True}
    return json.dumps(request).encode(), {"Content-Type": "application/json"}


def infer_binary(name, shape, values):
    """A KServe v2 request with the binary tensor extension both ways."""
    data = values.tobytes()
    request = {
        "inputs": [{"name": name, "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(request).encode()
    return head + data, {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}


def infer_grpc(model, name, shape, values):
    """A `ModelInferRequest` with raw contents and gRPC's prefix in front."""

    def number(value):
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    def field(at, data):
        return number(at << 3 | 2) + number(len(data)) + data

    tensor = field(1, name.encode()) + field(2, b"FP32") + field(3, b"".join(map(number, shape)))
    message = field(1, model.encode()) + field(5, tensor) + field(7, values.tobytes())
    return b"\0" + len(message).to_bytes(4, "big") + message, {"content-type": "application/grpc", "te": "trailers"}


def flatten(data):
    for item in data:
        if isinstance(item, list):
            yield from flatten(item)
        else:
            yield item


def read_output(body, headers):
    """(shape, values) of the first output, JSON or binary."""
    head = int(headers.get("inference-header-content-length") or len(body))
    output = json.loads(body[:head])["outputs"][0]
    if "data" in output:
        return output["shape"], array.array("f", flatten(output["data"]))
    return output["shape"], array.array("f", body[head : head + output["parameters"]["binary_data_size"]])


# ---- Load ------------------------------------------------------------------------------------------------------------


def drive(server, cores, method, path, body, headers, connections, seconds, port=None):
    """wrk for some seconds, at the server's port unless another is given; what it saw, and what the server used meanwhile."""
    body_file = os.path.join(server.folder, "body")
    with open(body_file, "wb") as file:
        file.write(body)
    env = dict(
        os.environ,
        METHOD=method,
        BODY=body_file if body else "",
        HEADERS="\n".join(f"{k}: {v}" for k, v in headers.items()),
    )
    command = [
        *cores.generator,
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "30s",
        "-s",
        os.path.join(HERE, "load.lua"),
        f"http://127.0.0.1:{port or server.port}{path}",
    ]
    begin, used, busy, generator = time.perf_counter(), cpu_seconds(server.pid), machine_busy(), sum(os.times()[2:4])
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=seconds + 90, check=False)
    wall, used, busy = time.perf_counter() - begin, cpu_seconds(server.pid) - used, machine_busy() - busy
    generator = sum(os.times()[2:4]) - generator
    if not server.alive():
        raise Died(f"{server.name} ended with {server.process.returncode} under load:\n{server.last_words()}")
    found = re.search(r"^RESULT (.*)$", run.stdout, re.MULTILINE)
    if not found:
        raise Died(f"wrk gave no result: {run.stdout} {run.stderr}")
    seen = json.loads(found.group(1))
    requests = max(1, seen["requests"])
    return {
        "requests": seen["requests"],
        "rps": seen["requests"] / seen["us"] * 1e6,
        "p50_us": seen["p50"],
        "p90_us": seen["p90"],
        "p99_us": seen["p99"],
        "max_us": seen["max"],
        "errors": seen["status_errors"] + seen["socket_errors"],
        "cpu_us": used / requests * 1e6,
        "server_busy": used / wall,
        "generator_busy": generator / wall,
        "noise": max(0.0, busy - used - generator) / wall / CPUS,
    }


def drive_grpc(server, cores, path, body, headers, connections, seconds):
    """h2load for some seconds, `connections` with a call at a time each; the figures of `drive`."""
    body_file, log = os.path.join(server.folder, "body"), os.path.join(server.folder, "h2load.log")
    with open(body_file, "wb") as file:
        file.write(body)
    if os.path.exists(log):
        os.remove(log)
    command = [*cores.generator, "h2load", "-t1", f"-c{connections}", "-m1", "-D", str(seconds), "-d", body_file]
    command += ["--log-file", log, "-w", "24", "-W", "24"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    command.append(f"http://127.0.0.1:{server.grpc_port}{path}")
    begin, used, busy, generator = time.perf_counter(), cpu_seconds(server.pid), machine_busy(), sum(os.times()[2:4])
    subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90, check=False)
    wall, used, busy = time.perf_counter() - begin, cpu_seconds(server.pid) - used, machine_busy() - busy
    generator = sum(os.times()[2:4]) - generator
    micros, errors = [], 0
    with open(log, encoding="latin1") as file:
        for line in file:
            _start, status, took = line.split()
            if status == "200":
                micros.append(int(took))
            else:
                errors += 1
    if not micros:
        raise Died(f"{server.name} answered nothing over gRPC:\n{server.last_words()}")
    micros.sort()
    requests = len(micros)
    return {
        "requests": requests,
        "rps": requests / seconds,
        "p50_us": micros[requests // 2],
        "p90_us": micros[requests * 9 // 10],
        "p99_us": micros[requests * 99 // 100],
        "max_us": micros[-1],
        "errors": errors,
        "cpu_us": used / requests * 1e6,
        "server_busy": used / wall,
        "generator_busy": generator / wall,
        "noise": max(0.0, busy - used - generator) / wall / CPUS,
    }


def check_grpc(port, body, expected):
    """One call by a real client, since h2load does not look at the status; not where the peers' Python is missing."""
    python = os.path.join(PEERS_HOME, "venv", "tool", "bin", "python")
    if not os.path.exists(python):
        return
    script = """
import sys, grpc
from tritonclient.grpc import service_pb2 as pb
body = sys.stdin.buffer.read()
with grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}", options=[("grpc.max_receive_message_length", -1)]) as channel:
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", lambda b: b, pb.ModelInferResponse.FromString)
    sys.stdout.buffer.write(call(body[5:], timeout=60, wait_for_ready=True).raw_output_contents[0])
"""
    run = subprocess.run([python, "-c", script, str(port)], input=body, capture_output=True, check=False)
    if run.returncode or run.stdout != expected:
        raise Died(f"wrong answer over gRPC: {run.stderr.decode()[-300:]}")


def need(tool, package):
    if not shutil.which(tool):
        raise SystemExit(f"{tool} is not installed (Debian package {package})")
