"""Three instances behind HAProxy and behind Envoy, with the configurations of docker/: who answers, who is spared, who is missed."""

import contextlib
import http.client
import http.server
import json
import threading
import time
from collections import Counter

import numpy as np
import pytest
import tritonclient.grpc

import proxies
from harness import running_server
from proxies import TARGET, Envoy, HAProxy, Missing, get, wait_until

MODELS = [f"m{number:02}" for number in range(24)]
CONFIG = """backend: "identity"
input [ { name: "x", data_type: TYPE_FP32, dims: [ 1 ] } ]
output [ { name: "y", data_type: TYPE_FP32, dims: [ 1 ] } ]
"""
HOT = CONFIG + 'parameters: { key: "execute_delay_ms" value: { string_value: "40" } }\ninstance_group [ { count: 1 } ]\n'
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [7]}]})


# --- the fleet --------------------------------------------------------------------------------------------------------


class Instance:
    """One server, which can be killed and started again on the same port."""

    def __init__(self, repository, folder, *flags):
        self.repository, self.folder, self.flags = repository, folder, flags
        self.port = proxies.free_port()
        self.running = None

    def start(self):
        folder = self.folder / str(time.monotonic_ns())
        folder.mkdir(parents=True)
        environment = {"ROUNDHOUSE_LOG": "warn"}
        context = running_server(self.repository, folder, *self.flags, port=self.port, environment=environment)
        self.running = contextlib.ExitStack()
        self.server = self.running.enter_context(context)
        return self

    def kill(self):
        self.server.kill()
        self.stop()

    def stop(self):
        if self.running:
            self.running.close()
            self.running = None

    def resident(self):
        status, body = get(self.port, "/v1/residency")
        assert status == 200, body
        return {row["name"] for row in json.loads(body)["models"] if row["tier"] == "device"}


class Fleet:
    def __init__(self, repository, folder, *flags):
        self.instances = [Instance(repository, folder / f"instance-{number}", *flags).start() for number in range(3)]
        self.ports = [instance.port for instance in self.instances]
        # One that a proxy's first check finds starting has a slow start before it, and other models meanwhile.
        for port in self.ports:
            wait_until("the instance is ready", lambda: get(port, "/v2/health/ready")[0] == 200)

    def stop(self):
        for instance in self.instances:
            instance.stop()

    def holders(self, model):
        return [number for number, instance in enumerate(self.instances) if model in instance.resident()]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in [*MODELS, "team/a", "hot"]:
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(HOT if name == "hot" else CONFIG)
    return folder


@pytest.fixture
def fleet(repository, tmp_path):
    fleet = Fleet(repository, tmp_path)
    yield fleet
    fleet.stop()


@pytest.fixture(params=[HAProxy, Envoy], ids=["haproxy", "envoy"])
def proxy(request, fleet, tmp_path):
    with started(request.param, fleet.ports, tmp_path) as proxy:
        yield proxy


@contextlib.contextmanager
def started(kind, ports, folder):
    try:
        running = kind(ports, folder).__enter__()
    except Missing as missing:
        pytest.skip(str(missing))
    try:
        yield running
        assert running.alive()
    finally:
        running.__exit__()


def infer(port, model, by="path", told=None):
    """Status of one inference, named in the way a client may name it; 0 where the connection broke. `told` gets the tier that the
    model was on."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        path, headers = f"/v2/models/{model.replace('/', '%2F')}/infer", {}
        if by == "version":
            path = f"/v2/models/{model}/versions/1/infer"
        elif by == "header":
            path, headers = "/endpoints/any/invocations", {TARGET: model}
        connection.request("POST", path, BODY, headers)
        answer = connection.getresponse()
        body = answer.read()
        if told is not None and answer.status == 200:
            told.append(answer.getheader("x-model-state"))
        if answer.status == 200:
            assert json.loads(body)["outputs"][0]["data"] == [7]
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


class Load:
    """Clients that ask for one model after another until they are told to stop; what they got."""

    def __init__(self, port, models, clients=6):
        self.port, self.models, self.clients = port, models, clients
        self.stop, self.lock, self.statuses = threading.Event(), threading.Lock(), Counter()
        self.tiers = []

    def __enter__(self):
        self.threads = [threading.Thread(target=self.run, args=(client,)) for client in range(self.clients)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def run(self, client):
        turn = client
        while not self.stop.is_set():
            status = infer(self.port, self.models[turn % len(self.models)], told=self.tiers)
            turn += 1
            with self.lock:
                self.statuses[status] += 1

    def answered(self):
        with self.lock:
            return self.statuses[200]

    def cold(self):
        """Answers whose model was not in memory when they were asked for."""
        return len([tier for tier in list(self.tiers) if tier != "device"])

    def failed(self):
        with self.lock:
            return self.statuses.total() - self.statuses[200]

    def until_more(self, count):
        there = self.answered()
        wait_until(f"{count} more answers", lambda: self.answered() >= there + count)


# --- who answers ------------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_by_one_instance_however_it_is_named(fleet, proxy):
    ways = [(model, by) for model in MODELS for by in ("path", "version", "header", "path")]
    for model, by in [*ways, *(("team/a", by) for by in ("path", "version", "header"))]:
        assert infer(proxy.port, model, by) == 200, (model, by)
        # Answered is not counted off yet, and two that are not are a load that the next one is spared.
        wait_until("the proxy has no request", proxy.is_idle)
    holders = {model: fleet.holders(model) for model in [*MODELS, "team/a"]}
    # Envoy takes a path as it is written: a slash as %2F is a key of its own there.
    most = 2 if proxy.name == "envoy" else 1
    assert all(len(numbers) == 1 for model, numbers in holders.items() if model != "team/a"), holders
    assert 1 <= len(holders["team/a"]) <= most, holders
    # No instance is left out, and none has them all.
    shares = Counter(numbers[0] for numbers in holders.values())
    assert len(shares) == 3 and max(shares.values()) <= 18, shares


def test_grpc_clients_name_the_model_in_metadata(fleet, proxy):
    headers = {TARGET.lower(): "m01"}
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{proxy.port}") as client:
        tensor = tritonclient.grpc.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.array([7], np.float32))
        for _ in range(6):
            answer = client.infer("m01", [tensor], headers=headers, client_timeout=60)
            assert answer.as_numpy("y").tolist() == [7.0]
    assert infer(proxy.port, "m01") == 200
    assert len(fleet.holders("m01")) == 1


def test_a_model_too_hot_for_one_instance_is_served_by_a_second(fleet, proxy):
    assert infer(proxy.port, "hot") == 200
    assert len(fleet.holders("hot")) == 1
    with Load(proxy.port, ["hot"], clients=12) as load:
        wait_until("a second instance has the hot model", lambda: len(fleet.holders("hot")) >= 2)
        load.until_more(24)
    assert load.failed() == 0, load.statuses


# --- who is missed ----------------------------------------------------------------------------------------------------


def test_an_instance_that_is_killed_costs_no_more_than_what_it_held(fleet, proxy):
    with Load(proxy.port, MODELS) as load:
        load.until_more(3 * len(MODELS))
        victim = fleet.instances[1]
        assert victim.resident(), "it has models of its own"
        victim.kill()
        load.until_more(3 * len(MODELS))
        wait_until("the proxy knows", lambda: not proxy.states()[1])
        at_the_kill = load.failed()
        assert at_the_kill <= load.clients, load.statuses
        load.until_more(3 * len(MODELS))
        victim.start()
        wait_until("the proxy knows that it is back", lambda: all(proxy.states()))
        wait_until("it has its models again", lambda: len(victim.resident()) >= 3)
        load.until_more(3 * len(MODELS))
    assert load.failed() == at_the_kill, load.statuses


def test_an_instance_that_stops_in_order_fails_no_request(fleet, proxy):
    with Load(proxy.port, MODELS) as load:
        load.until_more(2 * len(MODELS))
        fleet.instances[2].stop()
        load.until_more(3 * len(MODELS))
    assert load.failed() == 0, load.statuses


# --- who is tried next ------------------------------------------------------------------------------------------------


class Refusing(http.server.BaseHTTPRequestHandler):
    """Says that it is ready, and answers every inference with a status."""

    protocol_version = "HTTP/1.1"
    status, refused = 503, []

    def do_GET(self):
        self.answer(200, b"")

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.refused.append(self.path)
        self.answer(self.status, b'{"error":"no room","code":"out_of_device_memory"}')

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self):
        # A proxy that has had enough closes as it likes.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_):
        pass


@pytest.fixture(params=[503, 429])
def refusing(request):
    handler = type("Handler", (Refusing,), {"status": request.param, "refused": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1], handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("kind", [HAProxy, Envoy], ids=["haproxy", "envoy"])
def test_no_room_here_is_tried_on_the_next_and_a_full_queue_is_not(fleet, refusing, kind, tmp_path):
    port, handler = refusing
    with started(kind, [fleet.ports[0], port, fleet.ports[2]], tmp_path) as proxy:
        answers = {model: infer(proxy.port, model) for model in MODELS}
        refused = {path.split("/")[3] for path in handler.refused}
        assert refused, "some models are at home where they are refused"
        expected = 200 if handler.status == 503 else 429
        assert {model: answers[model] for model in refused} == dict.fromkeys(refused, expected), handler.refused
        assert all(answers[model] == 200 for model in MODELS if model not in refused), answers
        if handler.status == 503:
            # The next on the ring is the same each time: there is one copy.
            again = {model: infer(proxy.port, model) for model in refused}
            assert set(again.values()) == {200}
            assert all(len([1 for number in (0, 2) if model in fleet.instances[number].resident()]) == 1 for model in refused)
