"""The two servers, on free ports of 127.0.0.1, each over its repository."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2_grpc

import repositories

ROOT = Path(__file__).resolve().parents[2]
CHANNEL = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


class Target:
    """A server: `http` and `grpc` are its ports, `stub` speaks gRPC to it."""

    def __init__(self, name, folder, command, environment, limit):
        self.name, self.limit = name, limit
        self.log = folder / f"{name}.log"
        self.http, self.grpc = free_port(), free_port()
        ports = {"HTTP": self.http, "GRPC": self.grpc}
        self.command = [str(part).format(**ports) for part in command]
        self.environment = {**os.environ, **environment}
        self.process = self.channel = self.stub = None

    def start(self):
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                start_new_session=True,
            )
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc}", options=CHANNEL)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        end = time.monotonic() + self.limit
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{self.name} is not ready:\n{self.last_words()}")
            time.sleep(0.05)

    def is_ready(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=2)
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def end(self, patience):
        """What of it has ended, if anything: itself, or a process of Triton's that runs a model. Who aborts goes on for a
        moment after its connections are cut, so this waits for a while where one was."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
            return {"status": "the server ended"}
        if self.name == "triton" and self.models_running() < set(repositories.LOADED):
            return {"status": "the model's process ended"}
        return None

    def models_running(self):
        """The models whose process is there; its command line holds the model's folder."""
        found = set()
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for child in path.read_text().split():
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                    found |= {Path(part.decode()).parts[-3] for part in command if part.endswith(b"/model.py")}
        return found & set(repositories.LOADED)

    def stop(self):
        """Ends the process and all that it started."""
        if self.process is None:
            return
        self.channel.close()
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        self.process = None

    def last_words(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(*targets):
    try:
        for target in targets:
            target.start()
        yield
    finally:
        for target in targets:
            target.stop()


def triton(folder):
    """NVIDIA's tritonserver out of the wheel `nvidia-pytriton`, its Python backend under the Python that runs this."""
    packages = next(Path(entry) for entry in sys.path if (Path(entry) / "pytriton/tritonserver").is_dir())
    home = packages / "pytriton/tritonserver"
    backend = folder / "backends/python"
    shutil.copytree(home / "backends/python", backend)
    stub = home / "python_backend_stubs" / "{}.{}".format(*sys.version_info) / "triton_python_backend_stub"
    shutil.copy(stub, backend)
    (backend / stub.name).chmod(0o755)
    repository = folder / "triton-models"
    repositories.make(repository, for_triton=True)
    command = [home / "bin/tritonserver", f"--model-repository={repository}", f"--backend-directory={folder}/backends"]
    command += ["--model-control-mode=explicit", *(f"--load-model={name}" for name in repositories.LOADED)]
    command += ["--allow-metrics=false", "--allow-sagemaker=false", "--allow-gpu-metrics=false"]
    command += ["--http-address=127.0.0.1", "--http-port={HTTP}", "--grpc-address=127.0.0.1", "--grpc-port={GRPC}"]
    command += ["--exit-timeout-secs=5"]
    environment = {"LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"), "PYTHONPATH": str(packages)}
    return Target("triton", folder, command, environment, 240)


def roundhouse(folder, binary):
    repository = folder / "roundhouse-models"
    repositories.make(repository, for_triton=False)
    command = [binary, "serve", "--model-repository", repository, "--model-control", "explicit"]
    command += [part for name in repositories.LOADED for part in ("--load-model", name)]
    command += ["--http-port", "{HTTP}", "--grpc-port", "{GRPC}", "--metrics-port", "0"]
    command += ["--allow-client-shm", "--cache-dir", folder / "cache"]
    return Target("roundhouse", folder, command, {}, 60)


def binary():
    named = os.environ.get("ROUNDHOUSE_BIN")
    found = Path(named) if named else ROOT / "target/debug/roundhouse"
    if not found.exists():
        raise SystemExit(f"no server binary {found}: cargo build, or name one with ROUNDHOUSE_BIN")
    return found.resolve()
