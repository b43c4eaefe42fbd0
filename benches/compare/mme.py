#!/usr/bin/env python3
"""A multi-model endpoint under SageMaker's own load patterns, and what its front doors cost.

usage: mme.py [patterns] [unloads] [loading] [overhead] [listing] [--secs N] [--quick] [--out run.jsonl]

patterns  200 models as archives, memory for a tenth of them, the runtime API; the three patterns of AWS's load test for
          990 models: all alike, 8 in 9 requests for 11 models, 9 in 10 for one; every answer is checked
unloads   p99 of a resident model at one connection: alone, while the platform loads and unloads others, and while others
          are evicted for want of room
loading   p99 of a resident model and GET /ping: alone, with 64 loads under way that compute, and with 64 that wait for an
          S3 that hangs
overhead  p50 at one connection of the runtime API and of the container's route above KServe's HTTP (needs wrk)
listing   GET /models with 10,000 models in memory, page by page

Standard library only; see README.md. The exit status is 1 where a target is missed.
"""

import json
import multiprocessing
import os
import random
import shutil
import socket
import statistics
import sys
import threading
import time

import harness
import made
from cache import IDENTITY, MIB, Client, index_body, residency, run, server_of
from harness import Cores, Died

PARTS = ("patterns", "unloads", "loading", "overhead", "listing")
TARGET = "X-Amzn-SageMaker-Target-Model"
ENDPOINT = "/endpoints/mme/invocations"
CHAIN = b'{"inputs":[{"name":"x","shape":[1,16],"datatype":"FP32","data":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]}]}'


# ---- Requests --------------------------------------------------------------------------------------------------------


def request(method, path, body=b"", headers=()):
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def invocation(model, body):
    """InvokeEndpoint, as an SDK sends it but for the signature."""
    return request("POST", ENDPOINT, body, [(TARGET, model), ("Content-Type", "application/octet-stream")])


def load_request(name, url):
    return request("POST", "/models", json.dumps({"model_name": name, "url": url}).encode())


def must(client, what, *statuses):
    """The answer's body; it must have one of the statuses."""
    status, body = client.send(what)
    if status not in (statuses or (200,)):
        raise Died(f"{what[:60]!r}: {status} {body[:300]!r}")
    return body


def container_of(options, root, folder, *arguments):
    """Started as SageMaker starts one, but on free ports."""
    flags = ["--sagemaker", "multi-model", "--sagemaker-model-root", root, "--address", "127.0.0.1"]
    return server_of(options, None, folder, "--sagemaker-port", "0", *flags, *arguments)


def place(root, name, content):
    """An ONNX model as the platform leaves it on the disk; its url."""
    url = os.path.join(root, name, "model")
    made.put(os.path.join(url, "1", "model.onnx"), content)
    return url


# ---- Latency ---------------------------------------------------------------------------------------------------------


def hammer(port, what, seconds, pipe, pause=0.0):
    """In a process of its own: one connection, one request after the other; sends the latencies in us."""
    client, took, errors, end = Client(port), [], 0, time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        status, _ = client.send(what)
        took.append((time.perf_counter() - begin) * 1e6)
        errors += status != 200
        if pause:
            time.sleep(pause)
    pipe.send((took, errors))


def latencies(server, *askers):
    """What each of some (request, seconds, pause) sees of SageMaker's port, all at the same time: sorted us, and errors."""
    pipes = []
    for what, seconds, pause in askers:
        ours, theirs = multiprocessing.Pipe()
        work = (server.sagemaker_port, what, seconds, theirs, pause)
        multiprocessing.Process(target=hammer, args=work, daemon=True).start()
        theirs.close()
        pipes.append(ours)
    seen = []
    for pipe in pipes:
        try:
            took, errors = pipe.recv()
        except EOFError:
            raise Died(f"no answers: {server.last_words()}") from None
        seen.append((sorted(took), errors))
    return seen


def share(took, part):
    return took[min(len(took) - 1, int(len(took) * part))]


class Busy:
    """Threads that keep at something while a `with` block runs; what fails in one of them fails the block."""

    def __init__(self, *tasks):
        self.stop, self.done, self.failed = threading.Event(), [0] * len(tasks), []
        self.threads = [threading.Thread(target=self.run, args=pair, daemon=True) for pair in enumerate(tasks)]

    def run(self, number, task):
        # Who asks for other models is no part of the server, and shares its processors here.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            while not self.stop.is_set():
                task()
                self.done[number] += 1
        except (Died, OSError) as why:
            self.failed.append(why)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        if self.failed:
            raise self.failed[0]


# ---- AWS's load patterns ---------------------------------------------------------------------------------------------


def choose(pattern, count, chosen):
    """The number of the model that the next request is for."""
    hot = {"uniform": 0, "8:1 to 11": 11, "9:1 to one": 1}[pattern]
    weight = {0: 0, 11: 8 / 9, 1: 9 / 10}[hot]
    return chosen.randrange(hot) if chosen.random() < weight else chosen.randrange(hot, count)


def user(port, pattern, count, seed, seconds, pipe):
    """In a process of its own: one of AWS's users, who tries again what is not ready."""
    chosen, client = random.Random(seed), Client(port)
    seen = {"ms": [], "hits": 0, "retries": 0, "errors": [], "wrong": []}
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        number, index = choose(pattern, count, chosen), chosen.randrange(1024)
        what = invocation(f"m{number:03}.tar", index_body(index))
        for _ in range(100):
            status, answer = client.send(what)
            if status not in (429, 503):
                break
            seen["retries"] += 1
            time.sleep(0.05)
        seen["ms"].append((time.perf_counter() - begin) * 1e3)
        if status != 200:
            seen["errors"].append(f"{status} {answer[:200]!r}")
            continue
        seen["hits"] += b"x-model-state: device" in client.head.lower()
        if abs(json.loads(answer)["outputs"][0]["data"][0] - made.lookup_value(number, index)) > 1e-3:
            seen["wrong"].append(f"m{number:03} for {index}: {answer[:200]!r}")
    pipe.send(seen)


def patterns(options, folder):
    count, users, seconds = (40, 4, 2) if options.quick else (200, 8, options.secs * 4)
    fits, repository = count // 10, os.path.join(folder, "models")
    os.makedirs(repository)
    for number in range(count):
        source = os.path.join(folder, "source")
        made.put(f"{source}/1/model.onnx", made.lookup(number, 2 * MIB // 4))
        made.pack(source, f"{repository}/m{number:03}.tar")
        shutil.rmtree(source)
    # Room for a tenth, and for the estimate of a load under way.
    memory = int(fits * 2.2 * MIB) + 4 * MIB
    yield "models, of which fit, users", f"{count}, {fits}, {users}", None, None
    for pattern in ("uniform", "8:1 to 11", "9:1 to one"):
        # Loads take milliseconds here: the guard against thrash is for models of seconds.
        limits = ("--memory-limit", f"cpu={memory}", "--min-residency-ms", "0")
        server = server_of(options, repository, folder, "--sagemaker-port", "0", *limits)
        server.start()
        try:
            pipes, seen = [], []
            for seed in range(users):
                ours, theirs = multiprocessing.Pipe()
                work = (server.sagemaker_port, pattern, count, seed, seconds, theirs)
                multiprocessing.Process(target=user, args=work, daemon=True).start()
                theirs.close()
                pipes.append(ours)
            for pipe in pipes:
                try:
                    seen.append(pipe.recv())
                except EOFError:
                    raise Died(f"a user ended; {server.last_words()}") from None
            rows, books = residency(server.port)
        finally:
            server.stop()
        took = sorted(ms for one in seen for ms in one["ms"])
        errors, wrong = ([text for one in seen for text in one[kind]] for kind in ("errors", "wrong"))
        for line in (errors + wrong)[:5]:
            print(line, file=sys.stderr)
        yield f"{pattern}: requests a second", len(took) / seconds, None, None
        for part in (50, 95, 99):
            yield f"{pattern}: p{part}, ms", share(took, part / 100), None, None
        yield f"{pattern}: hit ratio", sum(one["hits"] for one in seen) / len(took), None, None
        loads, evictions = sum(row["loads"] for row in rows), sum(row["evictions"] for row in rows)
        yield f"{pattern}: loads, evictions", f"{loads}, {evictions}", None, None
        yield f"{pattern}: tried again after 429 or 503", sum(one["retries"] for one in seen), None, None
        yield f"{pattern}: errors, wrong answers", len(errors) + len(wrong), 0, "<="
        device = next(book for book in books if book["tier"] == "device")
        yield f"{pattern}: book over its limit", device["booked_bytes"] / device["limit_bytes"], 1.0, "<="


# ---- Others' unloads -------------------------------------------------------------------------------------------------


def unloads(options, folder):
    def beside(server, what, task, tasks):
        """p99 in ms of `what` alone and beside `tasks` threads at `task`, in turns; how often a second they did it."""
        rounds, rate = [], []
        latencies(server, (what, 1, 0))
        for _ in range(options.rounds):
            alone = latencies(server, (what, options.secs, 0))[0]
            with Busy(*(task(number) for number in range(tasks))) as busy:
                beside = latencies(server, (what, options.secs, 0))[0]
            rounds.append((alone, beside))
            rate.append(sum(busy.done) / options.secs)
        return rounds, statistics.median(rate)

    def lines(kind, rounds, rate):
        alone = statistics.median(share(alone[0], 0.99) for alone, _ in rounds) / 1e3
        added = statistics.median(share(busy[0], 0.99) - share(alone[0], 0.99) for alone, busy in rounds) / 1e3
        yield f"{kind} a second", rate, None, None
        yield f"{kind}: p99 alone, ms", alone, None, None
        yield (
            f"{kind}: p50 added, us",
            statistics.median(share(b[0], 0.5) - share(a[0], 0.5) for a, b in rounds),
            None,
            None,
        )
        yield f"{kind}: p99 added, ms", added, 5, "<="
        yield f"{kind}: errors of the resident model", sum(a[1] + b[1] for a, b in rounds), 0, "<="

    root = os.path.join(folder, "platform")
    resident = place(root, "resident", made.lookup(0, MIB))
    others = [place(root, f"other{number}", made.lookup(number, MIB)) for number in range(4)]
    server = container_of(options, root, folder)
    server.start()
    try:
        must(Client(server.sagemaker_port), load_request("resident", resident))

        def cycle(number):
            client = Client(server.sagemaker_port)

            def task():
                must(client, load_request(f"other{number}", others[number]), 200, 409)
                must(client, request("DELETE", f"/models/other{number}"), 200, 404)

            return task

        what = request("POST", "/models/resident/invoke", index_body(5))
        yield from lines("platform's loads and unloads", *beside(server, what, cycle, 2))

        client, took = Client(server.sagemaker_port), []
        for _ in range(100):
            must(client, load_request("idle", others[0]))
            begin = time.perf_counter()
            must(client, request("DELETE", "/models/idle"))
            took.append((time.perf_counter() - begin) * 1e3)
        yield "DELETE of an idle model, p50 ms", statistics.median(took), None, None
        yield "DELETE of an idle model, slowest of 100, ms", max(took), 50, "<="
    finally:
        server.stop()

    repository = os.path.join(folder, "evicting")
    made.put(f"{repository}/resident/1/model.onnx", made.lookup(0, MIB))
    for number in range(24):
        made.put(f"{repository}/other{number}/1/model.onnx", made.lookup(number, MIB))
    limits = ("--memory-limit", "cpu=40MiB", "--min-residency-ms", "0", "--pin-model", "resident")
    server = server_of(options, repository, folder, "--sagemaker-port", "0", *limits)
    server.start()
    try:
        what = invocation("resident", index_body(5))
        must(Client(server.sagemaker_port), what)

        def ask(number):
            chosen, client = random.Random(number), Client(server.sagemaker_port)
            return lambda: must(client, invocation(f"other{chosen.randrange(24)}", index_body(7)), 200, 503)

        before = sum(row["evictions"] for row in residency(server.port)[0])
        rounds, rate = beside(server, what, ask, 2)
        evictions = sum(row["evictions"] for row in residency(server.port)[0]) - before
        yield from lines("others' invocations under eviction", rounds, rate)
        yield "evictions a second meanwhile", evictions / options.secs / options.rounds, None, None
    finally:
        server.stop()


# ---- Loads under way -------------------------------------------------------------------------------------------------

IN_FLIGHT = 64


def loading(options, folder):
    def lines(kind, rounds):
        ratio = statistics.median(share(busy[0][0], 0.99) / share(alone[0][0], 0.99) for alone, busy in rounds)
        yield f"{kind}: p99 alone, us", statistics.median(share(alone[0][0], 0.99) for alone, _ in rounds), None, None
        yield (
            f"{kind}: p50 over alone",
            statistics.median(share(busy[0][0], 0.5) / share(alone[0][0], 0.5) for alone, busy in rounds),
            None,
            None,
        )
        yield f"{kind}: p99 over alone", ratio, 1.2, "<="
        yield f"{kind}: slowest ping, ms", max(busy[1][0][-1] for _, busy in rounds) / 1e3, 50, "<="
        errors = sum(seen[1] for alone, busy in rounds for seen in alone + busy)
        yield f"{kind}: errors of the resident model and of ping", errors, 0, "<="

    steps = 200 if options.quick else 500
    root = os.path.join(folder, "computing")
    resident, chain = place(root, "resident", made.lookup(0, MIB)), place(root, "chain", made.chain(steps))
    what = request("POST", "/models/resident/invoke", index_body(5))
    askers = (what, options.secs, 0), (request("GET", "/ping"), options.secs, 0.01)
    server = container_of(options, root, folder)
    server.start()
    try:
        must(Client(server.sagemaker_port), load_request("resident", resident))

        def cycle(number):
            client = Client(server.sagemaker_port, timeout=600)

            def task():
                must(client, load_request(f"chain{number}", chain))
                must(client, request("DELETE", f"/models/chain{number}"))

            return task

        latencies(server, (what, 1, 0))
        rounds, loads = [], 0
        for _ in range(options.rounds):
            alone = latencies(server, *askers)
            with Busy(*(cycle(number) for number in range(IN_FLIGHT))) as busy:
                rounds.append((alone, latencies(server, *askers)))
            loads += sum(busy.done)
        yield "loads under way", IN_FLIGHT, None, None
        yield "computing: loads that ended meanwhile", loads, None, None
        yield from lines("computing", rounds)
    finally:
        server.stop()

    objects = {"resident/1/model.onnx": made.lookup(0, MIB)}
    store = made.S3(objects, hangs="hangs")
    more = ("--s3-anonymous", "--request-timeout-ms", "600000", "--endpoint-load-wait-ms", "600000")
    server = server_of(options, store.uri(), folder, "--sagemaker-port", "0", *more)
    what = invocation("resident", index_body(5))
    askers = (what, options.secs, 0), (request("GET", "/ping"), options.secs, 0.01)
    server.start()
    waiting = []
    try:
        must(Client(server.sagemaker_port), what)
        latencies(server, (what, 1, 0))
        # Alone first, then with those who wait: they stay.
        alone = [latencies(server, *askers) for _ in range(options.rounds)]
        for number in range(IN_FLIGHT):
            waiting.append(socket.create_connection(("127.0.0.1", server.sagemaker_port)))
            waiting[-1].sendall(invocation(f"hangs{number}", IDENTITY))
        begin = time.perf_counter()
        while store.waiting < 1 and time.perf_counter() - begin < 10:
            time.sleep(0.01)
        hung = [latencies(server, *askers) for _ in range(options.rounds)]
        yield "hanging: requests that an S3 never answered", store.waiting, 8, ">="
        yield from lines("hanging", list(zip(alone, hung)))
    finally:
        for connection in waiting:
            connection.close()
        server.stop()
        store.stop()


# ---- What the front doors cost ---------------------------------------------------------------------------------------


def overhead(options, folder):
    harness.need("wrk", "wrk")
    repository = os.path.join(folder, "repository")
    harness.add_identity(repository)
    server = server_of(options, repository, folder, "--sagemaker-port", "0")
    # At one connection latency has two modes, unless both sides stay where they are.
    cores = sorted(os.sched_getaffinity(0))
    cores = Cores(True, cores[1], cores[0]) if len(cores) > 1 else Cores(False)
    server.cores = cores
    body = IDENTITY
    json_type, target = {"Content-Type": "application/json"}, {TARGET: "identity"}
    ways = {
        "KServe": ("/v2/models/identity/infer", json_type, "port"),
        "runtime API, its own port": (ENDPOINT, json_type | target, "sagemaker_port"),
        "runtime API, KServe's port": (ENDPOINT, json_type | target, "port"),
        "container's invoke": ("/models/identity/invoke", json_type, "sagemaker_port"),
    }
    seen = {way: [] for way in ways}
    server.start()
    try:
        for number in range(options.rounds + 1):
            for way, (path, headers, port) in ways.items():
                row = harness.drive(
                    server, cores, "POST", path, body, headers, 1, max(1, int(options.secs)), getattr(server, port)
                )
                if row["errors"]:
                    raise Died(f"{way}: {row['errors']} errors")
                if number:
                    seen[way].append(row)
    finally:
        server.stop()
    for way, rows in seen.items():
        yield f"{way}: p50 at one connection, us", statistics.median(row["p50_us"] for row in rows), None, None
        yield f"{way}: server's CPU a request, us", statistics.median(row["cpu_us"] for row in rows), None, None
    for way, rows in list(seen.items())[1:]:
        above = statistics.median(row["p50_us"] - base["p50_us"] for row, base in zip(rows, seen["KServe"]))
        yield f"{way}: p50 above KServe's, us", above, 30, "<="


# ---- The list --------------------------------------------------------------------------------------------------------


def listing(options, folder):
    count = 1000 if options.quick else 10_000
    root = os.path.join(folder, "root")
    harness.add_identity(os.path.join(root, "one", "model"), "inner")
    server = container_of(options, root, folder)
    server.start()
    try:
        client, names = Client(server.sagemaker_port), [f"{number * 2654435761 % 2**32:08x}" for number in range(count)]
        begin = time.perf_counter()
        for name in names:
            must(client, load_request(name, f"{root}/one/model"))
        yield "models in memory", len(names), None, None
        yield "a load, ms", (time.perf_counter() - begin) / count * 1e3, None, None
        pages, firsts = [], []
        for _ in range(5):
            listed, token = [], None
            while True:
                query = f"/models?limit=1000{f'&next_page_token={token}' if token else ''}"
                begin = time.perf_counter()
                body = must(client, request("GET", query))
                pages.append((time.perf_counter() - begin) * 1e3)
                page = json.loads(body)
                listed += [row["modelName"] for row in page["models"]]
                if (token := page.get("nextPageToken")) is None:
                    break
            if listed != sorted(names):
                raise Died(f"{len(listed)} models are listed, not the {len(names)} that were loaded")
            begin = time.perf_counter()
            must(client, request("GET", "/models"))
            firsts.append((time.perf_counter() - begin) * 1e3)
        yield "a page of 1000, p50 ms", statistics.median(pages), 10, "<="
        yield "a page of 1000, slowest, ms", max(pages), None, None
        yield "a page of 100, p50 ms", statistics.median(firsts), None, None
        took = []
        for name in names[:: count // 200]:
            begin = time.perf_counter()
            must(client, request("GET", f"/models/{name}"))
            took.append((time.perf_counter() - begin) * 1e6)
        yield "one model described, p50 us", statistics.median(took), None, None
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(run({part: globals()[part] for part in PARTS}, __doc__))
