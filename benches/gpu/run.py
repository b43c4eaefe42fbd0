"""Checks on a machine with a GPU what docs/gpu.md says of it: prints a table, writes JSON. Needs Python 3.9 and nothing else.

    python3 run.py pack FOLDER --binary ... [--cuda-test ...] [--onnxruntime-gpu ...] [--plugin ...]   where it is built
    python3 run.py join FOLDER                                                                         on the GPU machine
    python3 run.py check FOLDER --out gpu.json                                                         on the GPU machine

`pack` lays what the check needs into a folder in pieces of at most 64 MiB, with a list of their hashes; `join` makes the files of
them again. `check` takes less than eight minutes; without a GPU each row says so.
"""

import argparse
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import models  # noqa: E402

PIECE = 64 << 20
MIB = 1 << 20
# All together, in seconds; a check that cannot begin in time is skipped.
MOST_SECONDS = 450


# --- bringing it --------------------------------------------------------------------------------------------------------


def pack(folder, files):
    """Lays files in pieces into a folder. `files` maps names below what `join` makes to where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = []
    for name, path in files.items():
        whole, pieces = hashlib.sha256(), []
        with path.open("rb") as source:
            while piece := source.read(PIECE):
                whole.update(piece)
                place = f"{len(manifest):03}-{len(pieces):03}.piece"
                (folder / place).write_bytes(piece)
                pieces.append({"piece": place, "sha256": hashlib.sha256(piece).hexdigest()})
        manifest.append({"name": name, "mode": path.stat().st_mode & 0o777, "sha256": whole.hexdigest(), "pieces": pieces})
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return manifest


def join(folder):
    """Makes the files of a packed folder below `files/`; a piece that is missing or damaged is named."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest:
        target = folder / "files" / entry["name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        whole, draft = hashlib.sha256(), target.with_name(target.name + ".draft")
        with draft.open("wb") as made:
            for piece in entry["pieces"]:
                path = folder / piece["piece"]
                data = path.read_bytes() if path.exists() else b""
                if hashlib.sha256(data).hexdigest() != piece["sha256"]:
                    draft.unlink()
                    raise SystemExit(f"{piece['piece']} of {entry['name']} is missing or damaged: bring it again")
                whole.update(data)
                made.write(data)
        if whole.hexdigest() != entry["sha256"]:
            raise SystemExit(f"{entry['name']} is not what was packed: bring all of its pieces again")
        draft.chmod(entry["mode"])
        draft.rename(target)
    return folder / "files"


# --- the machine --------------------------------------------------------------------------------------------------------


class Skipped(Exception):
    """Why a check was not done."""


def gpu_count():
    """How many GPUs the driver has for this process; 0 without a driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def nvidia_smi(*columns):
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise Skipped("no nvidia-smi")
    ended = subprocess.run([tool, f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=30)
    if ended.returncode != 0:
        raise Skipped("nvidia-smi fails: " + ended.stdout.strip()[:80])
    return [[cell.strip() for cell in line.split(",")] for line in ended.stdout.splitlines()]


def memory_used():
    return float(nvidia_smi("memory.used")[0][0])


def nvidia_folders():
    """Folders with CUDA's libraries, of the packages of this machine's Pythons."""
    found = []
    for root in map(Path, [*sys.path, "/usr/lib/python3/dist-packages"]):
        for folder in ("nvidia/cu13/lib", "nvidia/cudnn/lib", "torch/lib"):
            if (root / folder).is_dir() and root / folder not in found:
                found.append(root / folder)
    return found


class Server:
    """A server of the binary, on ports of its own."""

    def __init__(self, bench, repository, *arguments):
        self.folder = Path(tempfile.mkdtemp(dir=bench.scratch))
        ports, self.log = self.folder / "ports.json", self.folder / "log"
        command = [bench.binary, "serve", "--model-repository", repository, "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        command += ["--port-file", ports, "--cache-dir", self.folder / "cache", *bench.runtime, *arguments]
        self.process = subprocess.Popen(list(map(str, command)), stdout=self.log.open("wb"), stderr=subprocess.STDOUT, env=bench.environment)
        begin = time.monotonic()
        while not ports.exists():
            if self.process.poll() is not None or time.monotonic() - begin > 60:
                self.process.kill()
                raise RuntimeError("the server does not start: " + self.log.read_text(errors="replace")[-400:])
            time.sleep(0.05)
        addresses = json.loads(ports.read_text())
        self.http, self.metrics = addresses["http"], addresses["metrics"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def ask(self, path, body=None, timeout=120):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.http}{path}", data=data, method="GET" if body is None else "POST")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read()[:300].decode(errors='replace')}") from None
        return json.loads(text) if text else {}

    def infer(self, model, binary, shape, name="x"):
        """Sends FP32 bytes, gives the bytes of the first output."""
        head = json.dumps({"inputs": [{"name": name, "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": len(binary)}}],
                           "parameters": {"binary_data_output": True}}).encode()
        request = urllib.request.Request(f"http://{self.http}/v2/models/{model}/infer", data=head + binary, method="POST")
        request.add_header("Inference-Header-Content-Length", str(len(head)))
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                body, length = answer.read(), int(answer.headers["Inference-Header-Content-Length"])
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{model}: {error.code} {error.read()[:300].decode(errors='replace')}") from None
        return body[length:]

    def scrape(self):
        """The sums of the page's families."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            sums = {}
            for line in answer.read().decode().splitlines():
                if line and not line.startswith("#"):
                    family = re.split(r"[ {]", line, maxsplit=1)[0]
                    sums[family] = sums.get(family, 0.0) + float(line.rsplit(" ", 1)[1])
            return sums

    def unload_all(self, names):
        for name in names:
            self.ask(f"/v2/repository/models/{name}/unload", {})


class Bench:
    """What the checks share."""

    def __init__(self, folder, repository):
        self.files = folder / "files" if (folder / "files").is_dir() else folder
        self.binary, self.repository = self.files / "roundhouse", repository
        self.scratch = Path(tempfile.mkdtemp(prefix="roundhouse-gpu-"))
        library = next(iter(sorted(self.files.glob("onnxruntime-gpu/libonnxruntime.so.*"))), None)
        self.runtime = ["--onnxruntime-library", library] if library else []
        folders = [str(self.files / "onnxruntime-gpu"), *map(str, nvidia_folders()), os.environ.get("LD_LIBRARY_PATH", "")]
        self.environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, folders))}

    def need(self, name):
        path = self.files / name
        if not path.exists():
            raise Skipped(f"no {name} was brought")
        return path

    def run(self, *command, timeout=240):
        ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=timeout, env=self.environment)
        if ended.returncode != 0:
            raise RuntimeError((ended.stderr or ended.stdout)[-400:])
        return ended.stdout

    def models(self, name, made, copies=1, config=""):
        """A repository of a model under one or more names, which share a file on the disk."""
        root = self.scratch / name
        if not root.exists():
            root.mkdir()
            (root / ".model").write_bytes(made())
            for at in range(copies):
                (root / f"{name}{at}" / "1").mkdir(parents=True)
                os.link(root / ".model", root / f"{name}{at}" / "1" / "model.onnx")
                (root / f"{name}{at}" / "config.pbtxt").write_text('backend: "onnxruntime"\nmax_batch_size: 64\ninstance_group { kind: KIND_GPU }\n' + config)
        return root


# --- what is checked ----------------------------------------------------------------------------------------------------


def nvml_and_health(bench):
    """NVML's numbers are those of nvidia-smi, and the GPU is told to be healthy."""
    total = sum(float(row[0]) for row in nvidia_smi("memory.total"))
    with Server(bench, bench.repository) as server:
        time.sleep(2)
        page = server.scrape()
    ours = page["nv_gpu_memory_total_bytes"] / MIB
    assert abs(ours - total) <= 0.02 * total, (ours, total)
    missing = [name for name in ("nv_gpu_utilization", "nv_gpu_power_usage", "nv_energy_consumption") if name not in page]
    assert page.get("roundhouse_gpu_healthy", 0) >= 1 and not missing, missing
    return {"total_mib": ours, "nvidia_smi_mib": total}


def allocator(bench):
    """Memory in virtual ranges, sleep and wake on the device, by the test binary `cuda`."""
    out = bench.run(bench.need("cuda"), "--ignored", "--exact", "real::real_gpu", "--nocapture")
    figures = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    assert figures["wake_ms"] <= figures["bare_copy_ms"] + 5, figures
    return figures


def kernels(bench):
    """Each kernel gives what its twin gives; compiled ones are kept."""
    nvrtc = next((path for folder in [bench.files / "onnxruntime-gpu", *nvidia_folders()] for path in folder.glob("libnvrtc.so.1?")), None)
    command = [bench.binary, "gpu-check", "kernels", "--json", "--cache", bench.scratch / "kernels", *(["--nvrtc", nvrtc] if nvrtc else [])]
    begin = time.monotonic()
    report = json.loads(bench.run(*command))
    first, begin = time.monotonic() - begin, time.monotonic()
    assert json.loads(bench.run(*command))["kernels"] and all(row["agrees"] for row in report["kernels"])
    return {"kernels": len(report["kernels"]), "first_s": first, "second_s": time.monotonic() - begin,
            "least_share_of_copy": min(row["share_of_copy"] for row in report["kernels"])}


def answers(bench):
    """A CUDA session answers as the CPU does."""
    root = bench.models("dense", lambda: models.dense(1024, 4))
    given, results = models.weights(3 * 1024, 1.0), {}
    for device in ("cpu", "gpu:0"):
        copy = bench.scratch / f"answers-{device[:3]}"
        shutil.copytree(root, copy, symlinks=True)
        if device == "cpu":
            config = copy / "dense0" / "config.pbtxt"
            config.write_text(config.read_text().replace("KIND_GPU", "KIND_CPU"))
        with Server(bench, copy, "--device", device) as server:
            results[device] = server.infer("dense0", given, [3, 1024])
            if device != "cpu":
                rows = json.dumps(server.ask("/v1/residency"))
                assert '"gpu:0"' in rows, rows[:300]
    unpack = lambda data: memoryview(data).cast("f").tolist()  # noqa: E731
    cpu, gpu = unpack(results["cpu"]), unpack(results["gpu:0"])
    scale = max(map(abs, cpu))
    worst = max(abs(one - other) for one, other in zip(cpu, gpu)) / scale
    assert len(cpu) == len(gpu) == 3 * 1024 and worst < 1e-2, worst
    return {"worst_relative": worst}


def book_and_switches(bench):
    """Sixty models in a third of their memory: right answers, first answers of models that sleep, the book against the device."""
    root, count = bench.models("thrash", lambda: models.dense(2048, 4), copies=60), 60
    size = 4 * 2048 * 2048 * 4
    given, before = models.weights(2048, 1.0), memory_used()
    names, first, errors = [f"thrash{at}" for at in range(count)], [], 0
    with Server(bench, root, "--device", "gpu:0", "--memory-limit", f"gpu:0={count * size // 3}") as server:
        expected = server.infer(names[0], given, [1, 2048])
        end = time.monotonic() + 60
        rounds = 0
        while rounds < 3 and time.monotonic() < end:
            for name in names:
                begin = time.monotonic()
                try:
                    assert server.infer(name, given, [1, 2048]) == expected
                except RuntimeError:
                    errors += 1
                if rounds:
                    first.append((time.monotonic() - begin) * 1e3)
            rounds += 1
        page = server.scrape()
        booked = {name: value for name, value in page.items() if "booked" in name or "gpu_memory_used" in name}
        during = memory_used() - before
        server.unload_all(names)
        time.sleep(1)
        loaded = memory_used() - before
    after = memory_used() - before
    assert errors == 0 and after < 50, (errors, after)
    return {"first_answer_p50_ms": statistics.median(first), "first_answer_worst_ms": max(first), "during_mib": during,
            "unloaded_mib": loaded, "after_mib": after, **booked}


def throughput(bench):
    """ResNet-50 with random weights: pictures a second served, and by the same session in a loop."""
    root = bench.models("resnet", models.resnet50, config="dynamic_batching { max_queue_delay_microseconds: 2000 }\n")
    picture, figures = models.weights(3 * 224 * 224, 1.0), {}
    with Server(bench, root, "--device", "gpu:0") as server:
        server.infer("resnet0", picture, [1, 3, 224, 224])
        for clients, batch in ((1, 1), (4, 16), (8, 32)):
            body, answered, end = picture * batch, [0] * clients, time.monotonic() + 6

            def work(at):
                while time.monotonic() < end:
                    server.infer("resnet0", body, [batch, 3, 224, 224])
                    answered[at] += batch

            threads = [threading.Thread(target=work, args=(at,)) for at in range(clients)]
            begin = time.monotonic()
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            figures[f"served_s_{clients}x{batch}"] = sum(answered) / (time.monotonic() - begin)
    library = next(iter(sorted(bench.files.glob("onnxruntime-gpu/libonnxruntime.so.*"))), None)
    if library:
        command = [bench.binary, "gpu-check", "session", root / "resnet0/1/model.onnx", "--onnxruntime-library", library]
        for batch in (16, 32):
            figures[f"loop_s_{batch}"] = json.loads(bench.run(*command, "--batch", batch, "--seconds", 4))["rows_per_second"]
        best = max(figure for name, figure in figures.items() if name.startswith("served"))
        figures["served_of_loop"] = best / max(figures["loop_s_16"], figures["loop_s_32"])
    return figures


def torchscript(bench):
    """The plugin runs over this machine's torch for CUDA, and sees its GPUs."""
    plugin = bench.need("libroundhouse_pytorch.so")
    torch = next((folder for folder in nvidia_folders() if folder.name == "lib" and folder.parent.name == "torch"), None)
    if torch is None:
        raise Skipped("no torch on this machine")
    arguments = ["--backend-directory", plugin.parent, "--libtorch-dir", torch.parent, "--log", "info"]
    with Server(bench, bench.repository, *arguments) as server:
        image = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}
        begin = time.monotonic()
        answer = server.ask("/v2/models/digits_torch/infer", {"inputs": [image]})
        took = time.monotonic() - begin
        seen = re.search(r"CUDA devices: (\d+)", server.log.read_text(errors="replace"))
    assert abs(sum(answer["outputs"][0]["data"]) - 1) < 1e-3 and seen and int(seen.group(1)) > 0, seen
    return {"cuda_devices": int(seen.group(1)), "first_answer_s": took}


# In the order of what matters most, since time may run out.
CHECKS = [answers, book_and_switches, allocator, kernels, throughput, nvml_and_health, torchscript]


def check(folder, out, repository):
    bench, rows, begin = Bench(folder, repository), [], time.monotonic()
    gpus = gpu_count()
    device = nvidia_smi("name", "driver_version", "memory.total") if gpus and shutil.which("nvidia-smi") else []
    for one in CHECKS:
        row, start = {"check": one.__name__, "claim": one.__doc__}, time.monotonic()
        try:
            if not gpus:
                raise Skipped("no GPU")
            if start - begin > MOST_SECONDS - 60:
                raise Skipped("no time left")
            if not bench.binary.exists():
                raise Skipped("no roundhouse was brought")
            row.update(state="holds", figures=one(bench))
        except Skipped as why:
            row.update(state="skipped", why=str(why))
        except Exception as error:  # one that fails must not keep the others from being seen
            row.update(state="FAILS", why=f"{type(error).__name__}: {error}"[:600])
        row["seconds"] = round(time.monotonic() - start, 1)
        rows.append(row)
        figures = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.get("figures", {}).items())
        print(f"{row['check']:<18} {row['state']:<8} {row['seconds']:>6} s  {row.get('why') or figures}", flush=True)
    shutil.rmtree(bench.scratch, ignore_errors=True)
    report = {"gpus": gpus, "device": device, "seconds": round(time.monotonic() - begin, 1), "checks": rows}
    if out:
        out.write_text(json.dumps(report, indent=1))
    return 1 if any(row["state"] == "FAILS" for row in rows) else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--binary", type=Path, required=True, help="target/release/roundhouse")
    packing.add_argument("--cuda-test", type=Path, help="target/release/deps/cuda-...")
    packing.add_argument("--onnxruntime-gpu", type=Path, help="the folder that `roundhouse runtime install onnxruntime-gpu` made")
    packing.add_argument("--all-libraries", action="store_true", help="CUDA's and cuDNN's too, for a machine without them")
    packing.add_argument("--plugin", type=Path, help="libroundhouse_pytorch.so")
    commands.add_parser("join").add_argument("folder", type=Path)
    checking = commands.add_parser("check")
    checking.add_argument("folder", type=Path)
    checking.add_argument("--out", type=Path, help="where the figures go, as JSON")
    checking.add_argument("--models", type=Path, default=HERE.parents[1] / "models-examples")
    given = parser.parse_args()
    if given.command == "pack":
        files = {"roundhouse": given.binary}
        if given.cuda_test:
            files["cuda"] = given.cuda_test
        if given.plugin:
            files["libroundhouse_pytorch.so"] = given.plugin
        if given.onnxruntime_gpu:
            is_wanted = lambda name: given.all_libraries or name.startswith("libonnxruntime")  # noqa: E731
            files.update({f"onnxruntime-gpu/{path.name}": path for path in sorted(given.onnxruntime_gpu.iterdir()) if is_wanted(path.name)})
        pieces = sum(len(entry["pieces"]) for entry in pack(given.folder, files))
        print(f"{len(files)} files in {pieces} pieces in {given.folder}: bring them with benches/gpu and models-examples")
        return 0
    if given.command == "join":
        print(join(given.folder))
        return 0
    return check(given.folder, given.out, given.models)


if __name__ == "__main__":
    sys.exit(main())
