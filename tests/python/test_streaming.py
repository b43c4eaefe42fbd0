"""Decoupled models through the clients that users have: each answer when it comes, and what has no place for many."""

import json
import time

import numpy as np
import pytest
import requests
from tritonclient.http import InferInput
from tritonclient.utils import InferenceServerException


def events(url, values, delays, wait=0, **options):
    body = {"IN": values, "DELAY": delays, "WAIT": wait}
    with requests.post(f"{url}/v2/models/repeat/generate_stream", json=body, stream=True, timeout=30, **options) as answer:
        answer.raise_for_status()
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line:
                assert line.startswith(b"data: ")
                yield json.loads(line[len(b"data: ") :])


def test_each_answer_is_there_before_the_next_is_made(url):
    begun = time.monotonic()
    answers, times = [], []
    for answer in events(url, [4, 2, 0], [0, 0, 2000]):
        answers.append((answer["OUT"], answer["IDX"]))
        times.append(time.monotonic() - begun)
    assert answers == [(4, 0), (2, 1), (0, 2)]
    assert times[1] < 1.5 <= 2 <= times[2]


def test_no_elements_are_no_events(url):
    assert list(events(url, [], [])) == []


def test_generate_is_for_exactly_one_answer(url):
    ask = lambda values: requests.post(
        f"{url}/v2/models/repeat/generate", json={"IN": values, "DELAY": [0] * len(values), "WAIT": 0}, timeout=30
    )
    assert ask([7]).json()["OUT"] == 7
    for values in [[], [1, 2]]:
        assert "generate expects model to produce exactly 1 response" in ask(values).json()["error"]


def test_infer_says_that_the_model_is_decoupled(client):
    inputs = []
    for name, data in [("IN", np.array([1], np.int32)), ("DELAY", np.zeros(1, np.uint32)), ("WAIT", np.zeros(1, np.uint32))]:
        tensor = InferInput(name, [1], "INT32" if name == "IN" else "UINT32")
        inputs.append(tensor.set_data_from_numpy(data))
    with pytest.raises(InferenceServerException, match="doesn't support models with decoupled transaction policy") as failed:
        client.infer("repeat", inputs)
    assert failed.value.status() == "501"
    assert client.get_model_config("repeat")["model_transaction_policy"] == {"decoupled": True}


def test_a_client_that_leaves_is_counted_once(url):
    counts = lambda: requests.get(f"{url}/v2/models/repeat/stats", timeout=10).json()["model_stats"][0]["inference_stats"]["fail"]["count"]
    list(events(url, [1], [0]))
    before = counts()
    for _ in events(url, [1] * 200, [10] * 200):
        break
    deadline = time.monotonic() + 10
    while counts() == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert counts() == before + 1
