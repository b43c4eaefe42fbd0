"""The server over S3: SeaweedFS with the example models as archives, as plain objects and as a bare file."""

import contextlib
import json
import shutil
import threading

import pytest
import requests
from harness import (
    EXAMPLES,
    MODELS,
    assert_same,
    binary,
    expected,
    inputs_of,
    json_outputs,
    json_request,
    running_server,
)
from s3 import FORMS, Store, pack


@contextlib.contextmanager
def server_of(store, folder, *arguments):
    """A server over the store, with its cache below `folder`, that forgets at once which models are not there."""
    flags = ["--cache-dir", folder / "cache", "--load-retry-ms", "0", *arguments]
    with running_server(store.uri, folder, *flags, environment=store.environment) as server:
        yield server


@pytest.fixture(scope="module")
def s3(store, tmp_path_factory):
    with server_of(store, tmp_path_factory.mktemp("s3")) as server:
        yield server


def infer(server, model, inputs=None):
    request = json_request(inputs or inputs_of(model, 1))
    return requests.post(f"http://{server.http}/v2/models/{model}/infer", json=request, timeout=30)


def doubled_or_tripled(server, model):
    """What a model that is a version of `scale` multiplies with, or the status of its refusal."""
    answer = requests.post(f"http://{server.http}/v2/models/{model}/generate", json={"x": [1]}, timeout=30)
    return answer.json()["y"] if answer.ok else answer.status_code


def order(server, model, what):
    """POST .../load or .../unload."""
    return requests.post(f"http://{server.http}/v2/repository/models/{model}/{what}", timeout=30)


def rows(server):
    answer = requests.get(f"http://{server.http}/v1/residency", timeout=10)
    return {row["name"]: row for row in answer.json()["models"]}


def put_scale(store, key, version, folder):
    """Uploads one version of `scale` (1 doubles, 2 triples) as the archive `key`."""
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(EXAMPLES / "scale" / version, model / "1")
    pack(binary(), model, folder / key)
    store.put(key, (folder / key).read_bytes())


@pytest.mark.parametrize("model", MODELS)
def test_a_model_from_s3_answers_as_it_does_from_a_folder(s3, model):
    inputs = inputs_of(model, 3)
    order(s3, model, "unload")
    answer = infer(s3, model, inputs)
    assert answer.status_code == 200, answer.text
    actual, wanted = json_outputs(answer.json()), expected(model, inputs)
    assert list(actual) == list(wanted)
    for name, array in wanted.items():
        assert_same(actual[name], array, f"{name} of {model}{FORMS[model]}")


@pytest.mark.parametrize("way", ["uri", "triton", "flag", "variable"])
def test_each_way_to_name_the_store_works(store, tmp_path, way):
    host = f"127.0.0.1:{store.port}"
    uri = {"uri": store.uri, "triton": f"s3://{host}/models"}.get(way, "s3://models")
    flags = ["--s3-endpoint", f"http://{host}"] if way == "flag" else []
    environment = store.environment | ({"AWS_ENDPOINT_URL": f"http://{host}"} if way == "variable" else {})
    flags += ["--cache-dir", tmp_path / "cache"]
    with running_server(uri, tmp_path, *flags, environment=environment) as server:
        answer = infer(server, "iris")
        assert answer.ok, answer.text


def test_headers_say_where_a_model_was_from_s3_to_memory(store, tmp_path):
    with server_of(store, tmp_path) as server:
        cold = infer(server, "digits")
        assert cold.headers["x-model-state"] == "remote" and int(cold.headers["x-load-ms"]) > 0
        warm = infer(server, "digits")
        assert (warm.headers["x-model-state"], warm.headers["x-load-ms"]) == ("device", "0")
        assert order(server, "digits", "unload").status_code == 200
        assert infer(server, "digits").headers["x-model-state"] == "disk"
        assert server.metric("roundhouse_fetches_total", 'outcome="ok"') == 1
        assert server.metric("roundhouse_model_loads_by_source_total", 'source="remote"') == 1
        assert server.metric("roundhouse_model_loads_by_source_total", 'source="disk"') == 1


def test_a_changed_object_is_swapped_in_by_a_load_and_no_request_fails(store, s3, tmp_path):
    put_scale(store, "changing.tar.zst", "1", tmp_path)
    assert doubled_or_tripled(s3, "changing") == 2
    seen, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            seen.append(doubled_or_tripled(s3, "changing"))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        loads = s3.model_loads()
        assert order(s3, "changing", "load").status_code == 200
        assert s3.model_loads() == loads, "what has not changed is not loaded anew"
        put_scale(store, "changing.tar.zst", "2", tmp_path)
        assert order(s3, "changing", "load").status_code == 200
        assert doubled_or_tripled(s3, "changing") == 3
    finally:
        stop.set()
        asking.join()
    assert set(seen) <= {2, 3} and seen == sorted(seen), seen


def test_a_deleted_object_is_gone_with_the_next_look(store, s3, tmp_path):
    put_scale(store, "leaving.tar.gz", "1", tmp_path)
    assert doubled_or_tripled(s3, "leaving") == 2
    store.delete("leaving.tar.gz")
    assert doubled_or_tripled(s3, "leaving") == 2, "nothing looks before it is told to"
    assert order(s3, "leaving", "load").status_code == 404
    assert doubled_or_tripled(s3, "leaving") == 404
    assert "leaving" not in rows(s3)


def test_the_poll_sees_changes_and_deletions_by_itself(store, tmp_path):
    put_scale(store, "watched.tar", "1", tmp_path)
    with server_of(store, tmp_path, "--repository-poll-s", "1") as server:
        assert doubled_or_tripled(server, "watched") == 2
        put_scale(store, "watched.tar", "2", tmp_path)
        until(lambda: doubled_or_tripled(server, "watched") == 3)
        store.delete("watched.tar")
        until(lambda: doubled_or_tripled(server, "watched") == 404)


def until(is_so, attempts=200):
    for _ in range(attempts):
        if is_so():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it never came to be so")


def test_a_torn_archive_says_so_and_leaves_nothing(store, s3, tmp_path):
    put_scale(store, "torn.tar.gz", "1", tmp_path)
    store.put("torn.tar.gz", (tmp_path / "torn.tar.gz").read_bytes()[:-40])
    answer = order(s3, "torn", "load")
    assert answer.status_code == 400 and "torn" in answer.json()["error"], answer.text
    assert rows(s3)["torn"]["disk_bytes"] == 0 and rows(s3)["torn"]["reason"] != ""
    put_scale(store, "torn.tar.gz", "1", tmp_path)
    assert doubled_or_tripled(s3, "torn") == 2


def test_a_model_that_is_not_in_the_bucket_is_not_found(s3):
    answer = infer(s3, "nope", inputs_of("iris", 1))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_keys_that_are_refused_are_named_and_not_shown(store, tmp_path):
    wrong = {**store.environment, "AWS_SECRET_ACCESS_KEY": "another-secret"}
    with running_server(store.uri, tmp_path, "--cache-dir", tmp_path / "cache", environment=wrong) as server:
        answer = order(server, "iris", "load")
        assert answer.status_code == 500 and "credentials" in answer.json()["error"], answer.text
        assert "another-secret" not in answer.text + server.log()


# --- roundhouse models, and its documents -----------------------------------------------------------------------------


def test_the_command_lists_explains_pins_and_prefetches(s3):
    order(s3, "iris", "unload")
    s3.cli("load", "digits")
    table = s3.cli()
    assert "GB booked, disk" in table.splitlines()[0]
    [line] = [line for line in table.splitlines() if line.startswith("digits ")]
    assert line.split()[1:3] == ["cpu", "READY"], line
    s3.cli("pin", "digits")
    assert [line for line in s3.cli("list").splitlines() if line.startswith("digits ")][0].endswith("pinned")
    explained = s3.cli("explain", "digits")
    assert explained.startswith("digits: READY on cpu") and "pinned" in explained, explained
    document = json.loads(s3.cli("explain", "digits", "--json"))
    assert document["model"]["retention"] == "pinned" and document["expected_from"] == "measured"
    s3.cli("unpin", "digits")
    s3.cli("prefetch", "iris")
    assert rows(s3)["iris"]["disk_bytes"] > 0
    names = [model["name"] for model in json.loads(s3.cli("--json"))["models"]]
    assert {"digits", "iris"} <= set(names) and names == sorted(names)
    assert "nope" in s3.cli("pin", "nope", code=1)


def test_residency_follows_a_model_from_s3_to_memory_and_back_to_disk(s3):
    assert infer(s3, "text").ok
    row = rows(s3)["text"]
    assert (row["tier"], row["state"], row["versions"], row["device"]) == ("device", "READY", ["1"], "cpu")
    assert row["device_bytes"] > 0 and row["disk_bytes"] > 0 and len(row["fingerprint"]) > 8
    assert row["last_load"]["from"] in ("remote", "disk") and row["last_load"]["total_seconds"] > 0
    order(s3, "text", "unload")
    row = rows(s3)["text"]
    assert (row["tier"], row["device_bytes"], row["last_eviction"]["reason"]) == ("disk", 0, "unload")
    answer = requests.get(f"http://{s3.http}/v1/residency", timeout=10).json()
    disk = next(book for book in answer["books"] if book["tier"] == "disk")
    assert 0 < disk["booked_bytes"] <= disk["limit_bytes"]
    on_disk = sum(row["disk_bytes"] for row in answer["models"])
    assert disk["booked_bytes"] == on_disk, "the rows add up to the book"
    later = requests.get(f"http://{s3.http}/v1/residency?since={answer['generation']}", timeout=10).json()
    assert later["models"] == []


# --- ends -------------------------------------------------------------------------------------------------------------


def test_what_is_whole_on_disk_survives_a_killed_server(store, tmp_path):
    with server_of(store, tmp_path) as server:
        for model in MODELS:
            assert infer(server, model).ok
        fetched = server.metric("roundhouse_fetches_total", 'outcome="ok"')
        assert fetched == len(MODELS)
        server.kill()
    (tmp_path / "ports.json").unlink()
    with server_of(store, tmp_path) as server:
        assert {name: row["tier"] for name, row in rows(server).items()} == dict.fromkeys(MODELS, "disk")
        for model in MODELS:
            answer = infer(server, model)
            assert answer.headers["x-model-state"] == "disk", model
        assert server.metric("roundhouse_fetches_total") == 0


def test_a_cache_folder_has_one_server(store, s3, tmp_path):
    cache = s3.process.args[s3.process.args.index("--cache-dir") + 1]
    with pytest.raises(AssertionError, match=r"ended with 64[\s\S]*--cache-dir"):
        with running_server(store.uri, tmp_path, "--cache-dir", cache, environment=store.environment):
            pass


def test_while_s3_is_away_what_is_on_this_machine_answers(store, tmp_path):
    with Store(store.weed, tmp_path / "store") as own:
        for model in ("iris", "scale", "half"):
            own.put_folder(EXAMPLES / model, model)
        with server_of(own, tmp_path, "--fetch-timeout-ms", "1000") as server:
            assert infer(server, "iris").ok and infer(server, "scale").ok
            order(server, "scale", "unload")
            own.process.kill()
            own.process.wait()
            assert infer(server, "iris").headers["x-model-state"] == "device"
            answer = infer(server, "scale")
            assert answer.ok and answer.headers["x-model-state"] == "disk", answer.text
            answer = infer(server, "half")
            assert answer.status_code == 503 and "reached" in answer.json()["error"], answer.text
            assert "Retry-After" in answer.headers
            health = requests.get(f"http://{server.http}/v2/health/ready", timeout=10)
            assert health.status_code == 200
