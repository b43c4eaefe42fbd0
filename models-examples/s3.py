#!/usr/bin/env python3
"""The example models in S3, on this machine: starts SeaweedFS, uploads them as archives, and serves from there.

    make run-s3                                                          # gets SeaweedFS, builds, and runs this:
    python3 models-examples/s3.py --weed FILE --roundhouse FILE [-- flags of `roundhouse serve`]

Everything lies in a temporary folder and goes with the server. Needs nothing but Python's standard library. The Python
tests start their store with the same class.
"""

import argparse
import ctypes
import datetime
import hashlib
import hmac
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUCKET = "models"

# How each example lies in the bucket: by the ending of its archive, as plain objects, or as the bare model file.
FORMS = {
    "add_sub": ".tar.gz",
    "digits": ".tar.zst",
    "every_type": ".tgz",
    "half": ".onnx",
    "identity": ".tar",
    "iris": ".tar.zst",
    "scale": "/",
    "text": ".tar.gz",
}


class Store:
    """SeaweedFS on 127.0.0.1 with one bucket, and whoever writes into it. Ends with the `with` block."""

    def __init__(self, weed, folder):
        self.weed, self.folder = Path(weed).resolve(), Path(folder).resolve()
        self.key, self.secret = "AKIDEXAMPLE", secrets.token_hex(20)

    def __enter__(self):
        self.folder.mkdir(exist_ok=True)
        identity = {
            "name": "writer",
            "credentials": [{"accessKey": self.key, "secretKey": self.secret}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (self.folder / "s3.json").chmod(0o600)
        names = ["master", "volume", "filer", "s3"]
        # Held together, so that they differ; let go just before the server takes them.
        held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2 * len(names))]
        ports = [server.getsockname()[1] for server in held]
        for server in held:
            server.close()
        listen = [
            f"-{name}.{kind}={port}"
            for (name, kind), port in zip([(name, kind) for name in names for kind in ("port", "port.grpc")], ports)
        ]
        self.port = ports[6]
        # SeaweedFS makes these whatever it is told.
        self.sockets = [f"/tmp/seaweedfs-{name}-grpc-{port}.sock" for name, port in zip(names, ports[1::2])]
        command = [self.weed, "-logtostderr", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-volume.max=20"]
        command += ["-master.volumeSizeLimitMB=64", f"-dir={self.folder}", f"-s3.config={self.folder}/s3.json"]
        command += [f"-s3.localSocket={self.folder}/s3.sock", f"-filer.localSocket={self.folder}/filer.sock"]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *listen],
                cwd=self.folder,
                env={**os.environ, "TMPDIR": str(self.folder)},
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the server, which may still be reading
                preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL),  # PR_SET_PDEATHSIG
            )
        try:
            self._await()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for path in self.sockets:
            Path(path).unlink(missing_ok=True)

    def _await(self):
        """Makes the bucket and writes to it, which works only when all parts of the store have found each other."""
        deadline = time.monotonic() + 60
        is_made = False
        while True:
            try:
                if not is_made:
                    self.request("PUT", f"/{BUCKET}")
                is_made = True
                self.put(".up", b"up")
                return self.delete(".up")
            except OSError as error:
                log = (self.folder / "log").read_text(errors="replace")[-2000:]
                if self.process.poll() is not None:
                    raise RuntimeError(f"SeaweedFS ended with {self.process.returncode}:\n{log}") from error
                if time.monotonic() > deadline:
                    raise RuntimeError(f"SeaweedFS is not up after 60 s:\n{log}") from error
                time.sleep(0.1)

    @property
    def uri(self):
        return f"s3://http://127.0.0.1:{self.port}/{BUCKET}"

    @property
    def environment(self):
        """What whoever reads the bucket has to have in its environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def put(self, key, content):
        self.request("PUT", f"/{BUCKET}/{key}", content)

    def delete(self, key):
        self.request("DELETE", f"/{BUCKET}/{key}")

    def put_folder(self, folder, prefix):
        """Each file of a folder as an object of its own."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def request(self, method, path, body=b""):
        """One request, signed as AWS asks (Signature Version 4); OSError if it is refused."""
        path = urllib.parse.quote(path, safe="/-_.~")
        now = datetime.datetime.now(datetime.timezone.utc)
        day, stamp = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": f"127.0.0.1:{self.port}", "x-amz-content-sha256": digest, "x-amz-date": stamp}
        signed = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        canonical = f"{method}\n{path}\n\n{lines}\n{signed}\n{digest}"
        scope = f"{day}/us-east-1/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = f"AWS4{self.secret}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={signed}, Signature={signature}"
        )
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=body or None, headers=headers, method=method
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return answer.read()


def upload_examples(store, roundhouse, folder):
    """Packs and uploads the example models, each in its form, and gives the keys."""
    keys = []
    for name, form in FORMS.items():
        if form == "/":
            store.put_folder(HERE / name, name)
        elif form == ".onnx":
            store.put(f"{name}.onnx", (HERE / name / "1" / "model.onnx").read_bytes())
        else:
            archive = Path(folder) / (name + form)
            pack(roundhouse, HERE / name, archive)
            store.put(archive.name, archive.read_bytes())
        keys.append(name + form)
    return keys


def pack(roundhouse, folder, archive):
    packed = subprocess.run([roundhouse, "pack", folder, "-o", archive], capture_output=True, text=True)
    if packed.returncode != 0:
        raise RuntimeError(packed.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weed", required=True, type=Path, help="SeaweedFS's binary")
    parser.add_argument("--roundhouse", required=True, type=Path, help="the server's binary")
    parser.add_argument("flags", nargs="*", help="for `roundhouse serve`, behind --")
    arguments = parser.parse_args()
    roundhouse, weed = arguments.roundhouse.resolve(), arguments.weed.resolve()
    for interruption in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(interruption, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="roundhouse-s3-", ignore_cleanup_errors=True) as folder:
        with Store(weed, Path(folder) / "store") as store:
            print(f"uploading to {store.uri}", flush=True)
            for key in upload_examples(store, roundhouse, folder):
                print(f"  {key}")
            print(
                "",
                "three numbers tripled by a model from S3, once it listens; then what is where:",
                "  curl -s http://localhost:8000/v2/models/scale/generate -d '{\"x\": [1, 2, 3]}'",
                f"  {os.path.relpath(roundhouse)} models",
                "",
                sep="\n",
                flush=True,
            )
            command = [roundhouse, "serve", "--model-repository", store.uri, "--cache-dir", Path(folder) / "cache"]
            server = subprocess.Popen([*command, *arguments.flags], env={**os.environ, **store.environment})
            # Ctrl-C reaches the server too, which ends in its own time.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for interruption in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(interruption, lambda *_: server.terminate())
            return server.wait()


if __name__ == "__main__":
    sys.exit(main())
