"""Trace and log settings through Triton's own client, and the trace file that comes of them."""

import json

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from harness import EXAMPLES, running_server


@pytest.fixture
def traced(tmp_path):
    file = tmp_path / "trace.json"
    with (
        running_server(EXAMPLES, tmp_path, "--trace-config", f"triton,file={file}") as server,
        tritonclient.http.InferenceServerClient(server.http) as client,
    ):
        client.file = file
        yield client


def scale(client, request_id):
    tensor = tritonclient.http.InferInput("x", [3], "FP32")
    tensor.set_data_from_numpy(np.array([1, 2, 3], np.float32))
    return client.infer("scale", [tensor], request_id=request_id)


def test_trace_settings_are_read_changed_and_cleared(traced):
    before = traced.get_trace_settings()
    assert before["trace_level"] == ["OFF"] and before["trace_rate"] == "1000" and before["trace_mode"] == "triton"
    changed = traced.update_trace_settings("scale", {"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "2"})
    assert changed["trace_level"] == ["TIMESTAMPS"] and changed["trace_count"] == "2"
    assert traced.get_trace_settings() == before
    for number in range(1, 8):
        scale(traced, str(number))
    assert traced.get_trace_settings("scale")["trace_count"] == "0"
    cleared = traced.update_trace_settings("scale", {"trace_level": None, "trace_rate": None, "trace_count": None})
    assert cleared == before
    with pytest.raises(InferenceServerException, match="unknown trace setting 'level'"):
        traced.update_trace_settings(settings={"level": ["OFF"]})
    with pytest.raises(InferenceServerException, match="can not be updated through network protocol"):
        traced.update_trace_settings(settings={"trace_file": "elsewhere"})
    with pytest.raises(InferenceServerException, match="Request for unknown model : nobody"):
        traced.get_trace_settings("nobody")
    wait_for_traces(traced.file, ["2", "4"])


def wait_for_traces(file, ids):
    import time

    for _ in range(500):
        rows = json.loads(file.read_text()) if file.exists() and file.stat().st_size else []
        if [row["request_id"] for row in rows if "request_id" in row] == ids:
            return
        time.sleep(0.02)
    raise AssertionError(rows)


def test_log_settings_are_read_and_changed(traced):
    assert traced.get_log_settings() == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    changed = traced.update_log_settings({"log_verbose_level": 1, "log_warning": False, "log_format": "ISO8601"})
    assert changed["log_verbose_level"] == 1 and not changed["log_warning"] and changed["log_format"] == "ISO8601"
    with pytest.raises(InferenceServerException, match="log file location can not be updated"):
        traced.update_log_settings({"log_file": "elsewhere"})


@pytest.fixture
def traced_grpc(tmp_path):
    file = tmp_path / "trace.json"
    with (
        running_server(EXAMPLES, tmp_path, "--trace-config", f"triton,file={file}") as server,
        tritonclient.grpc.InferenceServerClient(server.grpc) as client,
    ):
        client.file = file
        yield client


def of_grpc(message):
    """Settings as the client over HTTP gives them: a list for the levels, else one value."""
    values = {name: list(setting.value) for name, setting in message.settings.items()}
    return {name: value if name == "trace_level" else value[0] for name, value in values.items()}


def test_trace_settings_over_grpc(traced_grpc):
    before = of_grpc(traced_grpc.get_trace_settings())
    assert before["trace_level"] == ["OFF"] and before["trace_rate"] == "1000" and before["trace_mode"] == "triton"
    settings = {"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "2"}
    changed = of_grpc(traced_grpc.update_trace_settings("scale", settings))
    assert changed["trace_level"] == ["TIMESTAMPS"] and changed["trace_count"] == "2"
    assert traced_grpc.get_trace_settings("scale", as_json=True)["settings"]["trace_rate"]["value"] == ["2"]
    assert of_grpc(traced_grpc.get_trace_settings()) == before
    tensor = tritonclient.grpc.InferInput("x", [3], "FP32").set_data_from_numpy(np.array([1, 2, 3], np.float32))
    for number in range(1, 8):
        traced_grpc.infer("scale", [tensor], request_id=str(number))
    cleared = of_grpc(
        traced_grpc.update_trace_settings("scale", {"trace_level": None, "trace_rate": None, "trace_count": None})
    )
    assert cleared == before
    for model, wrong, text in [
        (None, {"level": "OFF"}, "unknown trace setting 'level'"),
        (None, {"trace_file": "elsewhere"}, "can not be updated through network protocol"),
        ("nobody", {}, "Request for unknown model : nobody"),
    ]:
        with pytest.raises(InferenceServerException, match=text):
            traced_grpc.update_trace_settings(model, wrong)
    wait_for_traces(traced_grpc.file, ["2", "4"])
    names = [row["timestamps"][0]["name"] for row in json.loads(traced_grpc.file.read_text()) if "timestamps" in row]
    assert [names.count(f"GRPC_{what}") for what in ("WAITREAD_START", "WAITREAD_END", "SEND_START", "SEND_END")] == [2] * 4


def test_log_settings_over_grpc(traced_grpc):
    before = traced_grpc.get_log_settings(as_json=True)["settings"]
    assert before["log_file"] == {"string_param": ""} and before["log_info"] == {"bool_param": True}
    assert before["log_verbose_level"] == {"uint32_param": 0}
    changed = traced_grpc.update_log_settings({"log_verbose_level": 1, "log_warning": False, "log_format": "ISO8601"})
    assert changed.settings["log_verbose_level"].uint32_param == 1
    assert not changed.settings["log_warning"].bool_param
    assert changed.settings["log_format"].string_param == "ISO8601"
    assert traced_grpc.update_log_settings({"log_info": None}) == changed
    with pytest.raises(InferenceServerException, match="log file location can not be updated"):
        traced_grpc.update_log_settings({"log_file": "elsewhere"})
