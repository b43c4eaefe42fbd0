#!/usr/bin/env python3
"""What the model cache costs those who don't need it, and whether its book is right.

usage: cache.py [many] [interference] [thrash] [optimised] [--secs N] [--quick] [--out run.jsonl]

many          10,000 identity models in a folder, 300 resident: memory of a known cold model, throughput and latency of a
              resident one beside a server that knows 10, threads, one page of residency
interference  p99 of a resident model at one connection: alone, while others load and are evicted, and while 8 loads wait
              for an S3 that hangs
thrash        ten times more models than fit, as archives that go through a disk cache a third as large, 5 % of them broken;
              every answer is checked, and at the end the book against the process
optimised     the first load of a graph of many small operators, the next one from its copy

Standard library only; see README.md for the columns. The exit status is 1 where a target is missed.
"""

import argparse
import array
import json
import multiprocessing
import os
import random
import re
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time

import harness
import made
from compare import table
from harness import Cores, Died

MIB = 1 << 20
PARTS = ("many", "interference", "thrash", "optimised")
IDENTITY = b'{"inputs":[{"name":"INPUT0","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
ADD_SUB = json.dumps(
    {
        "inputs": [
            {"name": name, "shape": [1, 16], "datatype": "FP32", "data": [float(n) for n in range(16)]}
            for name in ("INPUT0", "INPUT1")
        ]
    }
).encode()
EXAMPLES = os.path.join(harness.ROOT, "models-examples")


# ---- Clients ---------------------------------------------------------------------------------------------------------


class Client:
    """One connection, kept open; little else than a send and a receive a request."""

    def __init__(self, port, timeout=90):
        self.port, self.timeout, self.socket, self.head = port, timeout, None, b""

    def call(self, method, path, body=b""):
        """(status, body)"""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        return self.send(head + body)

    def send(self, request):
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port), self.timeout)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(request)
        data = self.socket.recv(65536)
        while (end := data.find(b"\r\n\r\n")) < 0:
            if not (more := self.socket.recv(65536)):
                raise Died("the server closed the connection")
            data += more
        self.head = data[:end]
        found = re.search(rb"(?i)content-length: *(\d+)", self.head)
        length = int(found.group(1)) if found else 0
        parts, have = [data[end + 4 :]], len(data) - end - 4
        while have < length:
            if not (more := self.socket.recv(1 << 20)):
                raise Died("the server closed the connection in mid-answer")
            parts.append(more)
            have += len(more)
        return int(data[9:12]), b"".join(parts)

    def close(self):
        if self.socket:
            self.socket.close()
            self.socket = None


def hammer(port, path, body, seconds, pipe):
    """In a process of its own: one connection, one request after the other; sends the latencies in us."""
    client, took = Client(port), []
    request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    errors, end = 0, time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        status, _ = client.send(request)
        took.append((time.perf_counter() - begin) * 1e6)
        errors += status != 200
    pipe.send((took, errors))


def latency(server, name, body, seconds):
    """A model at one connection: requests a second, p50 and p99 in us, the server's processor time a request."""
    ours, theirs = multiprocessing.Pipe()
    used, begin = harness.cpu_seconds(server.pid), time.perf_counter()
    child = multiprocessing.Process(target=hammer, args=(server.port, f"/v2/models/{name}/infer", body, seconds, theirs))
    child.start()
    theirs.close()
    try:
        took, errors = ours.recv()
    except EOFError:
        raise Died(f"no answers of {name}: {server.last_words()}") from None
    child.join()
    wall, used = time.perf_counter() - begin, harness.cpu_seconds(server.pid) - used
    took.sort()
    return {
        "requests": len(took),
        "rps": len(took) / wall,
        "p50_us": took[len(took) // 2],
        "p99_us": took[len(took) * 99 // 100],
        "cpu_us": used / len(took) * 1e6,
        "errors": errors,
    }


def residency(port):
    """All models and the books."""
    models, after, client = [], "", Client(port)
    while True:
        status, body = client.call("GET", f"/v1/residency?limit=1000{after}")
        if status != 200:
            raise Died(f"/v1/residency: {status} {body[:200]!r}")
        page = json.loads(body)
        models += page["models"]
        if page["next"] is None:
            return models, page["books"]
        after = f"&after={page['next']}"


def anonymous(pid):
    """Bytes of memory that are the process's own."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="latin1") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Anonymous:"))


def server_of(options, repository, folder, *arguments):
    folder = tempfile.mkdtemp(dir=folder)
    more = ["--cache-dir", os.path.join(folder, "cache"), "--log", "warn", *arguments]
    return harness.roundhouse(options.roundhouse, repository, folder, Cores(False), more)


def infer(client, name, body):
    status, answer = client.call("POST", f"/v2/models/{name}/infer", body)
    if status != 200:
        raise Died(f"infer {name}: {status} {answer[:300]!r}")
    return answer


# ---- Ten thousand models ---------------------------------------------------------------------------------------------


def many(options, folder):
    known, resident = (1000, 100) if options.quick else (10_000, 300)
    repositories = {count: os.path.join(folder, f"models{count}") for count in (10, known)}
    for count, repository in repositories.items():
        for number in range(count):
            harness.add_identity(repository, f"m{number:05}")

    probe = server_of(options, repositories[10], folder)
    probe.start()
    try:
        infer(Client(probe.port), "m00000", IDENTITY)
        booked = next(row["host_bytes"] or row["device_bytes"] for row in residency(probe.port)[0] if row["loads"])
    finally:
        probe.stop()
    # Room for the models, and for the estimate of a load under way.
    limit = ("--memory-limit", f"cpu={resident * booked + MIB}", "--min-residency-ms", "0")

    servers = {count: server_of(options, repository, folder, *limit) for count, repository in repositories.items()}
    try:
        few, all_of_them = servers[10], servers[known]
        for server in servers.values():
            server.start()
        threads_before = harness.status(all_of_them.pid, "Threads")
        started = anonymous(all_of_them.pid)
        client = Client(all_of_them.port)
        client.call("POST", "/v2/repository/index", b"{}")
        listed = anonymous(all_of_them.pid)
        begin = time.perf_counter()
        for number in range(known // 2):
            infer(client, f"m{number:05}", IDENTITY)
        # From here on the same number stays resident, and only what is known of the others grows.
        half = anonymous(all_of_them.pid)
        for number in range(known // 2, known):
            infer(client, f"m{number:05}", IDENTITY)
        loading = time.perf_counter() - begin
        loaded = anonymous(all_of_them.pid)
        infer(Client(few.port), "m00000", IDENTITY)
        rows, _ = residency(all_of_them.port)
        staying = sum(1 for row in rows if row["host_bytes"] or row["device_bytes"])
        cold = (listed - started) / known + (loaded - half) / (known - known // 2)
        hot = f"m{known - 1:05}"
        pairs = []
        for _ in range(options.rounds):
            infer(client, hot, IDENTITY)
            pairs.append(
                (latency(all_of_them, hot, IDENTITY, options.secs), latency(few, "m00000", IDENTITY, options.secs))
            )
        pages = []
        for _ in range(30):
            begin = time.perf_counter()
            status, page = client.call("GET", "/v1/residency?limit=1000")
            pages.append((time.perf_counter() - begin) * 1e3)
            assert status == 200 and len(json.loads(page)["models"]) == min(1000, known)
        # Threads that block end after ten idle seconds.
        time.sleep(12)
        threads = harness.status(all_of_them.pid, "Threads")
        threads_few = harness.status(few.pid, "Threads")
    finally:
        for server in servers.values():
            server.stop()

    def ratio(key):
        return statistics.median(a[key] / b[key] for a, b in pairs if b[key])

    yield "known, resident at the end", f"{known}, {staying}", None, None
    yield "load and infer all once, ms each", loading / known * 1e3, None, None
    yield "bytes of a model that is only listed", (listed - started) / known, None, None
    yield "bytes of a known cold model, once loaded", cold, 2048, "<="
    yield "requests a second over 10 models'", ratio("rps"), 0.95, ">="
    yield "p50 over 10 models'", ratio("p50_us"), 1.05, "<="
    yield "server's CPU a request over 10 models'", ratio("cpu_us"), 1.05, "<="
    yield "p50 at 1 connection, us", statistics.median(a["p50_us"] for a, _ in pairs), None, None
    yield "threads over those with 10 models", threads / threads_few, 1.0, "<="
    yield "threads after over before", threads / threads_before, None, None
    yield "a page of residency, p50 ms", statistics.median(pages), 10, "<="


# ---- Others' loads ---------------------------------------------------------------------------------------------------


def interference(options, folder):
    repository = os.path.join(folder, "busy")
    shutil.copytree(os.path.join(EXAMPLES, "add_sub"), os.path.join(repository, "add_sub"))
    for number in range(24):
        made.put(f"{repository}/other{number}/1/model.onnx", made.lookup(number, MIB))
    server = server_of(
        options, repository, folder, "--memory-limit", "cpu=40MiB", "--pin-model", "add_sub", "--min-residency-ms", "0"
    )
    stop, loads, failures = threading.Event(), [0], []

    def churn(seed):
        # Who asks for the other models is no part of the server, and shares its processors here.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        chosen, client = random.Random(seed), Client(server.port)
        while not stop.is_set():
            number, index = chosen.randrange(24), chosen.randrange(MIB)
            body = index_body(index)
            status, answer = client.call("POST", f"/v2/models/other{number}/infer", body)
            loads[0] += 1
            if status != 200 and status != 503:
                failures.append((status, answer[:200]))

    rounds = []
    server.start()
    try:
        infer(Client(server.port), "add_sub", ADD_SUB)
        latency(server, "add_sub", ADD_SUB, 1)
        for _ in range(options.rounds):
            alone = latency(server, "add_sub", ADD_SUB, options.secs)
            stop.clear()
            workers = [threading.Thread(target=churn, args=(seed,)) for seed in range(2)]
            before = sum(row["loads"] for row in residency(server.port)[0])
            for worker in workers:
                worker.start()
            rounds.append((alone, latency(server, "add_sub", ADD_SUB, options.secs)))
            stop.set()
            for worker in workers:
                worker.join()
            loaded = sum(row["loads"] for row in residency(server.port)[0]) - before
    finally:
        stop.set()
        server.stop()
    if failures:
        raise Died(f"a model that was loaded meanwhile answered {failures[0]}")
    yield "p99 alone, us", statistics.median(alone["p99_us"] for alone, _ in rounds), None, None
    yield "loads a second meanwhile", loaded / options.secs, None, None
    yield "p50 while others load, over alone", middle(rounds, "p50_us"), None, None
    yield "p99 while others load, over alone", middle(rounds, "p99_us"), 1.2, "<="

    objects = {}
    for path in ("config.pbtxt", "1/model.onnx"):
        with open(os.path.join(EXAMPLES, "add_sub", path), "rb") as file:
            objects[f"add_sub/{path}"] = file.read()
    store = made.S3(objects, hangs="hangs")
    server = server_of(options, store.uri(), folder, "--s3-anonymous", "--request-timeout-ms", "600000")
    rounds = []
    server.start()
    waiting = []
    try:
        infer(Client(server.port), "add_sub", ADD_SUB)
        latency(server, "add_sub", ADD_SUB, 1)
        # Alone first, then with those who wait: they stay.
        alone = [latency(server, "add_sub", ADD_SUB, options.secs) for _ in range(options.rounds)]
        for number in range(8):
            client = Client(server.port, timeout=600)
            path = f"/v2/models/hangs{number}/infer"
            client.socket = socket.create_connection(("127.0.0.1", server.port))
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(IDENTITY)}\r\n\r\n"
            client.socket.sendall(head.encode() + IDENTITY)
            waiting.append(client)
        begin = time.perf_counter()
        while store.waiting < 1 and time.perf_counter() - begin < 10:
            time.sleep(0.01)
        hung = [latency(server, "add_sub", ADD_SUB, options.secs) for _ in range(options.rounds)]
        asked = store.waiting
        rounds = list(zip(alone, hung))
    finally:
        for client in waiting:
            client.close()
        server.stop()
        store.stop()
    yield "requests that an S3 never answered", asked, 8, ">="
    yield "p99 while 8 loads hang, over alone", middle(rounds, "p99_us"), 1.2, "<="
    yield "errors of the resident model", sum(a["errors"] + b["errors"] for a, b in rounds), 0, "<="


def middle(rounds, key):
    return statistics.median(busy[key] / alone[key] for alone, busy in rounds)


def index_body(index):
    return json.dumps({"inputs": [{"name": "index", "shape": [1], "datatype": "INT64", "data": [index]}]}).encode()


# ---- Ten times more than fit -----------------------------------------------------------------------------------------


def ask_at_random(port, seed, sizes, broken, seconds, pipe):
    """In a process of its own: random requests, each answer held against what must come."""
    chosen, client, seen, wrong = random.Random(seed), Client(port), {}, []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        number = chosen.randrange(len(sizes))
        index = chosen.randrange(sizes[number])
        status, answer = client.call("POST", f"/v2/models/m{number:03}/infer", index_body(index))
        if status == 200:
            # Written as few digits as tell one 32-bit float from another.
            got = array.array("f", json.loads(answer)["outputs"][0]["data"])[0]
            must = made.lookup_value(number, index)
            if got != must or number in broken:
                wrong.append(f"m{number:03} answered {got} for {index}, not {must}")
            kind = "right"
        elif status == 503 and b"error" in answer:
            kind = "503"
        elif number in broken and b"error" in answer:
            kind = f"broken model, {status}"
        else:
            wrong.append(f"m{number:03}: {status} {answer[:200]!r}")
            kind = "wrong"
        seen[kind] = seen.get(kind, 0) + 1
    pipe.send((seen, wrong))


def thrash(options, folder):
    count, fits = (20, 3) if options.quick else (60, 6)
    repository, chosen = os.path.join(folder, "thrash"), random.Random(3)
    sizes = [chosen.randrange(4 * MIB, 16 * MIB) // 4 for _ in range(count)]
    broken = set(range(0, count, 20))
    for number, rows in enumerate(sizes):
        source = os.path.join(folder, "source")
        made.put(f"{source}/1/model.onnx", made.lookup(number, rows))
        os.makedirs(repository, exist_ok=True)
        made.pack(source, f"{repository}/m{number:03}.tar", keep=0.6 if number in broken else 1.0)
        shutil.rmtree(source)
    total = sum(sizes) * 4
    memory, disk = total // (count // fits), total // 3
    server = server_of(
        options,
        repository,
        folder,
        *("--memory-limit", f"cpu={memory}", "--cache-capacity", str(disk), "--min-residency-ms", "10"),
    )
    cache = os.path.join(server.folder, "cache")
    server.start()
    try:
        # The runtime itself, which no model pays for.
        client = Client(server.port)
        infer(client, "m001", index_body(0))
        client.call("POST", "/v2/repository/models/m001/unload", b"{}")
        time.sleep(1)
        empty = anonymous(server.pid)
        pipes = []
        for seed in range(4):
            ours, theirs = multiprocessing.Pipe()
            work = (server.port, seed, sizes, broken, options.thrash_secs, theirs)
            multiprocessing.Process(target=ask_at_random, args=work, daemon=True).start()
            theirs.close()
            pipes.append(ours)
        seen, wrong, off = {}, [], []
        end = time.perf_counter() + options.thrash_secs
        while (left := end - time.perf_counter()) > 0:
            time.sleep(min(1, left))
            books = {book["tier"]: book for book in residency(server.port)[1]}
            off += [book for book in books.values() if book["booked_bytes"] > book["limit_bytes"]]
        for pipe in pipes:
            try:
                more, bad = pipe.recv()
            except EOFError:
                raise Died(f"a client ended; {server.last_words()}") from None
            wrong += bad
            for kind, number in more.items():
                seen[kind] = seen.get(kind, 0) + number
        time.sleep(2)
        models, books = residency(server.port)
        used = anonymous(server.pid) - empty
        booked = sum(book["booked_bytes"] for book in books if book["tier"] != "disk")
        limit = sum(book["limit_bytes"] for book in books if book["tier"] != "disk")
        reserved = sum(book["reserved_bytes"] for book in books)
        in_use = sum(row["in_use"] for row in models)
        loads, evictions = sum(row["loads"] for row in models), sum(row["evictions"] for row in models)
        left_over = [name for part in ("temp", "trash") for name in os.listdir(os.path.join(cache, part))]
        on_disk = sum(book["booked_bytes"] for book in books if book["tier"] == "disk")
        really = sum(
            os.stat(os.path.join(here, name)).st_blocks * 512
            for here, _, names in os.walk(os.path.join(cache, "entries"))
            for name in names
        )
    finally:
        server.stop()
    for line in wrong[:10]:
        print(line, file=sys.stderr)
    yield "answers", ", ".join(f"{number} {kind}" for kind, number in sorted(seen.items())), None, None
    yield "loads, evictions", f"{loads}, {evictions}", None, None
    yield "wrong answers", len(wrong), 0, "<="
    yield "share of right answers", seen.get("right", 0) / max(1, sum(seen.values())), None, None
    yield "book, MiB", booked / MIB, None, None
    yield "process above empty, MiB", used / MIB, None, None
    yield "difference over the limit", abs(booked - used) / limit, 0.05, "<="
    yield "difference over the book", abs(booked - used) / max(1, booked), None, None
    yield "disk book over the files", on_disk / max(1, really), 1.05, "<="
    yield "books above their limit, samples", len(off), 0, "<="
    yield "in use, reserved bytes at the end", in_use + reserved, 0, "<="
    yield "temporary files at the end", len(left_over), 0, "<="


# ---- The copy of the graph -------------------------------------------------------------------------------------------


def optimised(options, folder):
    steps, count = (500, 2) if options.quick else (2000, 5)
    repository, plain = os.path.join(folder, "graphs"), os.path.join(folder, "plain")
    for number in range(count):
        made.put(f"{plain}/g{number}/1/model.onnx", made.chain(steps + number))
        os.makedirs(repository, exist_ok=True)
        made.pack(f"{plain}/g{number}", f"{repository}/g{number}.tar")

    def loads(repository, times):
        server = server_of(options, repository, folder, "--model-control", "explicit")
        took = []
        server.start()
        try:
            client = Client(server.port)
            for number in range(count):
                own = []
                for _ in range(times):
                    status, answer = client.call("POST", f"/v2/repository/models/g{number}/load", b"{}")
                    if status != 200:
                        raise Died(f"load g{number}: {status} {answer[:300]!r}")
                    row = next(row for row in residency(server.port)[0] if row["name"] == f"g{number}")
                    own.append(row["last_load"]["initialise_seconds"] * 1e3)
                    client.call("POST", f"/v2/repository/models/g{number}/unload", b"{}")
                took.append(own)
        finally:
            server.stop()
        return took

    # The first load of a process starts the runtime: it counts for nobody.
    cached, uncached = loads(repository, 3)[1:], loads(plain, 2)[1:]
    first, second = (statistics.median(own[at] for own in cached) for at in (0, 1))
    never = statistics.median(own[1] for own in uncached)
    yield "operators of the graph", steps * 4, None, None
    yield "first load, that writes the copy, ms", first, None, None
    yield "second load, from the copy, ms", second, None, None
    yield "a load without any copy, ms", never, None, None
    yield "first over second", statistics.median(own[0] / own[1] for own in cached), 1.5, ">="
    yield "without a copy over second", never / second, 1.5, ">="


# ---- All of it -------------------------------------------------------------------------------------------------------


def run(parts, doc, more=()):
    """Measures the parts that the command line asks for, as tables with their targets; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts) + "; all by default")
    parser.add_argument("--secs", type=float, default=3, help="seconds of load a measurement (3)")
    parser.add_argument("--rounds", type=int, default=5, help="how often two are compared (5)")
    for flag, settings in more:
        parser.add_argument(flag, **settings)
    parser.add_argument("--quick", action="store_true", help="few and small: whether it works at all")
    parser.add_argument(
        "--roundhouse", default=harness.default_binary(), metavar="PATH", help="our binary (target/release/roundhouse)"
    )
    parser.add_argument("--out", metavar="FILE", help="append JSON lines")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"unknown parts {sorted(unknown)}")
    missed = 0
    for part in options.parts or parts:
        print(f"{part} ... (load average {os.getloadavg()[0]:.2f})", file=sys.stderr, flush=True)
        lines = []
        with tempfile.TemporaryDirectory(prefix=f"{part}-", dir=harness.target_folder()) as folder:
            try:
                for what, figure, target, relation in parts[part](options, folder):
                    is_met = target is None or (figure <= target if relation == "<=" else figure >= target)
                    missed += not is_met
                    shown = figure if isinstance(figure, str) else f"{figure:.4g}"
                    goal = "" if target is None else f"{relation} {target}"
                    lines.append((part, what, shown, goal, "" if is_met else "MISSED"))
                    if options.out:
                        row = {"part": part, "what": what, "figure": figure, "target": target, "met": is_met}
                        with open(options.out, "a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")
            except (Died, OSError) as why:
                missed += 1
                lines.append((part, f"FAILED: {why}", "", "", "MISSED"))
        table(("part", "what", "figure", "target", ""), lines)
        print(flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    thrash_secs = {"type": float, "default": 60, "help": "seconds of `thrash` (60; 300 for the record)"}
    parts = {part: globals()[part] for part in PARTS}
    sys.exit(run(parts, __doc__, [("--thrash-secs", thrash_secs)]))
