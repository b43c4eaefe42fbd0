"""What stands in docker/ for Kubernetes, Prometheus, Grafana and CloudWatch, held against schemas, tools and the server's own tables."""

import json
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from harness import ROOT

KUBERNETES = ROOT / "docker/kubernetes"
MONITORING = ROOT / "docker/monitoring"
CLOUDWATCH = ROOT / "docker/cloudwatch"
OVERLAYS = ["base", *(f"overlays/{folder.name}" for folder in sorted((KUBERNETES / "overlays").iterdir()))]
CUSTOM = {"PodMonitor", "ScaledObject"}


def tool(name, package):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install {package})")
    return found


def run(*command, cwd=None):
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built():
    """The manifests of each overlay, by kind and name."""
    kubectl = tool("kubectl", "kubernetes-client")
    manifests = {}
    for overlay in OVERLAYS:
        documents = yaml.safe_load_all(run(kubectl, "kustomize", KUBERNETES / overlay))
        manifests[overlay] = {(one["kind"], one["metadata"]["name"]): one for one in documents}
    return manifests


def one(manifests, kind):
    (found,) = [manifest for (other, _), manifest in manifests.items() if other == kind]
    return found


def pod(manifests):
    return one(manifests, "Deployment")["spec"]["template"]["spec"]


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_what_their_schemas_say(built, overlay):
    for (kind, name), manifest in built[overlay].items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(manifest, "1.33", strict=True)
        assert manifest["metadata"].get("namespace", "roundhouse") == "roundhouse", (kind, name)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_the_pods_and_ports_are_there(built, overlay):
    manifests = built[overlay]
    template = one(manifests, "Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in pod(manifests)["containers"][0]["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}, "the server's own defaults"
    for (kind, name), manifest in manifests.items():
        if kind == "Service":
            assert manifest["spec"]["selector"].items() <= labels, name
            assert all(port["targetPort"] in ports for port in manifest["spec"]["ports"]), name
        if kind in ("PodDisruptionBudget", "PodMonitor"):
            assert manifest["spec"]["selector"]["matchLabels"].items() <= labels, name
    monitor = one(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert [end["port"] for end in monitor] == ["metrics"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_routes_that_there_are_and_a_drain_has_the_time_it_needs(built, overlay):
    routes = (ROOT / "src/frontend/metrics_http.rs").read_text()
    spec = pod(built[overlay])
    container = spec["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == "metrics" and f'"{asked["path"]}"' in routes, probe
    drain = int(one(built[overlay], "ConfigMap")["data"]["ROUNDHOUSE_DRAIN_GRACE_S"])
    # It takes a moment until endpoints are told everywhere: until then connections are taken. No preStop: it would not know that it leaves.
    before = int(one(built[overlay], "ConfigMap")["data"]["ROUNDHOUSE_DRAIN_NOTICE_S"])
    assert "lifecycle" not in container and before >= 5 and spec["terminationGracePeriodSeconds"] > before + drain


def test_the_picker_finds_every_instance_and_is_found_where_envoy_looks(built):
    kubectl = tool("kubectl", "kubernetes-client")
    documents = list(yaml.safe_load_all(run(kubectl, "kustomize", KUBERNETES / "picker")))
    for manifest in documents:
        kubernetes_validate.validate(manifest, "1.33", strict=True)
        assert manifest["metadata"]["namespace"] == "roundhouse"
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in documents}
    (container,) = by_name["Deployment", "roundhouse-picker"]["spec"]["template"]["spec"]["containers"]
    pods = by_name["Service", "roundhouse-pods"]["spec"]
    labels = one(built["base"], "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert pods["selector"].items() <= labels.items() and pods["publishNotReadyAddresses"]
    assert "--instance=roundhouse-pods.roundhouse.svc:8000" in container["args"]
    service = by_name["Service", "roundhouse-picker"]["spec"]
    own = by_name["Deployment", "roundhouse-picker"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= own.items()
    port = service["ports"][0]["port"]
    assert port == container["ports"][0]["containerPort"] == 9002
    assert f"address: roundhouse-picker, port_value: {port}" in (ROOT / "docker/envoy-picker.yaml").read_text()
    pool = yaml.safe_load((KUBERNETES / "picker/inferencepool.yaml").read_text())["spec"]
    assert pool["selector"]["matchLabels"].items() <= labels.items()
    assert (pool["endpointPickerRef"]["name"], pool["endpointPickerRef"]["port"]["number"]) == ("roundhouse-picker", port)
    flags = (ROOT / "src/cli/picker.rs").read_text()
    for argument in container["args"][1:]:
        name = argument.removeprefix("--").split("=")[0].replace("-", "_")
        assert f"    {name}: " in flags, argument


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_variable_is_one_of_the_servers_own(built, overlay):
    options = (ROOT / "src/config/options.rs").read_text()
    named = set(one(built[overlay], "ConfigMap")["data"])
    named |= {variable["name"] for variable in pod(built[overlay])["containers"][0].get("env", [])}
    for name in named - {"NVIDIA_DRIVER_CAPABILITIES"}:
        assert f'"{name}"' in options, name


def test_the_cache_is_a_single_kind_of_volume_in_each_overlay(built):
    kinds = {}
    for overlay, manifests in built.items():
        (cache,) = [volume for volume in pod(manifests)["volumes"] if volume["name"] == "cache"]
        (kinds[overlay],) = set(cache) - {"name"}
        mounts = {mount["name"]: mount["mountPath"] for mount in pod(manifests)["containers"][0]["volumeMounts"]}
        directory = one(manifests, "ConfigMap")["data"]["ROUNDHOUSE_CACHE_DIR"]
        assert directory.startswith(mounts["cache"] + "/"), overlay
    assert kinds["overlays/nvme-hostpath"] == "hostPath"
    assert kinds["overlays/nvme-local-volume"] == "ephemeral"
    assert {kind for overlay, kind in kinds.items() if "nvme" not in overlay} == {"emptyDir"}


def test_something_scales_in_each_overlay_and_never_two(built):
    for overlay, manifests in built.items():
        kinds = [kind for kind, _ in manifests]
        scalers = [kind for kind in kinds if kind in ("HorizontalPodAutoscaler", "ScaledObject")]
        assert scalers == (["ScaledObject"] if overlay.endswith("keda") else ["HorizontalPodAutoscaler"]), overlay
        assert one(manifests, scalers[0])["spec"]["scaleTargetRef"]["name"] == "roundhouse"
        assert "replicas" not in one(manifests, "Deployment")["spec"], "the autoscaler's, and nobody else's"


def test_a_gpu_is_asked_for_whole_and_only_where_there_is_one(built):
    for overlay, manifests in built.items():
        resources = pod(manifests)["containers"][0].get("resources", {})
        gpus = [resources.get(part, {}).get("nvidia.com/gpu", 0) for part in ("requests", "limits")]
        assert gpus == ([1, 1] if overlay.endswith("gpu") else [0, 0]), overlay


# --- names of metrics -------------------------------------------------------------------------------------------------


def families():
    """The names in the one table and its parts, those of histograms with their endings."""
    parts = [ROOT / "src/metrics/defs.rs", *(ROOT / "src/metrics/defs").glob("*.rs")]
    table = "".join(part.read_text() for part in parts)
    names = dict(re.findall(r'family\(\s*"(\w+)",\s*Kind::(\w+)', table))
    assert len(names) > 40
    for name, kind in list(names.items()):
        if kind == "Histogram":
            del names[name]
            names |= {name + ending: kind for ending in ("_bucket", "_sum", "_count")}
    return set(names)


def queries():
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    yield from (rule["expr"] for group in rules["groups"] for rule in group["rules"])
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    yield from (target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    yield from (variable["query"] for variable in dashboard["templating"]["list"])
    adapter = yaml.safe_load((MONITORING / "prometheus-adapter.yaml").read_text())
    yield from (rule["seriesQuery"] for rule in adapter["rules"]["custom"])
    hpa = yaml.safe_load((KUBERNETES / "base/hpa.yaml").read_text())
    yield from (metric["pods"]["metric"]["name"] for metric in hpa["spec"]["metrics"])
    keda = yaml.safe_load((KUBERNETES / "overlays/keda/scaledobject.yaml").read_text())
    yield from (trigger["metadata"]["query"] for trigger in keda["spec"]["triggers"])


def test_every_metric_that_is_asked_for_is_one_that_the_server_has():
    known = families()
    asked = {name for query in queries() for name in re.findall(r"\b(?:nv|roundhouse)_\w+", query)}
    assert len(asked) > 15 and asked <= known, asked - known


def test_panels_are_told_apart_and_do_not_overlap():
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)


def test_prometheus_takes_every_query(tmp_path):
    promtool = tool("promtool", "prometheus")
    run(promtool, "check", "rules", MONITORING / "alerts.yaml")
    run(promtool, "test", "rules", "alerts_test.yaml", cwd=MONITORING)
    # Those of dashboards and autoscalers, as rules; what Grafana puts in stands for itself.
    asked = [query for query in queries() if not query.startswith(("label_values", "prometheus"))]
    asked = [re.sub(r"\$__rate_interval", "5m", query) for query in asked]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(asked)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    run(promtool, "check", "rules", path)


# --- CloudWatch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", sorted(CLOUDWATCH.glob("*.json")), ids=lambda path: path.stem)
def test_policies_name_metrics_that_are_reported_in_their_unit(policy):
    specification = json.loads(policy.read_text())["CustomizedMetricSpecification"]
    table = (ROOT / "src/metrics/observations.rs").read_text()
    units = dict(re.findall(r"^    (\w+): (Microseconds|Percent|None),$", table, re.M))
    assert units[specification["MetricName"]] == specification["Unit"]
    assert "Memory" not in specification["MetricName"], "a cache is always full"
    defaults = {"Roundhouse", "roundhouse", "AllTraffic"}
    values = {dimension["Value"] for dimension in specification["Dimensions"]}
    assert {specification["Namespace"], *values} == defaults
