"""What CloudWatch is told: read back from moto's CloudWatch, and what becomes of requests while it is down or refuses."""

import datetime
import http.server
import json
import os
import threading
import urllib.parse
from collections import Counter

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from harness import running_server
from proxies import free_port, wait_until

CONFIG = """backend: "identity"
input [ { name: "x", data_type: TYPE_FP32, dims: [ 1 ] } ]
output [ { name: "y", data_type: TYPE_FP32, dims: [ 1 ] } ]
"""
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [7]}]}
TOLD = ["--cloudwatch", "put", "--cloudwatch-period-s", "1", "--endpoint-name", "mme"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("a", "b"):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(CONFIG)
    return folder


def infer(server, model="a", status=200):
    answer = requests.post(f"http://{server.http}/v2/models/{model}/infer", json=BODY, timeout=30)
    assert answer.status_code == status, answer.text


# --- moto's CloudWatch ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moto():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Statistics:
    def __init__(self, endpoint):
        self.client = boto3.client(
            "cloudwatch",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def of(self, metric):
        """Count, sum, least and greatest of all that was put."""
        now = datetime.datetime.now(datetime.UTC)
        answer = self.client.get_metric_statistics(
            Namespace="Roundhouse",
            MetricName=metric,
            Dimensions=[{"Name": "EndpointName", "Value": "mme"}, {"Name": "VariantName", "Value": "AllTraffic"}],
            StartTime=now - datetime.timedelta(hours=1),
            EndTime=now + datetime.timedelta(hours=1),
            Period=60,
            Statistics=["SampleCount", "Sum", "Minimum", "Maximum"],
        )
        points = answer["Datapoints"]
        if not points:
            return None
        total = {name: sum(point[name] for point in points) for name in ("SampleCount", "Sum")}
        (unit,) = {point["Unit"] for point in points}
        return {
            **total,
            "Minimum": min(point["Minimum"] for point in points),
            "Maximum": max(point["Maximum"] for point in points),
            "Unit": unit,
        }


def test_what_was_put_can_be_read_back_with_sagemakers_names_and_units(moto, repository, tmp_path):
    arguments = [*TOLD, "--cloudwatch-endpoint", moto]
    with running_server(repository, tmp_path, *arguments, environment=KEYS) as server:
        for _ in range(9):
            infer(server)
        infer(server, "b")
        infer(server, "missing", status=404)
        read = Statistics(moto)
        wait_until("both models were told", lambda: (read.of("LoadedModelCount") or {}).get("Maximum") == 2)
        assert requests.post(f"http://{server.http}/v2/repository/models/b/unload", timeout=30).status_code == 200
        wait_until("everything was told", lambda: (read.of("Invocations") or {}).get("SampleCount") == 11)
        wait_until("the unload was told", lambda: read.of("ModelUnloadingTime"))
        wait_until("the hits were told", lambda: (read.of("ModelCacheHit") or {}).get("SampleCount") == 10)
        # The test itself keeps the processors at work.
        wait_until("the processors were told", lambda: (read.of("CPUUtilization") or {}).get("Maximum", 0) > 0)
        on_the_page = server.metric("nv_cpu_utilization")
        told = {metric["MetricName"] for metric in read.client.list_metrics(Namespace="Roundhouse")["Metrics"]}
    failed = read.of("Invocation4XXErrors")
    assert (failed["SampleCount"], failed["Sum"], failed["Maximum"]) == (11, 1, 1)
    assert read.of("Invocation5XXErrors")["Sum"] == 0
    latency = read.of("ModelLatency")
    assert latency["SampleCount"] == 10 and latency["Unit"] == "Microseconds"
    assert 0 < latency["Minimum"] <= latency["Sum"] / 10 <= latency["Maximum"] < 60e6
    waits, loads = read.of("ModelLoadingWaitTime"), read.of("ModelLoadingTime")
    assert (waits["SampleCount"], loads["SampleCount"]) == (2, 2)
    assert read.of("OverheadLatency")["Sum"] >= waits["Sum"], "waiting for a load is overhead"
    hits = read.of("ModelCacheHit")
    assert (hits["Sum"], hits["Minimum"], hits["Maximum"], hits["Unit"]) == (8, 0, 1, "None")
    assert 0 < read.of("MemoryUtilization")["Maximum"] <= 100 and read.of("MemoryUtilization")["Unit"] == "Percent"
    processors = read.of("CPUUtilization")
    assert processors["Unit"] == "Percent" and 0 <= processors["Minimum"] <= processors["Maximum"] <= 100 * os.cpu_count()
    assert 0 <= on_the_page <= 1
    assert {"ScalePressure", "ModelUnloadingTime"} <= told and "GPUUtilization" not in told


# --- a CloudWatch with faults -----------------------------------------------------------------------------------------


class Faulty(http.server.BaseHTTPRequestHandler):
    """Answers with the faults that are left, then takes everything; sums of Invocations by report."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        assert self.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=testing/")
        assert form["Action"] == ["PutMetricData"]
        self.server.asked += 1
        status, code = self.server.faults.pop(0) if self.server.faults else (200, "")
        if status == 200:
            for key, values in form.items():
                if values == ["Invocations"]:
                    self.server.invocations += float(form[key.replace("MetricName", "StatisticValues.Sum")][0])
        body = f"<ErrorResponse><Error><Code>{code}</Code><Message>so</Message></Error></ErrorResponse>".encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def faulty():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    server.daemon_threads = True
    server.faults, server.asked, server.invocations = [], 0, 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("fault", [(503, "ServiceUnavailable"), (400, "Throttling"), (403, "ExpiredToken")])
def test_what_was_refused_for_now_comes_later_and_requests_never_wait(faulty, fault, repository, tmp_path):
    faulty.faults = [fault] * 5
    arguments = [*TOLD, "--cloudwatch-endpoint", f"http://127.0.0.1:{faulty.server_address[1]}"]
    with running_server(repository, tmp_path, *arguments, environment=KEYS) as server:
        for _ in range(5):
            infer(server)
        wait_until("a fault was met", lambda: faulty.asked >= 3)
        infer(server)
        wait_until("all was told in the end", lambda: faulty.invocations == 6)
        assert fault[1] in server.log()


def test_what_is_refused_for_good_is_dropped_and_said(faulty, repository, tmp_path):
    faulty.faults = [(400, "InvalidParameterValue")]
    arguments = [*TOLD, "--cloudwatch-endpoint", f"http://127.0.0.1:{faulty.server_address[1]}"]
    with running_server(repository, tmp_path, *arguments, environment=KEYS) as server:
        wait_until("it was refused", lambda: "InvalidParameterValue" in server.log())
        infer(server)
        wait_until("what came after it was told", lambda: faulty.invocations == 1)


@pytest.mark.parametrize("keys", [KEYS, {"AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": "us-east-1"}])
def test_nobody_there_and_no_credentials_are_said_and_requests_go_on(keys, repository, tmp_path):
    environment = {**dict.fromkeys(KEYS, ""), **keys, "HOME": str(tmp_path)}
    arguments = [*TOLD, "--cloudwatch-endpoint", f"http://127.0.0.1:{free_port()}"]
    runtime = {"ROUNDHOUSE_RUNTIME_DIR": str(tmp_path / "none")}
    with running_server(repository, tmp_path, *arguments, environment={**environment, **runtime}) as server:
        statuses = Counter()
        wait_until("it is said", lambda: "CloudWatch takes no reports now" in server.log())
        for _ in range(20):
            infer(server)
            statuses[200] += 1
        assert "testing" not in server.log(), "no key in the log"
    assert statuses == {200: 20}


# --- the embedded metric format ---------------------------------------------------------------------------------------


def test_lines_of_the_embedded_metric_format_stand_among_the_log(repository, tmp_path):
    arguments = ["--cloudwatch", "embedded", "--cloudwatch-period-s", "1", "--cloudwatch-namespace", "Mine"]
    with running_server(repository, tmp_path, *arguments) as server:
        infer(server)

        def lines():
            found = [line for line in server.log().splitlines() if line.startswith('{"_aws":')]
            return [line for line in map(json.loads, found) if "Invocations" in line]

        (line,) = wait_until("the invocation is told", lines)
    assert line["EndpointName"] == "roundhouse" and line["VariantName"] == "AllTraffic"
    (metrics,) = line["_aws"]["CloudWatchMetrics"]
    assert metrics["Namespace"] == "Mine" and metrics["Dimensions"] == [["EndpointName", "VariantName"]]
    assert {"Name": "ModelLatency", "Unit": "Microseconds"} in metrics["Metrics"]
    assert line["Invocations"] == {"Max": 1.0, "Min": 1.0, "Count": 1, "Sum": 1.0}
