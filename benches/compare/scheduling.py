#!/usr/bin/env python3
"""What batching, scheduling and gRPC must reach, each figure beside its target, in ratios within a run.

usage: scheduling.py [batching] [grpc] [http] [fairness] [delay] [--rounds N] [--secs N] [--quick] [--out run.jsonl]

batching  real ONNX models with dynamic batching: items a second over those of a bare ONNX Runtime session at its best
          fixed batch size on the same core; p50 at one connection over the same model without batching; Triton beside
grpc      identity over gRPC at 1, 16 and 64 connections, over Triton's: requests a second, processor time, p50, p99
http      the same over HTTP, in JSON and binary
fairness  p99 of a model while another has ten times its load, over p99 alone
delay     the learned delay beside the best constant one, in a simulation with the real batcher (`cargo bench`)

It needs wrk and h2load, and for all but `fairness` and `delay` the peers' models, Python and Triton; see README.md. The exit status
is 1 where a target is missed.
"""

import array
import json
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import threading

import harness
from cache import hammer, run
from compare import Case, GrpcCase
from harness import Cores, Died, Skipped

PARTS = ("batching", "grpc", "http", "fairness", "delay")
SIZES = (1, 2, 4, 8, 16, 32)
TOKENS = 32
SESSION = """
import json, sys, time
import numpy as np
import onnxruntime as o
model, seconds, sizes = sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3])
options = o.SessionOptions()
options.intra_op_num_threads = 1
session = o.InferenceSession(model, options, providers=["CPUExecutionProvider"])
random, found = np.random.default_rng(3), {}
for size in sizes:
    binding = session.io_binding()
    for tensor in session.get_inputs():
        if tensor.type == "tensor(int64)":
            values = np.ones((size, %d), np.int64) if "mask" in tensor.name else random.integers(1000, 30000, (size, %d))
        else:
            values = random.random((size, *tensor.shape[1:]), np.float32)
        binding.bind_cpu_input(tensor.name, values)
    binding.bind_output(session.get_outputs()[0].name)
    session.run_with_iobinding(binding)
    runs, begin = 0, time.perf_counter()
    while (took := time.perf_counter() - begin) < seconds:
        session.run_with_iobinding(binding)
        runs += 1
    found[size] = runs * size / took
print(json.dumps(found))
""" % (TOKENS, TOKENS)
MLP = ([("x", "FP32", [64])], [("y", "FP32", [16])])
MINILM = ([("input_ids", "INT64", [-1]), ("attention_mask", "INT64", [-1])], [("embedding", "FP32", [384])])
# A model that is as quick as the server itself shows what a request costs, not what batching is worth: no target.
MODELS = {"minilm6": (MINILM, 0.95), "mlp": (MLP, None)}


# ---- Models ----------------------------------------------------------------------------------------------------------


def add_onnx(repository, base, name, for_triton, batch, is_batching):
    tensors = MODELS[base][0]
    text = f'backend: "{"peer" if for_triton else "onnxruntime"}"\nmax_batch_size: {batch}\n'
    for kind, some in zip(("input", "output"), tensors):
        for tensor, data_type, dims in some:
            text += f'{kind} [ {{ name: "{tensor}" data_type: TYPE_{data_type} dims: {dims} }} ]\n'
    text += "instance_group [ { kind: KIND_CPU count: 1 } ]\n" + ("dynamic_batching { }\n" if is_batching else "")
    harness.write(f"{repository}/{name}/config.pbtxt", text)
    os.makedirs(f"{repository}/{name}/1", exist_ok=True)
    os.symlink(onnx(base), f"{repository}/{name}/1/model.onnx")


def onnx(base):
    path = os.path.join(harness.PEERS_HOME, "models", "onnx", f"{base}.onnx")
    if not os.path.exists(path):
        raise Died(f"no {path}: the peers' setup (part `tool`) makes it")
    return path


def one_item(base):
    """A request of one item, binary both ways."""
    floats = random.Random(3)
    if base == "mlp":
        return harness.infer_binary("x", [1, 64], array.array("f", (floats.random() for _ in range(64))))
    tokens = array.array("q", (floats.randrange(1000, 30000) for _ in range(TOKENS)))
    tensors = {"input_ids": tokens.tobytes(), "attention_mask": array.array("q", [1] * TOKENS).tobytes()}
    inputs = [
        {"name": name, "shape": [1, TOKENS], "datatype": "INT64", "parameters": {"binary_data_size": len(data)}}
        for name, data in tensors.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + b"".join(tensors.values()), {"Inference-Header-Content-Length": str(len(head))}


def session_rates(cores, base, seconds, sizes):
    """Items a second of a bare session by batch size, on the servers' core with one thread."""
    python = os.path.join(harness.PEERS_HOME, "venv", "tool", "bin", "python")
    command = [*cores.server, python, "-c", SESSION, onnx(base), str(seconds), json.dumps(sizes)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if ended.returncode:
        raise Died(f"the bare session of {base}: {ended.stderr[-300:]}")
    return {int(size): rate for size, rate in json.loads(ended.stdout).items()}


class Both:
    """Our server and, where it is installed, Triton over repositories that `fill` writes; stopped at the end."""

    def __init__(self, options, folder, cores, fill, floor=False):
        self.servers = {}
        makers = {
            "roundhouse": lambda at: harness.roundhouse(options.roundhouse, f"{folder}/models", at, cores),
            "triton": lambda at: harness.triton(f"{folder}/triton-models", at, cores),
        }
        if floor:
            makers["socket"] = lambda at: harness.socket_floor(at, cores)
        fill(f"{folder}/models", False)
        fill(f"{folder}/triton-models", True)
        for name, make in makers.items():
            os.makedirs(f"{folder}/{name}")
            try:
                self.servers[name] = make(f"{folder}/{name}")
            except Skipped as why:
                if name == "roundhouse":
                    raise Died(str(why)) from None
                print(f"skipped: {name} ({why})", file=sys.stderr)

    def __enter__(self):
        for server in self.servers.values():
            server.start()
        return self.servers

    def __exit__(self, *_):
        for server in self.servers.values():
            server.stop()


def middle(rounds, key):
    return statistics.median(key(row) for row in rounds)


# ---- Parts -----------------------------------------------------------------------------------------------------------


def batching(options, folder):
    harness.need("wrk", "wrk")
    cores, rounds = Cores(True), 1 if options.quick else options.rounds
    seconds = 1 if options.quick else max(1, int(options.secs))
    # The batch that is under way when a window ends is not counted: one of 0.3 s is a seventh of 2 s.
    long = 1 if options.quick else max(12, seconds)
    for base in ["mlp"] if options.quick else MODELS:
        target = MODELS[base][1]
        rates = session_rates(cores, base, 0.3 if options.quick else 1.5, SIZES)
        best = max(rates, key=rates.get)
        yield f"{base}: best batch size of a bare session", float(best), None, ""

        def fill(repository, for_triton, base=base, best=best):
            for name in (base, f"{base}_plain"):
                # A batch of one is none: two at least, so that there is something to form.
                add_onnx(repository, base, name, for_triton, max(best, 2), name == base)

        at = os.path.join(folder, base)
        os.makedirs(at)
        body, headers = one_item(base)
        with Both(options, at, cores, fill) as servers:

            def drive(server, name, connections, seconds, body=body, headers=headers):
                path = f"/v2/models/{name}/infer"
                status, answer, _ = harness.call(server.port, "POST", path, body, headers)
                if status != 200:
                    raise Died(f"{server.name} {name}: {status} {answer[:200]!r}")
                harness.drive(server, cores, "POST", path, body, headers, connections, 1)
                return harness.drive(server, cores, "POST", path, body, headers, connections, seconds)

            many = max(8, 2 * best)
            found = []
            for _ in range(rounds):
                row = {name: drive(server, base, many, long)["rps"] for name, server in servers.items()}
                found.append(row | {"session": session_rates(cores, base, long, [best])[best]})
            yield f"{base}: items a second, bare session", middle(found, lambda row: row["session"]), None, ""
            yield (
                f"{base}: items a second at {many} connections",
                middle(found, lambda row: row["roundhouse"]),
                None,
                "",
            )
            share = middle(found, lambda row: row["roundhouse"] / row["session"])
            yield f"{base}: ... over the bare session", share, target, ">="
            if "triton" in servers:
                yield (
                    f"{base}: ... Triton's over the bare session",
                    middle(found, lambda row: row["triton"] / row["session"]),
                    None,
                    "",
                )
                yield (
                    f"{base}: ... over Triton's",
                    middle(found, lambda row: row["roundhouse"] / row["triton"]),
                    1,
                    ">=",
                )
            found = []
            for _ in range(rounds):
                row = {
                    (name, plain): drive(servers[name], base + plain, 1, seconds)["p50_us"]
                    for plain in ("", "_plain")
                    for name in servers
                }
                found.append(row)
            ours = lambda row: row["roundhouse", ""]
            yield f"{base}: p50 at one connection in us", middle(found, ours), None, ""
            # 1.03: two equal servers differ by that much from run to run.
            yield (
                f"{base}: ... over that without batching",
                middle(found, lambda row: ours(row) / row["roundhouse", "_plain"]),
                1.03,
                "<=",
            )
            if "triton" in servers:
                yield f"{base}: ... over Triton's", middle(found, lambda row: ours(row) / row["triton", ""]), 1, "<="


def side_by_side(options, folder, cases, floor=False):
    """{(case, connections): rounds of {server: figures}}, the servers in turn."""
    cores, rounds = Cores(True), 1 if options.quick else options.rounds
    seconds = 1 if options.quick else max(1, int(options.secs))

    def fill(repository, for_triton):
        harness.add_identity(repository, backend="peer" if for_triton else "identity")

    found = {}
    with Both(options, folder, cores, fill, floor) as servers:
        if "triton" not in servers:
            raise Died("Triton is not installed: there is nothing to compare with")
        for case in cases:
            for connections in case.connections:
                for _ in range(rounds):
                    row = {}
                    for name, server in servers.items():
                        if name not in case.targets():
                            continue
                        if not server.alive():  # Triton may die where h2load drops its connections
                            server.start()
                        case.check(name, server)
                        case.warm(name, server, 0.3)
                        row[name] = case.drive(name, server, cores, connections, seconds)
                    found.setdefault((case.name, connections), []).append(row)
    return found


def against_triton(found, case, connections, goals):
    """A line a goal: our figure over Triton's, and the two."""
    rounds = found[case, connections]
    for key, what, target, relation in goals:
        ratio = middle(rounds, lambda row: row["roundhouse"][key] / row["triton"][key])
        ours, theirs = (middle(rounds, lambda row: row[name][key]) for name in ("roundhouse", "triton"))
        yield f"{case} c{connections}: {what} over Triton's ({ours:,.1f}, {theirs:,.1f})", ratio, target, relation


LOADED = [("rps", "requests a second", 2, ">="), ("cpu_us", "processor time", 0.5, "<="), ("p50_us", "p50", 0.5, "<=")]
P99 = {1: ("p99_us", "p99", 1, "<="), 64: ("p99_us", "p99", 0.5, "<=")}


def floats(count=16):
    numbers = random.Random(3)
    return array.array("f", (numbers.random() for _ in range(count)))


def grpc(options, folder):
    harness.need("h2load", "nghttp2-client")
    case = GrpcCase("gRPC", (1, 16, 64), "identity", [1, 16], floats())
    found = side_by_side(options, folder, [case])
    yield from against_triton(found, case.name, 1, [("p50_us", "p50", 1, "<="), P99[1]])
    yield from against_triton(found, case.name, 16, LOADED)
    yield from against_triton(found, case.name, 64, [*LOADED, P99[64]])


def http(options, folder):
    harness.need("wrk", "wrk")
    few = floats()
    cases = [
        Case("JSON", (1, 64), "identity", *harness.infer_json("INPUT0", [1, 16], few), few, [1, 16]),
        Case("binary", (1, 64), "identity", *harness.infer_binary("INPUT0", [1, 16], few), few, [1, 16]),
    ]
    found = side_by_side(options, folder, cases)
    for case in cases:
        for connections in case.connections:
            yield from against_triton(found, case.name, connections, [P99[connections]])


def fairness(options, folder):
    """Both models run 2 ms on the device's one thread. `hot` has ten connections that never rest, `cold` has one."""
    repository = os.path.join(folder, "models")
    for name in ("hot", "cold"):
        harness.add_identity(repository, name)
        with open(f"{repository}/{name}/config.pbtxt", "a", encoding="utf-8") as file:
            file.write('parameters { key: "execute_delay_ms" value { string_value: "2" } }\n')
    body = b'{"inputs":[{"name":"INPUT0","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
    seconds, rounds = (1, 1) if options.quick else (options.secs, options.rounds)

    def p99(server, name):
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.Process(
            target=hammer, args=(server.port, f"/v2/models/{name}/infer", body, seconds, theirs)
        )
        child.start()
        theirs.close()
        took, errors = ours.recv()
        child.join()
        if errors:
            raise Died(f"{name}: {errors} errors")
        return sorted(took)[len(took) * 99 // 100]

    def heat(server):
        for thread in (workers := [threading.Thread(target=p99, args=(server, "hot")) for _ in range(10)]):
            thread.start()
        return workers

    server = harness.roundhouse(options.roundhouse, repository, folder, Cores(False), ["--executor-threads", "1"])
    server.start()
    try:
        found = []
        for _ in range(rounds):
            alone = p99(server, "cold")
            workers = heat(server)
            found.append((alone, p99(server, "cold")))
            for worker in workers:
                worker.join()
    finally:
        server.stop()
    yield "cold alone: p99 in us", middle(found, lambda row: row[0]), None, ""
    yield "cold beside ten times its load: p99 over alone", middle(found, lambda row: row[1] / row[0]), 2, "<="


def delay(_options, _folder):
    """The table that `cargo bench --bench batching` prints before it measures."""
    command = ["cargo", "bench", "--quiet", "--locked", "--bench", "batching", "--", "none of them"]
    ended = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, timeout=900, check=False)
    if ended.returncode:
        raise Died(ended.stderr[-500:])
    load, best = "", 0.0
    for line in ended.stdout.splitlines():
        if found := re.match(r"  (best constant, \d+ us|learned) .* mean +(\d+) us", line):
            if found[1] == "learned":
                # Where the load hardly bursts there is nothing to learn: as good as the best constant.
                target = 1.02 if "hardly" in load else 1
                yield (
                    f"{load}: learned mean over the best constant's ({found[2]}, {best:.0f} us)",
                    int(found[2]) / best,
                    target,
                    "<=",
                )
            else:
                best = float(found[2])
        elif re.match(r"\S.*instances$", line):
            load = line


if __name__ == "__main__":
    sys.exit(run({part: globals()[part] for part in PARTS}, __doc__))
