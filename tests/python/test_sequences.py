"""Sequences through Triton's own client: ids of both kinds, many at once, and what Triton's clients know of errors."""

import threading
import time

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from harness import ROOT, running_server

FOLDER = ROOT / "tests/fixtures/sequences"


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    with running_server(FOLDER, tmp_path_factory.mktemp("sequences")) as server:
        yield server


def ask(client, model, value, identifier, start=False, end=False):
    tensor = triton.InferInput("x", [1, 1], "FP32").set_data_from_numpy(np.array([[value]], np.float32))
    options = {"sequence_id": identifier, "sequence_start": start, "sequence_end": end}
    return client.infer(model, [tensor], **options)


@pytest.mark.parametrize("identifier", [42, 2**64 - 1, "a-text", "größer"])
def test_a_state_goes_from_request_to_request(sequences, identifier):
    with triton.InferenceServerClient(sequences.http) as client:
        for _ in range(2):
            sums = [
                ask(client, "running_sum", value, identifier, start=value == 1, end=value == 4).as_numpy("sum")[0, 0]
                for value in (1, 2, 3, 4)
            ]
            assert sums == [1, 3, 6, 10]


def test_many_sequences_at_once_have_each_their_own_state(sequences):
    wrong = []

    def one(identifier):
        with triton.InferenceServerClient(sequences.http) as client:
            total = 0
            for at in range(30):
                total += identifier + at
                found = ask(client, "running_sum", identifier + at, identifier, at == 0, at == 29).as_numpy("sum")[0, 0]
                if found != total:
                    wrong.append((identifier, at, found, total))

    threads = [threading.Thread(target=one, args=(identifier,)) for identifier in range(1, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    row = sequences.metric("nv_inference_count", 'model="running_sum"')
    assert row >= 24 * 30


def test_the_model_is_told_of_start_end_and_id_and_callers_are_not_asked_for_it(sequences):
    with triton.InferenceServerClient(sequences.http) as client:
        assert [tensor["name"] for tensor in client.get_model_metadata("told")["inputs"]] == ["x"]
        for start, end in ((True, False), (False, False), (False, True)):
            result = ask(client, "told", 5, 77, start, end)
            told = [result.as_numpy(name)[0, 0] for name in ("y", "start", "ready", "end", "corrid")]
            assert told == [5, start, 1, end, 77]
        assert "sequence" in client.get_server_metadata()["extensions"]


def test_what_is_no_sequence_is_refused_in_triton_s_words(sequences):
    with triton.InferenceServerClient(sequences.http) as client:
        with pytest.raises(InferenceServerException, match="must specify a non-zero or non-empty correlation ID"):
            ask(client, "told", 1, 0, start=True)
        first = "inference request for sequence 9 to model 'told' must specify the START flag on the first request"
        with pytest.raises(InferenceServerException, match=first):
            ask(client, "told", 1, 9)
        with pytest.raises(InferenceServerException, match=first):
            ask(client, "told", 1, 9, end=True)
        with pytest.raises(InferenceServerException, match="is a string, but the model takes"):
            ask(client, "told", 1, "text", start=True)
        ask(client, "told", 1, 9, start=True)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            # Four hold all the slots; those who are silent make room for others.
            for identifier in (10, 11, 12, 13):
                ask(client, "told", 1, identifier, start=True)
            try:
                ask(client, "told", 1, 9)
            except InferenceServerException as error:
                assert "must specify the START flag" in error.message()
                return
        pytest.fail("a silent sequence was never ended")
