#!/usr/bin/env python3
"""What a model costs while many others are resident: load, first answer, unload, threads, memory, scrape; and the start
with many known.

usage: load_unload.py [--resident 10,100,500,1000] [--reps 20] [--targets roundhouse,triton] [--out run.jsonl]
Identity models, so that the figures are those of the server and not of a runtime. See README.md for the columns.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time

import harness
from compare import core_pair, table, words
from harness import Cores, Died, Skipped

TARGETS = ("roundhouse", "triton")
BODY, HEADERS = (
    b'{"inputs":[{"name":"INPUT0","shape":[1,2],"datatype":"FP32","data":[1,2]}]}',
    {"Content-Type": "application/json"},
)


def timed(*request):
    """(milliseconds, status, body)"""
    begin = time.perf_counter()
    status, body, _ = harness.call(*request)
    return (time.perf_counter() - begin) * 1e3, status, body


def must(port, path, body=None, headers=None):
    took, status, answer = timed(port, "POST", path, body, headers)
    if status != 200:
        raise Died(f"POST {path}: {status} {answer[:300]!r}")
    return took


def cycle(port, name):
    """Load one model, ask it, unload it, wait until it's gone: milliseconds of each."""
    load = must(port, f"/v2/repository/models/{name}/load")
    first = must(port, f"/v2/models/{name}/infer", BODY, HEADERS)
    begin = time.perf_counter()
    unload = must(port, f"/v2/repository/models/{name}/unload")
    while harness.call(port, "GET", f"/v2/models/{name}/ready")[0] == 200:
        if time.perf_counter() - begin > 30:
            raise Died(f"{name} is still ready 30 s after its unload")
        time.sleep(0.0005)
    return {"load_ms": load, "first_ms": first, "unload_ms": unload, "gone_ms": (time.perf_counter() - begin) * 1e3}


def make(target, options, repository, folder, cores):
    if target == "triton":
        return harness.triton(repository, folder, cores, ["--model-control-mode=explicit"])
    return harness.roundhouse(
        options.roundhouse, repository, folder, cores, ["--model-control", "explicit", *options.roundhouse_args.split()]
    )


def measure(target, options, emit):
    cores = Cores(options.pin, *options.cores)
    with tempfile.TemporaryDirectory(prefix="load-unload-") as folder:
        known = max([*options.resident, options.known])
        repository = os.path.join(folder, "models")
        for number in range(known):
            harness.add_identity(repository, f"m{number}", "peer" if target == "triton" else "identity")
        harness.add_identity(repository, "probe", "peer" if target == "triton" else "identity")
        starts = []
        for _ in range(options.starts):
            server = make(target, options, repository, folder, cores)
            try:
                starts.append(server.start())
            finally:
                server.stop()
        emit(
            kind="start",
            target=target,
            known=known + 1,
            ready_ms=statistics.median(starts) * 1e3,
            min_ms=min(starts) * 1e3,
            max_ms=max(starts) * 1e3,
        )
        server = make(target, options, repository, folder, cores)
        server.start()
        try:
            loaded = 0
            for resident in sorted(options.resident):
                begin = time.perf_counter()
                while loaded < resident:
                    must(server.port, f"/v2/repository/models/m{loaded}/load")
                    loaded += 1
                filled = time.perf_counter() - begin
                threads, rss = harness.status(server.pid, "Threads"), harness.status(server.pid, "VmRSS")
                cpu = harness.cpu_seconds(server.pid)
                cycles = [cycle(server.port, "probe") for _ in range(options.reps)]
                cpu = harness.cpu_seconds(server.pid) - cpu
                scrape, _, text = (
                    timed(server.metrics_port, "GET", "/metrics") if server.metrics_port else (0.0, 0, b"")
                )
                figures = {key: statistics.median(one[key] for one in cycles) for key in cycles[0]}
                emit(
                    kind="cycle",
                    target=target,
                    resident=resident,
                    reps=options.reps,
                    fill_s=filled,
                    threads=threads,
                    rss_mib=rss / 1024,
                    **figures,
                    load_max_ms=max(one["load_ms"] for one in cycles),
                    cycle_cpu_ms=cpu / options.reps * 1e3,
                    scrape_ms=scrape,
                    scrape_kib=len(text) / 1024,
                )
            begin = time.perf_counter()
            for number in range(loaded):
                must(server.port, f"/v2/repository/models/m{number}/unload")
            unloaded = time.perf_counter() - begin
            time.sleep(2)
            scrape, _, text = timed(server.metrics_port, "GET", "/metrics") if server.metrics_port else (0.0, 0, b"")
            emit(
                kind="empty",
                target=target,
                models=loaded,
                unload_all_s=unloaded,
                threads=harness.status(server.pid, "Threads"),
                rss_mib=harness.status(server.pid, "VmRSS") / 1024,
                scrape_kib=len(text) / 1024,
            )
        finally:
            server.stop()


def report(rows):
    lines = [
        (
            row["target"],
            row["resident"],
            row["threads"],
            f"{row['rss_mib']:.0f}",
            f"{row['load_ms']:.2f}",
            f"{row['load_max_ms']:.2f}",
            f"{row['first_ms']:.2f}",
            f"{row['unload_ms']:.2f}",
            f"{row['gone_ms']:.2f}",
            f"{row['cycle_cpu_ms']:.2f}",
            f"{row['scrape_ms']:.1f}",
            f"{row['scrape_kib']:.0f}",
        )
        for row in rows
        if row["kind"] == "cycle"
    ]
    if lines:
        table(
            (
                "server",
                "resident",
                "threads",
                "RSS MiB",
                "load ms",
                "load max",
                "first ms",
                "unload ms",
                "gone ms",
                "CPU ms",
                "scrape ms",
                "scrape KiB",
            ),
            lines,
        )
    for row in rows:
        if row["kind"] == "start":
            print(
                f"{row['target']}: ready {row['ready_ms']:.0f} ms ({row['min_ms']:.0f}-{row['max_ms']:.0f}) "
                f"after its start, {row['known']} models known, none loaded"
            )
        elif row["kind"] == "empty":
            print(
                f"{row['target']}: {row['models']} models unloaded in {row['unload_all_s']:.2f} s; "
                f"then {row['threads']} threads, {row['rss_mib']:.0f} MiB, "
                f"{row['scrape_kib']:.0f} KiB a scrape"
            )
        elif row["kind"] == "failed":
            print(f"FAILED {row['target']}: {row['why']}")
    return int(any(row["kind"] == "failed" for row in rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--resident",
        type=lambda text: [int(word) for word in words(text)],
        default=[10, 100, 500, 1000],
        metavar="N,...",
        help="how many models are loaded beside the one that comes and goes (10,100,500,1000)",
    )
    parser.add_argument("--known", type=int, default=1000, help="models in the repository at least (1000)")
    parser.add_argument("--reps", type=int, default=20, help="cycles of load, ask, unload a number of models (20)")
    parser.add_argument("--starts", type=int, default=5, help="starts with nothing loaded (5)")
    parser.add_argument("--targets", type=words, default=list(TARGETS), metavar="NAME,...", help=",".join(TARGETS))
    parser.add_argument(
        "--pin", action=argparse.BooleanOptionalAction, default=True, help="server on one core (default)"
    )
    parser.add_argument("--cores", type=core_pair, default=(1, 0), metavar="SERVER,GENERATOR", help="1,0")
    parser.add_argument(
        "--roundhouse", default=harness.default_binary(), metavar="PATH", help="our binary (target/release/roundhouse)"
    )
    parser.add_argument("--roundhouse-args", default="", metavar="ARGS", help="more flags for `roundhouse serve`")
    parser.add_argument("--out", metavar="FILE", help="append JSON lines")
    options = parser.parse_args()
    rows = []

    def emit(**row):
        row = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
        if options.out:
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    for target in options.targets:
        try:
            measure(target, options, emit)
        except Skipped as why:
            print(f"skipped: {target} ({why})", file=sys.stderr)
        except (Died, OSError) as why:
            emit(kind="failed", target=target, why=str(why))
    return report(rows)


if __name__ == "__main__":
    sys.exit(main())
