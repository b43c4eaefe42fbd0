#!/usr/bin/env python3
"""Three instances behind a proxy, and what it costs to be watched.

usage: fleet.py [haproxy] [envoy] [picker] [hot] [page] [--secs N] [--quick] [--roundhouse PATH] [--out run.jsonl]

haproxy   300 models asked for by Zipf's law (1.0), three instances with memory for a tenth of them each: the part of the
envoy     requests whose model was not in memory, and p50 and p99, behind the hash of docker/ and behind the same proxy
          with round robin; every answer is checked
picker    the same behind Envoy, and with `roundhouse picker` besides
hot       a model that is asked for by twelve connections and answers one of them at a time, behind Envoy with the picker: how
          long it takes until a second instance has it, in times of its load
page      the page of metrics with 1,000 models in memory: its size, how long it takes, and the processor that a scrape
          a second takes

Standard library only; haproxy and Envoy as tests/python/proxies.py finds them. See README.md. The exit status is 1 where a
target is missed.
"""

import json
import os
import random
import sys
import tempfile
import threading
import time

import harness
import made
from cache import IDENTITY, MIB, Client, infer, residency, run, server_of
from harness import Died

sys.path.append(os.path.join(harness.ROOT, "tests", "python"))
import proxies  # noqa: E402

PARTS = ("haproxy", "envoy", "picker", "hot", "page")


def share(sorted_values, part):
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * part))]


# ---- Behind a proxy --------------------------------------------------------------------------------------------------


def lookup(number, index):
    text = '{"inputs":[{"name":"index","shape":[1],"datatype":"INT64","data":[%d]}]}' % index
    return f"/v2/models/m{number:03}/infer", text.encode(), made.lookup_value(number, index)


def zipf(count, exponent, seed):
    """An endless draw of models, the first the most likely; who is which is chance of its own."""
    draw, order = random.Random(seed), list(range(count))
    random.Random(0).shuffle(order)
    weights = [1 / (rank + 1) ** exponent for rank in range(count)]
    while True:
        yield from draw.choices(order, weights, k=1000)


# Requests a second of all users together where latencies are compared: what shares two cores with proxy and clients is then not
# itself what they wait for.
RATE = 120


class User(threading.Thread):
    """One connection that asks for one model after the other: at once, or so many seconds apart, however long answers take."""

    def __init__(self, port, count, seed, requests, apart):
        super().__init__(daemon=True)
        self.port, self.requests, self.apart = port, requests, apart
        self.models, self.draw = zipf(count, 1.0, seed), random.Random(seed)
        self.took, self.cold, self.failed = [], 0, []

    def run(self):
        client = Client(self.port)
        due = time.perf_counter() + self.draw.random() * self.apart
        for _ in range(self.requests):
            path, body, expected = lookup(next(self.models), self.draw.randrange(1024))
            begin = time.perf_counter()
            if self.apart:
                # What comes late for an answer before it waits from when it was due.
                time.sleep(max(0, due - begin))
                begin, due = due, due + self.apart
            try:
                status, answer = client.call("POST", path, body)
            except (Died, OSError) as why:
                client.close()
                self.failed.append(str(why))
                continue
            self.took.append((time.perf_counter() - begin) * 1e3)
            if status != 200 or abs(json.loads(answer)["outputs"][0]["data"][0] - expected) > 1e-3:
                self.failed.append(f"{path}: {status} {answer[:200]!r}")
            self.cold += b"x-model-state: device" not in client.head.lower()
        client.close()


def users(port, count, number, requests, seed, rate=0):
    """The part of cold requests, the latencies in ms, and what failed; at `rate` requests a second, 0 for as fast as they are answered."""
    crowd = [User(port, count, seed * 1000 + user, requests, number / rate if rate else 0) for user in range(number)]
    for user in crowd:
        user.start()
    for user in crowd:
        user.join()
    took = sorted(ms for user in crowd for ms in user.took)
    return sum(user.cold for user in crowd) / max(1, len(took)), took, [text for user in crowd for text in user.failed]


def behind(kind, options, folder, ways=("round robin", "hash")):
    count, number, requests = (60, 4, 150) if options.quick else (300, 6, 1500)
    repository = os.path.join(folder, "models")
    for model in range(count):
        made.put(f"{repository}/m{model:03}/1/model.onnx", made.lookup(model, MIB // 4))
    # Room for a tenth by what models are booked with under such traffic (more than of one that is loaded alone, since those that
    # are loaded beside each other are not told apart), and for the estimate of a load under way.
    probe, tenth = server_of(options, repository, folder), count // 10
    probe.start()
    try:
        users(probe.port, count, number, requests // 5, 3)
        rows = [row for row in residency(probe.port)[0] if row["tier"] == "device"]
        booked = sum(row["device_bytes"] for row in rows) // len(rows)
    finally:
        probe.stop()
    memory = booked * tenth + 2 * MIB
    yield "models, requests, requests a second, a model's bytes", f"{count}, {number * requests}, {RATE}, {booked}", None, None
    # With the most asked for models in memory and nobody else: what no routing and no eviction can better.
    weights = [1 / (rank + 1) for rank in range(count)]
    best = {fits: 1 - sum(weights[:fits]) / sum(weights) for fits in (tenth, 3 * tenth)}
    yield "the least cold share, of one memory, of three that hold different models", ", ".join(f"{part:.3f}" for part in best.values()), None, None
    found = {}
    for way in ways:
        servers = [server_of(options, repository, folder, "--memory-limit", f"cpu={memory}", "--min-residency-ms", "0") for _ in range(3)]
        try:
            for server in servers:
                server.start()
            with proxy_of(kind, way, options)([server.port for server in servers], tempfile.mkdtemp(dir=folder)) as proxy:
                # The first fills memory.
                users(proxy.port, count, number, requests, 1)
                found[way] = users(proxy.port, count, number, requests, 2, RATE)
                held = [len([row for row in residency(server.port)[0] if row["tier"] == "device"]) for server in servers]
        except proxies.Missing as missing:
            raise Died(str(missing)) from None
        finally:
            for server in servers:
                server.stop()
        cold, took, failed = found[way]
        for text in failed[:5]:
            print(text, file=sys.stderr)
        yield f"{way}: cold share", cold, None, None
        yield f"{way}: p50, p99, ms", f"{share(took, 0.5):.1f}, {share(took, 0.99):.1f}", None, None
        yield f"{way}: models in memory at the end", ", ".join(map(str, held)), None, None
        yield f"{way}: failed", len(failed), 0, "<="
    # What can be had at most: three memories that hold different models, and always the ones most asked for.
    yield "the least that share over round robin's can be", best[3 * tenth] / found["round robin"][0], None, None
    yield "cold share of the hash over that of round robin", found["hash"][0] / found["round robin"][0], 0.3, "<="
    if "picker" in found:
        yield "cold share with the picker over that of round robin", found["picker"][0] / found["round robin"][0], 0.25, "<="
        yield "p99 with the picker over that with the hash", share(found["picker"][1], 0.99) / share(found["hash"][1], 0.99), 1.0, "<="


def proxy_of(kind, way, options):
    """The proxy with the configuration of docker/, or with nothing changed in it but the algorithm."""
    if way == "hash":
        return kind
    if way == "picker":

        class Picked(proxies.PickedEnvoy):
            """With a picker of its own."""

            def __enter__(self):
                self.picker = proxies.Picker(options.roundhouse, self.ports, self.folder).__enter__()
                self.picker_port = self.picker.port
                self.picker.until_fresh(len(self.ports))
                try:
                    super().__enter__()
                    proxies.wait_until("Envoy knows the picker", self.picker_is_well)
                except BaseException:
                    self.picker.__exit__()
                    raise
                return self

            def __exit__(self, *why):
                print("picks:", self.picker.picks(), file=sys.stderr)
                self.picker.__exit__()
                super().__exit__(*why)

        return Picked

    class RoundRobin(kind):
        def place(self, text):
            text = text.replace("balance hash var(txn.model)", "balance roundrobin")
            text = text.replace("lb_policy: RING_HASH", "lb_policy: ROUND_ROBIN")
            return super().place("\n".join(line for line in text.splitlines() if not line.lstrip().startswith(HASHES)) + "\n")

    return RoundRobin


# Lines that go with the hash alone.
HASHES = ("hash-type", "hash-balance-factor", "ring_hash_lb_config", "consistent_hashing_lb_config")


def haproxy(options, folder):
    yield from behind(proxies.HAProxy, options, folder)


def envoy(options, folder):
    yield from behind(proxies.Envoy, options, folder)


def picker(options, folder):
    yield from behind(proxies.Envoy, options, folder, ("round robin", "hash", "picker"))


# ---- A hot model -----------------------------------------------------------------------------------------------------

# A run of 40 ms, one at a time, and 25 of them before it is ready: a load of a second.
HOT = """backend: "identity"
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1, -1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1, -1 ] } ]
instance_group [ { count: 1 } ]
parameters { key: "execute_delay_ms" value { string_value: "40" } }
model_warmup { name: "slow" batch_size: 1 count: 25
  inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: [ 1, 2 ] zero_data: true } } }
"""


def second_copy(port, servers, name, connections):
    """Seconds from the first of many requests until a second instance has the model, those of a load, and what failed."""
    path, client, stop, failed = f"/v2/models/{name}/infer", Client(port), threading.Event(), []

    def ask():
        mine = Client(port)
        while not stop.is_set():
            try:
                status, _ = mine.call("POST", path, IDENTITY)
            except (Died, OSError) as why:
                status = str(why)
                mine.close()
            if status != 200:
                failed.append(status)
        mine.close()

    def holders():
        return sum(any(row["name"] == name and row["tier"] == "device" for row in residency(server.port)[0]) for server in servers)

    infer(client, name, IDENTITY)
    load = next(int(line.split(b":")[1]) for line in client.head.lower().split(b"\r\n") if line.startswith(b"x-load-ms"))
    client.close()
    crowd = [threading.Thread(target=ask, daemon=True) for _ in range(connections)]
    begin = time.perf_counter()
    for one in crowd:
        one.start()
    while holders() < 2 and time.perf_counter() - begin < 60:
        time.sleep(0.01)
    took = time.perf_counter() - begin
    stop.set()
    for one in crowd:
        one.join()
    return took, load / 1e3, failed


def hot(options, folder):
    rounds, connections = (1 if options.quick else 5), 12
    repository = os.path.join(folder, "models")
    for number in range(rounds):
        harness.write(f"{repository}/hot{number}/config.pbtxt", HOT)
        os.makedirs(f"{repository}/hot{number}/1")
    servers = [server_of(options, repository, folder) for _ in range(3)]
    try:
        for server in servers:
            server.start()
        with proxy_of(proxies.Envoy, "picker", options)([server.port for server in servers], tempfile.mkdtemp(dir=folder)) as proxy:
            found = [second_copy(proxy.port, servers, f"hot{number}", connections) for number in range(rounds)]
    except proxies.Missing as missing:
        raise Died(str(missing)) from None
    finally:
        for server in servers:
            server.stop()
    times = sorted(took / load for took, load, _ in found)
    yield "connections, a run, a load, s", f"{connections}, 0.04, {max(load for _, load, _ in found):.2f}", None, None
    yield "a second copy after, in load times: median", share(times, 0.5), None, None
    yield "the longest", times[-1], 2, "<="
    yield "failed", sum(len(failed) for _, _, failed in found), 0, "<="


# ---- The page --------------------------------------------------------------------------------------------------------


def page(options, folder):
    count = 100 if options.quick else 1000
    repository = os.path.join(folder, "models")
    names = [f"team/resnet50-v1-{number:04}" for number in range(count)]
    for name in names:
        harness.add_identity(repository, name)
    server = server_of(options, repository, folder, "--memory-limit", "cpu=1GiB")
    server.start()
    try:
        client, metrics = Client(server.port), Client(server.metrics_port)
        for name in names:
            infer(client, name.replace("/", "%2F"), IDENTITY)

        def scrape(path="/metrics"):
            begin = time.perf_counter()
            status, body = metrics.call("GET", path)
            if status != 200:
                raise Died(f"{path}: {status}")
            return (time.perf_counter() - begin) * 1e3, len(body)

        scrape()
        took, sizes = zip(*(scrape() for _ in range(100)))
        each = scrape("/metrics?models=all")
        before, begin, rounds = harness.cpu_seconds(server.process.pid), time.perf_counter(), 10 if options.quick else 60
        for second in range(rounds):
            scrape()
            time.sleep(max(0, begin + second + 1 - time.perf_counter()))
        busy = (harness.cpu_seconds(server.process.pid) - before) / (time.perf_counter() - begin)
        idle = harness.cpu_seconds(server.process.pid)
        begin = time.perf_counter()
        time.sleep(rounds)
        idle = (harness.cpu_seconds(server.process.pid) - idle) / (time.perf_counter() - begin)
    finally:
        server.stop()
    yield "models in memory", f"{count}", None, None
    yield "the page, kB", max(sizes) / 1e3, 200, "<="
    yield "the page: p50, ms", share(sorted(took), 0.5), 10, "<="
    yield "the page: p99, ms", share(sorted(took), 0.99), None, None
    yield "each model: ms, kB", f"{each[0]:.1f}, {each[1] / 1e3:.0f}", None, None
    yield "a scrape a second: % of a core, above none", (busy - idle) * 100, 0.5, "<="
    yield "without any: % of a core", idle * 100, None, None


if __name__ == "__main__":
    sys.exit(run({part: globals()[part] for part in PARTS}, __doc__))
