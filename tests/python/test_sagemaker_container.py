"""The contract of SageMaker's containers, spoken as its platform speaks it; and the acceptance list of the front doors.

The names begin with the entry of the list that they hold: A01 is the dialogue of Triton's own tests for SageMaker.
"""

import ast
import collections
import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import threading
import time
import zlib

import numpy as np
import pytest
from harness import ROOT, assert_same, expected, inputs_of, running_server
from sagemaker import (
    ATTRIBUTES,
    BINARY,
    MIB,
    TARGET,
    call,
    container,
    example,
    floats,
    identity,
    in_thread,
    json_body,
    made,
    onnx,
    path_of,
    slow,
    slow_to_load,
    sums,
    triton_body,
    triton_result,
    weighing,
)

HASH = "c81e728d9d4c2f636f067f89cc14862c" * 2
VECTOR = identity({"x": ("FP32", [-1])})


@pytest.fixture(scope="module")
def multi(tmp_path_factory):
    with container(tmp_path_factory.mktemp("container")) as platform:
        yield platform


@pytest.fixture
def empty(multi):
    """The container without any model in it."""
    yield multi
    for name in multi.names():
        multi.delete(name)
    assert (multi.names(), multi.booked()) == ([], 0)
    shutil.rmtree(multi.root)
    multi.root.mkdir()


def assert_answers(platform, name, values=(1, 2, 3)):
    answer = platform.invoke(name, floats(*values))
    assert answer.status == 200, answer
    assert (answer.json["model_name"], answer.json["outputs"][0]["data"]) == (name, list(values))


def assert_refused(answer, *status, text=""):
    assert answer.status in status, answer
    assert answer.json["error"] and answer.json["code"] and text in answer.json["error"], answer


def weighs(platform, name, number):
    """Whether the model is the one with weights of that number."""
    answer = platform.invoke(name, {"index": np.array([5])})
    assert answer.status == 200, answer
    return np.float32(answer.json["outputs"][0]["data"][0]) == made.lookup_value(number, 5)


# --- the dialogue -----------------------------------------------------------------------------------------------------


def test_A01_the_dialogue_of_tritons_own_tests_has_the_codes_of_the_contract(empty):
    m1, m2 = empty.place(sums(), "m1"), empty.place(example("identity"), "m2", "identity")
    answer = empty.load("m1", m1)
    assert (answer.status, answer.body) == (200, b"")
    assert_refused(empty.load("m1", m1), 409)
    assert empty.load("m2", m2).status == 200
    rows = [{"modelName": "m1", "modelUrl": m1}, {"modelName": "m2", "modelUrl": m2}]
    listing = empty.call("GET", "/models")
    assert (listing.status, listing.json) == (200, {"models": rows})
    assert (empty.get("m1").status, empty.get("m1").json) == (200, rows[0])

    numbers = {"INPUT0": np.arange(16, dtype=np.int32)[None], "INPUT1": np.full((1, 16), 7, np.int32)}
    answer = empty.invoke("m1", numbers)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    result = triton_result(answer.body, answer.headers["Content-Type"])
    assert_same(result.as_numpy("OUTPUT0"), numbers["INPUT0"] + numbers["INPUT1"])
    assert_same(result.as_numpy("OUTPUT1"), numbers["INPUT0"] - numbers["INPUT1"])

    inputs = inputs_of("identity", 3)
    body, content_type = triton_body(inputs, ["OUTPUT0"])
    answer = empty.call("POST", "/models/m2/invoke", body, {"Content-Type": content_type})
    assert answer.status == 200 and answer.headers["Content-Type"].startswith(BINARY), answer
    assert_same(triton_result(answer.body, answer.headers["Content-Type"]).as_numpy("OUTPUT0"), inputs["INPUT0"])

    for name in ("m1", "m2"):
        assert empty.delete(name).status == 200
        assert_refused(empty.get(name), 404)
        assert_refused(empty.delete(name), 404)
        assert_refused(empty.invoke(name, inputs), 404)
    assert_refused(empty.delete("unknown"), 404)
    assert empty.call("GET", "/models").json == {"models": []}


@pytest.mark.parametrize("at_load", ["absent", "archive.tar.gz", "team a/größe.tar.gz"])
@pytest.mark.parametrize("at_invoke", ["absent", "archive.tar.gz", "another"])
def test_the_models_name_is_the_key_and_the_target_header_is_for_people(empty, at_load, at_invoke):
    def header(value):
        return {} if value == "absent" else {TARGET: value.encode()}

    url = empty.place(VECTOR, HASH, "inner")
    assert empty.load(HASH, url, header(at_load)).status == 200
    assert empty.names() == [HASH]
    answer = empty.invoke(HASH, floats(1), header(at_invoke))
    assert answer.status == 200 and answer.json["model_name"] == HASH, answer
    assert empty.call("DELETE", path_of(HASH), headers=header(at_invoke)).status == 200


def test_A01_an_ensemble_comes_with_the_models_of_its_steps_and_goes_with_them(empty):
    """A model made of other models: loaded, listed and unloaded as one, under the name that the platform gave it."""
    url = empty.place(VECTOR, "e", "step")
    config = """platform: "ensemble" input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
        output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }
        ensemble_scheduling { step { model_name: "step" model_version: -1
        input_map { key: "x" value: "x" } output_map { key: "x_out" value: "y" } } }"""
    made.put(f"{url}/whole/config.pbtxt", config.encode())
    made.put(f"{url}/whole/1/keep", b"")
    answer = empty.load("e", url, {TARGET: "ensemble.tar.gz"})
    assert answer.status == 200, answer
    assert empty.names() == ["e"]
    assert empty.invoke("e", floats(1), {TARGET: "ensemble.tar.gz"}).status == 200
    assert empty.call("DELETE", path_of("e"), headers={TARGET: "ensemble.tar.gz"}).status == 200
    assert empty.names() == []
    assert_refused(empty.get("e"), 404)


def test_an_ensemble_that_lacks_a_step_is_refused_with_its_name_and_leaves_nothing(empty):
    url = empty.place(VECTOR, "e", "step")
    config = 'platform: "ensemble"\nensemble_scheduling { step [ { model_name: "step" model_version: -1 } ] }\n'
    made.put(f"{url}/whole/config.pbtxt", config.encode())
    answer = empty.load("e", url, {TARGET: "ensemble.tar.gz"})
    assert_refused(answer, 400, text="ensemble")
    assert empty.names() == []
    assert_refused(empty.get("e"), 404)


@pytest.mark.parametrize(
    "count, limit", [(0, None), (1, 1), (100, None), (101, None), (250, None), (250, 7), (250, 10_000)]
)
def test_A03_the_list_comes_in_pages_by_name(empty, count, limit):
    url = empty.place(VECTOR, "shared")
    names = sorted(f"model-{number * 7919 % 1000:03}" for number in range(count))
    for name in reversed(names):
        assert empty.load(name, url).status == 200
    assert empty.names() == names
    assert [row["modelName"] for row in empty.listed(limit)] == names
    first = empty.call("GET", f"/models?limit={limit}" if limit else "/models").json
    size = limit or 100
    assert len(first["models"]) == min(count, size)
    assert ("nextPageToken" in first) == (count > size), "no token says that this was the last page"


def test_A03_pages_go_on_while_models_come_and_go(empty):
    url = empty.place(VECTOR, "shared")
    for number in range(6):
        empty.load(f"m{number}", url)
    first = empty.call("GET", "/models?limit=3").json
    for name in ("m1", "m2", "m3"):
        assert empty.delete(name).status == 200
    empty.load("m0a", url)
    rest = empty.call("GET", f"/models?limit=3&next_page_token={first['nextPageToken']}").json
    assert [row["modelName"] for row in rest["models"]] == ["m4", "m5"] and "nextPageToken" not in rest


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=10001", "limit=x", "limit=", "limit=99999999999999999999"]
)
def test_a_page_of_no_possible_size_is_refused(multi, query):
    assert_refused(multi.call("GET", f"/models?{query}"), 400, text="limit")


def test_a_token_that_is_none_of_ours_does_no_harm(multi):
    for token in ("x", "2", "%00", "%ff", "..%2f..", "a" * 5000):
        answer = multi.call("GET", f"/models?next_page_token={token}")
        assert answer.status in (200, 400), answer


# --- names and layouts ------------------------------------------------------------------------------------------------

NAMES = [
    "plain",
    "with-hyphen",
    "dots.and_more.tar.gz",
    HASH,
    "folder/within.tar.gz",
    "a/b/c",
    "blank and %",
    "größe",
    "q?x=1#y",
    "n" * 1024,
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:20])
def test_A04_any_name_that_is_a_key_works_when_it_is_escaped(empty, name):
    url = empty.place(VECTOR, "place", "inner")
    assert empty.load(name, url).status == 200
    assert empty.names() == [name]
    assert empty.get(name).json == {"modelName": name, "modelUrl": url}
    assert_answers(empty, name)
    assert empty.delete(name).status == 200
    assert_refused(empty.get(name), 404)


BAD_NAMES = ["", ".", "..", "../x", "a/../b", "/a", "a//b", "a/", "a\\b", "a\x00b", "a\nb", "n" * 1025]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name[:20]))
def test_a_name_that_could_be_a_way_out_is_refused(empty, name):
    url = empty.place(VECTOR, "place")
    assert_refused(empty.load(name, url), 400)
    ways = (("GET", ""), ("DELETE", ""), ("POST", "/invoke")) if name else ()
    for method, path in ways:
        answer = empty.call(method, path_of(name) + path, b"{}" if method == "POST" else b"")
        assert answer.status in (400, 404), answer
    assert empty.names() == []


@pytest.mark.parametrize(
    "path",
    ["/models/../ping/invoke", "/models/%2e%2e/invoke", "/models/..%2fx/invoke", "/models/%ff/invoke", "/models/%00"],
)
def test_a_path_that_climbs_finds_nothing(multi, path):
    answer = multi.call("POST" if path.endswith("invoke") else "GET", path, b"")
    assert answer.status in (400, 404), answer


def test_A04_each_layout_of_an_archive_is_found(empty):
    folder = empty.root
    example("add_sub")(folder / "named/model/add_sub")
    example("add_sub")(folder / "root/model")
    example("add_sub")(folder / "url/model/sub")
    example("add_sub")(folder / "other/model/sentence")
    (folder / "other/model/sentence/config.pbtxt").write_text(
        (folder / "other/model/sentence/config.pbtxt").read_text().replace('"add_sub"', '"sentence_onnx"')
    )
    example("iris")(folder / "bare/model/iris")
    (folder / "file/model").mkdir(parents=True)
    shutil.copy(folder / "bare/model/iris/1/model.onnx", folder / "file/model/model.onnx")
    layouts = {
        "a-folder-of-its-name": ("add_sub", "named/model"),
        "the-folder-itself": ("add_sub", "root/model"),
        "its-folder-named": ("add_sub", "url/model/sub"),
        "a-slash-behind": ("add_sub", "root/model/"),
        "dots-within": ("add_sub", "root/./model"),
        "another-name-in-its-configuration": ("add_sub", "other/model"),
        "no-configuration": ("iris", "bare/model"),
        "no-version-folder": ("iris", "file/model"),
    }
    for name, (model, place) in layouts.items():
        answer = empty.load(name, f"{folder}/{place}")
        assert answer.status == 200, (name, answer)
    for name, (model, place) in layouts.items():
        inputs = inputs_of(model, 3)
        answer = empty.invoke(name, inputs)
        assert answer.status == 200 and answer.json["model_name"] == name, (name, answer)
        result = triton_result(answer.body, "application/json")
        for output, array in expected(model, inputs).items():
            assert_same(result.as_numpy(output), array, f"{output} of {name}")
        assert empty.get(name).json["modelUrl"] == f"{folder}/{place}", "the url comes back as it was given"


def test_two_archives_with_the_same_names_inside_are_two_models(empty):
    for number in range(2):
        empty.put(f"m{number}", weighing(1, number), "model_a")
    for number in range(2):
        assert weighs(empty, f"m{number}", number)


# --- loads that are refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "null", "{}", '{"model_name":"x"}', '{"url":"/x"}', '{"model_name":1,"url":"/x"}',
     '{"model_name":"x","url":null}', '{"model_name":"x","url":["/x"]}', "[" * 10_000, b"\xff", "\x00"],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_a_load_that_is_no_such_request_is_refused(multi, body):
    assert_refused(multi.call("POST", "/models", body), 400)
    assert multi.names() == []


def test_a_load_may_say_more_than_it_must_under_any_content_type(empty):
    url = empty.place(VECTOR)
    body = json.dumps({"url": url, "model_name": "m", "more": {"than": ["asked"]}})
    assert empty.call("POST", "/models", body, {"Content-Type": "text/plain"}).status == 200


def test_a_load_request_has_a_limit(multi):
    body = json.dumps({"model_name": "x", "url": "/" + "x" * (3 << 19)})
    assert_refused(multi.call("POST", "/models", body), 413)


@pytest.mark.parametrize(
    "place", ["outside", "root-itself-above", "climbs", "relative", "uri", "link", "proc", "dev", "empty"]
)
def test_what_lies_outside_the_roots_is_not_loaded(empty, tmp_path, place):
    VECTOR(tmp_path / "outside/model")
    inside = empty.place(VECTOR, "inside")
    (empty.root / "link").symlink_to(tmp_path / "outside/model")
    url = {
        "outside": f"{tmp_path}/outside/model",
        "root-itself-above": str(empty.root.parent),
        "climbs": f"{empty.root}/../../{tmp_path.name}/outside/model",
        "relative": "inside/model",
        "uri": f"file://{inside}",
        "link": f"{empty.root}/link",
        "proc": "/proc/self/cwd",
        "dev": "/dev",
        "empty": "",
    }[place]
    answer = empty.load("x", url)
    assert_refused(answer, 400)
    assert empty.names() == []


def test_what_is_not_there_is_not_found(empty):
    answer = empty.load("x", f"{empty.root}/nowhere/model")
    assert_refused(answer, 404)
    assert_refused(empty.get("x"), 404)


def no_model(folder):
    (folder / "photos").mkdir(parents=True)
    (folder / "photos/cat.png").write_bytes(b"\x89PNG")


def two_models(folder):
    VECTOR(folder / "a")
    VECTOR(folder / "b")


def torn(folder):
    example("digits")(folder)
    file = folder / "1/model.onnx"
    file.write_bytes(file.read_bytes()[:-40])


def not_onnx(folder):
    onnx(b"not a model" * 100)(folder)


def unknown_backend(folder):
    VECTOR(folder)
    (folder / "config.pbtxt").write_text('backend: "no such backend"')


def not_a_configuration(folder):
    VECTOR(folder)
    (folder / "config.pbtxt").write_text("max_batch_size: {")


def contradicts_itself(folder):
    example("digits")(folder)
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: [ 10 ]", "dims: [ 11 ]"))


BROKEN = [no_model, two_models, torn, not_onnx, unknown_backend, not_a_configuration, contradicts_itself]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda model: model.__name__)
def test_a_folder_without_a_model_that_starts_is_refused_and_forgotten(empty, broken):
    empty.put("other", VECTOR)
    before = empty.booked()
    url = empty.place(broken, "broken")
    for _ in range(2):
        assert_refused(empty.load("broken", url), 400, 501)
        assert_refused(empty.get("broken"), 404)
        assert_refused(empty.invoke("broken", floats(1)), 404)
        assert_refused(empty.delete("broken"), 404)
    assert (empty.names(), empty.booked()) == (["other"], before)
    assert empty.load("broken", empty.place(VECTOR, "mended")).status == 200, "the name is free for a better url"
    assert_answers(empty, "broken")
    assert_answers(empty, "other")


def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(empty):
    url = empty.place(VECTOR, "pipe")
    (empty.root / "pipe/model/config.pbtxt").unlink()
    os.mkfifo(empty.root / "pipe/model/config.pbtxt")
    try:
        assert_refused(empty.load("pipe", url, timeout=10), 400)
    finally:
        # Whoever reads it is let go.
        with contextlib.suppress(OSError):
            os.close(os.open(empty.root / "pipe/model/config.pbtxt", os.O_WRONLY | os.O_NONBLOCK))


def test_models_that_came_and_went_leave_no_row_behind(empty):
    """The platform's names are hashes: there are always new ones."""
    good, bad = empty.place(VECTOR, "good"), empty.place(no_model, "bad")
    before = residency_names(empty)
    for number in range(20):
        assert empty.load(f"came-{number}", good).status == 200
        assert empty.delete(f"came-{number}").status == 200
        assert_refused(empty.load(f"failed-{number}", bad), 400)
        assert_refused(empty.invoke(f"never-{number}", floats(1)), 404)
    assert residency_names(empty) == before


def residency_names(platform):
    answer = call(platform.server.http, "GET", "/v1/residency?limit=1000").json
    return {row["name"] for row in answer["models"]}


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tight(tmp_path_factory):
    """A container with memory for two models of 16 MiB."""
    with container(tmp_path_factory.mktemp("tight"), "--memory-limit", "cpu=40MiB") as platform:
        platform.urls = {name: platform.place(weighing(16, number), name) for number, name in enumerate("abcd")}
        platform.urls["large"] = platform.place(weighing(64), "large")
        yield platform


@pytest.fixture
def full(tight):
    """The same with `a` and `b` in it."""
    for name in "ab":
        assert tight.load(name, tight.urls[name]).status == 200
    yield tight
    for name in tight.names():
        tight.delete(name)
    assert tight.booked() == 0


def test_A08_a_load_without_room_is_507_with_the_numbers_of_the_book(full):
    answer = full.load("c", full.urls["c"])
    assert_refused(answer, 507)
    assert answer.json["code"] == "out_of_device_memory"
    reason = answer.json["reason"]
    assert set(reason) == {"need", "free", "evictable", "pinned"} and all(
        type(value) is int for value in reason.values()
    )
    assert reason["need"] > 16 * MIB > reason["free"] and reason["evictable"] >= 32 * MIB and reason["pinned"] == 0
    assert full.names() == ["a", "b"], "SageMaker picks the victim"
    assert_refused(full.get("c"), 404)
    assert full.delete("a").status == 200
    assert full.load("c", full.urls["c"]).status == 200
    assert weighs(full, "c", 2)


def test_A09_what_can_never_fit_is_400_and_nobody_leaves_for_it(full):
    for _ in range(3):
        answer = full.load("large", full.urls["large"])
        assert_refused(answer, 400)
        assert answer.json["code"] == "out_of_device_memory", answer
        assert full.names() == ["a", "b"]
    assert full.server.metric("roundhouse_evictions_total", 'reason="room"') == 0


def test_the_memory_is_back_when_delete_answers(full):
    for name in "ab" * 3:
        before = full.booked()
        begin = time.monotonic()
        assert full.delete(name).status == 200
        took = time.monotonic() - begin
        assert full.booked() <= before - 16 * MIB, "in the book when the platform hears of it"
        assert took < 1, "an idle model goes at once, not at the next look"
        assert full.load(name, full.urls[name]).status == 200


# --- many at once -----------------------------------------------------------------------------------------------------


def test_of_many_loads_of_one_name_one_loads_and_the_others_hear_so(empty):
    url, loads = empty.place(slow_to_load()), empty.server.model_loads()
    answers = [in_thread(empty.load, "m", url) for _ in range(8)]
    assert sorted(answer().status for answer in answers) == [200] + [409] * 7
    assert empty.server.model_loads() == loads + 1


def test_of_many_loads_of_what_is_broken_each_hears_why(empty):
    url = empty.place(not_onnx)
    for _ in range(20):
        answers = [in_thread(empty.load, "m", url) for _ in range(8)]
        for answer in [answer() for answer in answers]:
            assert_refused(answer, 400, text="ONNX")
    assert empty.names() == []


def test_a_loaded_name_keeps_its_url_whatever_else_is_asked_for(empty):
    first, second = empty.place(VECTOR, "first"), empty.place(example("scale"), "second")
    assert empty.load("m", first).status == 200
    assert_refused(empty.load("m", second), 409)
    assert empty.get("m").json["modelUrl"] == first
    assert_answers(empty, "m")
    assert empty.delete("m").status == 200 and empty.load("m", second).status == 200
    assert empty.get("m").json["modelUrl"] == second


def test_loads_unloads_and_invocations_of_one_name_at_the_same_time_keep_to_the_contract(empty):
    url, stop, wrong = empty.place(VECTOR), threading.Event(), collections.Counter()

    def keep(what, ask, allowed):
        def run():
            while not stop.is_set():
                answer = ask()
                if answer.status not in allowed:
                    wrong[what, answer.status, answer.body] += 1
                elif what == "describe" and answer.status == 200 and answer.json["modelUrl"] != url:
                    wrong[what, answer.body] += 1
            return True

        return in_thread(run)

    asking = [keep("load", lambda: empty.load("m", url), {200, 409}) for _ in range(2)]
    asking += [keep("delete", lambda: empty.delete("m"), {200, 404}) for _ in range(2)]
    asking += [keep("invoke", lambda: empty.invoke("m", floats(1)), {200, 404})]
    asking += [keep("describe", lambda: empty.get("m"), {200, 404})]
    threading.Event().wait(3)
    stop.set()
    assert all(ended() for ended in asking)
    assert wrong == {}
    assert empty.load("m", url).status in (200, 409)
    assert_answers(empty, "m")
    assert empty.get("m").json["modelUrl"] == url
    assert empty.delete("m").status == 200
    assert empty.get("m").status == 404


def test_delete_during_a_load_and_the_load_agree_on_who_won(empty):
    url = empty.place(slow_to_load())
    load = in_thread(empty.load, "m", url)
    deleted = []
    while "m" not in deleted:
        answer = empty.delete("m")
        assert answer.status in (200, 404), answer
        if answer.status == 200:
            break
        if empty.get("m").status == 200:
            deleted.append("m")
    status = load().status
    if answer.status == 200:
        assert empty.get("m").status == 404, status
    else:
        assert status == 200 and empty.get("m").status == 200


def test_invoke_during_a_load_finds_no_model_and_does_not_disturb_it(empty):
    chain = {"x": np.ones((1, 16), np.float32)}
    load = in_thread(empty.load, "m", empty.place(slow_to_load()))
    seen = {empty.invoke("m", chain).status for _ in range(20)}
    assert load().status == 200
    assert seen <= {200, 404}, seen
    assert empty.invoke("m", chain).status == 200


def test_delete_waits_for_the_invocations_that_run_and_lets_no_more_in(empty):
    empty.put("m", slow(700))
    running = in_thread(empty.invoke, "m", floats(1))
    threading.Event().wait(0.2)
    deleted = in_thread(empty.delete, "m")
    threading.Event().wait(0.1)
    late = empty.invoke("m", floats(2))
    assert running().status == 200, "what runs already comes to its end"
    assert deleted().status == 200
    assert late.status in (404, 503), late
    assert_refused(empty.get("m"), 404)


def test_loads_and_unloads_disturb_no_invocation_of_another_model(empty):
    empty.put("stays", VECTOR)
    urls = [empty.place(weighing(4, number), f"w{number}") for number in range(4)]
    stop, statuses = threading.Event(), []

    def ask():
        while not stop.is_set():
            statuses.append(empty.invoke("stays", floats(1)).status)

    asking = in_thread(ask)
    for _ in range(5):
        for number, url in enumerate(urls):
            assert empty.load(f"w{number}", url).status == 200
        for number in range(4):
            assert empty.delete(f"w{number}").status == 200
    stop.set()
    with pytest.raises(AssertionError, match="never"):
        asking()
        raise AssertionError("never")
    assert len(statuses) > 20 and set(statuses) == {200}


def test_A19_ping_answers_at_once_while_eight_models_load(empty):
    urls = [empty.place(slow_to_load(1000), f"m{number}") for number in range(8)]
    loads = [in_thread(empty.load, f"m{number}", url) for number, url in enumerate(urls)]
    ended, longest, asked = in_thread(lambda: [load().status for load in loads]), 0, 0
    while len(empty.names()) < 8:
        begin = time.monotonic()
        answer = empty.call("GET", "/ping")
        longest, asked = max(longest, time.monotonic() - begin), asked + 1
        threading.Event().wait(0.02)
        assert (answer.status, answer.body) == (200, b"")
    assert ended() == [200] * 8
    assert asked >= 10 and longest < 2, (asked, longest)


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    with container(tmp_path_factory.mktemp("loaded")) as platform:
        platform.put("scale", example("scale"))
        platform.put("text", example("text"))
        platform.put("generate", identity({"x": ("FP32", [-1])}, inference_type="generate"))
        platform.put("stream", identity({"x": ("FP32", [-1])}, inference_type="generate_stream"))
        yield platform


def ask(platform, body, content_type=None, headers=None, model="scale"):
    headers = {**(headers or {}), **({"Content-Type": content_type} if content_type else {})}
    return platform.call("POST", f"/models/{model}/invoke", body, headers)


def doubled_or_tripled(answer):
    """What `scale` multiplied 1 and 2 with."""
    assert answer.status == 200, answer
    return list(triton_result(answer.body, answer.headers["Content-Type"]).as_numpy("y"))


JSON = json_body(floats(1, 2))
TAIL, TAIL_TYPE = triton_body(floats(1, 2), ["y"])
HEAD = int(TAIL_TYPE.removeprefix(BINARY))


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "application/octet-stream", "text/plain; charset=utf-8", "*/*", "nonsense"],
)
def test_json_is_read_under_any_content_type(loaded, content_type):
    answer = ask(loaded, JSON, content_type)
    assert doubled_or_tripled(answer) == [3, 6] and answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tensors_are_binary_where_the_request_says_so(loaded, binary_in, binary_out):
    body, content_type = triton_body(floats(1, 2), ["y"], binary_in, binary_out)
    answer = ask(loaded, body, content_type)
    assert doubled_or_tripled(answer) == [3, 6]
    assert answer.headers["Content-Type"].startswith(BINARY) == binary_out


@pytest.mark.parametrize("size", ["0", "00"])
def test_a_header_of_no_length_is_a_raw_tensor(loaded, size):
    body = np.array([1, 2], np.float32).tobytes()
    answer = ask(loaded, body, BINARY + size)
    assert doubled_or_tripled(answer) == [3, 6]


@pytest.mark.parametrize(
    "content_type",
    [
        *(BINARY + size for size in ("", "x", "-1", "1e2", "0x10", "8.5", "9" * 40)),
        *(BINARY + str(size) for size in (len(TAIL) + 1, 2**31, 2**64)),
        *(BINARY + str(HEAD + off) for off in (-1, 1, 7)),
        "x" + BINARY + str(HEAD),
        "application/json; " + BINARY + str(HEAD),
    ],
)  # fmt: skip
def test_a_header_size_that_lies_is_refused(loaded, content_type):
    assert_refused(ask(loaded, TAIL, content_type), 400)
    assert doubled_or_tripled(ask(loaded, TAIL, TAIL_TYPE)) == [3, 6]


def test_too_much_and_too_little_data_behind_the_header_is_refused(loaded):
    for body in (TAIL[:-1], TAIL + b"\0", TAIL[:HEAD]):
        assert_refused(ask(loaded, body, TAIL_TYPE), 400)


@pytest.mark.parametrize("encode, name", [(gzip.compress, "gzip"), (zlib.compress, "deflate")])
@pytest.mark.parametrize("body, content_type", [(JSON, None), (TAIL, TAIL_TYPE)], ids=["json", "binary"])
def test_compressed_bodies_are_understood(loaded, encode, name, body, content_type):
    answer = ask(loaded, encode(body), content_type, {"Content-Encoding": name})
    assert doubled_or_tripled(answer) == [3, 6]


def test_encodings_that_are_not_known_are_415_and_what_is_no_gzip_is_400(loaded):
    assert_refused(ask(loaded, JSON, headers={"Content-Encoding": "br"}), 415)
    whole = gzip.compress(JSON)
    for body in (b"", JSON, whole[:-9], whole[:12] + b"\xff" * 20):
        assert_refused(ask(loaded, body, headers={"Content-Encoding": "gzip"}), 400)
    bomb = gzip.compress(JSON[:-1] + b" " * 100_000_000)
    assert_refused(ask(loaded, bomb, headers={"Content-Encoding": "gzip"}), 400, 413)


@pytest.mark.parametrize(
    "body", ["", "{", "[[0.5]]", "5.1,3.5,1.4,0.2\n", "null", b"\x93NUMPY\x01\x00", b"\xff\xd8\xff\xe0", "[" * 10_000]
)
@pytest.mark.parametrize("content_type", ["text/csv", "application/json", "application/x-npy"])
def test_R7_bodies_of_other_servers_are_refused_clearly(loaded, body, content_type):
    assert_refused(ask(loaded, body, content_type), 400)


def test_custom_attributes_come_back(loaded):
    text = "c000b4f9-df62-4c85-a0bf-7c525f9104a4; trace=1"
    assert ask(loaded, JSON, headers={ATTRIBUTES: text}).headers[ATTRIBUTES] == text
    assert ATTRIBUTES not in ask(loaded, JSON).headers
    assert ask(loaded, JSON, headers={ATTRIBUTES: "c" * 1024}).headers[ATTRIBUTES] == "c" * 1024


def test_headers_that_nobody_knows_are_ignored(loaded):
    headers = {"X-Amzn-SageMaker-Something-New": "x", "X-Forwarded-For": "10.0.0.1", "Accept": "image/png"}
    assert doubled_or_tripled(ask(loaded, JSON, headers=headers)) == [3, 6]


def test_a_models_own_parameter_says_how_its_bodies_are_read(loaded):
    answer = ask(loaded, json.dumps({"x": [1, 2]}), model="generate")
    assert answer.status == 200 and answer.json["x_out"] == [1, 2] and answer.json["model_name"] == "generate", answer
    answer = ask(loaded, json.dumps({"x": [1, 2]}), model="stream")
    assert (answer.status, answer.headers["Content-Type"].split(";")[0]) == (200, "text/event-stream"), answer
    assert answer.body.startswith(b"data:") and answer.body.endswith(b"\n\n")
    assert json.loads(answer.body.removeprefix(b"data:"))["x_out"] == [1, 2]


@pytest.mark.parametrize("kind, body", [("generate", {"x": [1]}), ("generate-stream", {"x": [1]}), ("infer", None)])
def test_the_flag_says_how_bodies_are_read_of_models_that_do_not(tmp_path, kind, body):
    with container(tmp_path, "--sagemaker-inference-type", kind) as platform:
        platform.put("scale", example("scale"))
        platform.put("generate", identity({"x": ("FP32", [-1])}, inference_type="generate"))
        answer = ask(platform, json.dumps(body) if body else JSON)
        assert answer.status == 200, answer
        if kind == "infer":
            assert doubled_or_tripled(answer) == [3, 6]
        else:
            assert json.loads(answer.body.removeprefix(b"data:"))["y"] == 3
        assert ask(platform, json.dumps({"x": [7]}), model="generate").json["x_out"] == 7


# --- ways in ----------------------------------------------------------------------------------------------------------


def test_the_container_has_the_platforms_routes_and_no_other(multi):
    assert (multi.call("GET", "/ping").status, multi.call("GET", "/ping").body) == (200, b"")
    for method, path in (
        ("POST", "/ping"),
        ("PUT", "/models"),
        ("DELETE", "/models"),
        ("PUT", "/models/x"),
        ("GET", "/models/x/invoke"),
        ("GET", "/invocations"),
    ):
        answer = multi.call(method, path)
        assert answer.status in (404, 405), (method, path, answer)
    for path in (
        "/",
        "/models/x/y/z",
        "/v2/models/x/infer",
        "/v2/health/live",
        "/metrics",
        "/v1/residency",
        "/modelsx",
        "/ping/x",
    ):
        answer = multi.call("GET", path)
        assert answer.status in (404, 405), (path, answer)


def test_invocations_without_a_model_go_to_the_one_that_is_configured(tmp_path):
    VECTOR(tmp_path / "repository/first")
    example("scale")(tmp_path / "repository/scale")
    flags = ["--sagemaker-port", "0"]
    with running_server(tmp_path / "repository", tmp_path, *flags, "--sagemaker-model", "scale") as server:
        answer = call(server.sagemaker, "POST", "/invocations", JSON)
        assert doubled_or_tripled(answer) == [3, 6]
    (tmp_path / "ports.json").unlink()
    with running_server(tmp_path / "repository", tmp_path, *flags) as server:
        answer = call(server.sagemaker, "POST", "/invocations", JSON)
        assert_refused(answer, 400, 404)


def test_A20_at_sigterm_what_runs_comes_to_its_end(tmp_path):
    with container(tmp_path) as platform:
        platform.put("m", slow(1500))
        invocation = in_thread(platform.invoke, "m", floats(1, 2))
        load = in_thread(platform.load, "late", platform.place(slow_to_load(1500), "late"))
        threading.Event().wait(0.3)
        begin = time.monotonic()
        platform.server.process.send_signal(signal.SIGTERM)
        answer = invocation()
        assert answer.status == 200 and answer.json["outputs"][0]["data"] == [1, 2]
        assert load().status in (200, 503)
        assert platform.server.process.wait(timeout=30) == 0
        assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"POST /models HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
        b"POST /models/scale/invoke HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{",
        b"POST /models/scale/invoke HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /models/scale/invoke HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nContent-Type: %b9\r\n\r\n{" % BINARY.encode(),
        b"GET /ping HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 1_000_000 + b"\r\n\r\n",
    ],
    ids=["TLS", "no version", "hangs up", "negative", "no chunk", "short tail", "long header"],
)  # fmt: skip
def test_a_client_that_breaks_http_harms_nobody_else(loaded, sent):
    host, port = loaded.address.rsplit(":", 1)
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.settimeout(10)
            try:
                raw.sendall(sent)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(65536):
                    pass
            except TimeoutError:
                raise
            except OSError:
                pass  # it hung up before all of it was sent
    assert doubled_or_tripled(ask(loaded, JSON)) == [3, 6]


def test_a_thousand_refusals_leave_nothing_behind_and_tell_no_path(loaded):
    def held():
        process = f"/proc/{loaded.server.process.pid}"
        return len(os.listdir(f"{process}/fd")), len(os.listdir(f"{process}/task"))

    outside = json.dumps({"model_name": "x", "url": "/etc"})
    for warm in (True, False):
        files, threads = held()
        for _ in range(100):
            answers = [
                ask(loaded, "{"),
                ask(loaded, TAIL, BINARY + "x"),
                ask(loaded, JSON, model="nowhere"),
                loaded.call("POST", "/models", "{"),
                loaded.call("POST", "/models", outside),
                loaded.delete("nowhere"),
            ]
            assert [answer.status for answer in answers] == [400, 400, 404, 400, 400, 404]
            # What may be loaded from where is no secret from whoever may load.
            assert [str(loaded.root).encode() in answer.body for answer in answers] == [False] * 4 + [True, False]
        if not warm:
            files_after, threads_after = held()
            assert files_after <= files + 2 and threads_after <= threads + 2
    assert len(loaded.names()) == 4


# --- the acceptance list ----------------------------------------------------------------------------------------------

# What is held elsewhere: the file, and what to look for in it.
ELSEWHERE = {
    "A06": ("benches/compare/mme.py", "def unloads"),
    "A12": ("benches/compare/mme.py", "def patterns"),
    "A13": ("tests/it/s3/disk.rs", "a_model_that_is_larger_than_the_disk_cache_is_refused_and_evicts_nobody"),
    "A14": ("tests/it/s3/kill.rs", "a_server_killed_at_any_instant_leaves_whole_entries_and_starts_again"),
}
NOT_YET = {
    "A15": "metrics have our own names, not CloudWatch's",
    "A16": "there is no Python backend whose process could be killed",
}


def test_each_entry_of_the_acceptance_list_has_a_test_or_a_reason_why_not_yet():
    here = ROOT / "tests/python"
    held = {f"A{number:02}": [] for number in range(1, 21)}
    for file in ("test_sagemaker_container.py", "test_sagemaker_runtime.py"):
        for item in ast.parse((here / file).read_text()).body:
            if isinstance(item, ast.FunctionDef) and item.name.startswith("test_A"):
                held[item.name[5:8]].append(item.name)
    for entry, (file, wanted) in ELSEWHERE.items():
        assert wanted in (ROOT / file).read_text(), f"{entry} is not in {file} any more"
        held[entry].append(file)
    for entry, reason in NOT_YET.items():
        assert not held[entry], f"{entry} has a test: it is not missing any more"
        print(f"{entry}: not yet, {reason}")
        held[entry].append(reason)
    assert [entry for entry, places in held.items() if not places] == []
