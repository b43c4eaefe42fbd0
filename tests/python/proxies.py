"""HAProxy and Envoy with the configurations of docker/, on free ports of this machine. Standard library only."""

import contextlib
import csv
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

DOCKER = Path(__file__).resolve().parents[2] / "docker"
TARGET = "X-Amzn-SageMaker-Target-Model"


class Missing(Exception):
    """A proxy that is not installed here; the text says how to get it."""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(what, condition, seconds=60):
    """Looks again and again until the condition holds, and says what was waited for if it never does."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)
    return value


def get(port, path):
    """Status and body; status 0 where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


class Proxy:
    """A running proxy before instances at `ports`. `states()` are what it thinks of each, in their order."""

    def __init__(self, ports, folder):
        self.ports, self.folder = ports, Path(folder)
        self.port = free_port()

    def __enter__(self):
        self.log = self.folder / f"{self.name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=subprocess.STDOUT, env=self.environment())
        try:
            wait_until(f"{self.name} knows all its instances", lambda: self.alive() and all(self.states()))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        self.process.kill()
        self.process.wait()

    def alive(self):
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log.read_text()}")
        return True

    def is_idle(self):
        """Whether it counts no request any more, where it can be asked."""
        return True

    def environment(self):
        return None

    def place(self, text):
        """The configuration with the instances of this machine in place of roundhouse-1 to -3."""
        text, places = re.subn(
            r"roundhouse-([123])(:|, port_value: )8000",
            lambda found: f"127.0.0.1{found[2]}{self.ports[int(found[1]) - 1]}",
            text,
        )
        assert places % 3 == 0 and places, "three instances in each cluster"
        return text


class HAProxy(Proxy):
    name = "haproxy"

    def command(self):
        binary = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if binary is None:
            raise Missing("haproxy is not installed (Debian: apt-get install haproxy)")
        config = self.folder / "haproxy.cfg"
        text = self.place((DOCKER / "haproxy.cfg").read_text())
        # What half a minute of slow start shows is shown in two seconds as well.
        config.write_text(text.replace("slowstart 30s", "slowstart 2s").replace("maxconn 8000", "maxconn 256"))
        return [binary, "-f", config]

    def environment(self):
        self.socket = self.folder / "haproxy.sock"
        return {**os.environ, "HAPROXY_BIND": f"127.0.0.1:{self.port}", "HAPROXY_SOCKET": str(self.socket)}

    def stats(self):
        with socket.socket(socket.AF_UNIX) as control:
            try:
                control.connect(str(self.socket))
            except OSError:
                return []
            control.sendall(b"show stat\n")
            with control.makefile("rb") as page:
                text = page.read().decode()
        return list(csv.DictReader(io.StringIO(text.removeprefix("# "))))

    def instances(self):
        return [row for row in self.stats() if row["pxname"] == "http" and row["svname"] not in ("FRONTEND", "BACKEND")]

    def states(self):
        return [row["status"] == "UP" and row["check_status"] == "L7OK" for row in self.instances()] or [False]

    def is_idle(self):
        return all(row["scur"] == "0" for row in self.instances())


class Envoy(Proxy):
    name = "envoy"
    file = "envoy.yaml"

    def command(self):
        named = os.environ.get("ROUNDHOUSE_ENVOY")
        binary = named or str(Path(__file__).resolve().parents[2] / ".venv/bin/envoy")
        if not Path(binary).exists():
            raise Missing(f"there is no Envoy at {binary} (make .venv/envoy.stamp)")
        self.admin = free_port()
        text = self.place((DOCKER / self.file).read_text())
        text = text.replace("address: 0.0.0.0, port_value: 8080", f"address: 127.0.0.1, port_value: {self.port}")
        text += f"admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {self.admin} }} }} }}\n"
        config = self.folder / "envoy.yaml"
        config.write_text(text)
        # Processes on one machine share memory by this number.
        base = str(os.getpid() * 100 % 100_000 + self.admin % 100)
        return [binary, "-c", config, "--concurrency", "1", "--base-id", base, "-l", "warning"]

    def states(self):
        _, text = get(self.admin, "/clusters")
        flags = re.findall(rf"^http::127\.0\.0\.1:(\d+)::health_flags::(.*)$", text.decode(), re.M)
        known = {int(port): flag == "healthy" for port, flag in flags}
        return [known.get(port, False) for port in self.ports]


class Picker:
    """A `roundhouse picker` that watches instances, at a port that stays the same over restarts."""

    def __init__(self, binary, instances, folder, *flags):
        self.binary, self.instances, self.folder, self.flags = binary, instances, Path(folder), flags
        self.port, self.process = free_port(), None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        instances = [flag for port in self.instances for flag in ("--instance", f"127.0.0.1:{port}")]
        command = [self.binary, "picker", "--port", str(self.port), *instances, "--poll-ms", "100", *self.flags]
        with (self.folder / "picker.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until("the picker is ready", lambda: get(self.port, "/v2/health/ready")[0] == 200)

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def fleet(self):
        """What it knows of each instance, by port."""
        rows = json.loads(get(self.port, "/v1/fleet")[1])["instances"]
        return {int(row["instance"].rsplit(":")[-1]): row for row in rows}

    def until_fresh(self, count):
        wait_until(f"{count} digests are fresh", lambda: [row["standing"] for row in self.fleet().values()].count("fresh") == count)

    def pick(self, model):
        """The ports to try for a model, and why."""
        status, body = get(self.port, f"/pick?model={model}")
        assert status == 200, body
        answer = json.loads(body)
        return [int(endpoint.rsplit(":")[-1]) for endpoint in answer["endpoints"]], answer["reason"]

    def picks(self):
        """How many there were, by reason."""
        text = get(self.port, "/metrics")[1].decode()
        found = re.findall(r'^roundhouse_picker_picks_total\{reason="(\w+)"\} (\d+)$', text, re.M)
        return {reason: int(count) for reason, count in found}


class PickedEnvoy(Envoy):
    """Envoy with a picker, `picker_port` being its port."""

    name = "envoy-picker"
    file = "envoy-picker.yaml"
    picker_port = None

    def place(self, text):
        picker = "address: roundhouse-picker, port_value: 9002"
        assert text.count(picker) == 1
        return super().place(text.replace(picker, f"address: 127.0.0.1, port_value: {self.picker_port}"))

    def picker_is_well(self):
        _, text = get(self.admin, "/clusters")
        return bool(re.search(rf"^picker::127\.0\.0\.1:{self.picker_port}::health_flags::healthy$", text.decode(), re.M))
