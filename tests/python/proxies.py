"""HAProxy and Envoy with the configurations of docker/, on free ports of this machine. Standard library only."""

import contextlib
import csv
import http.client
import io
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

    def states(self):
        rows = [row for row in self.stats() if row["pxname"] == "http" and row["svname"] not in ("FRONTEND", "BACKEND")]
        return [row["status"] == "UP" and row["check_status"] == "L7OK" for row in rows] or [False]


class Envoy(Proxy):
    name = "envoy"

    def command(self):
        named = os.environ.get("ROUNDHOUSE_ENVOY")
        binary = named or str(Path(__file__).resolve().parents[2] / ".venv/bin/envoy")
        if not Path(binary).exists():
            raise Missing(f"there is no Envoy at {binary} (make .venv/envoy.stamp)")
        self.admin = free_port()
        text = self.place((DOCKER / "envoy.yaml").read_text())
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
