#!/usr/bin/env python3
"""The same load against Roundhouse, a bare hyper echo, a bare socket server and NVIDIA's Triton, in one run.

usage: compare.py [--rounds 3] [--secs 2] [--cases identity,mlp] [--targets echo,roundhouse] [--out run.jsonl]
       compare.py --report run.jsonl...
See README.md for what is measured and what the columns mean. All load goes to 127.0.0.1 and is bounded in time.
"""

import argparse
import array
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import harness
from harness import Cores, Died, Skipped

TARGETS = ("socket", "echo", "roundhouse", "triton", "triton-plain")
PAIRS = (("roundhouse", "triton"), ("roundhouse", "triton-plain"), ("roundhouse", "echo"), ("triton", "echo"))
MEDIANS = ("rps", "p50_us", "p99_us", "cpu_us", "server_busy", "generator_busy", "noise")
SESSION = """
import json, sys, time
import numpy as np
import onnxruntime as o
model, seconds, values = sys.argv[1], float(sys.argv[2]), np.frombuffer(sys.stdin.buffer.read(), np.float32)[None]
options = o.SessionOptions()
options.intra_op_num_threads = 1
session = o.InferenceSession(model, options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
result = session.run(None, {name: values})[0]
binding = session.io_binding()
binding.bind_cpu_input(name, values)
binding.bind_output(session.get_outputs()[0].name)
times, end = [], time.perf_counter() + seconds
while time.perf_counter() < end:
    begin = time.perf_counter()
    session.run_with_iobinding(binding)
    times.append((time.perf_counter() - begin) * 1e6)
times.sort()
p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
print(json.dumps({"values": result.ravel().tolist(), "p50_us": p50, "p99_us": p99, "version": o.__version__}))
"""


class Case:
    """One request, sent over and over at several numbers of connections."""

    def __init__(self, name, connections, model=None, body=b"", headers=None, expected=None, shape=None, tolerance=0.0):
        self.name, self.connections, self.model, self.body, self.headers = name, connections, model, body, headers or {}
        self.expected, self.shape, self.tolerance = expected, shape, tolerance
        self.method = "POST" if model else "GET"

    def path(self, target):
        if not self.model:
            return "/v2/health/live"
        return f"/v2/models/{self.model}{'_plain' if target == 'triton-plain' else ''}/infer"

    def targets(self):
        return TARGETS if self.model == "mlp" else TARGETS[:-1]

    def check(self, target, server):
        """Ask once and compare the answer with what must come; a wrong one is worth no figure."""
        status, body, headers = harness.call(
            server.port, self.method, self.path(target), self.body or None, self.headers
        )
        if status != 200:
            raise Died(f"{target} {self.name}: {status} {body[:300]!r}")
        if target in ("socket", "echo"):
            if body != self.body:
                raise Died(f"{target} {self.name}: not the body that was sent")
        elif self.model:
            shape, values = harness.read_output(body, headers)
            if shape != self.shape:
                raise Died(f"{target} {self.name}: shape {shape} instead of {self.shape}")
            if self.expected is None:
                right = all(map(math.isfinite, values))
            elif self.tolerance:
                right = all(
                    math.isclose(a, b, rel_tol=self.tolerance, abs_tol=self.tolerance)
                    for a, b in zip(values, self.expected, strict=True)
                )
            else:
                right = values == self.expected
            if not right:
                raise Died(f"{target} {self.name}: wrong values")

    def drive(self, target, server, cores, connections, seconds):
        return harness.drive(
            server, cores, self.method, self.path(target), self.body, self.headers, connections, seconds
        )

    def warm(self, target, server, seconds):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            harness.call(server.port, self.method, self.path(target), self.body or None, self.headers)


class GrpcCase(Case):
    """The same over gRPC, by h2load: connections with one call at a time each."""

    def __init__(self, name, connections, model, shape, values):
        body, headers = harness.infer_grpc(model, "INPUT0", shape, values)
        super().__init__(name, connections, model, body, headers, values, shape)

    def path(self, target):
        return "/inference.GRPCInferenceService/ModelInfer"

    def targets(self):
        return ("roundhouse", "triton")

    def check(self, target, server):
        harness.check_grpc(server.grpc_port, self.body, self.expected.tobytes())

    def warm(self, target, server, seconds):
        harness.drive_grpc(server, Cores(False), self.path(target), self.body, self.headers, 1, 1)

    def drive(self, target, server, cores, connections, seconds):
        return harness.drive_grpc(server, cores, self.path(target), self.body, self.headers, connections, seconds)


def make_cases(session):
    """`session`: what a bare ONNX Runtime session answered for mlp, or None."""
    floats = random.Random(3)
    few, many, picture = (array.array("f", (floats.random() for _ in range(count))) for count in (16, 262144, 150528))
    cases = [
        Case("identity-json", (1, 16, 64), "identity", *harness.infer_json("INPUT0", [1, 16], few), few, [1, 16]),
        Case("identity-binary", (1, 16, 64), "identity", *harness.infer_binary("INPUT0", [1, 16], few), few, [1, 16]),
        Case("binary-1mib", (1, 16), "identity", *harness.infer_binary("INPUT0", [1, 262144], many), many, [1, 262144]),
        Case(
            "json-150k-in",
            (1,),
            "identity",
            *harness.infer_json("INPUT0", [224, 672], picture, binary_output=True),
            picture,
            [224, 672],
        ),
        Case("json-262k-both", (1,), "identity", *harness.infer_json("INPUT0", [1, 262144], many), many, [1, 262144]),
    ]
    if harness.mlp_file():
        expected = array.array("f", session["values"]) if session else None
        cases.append(
            Case(
                "mlp-binary",
                (1, 16, 64),
                "mlp",
                *harness.infer_binary("x", [1, 64], MLP_INPUT),
                expected,
                [1, 16],
                1e-4,
            )
        )
    if shutil.which("h2load"):
        cases.append(GrpcCase("grpc-identity", (1, 16, 64), "identity", [1, 16], few))
        cases.append(GrpcCase("grpc-1mib", (1, 16), "identity", [1, 262144], many))
    else:
        print("skipped: gRPC (h2load is not installed: Debian package nghttp2-client)", file=sys.stderr)
    cases.append(Case("health-live", (16,)))
    return cases


MLP_INPUT = array.array("f", (i / 64 - 0.5 for i in range(64)))


def bare_session(cores, seconds):
    """mlp in a bare ONNX Runtime session: the right answer, and the least that the model's work takes."""
    python = os.path.join(harness.PEERS_HOME, "venv", "tool", "bin", "python")
    if not harness.mlp_file():
        print(
            f"skipped: mlp (no {harness.PEERS_HOME}/models/onnx/mlp.onnx: the peers' setup, part `tool`, makes it)",
            file=sys.stderr,
        )
        return None
    if not os.path.exists(python):
        print(f"mlp is checked for shape only: no {python}", file=sys.stderr)
        return None
    run = subprocess.run(
        [*cores.server, python, "-c", SESSION, harness.mlp_file(), str(seconds)],
        input=MLP_INPUT.tobytes(),
        capture_output=True,
        check=False,
    )
    if run.returncode:
        print(f"mlp is checked for shape only: {run.stderr.decode()[-300:]}", file=sys.stderr)
        return None
    return json.loads(run.stdout)


def make_servers(options, folder, cores):
    """{target: server}, each started; what is not here is said."""
    ours, theirs = os.path.join(folder, "models"), os.path.join(folder, "triton-models")
    harness.add_identity(ours)
    harness.add_identity(theirs, backend="peer")
    if harness.mlp_file():
        harness.add_mlp(ours)
        harness.add_mlp(theirs, triton_config="batching")
        harness.add_mlp(theirs, "mlp_plain", triton_config="plain")
    makers = {
        "socket": lambda at: harness.socket_floor(at, cores),
        "echo": lambda at: harness.echo_floor(at, cores, options.echo),
        "roundhouse": lambda at: harness.roundhouse(
            options.roundhouse, ours, at, cores, options.roundhouse_args.split()
        ),
        "triton": lambda at: harness.triton(theirs, at, cores),
    }
    servers = {}
    try:
        for target, make in makers.items():
            if target not in options.targets:
                continue
            at = os.path.join(folder, target)
            os.makedirs(at)
            try:
                server = make(at)
                seconds = server.start()
                servers[target] = server
                print(f"{target}: ready after {seconds:.2f} s", file=sys.stderr)
            except Skipped as why:
                print(f"skipped: {target} ({why})", file=sys.stderr)
    except BaseException:
        stop(servers)
        raise
    if "triton" in servers and "triton-plain" in options.targets:
        servers["triton-plain"] = servers["triton"]
    return servers


def stop(servers):
    for server in {id(s): s for s in servers.values()}.values():
        server.stop()


def wanted(name, prefixes):
    return not prefixes or name.startswith(tuple(prefixes))


def measure(options, emit):
    harness.need("wrk", "wrk")
    cores = Cores(options.pin, *options.cores)
    session = bare_session(cores, 0.5) if wanted("mlp-binary", options.cases) else None
    cases = [case for case in make_cases(session) if wanted(case.name, options.cases)]
    emit(
        kind="run",
        pinned=options.pin,
        rounds=options.rounds,
        secs=options.secs,
        cpus=harness.CPUS,
        kernel=platform.release(),
        load=os.getloadavg()[0],
        onnxruntime=session and session["version"],
    )
    if session:
        emit(kind="session", model="mlp", p50_us=session["p50_us"], p99_us=session["p99_us"])
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        servers = make_servers(options, folder, cores)
        broken = set()
        try:
            for case in cases:
                for connections in case.connections:
                    for number in range(options.rounds):
                        for target in case.targets():
                            server = servers.get(target)
                            if server is None or (target, case.name) in broken:
                                continue
                            try:
                                if not server.alive():
                                    # Triton may die where h2load drops its connections at the end of a case.
                                    server.start()
                                case.check(target, server)
                                case.warm(target, server, 0.2)
                                figures = case.drive(target, server, cores, connections, options.secs)
                                emit(
                                    kind="figures",
                                    case=case.name,
                                    connections=connections,
                                    target=target,
                                    round=number,
                                    **figures,
                                )
                            except (Died, OSError) as why:
                                broken.add((target, case.name))
                                emit(
                                    kind="failed",
                                    case=case.name,
                                    connections=connections,
                                    target=target,
                                    round=number,
                                    why=str(why),
                                )
        finally:
            stop(servers)


# ---- Report ----------------------------------------------------------------------------------------------------------


def table(head, rows):
    """Markdown, the first three columns to the left, the figures to the right."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    for number, row in enumerate([head, *rows]):
        cells = (
            str(cell).ljust(width) if i < 3 else str(cell).rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def micros(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def cell_lines(cells):
    """One line a case, number of connections and server: medians over the rounds."""
    for (case, connections), targets in cells.items():
        for target, rounds in targets.items():
            middle = {key: statistics.median(row[key] for row in rounds.values()) for key in MEDIANS}
            rates = [row["rps"] for row in rounds.values()]
            yield (
                case,
                connections,
                target,
                f"{middle['rps']:.0f}",
                f"{min(rates):.0f}-{max(rates):.0f}",
                micros(middle["p50_us"]),
                micros(middle["p99_us"]),
                micros(middle["cpu_us"]),
                f"{middle['server_busy']:.2f}",
                f"{middle['generator_busy']:.2f}",
                f"{middle['noise']:.2f}",
                sum(row["errors"] for row in rounds.values()),
            )


def ratio_lines(cells):
    """One line a case, number of connections and pair of servers: medians of the ratios within a round."""
    for (case, connections), targets in cells.items():
        for above, below in PAIRS:
            rounds = [
                (targets[above][n], targets[below][n])
                for n in sorted(set(targets.get(above, {})) & set(targets.get(below, {})))
            ]
            if rounds:
                yield (
                    case,
                    connections,
                    f"{above} / {below}",
                    *(
                        f"{statistics.median(a[key] / b[key] if b[key] else math.nan for a, b in rounds):.2f}"
                        for key in ("rps", "p50_us", "p99_us", "cpu_us")
                    ),
                )


def over_lines(cells, sessions):
    """At one connection: each median above the bare socket server's, and above that and the model's own work."""
    for (case, connections), targets in cells.items():
        if connections != 1 or "socket" not in targets:
            continue
        for target, rounds in targets.items():
            over = [rounds[n]["p50_us"] - targets["socket"][n]["p50_us"] for n in rounds if n in targets["socket"]]
            if target != "socket" and over:
                session = next((p50 for model, p50 in sessions.items() if case.startswith(model)), None)
                middle = statistics.median(over)
                yield (
                    case,
                    connections,
                    target,
                    f"{middle:+.1f}",
                    "" if session is None or target == "echo" else f"{middle - session:+.1f}",
                )


def report(rows):
    cells, run = {}, 0
    for row in rows:
        if row["kind"] == "run":
            run += 1
            print(
                f"{'pinned' if row['pinned'] else 'not pinned'}, {row['rounds']} rounds of {row['secs']} s, "
                f"{row['cpus']} cores, load average {row['load']:.2f} at the start"
            )
        elif row["kind"] == "figures":
            cells.setdefault((row["case"], row["connections"]), {}).setdefault(row["target"], {})[run, row["round"]] = (
                row
            )
    if cells:
        print()
        table(
            (
                "case",
                "conn",
                "server",
                "req/s",
                "min-max",
                "p50 us",
                "p99 us",
                "CPU us/req",
                "busy",
                "gen",
                "noise",
                "errors",
            ),
            list(cell_lines(cells)),
        )
    if lines := list(ratio_lines(cells)):
        print("\nRatios, within a round, median over the rounds:")
        table(("case", "conn", "ratio", "req/s", "p50", "p99", "CPU"), lines)
    sessions = {row["model"]: row["p50_us"] for row in rows if row["kind"] == "session"}
    if lines := list(over_lines(cells, sessions)):
        print("\np50 at one connection, us above the bare socket server (and above that and a bare session's run):")
        table(("case", "conn", "server", "socket", "socket + session"), lines)
    for row in rows:
        if row["kind"] == "session":
            print(
                f"{row['model']} in a bare ONNX Runtime session, no server: "
                f"p50 {row['p50_us']:.1f} us, p99 {row['p99_us']:.1f} us"
            )
        elif row["kind"] == "failed":
            print(
                f"FAILED {row['target']} {row['case']} at {row['connections']} connections, "
                f"round {row['round']}: {row['why']}"
            )
    return int(any(row["kind"] == "failed" for row in rows))


def words(text):
    return [word for word in text.split(",") if word]


def core_pair(text):
    server, generator = (int(word) for word in words(text))
    return server, generator


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each case goes round all servers (3)")
    parser.add_argument("--secs", type=int, default=2, help="seconds of load a server, case and round (2)")
    parser.add_argument("--cases", type=words, default=[], metavar="PREFIX,...", help="only cases whose name begins so")
    parser.add_argument("--targets", type=words, default=list(TARGETS), metavar="NAME,...", help=",".join(TARGETS))
    parser.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="server on one core, load generator on another (default)",
    )
    parser.add_argument("--cores", type=core_pair, default=(1, 0), metavar="SERVER,GENERATOR", help="1,0")
    parser.add_argument(
        "--roundhouse", default=harness.default_binary(), metavar="PATH", help="our binary (target/release/roundhouse)"
    )
    parser.add_argument("--roundhouse-args", default="", metavar="ARGS", help="more flags for `roundhouse serve`")
    parser.add_argument("--echo", metavar="PATH", help="the echo binary, where it's built already")
    parser.add_argument("--out", metavar="FILE", help="append JSON lines")
    parser.add_argument("--report", nargs="+", metavar="FILE", help="print the tables of earlier runs, measure nothing")
    options = parser.parse_args()
    if options.report:
        rows = []
        for name in options.report:
            with open(name, encoding="utf-8") as file:
                rows += [json.loads(line) for line in file]
        return report(rows)
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"unknown targets {sorted(unknown)}")
    rows = []

    def emit(**row):
        row = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        rows.append(row)
        if options.out:
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if row["kind"] == "figures":
            print(
                f"{row['case']:16} c{row['connections']:<3} {row['target']:13} {row['rps']:9.0f} req/s  "
                f"p50 {row['p50_us']:9.1f}  p99 {row['p99_us']:9.1f}  "
                f"CPU {row['cpu_us']:8.1f} us  errors {row['errors']}",
                file=sys.stderr,
                flush=True,
            )
        elif row["kind"] == "failed":
            print(f"{row['case']} {row['target']} failed: {row['why']}", file=sys.stderr, flush=True)

    try:
        measure(options, emit)
    except KeyboardInterrupt:
        print("stopped; what was measured until now:", file=sys.stderr)
    return report(rows)


if __name__ == "__main__":
    sys.exit(main())
