"""benches/gpu/run.py as far as a machine without a GPU goes: what it brings arrives whole, each check says why it was not done, and
the models that it makes are models."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from harness import ROOT, binary

FOLDER = ROOT / "benches/gpu"
sys.path.append(str(FOLDER))
import models  # noqa: E402
import run  # noqa: E402


def script(*arguments):
    return subprocess.run([sys.executable, FOLDER / "run.py", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_what_is_packed_arrives_whole_or_the_damaged_piece_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "PIECE", 1000)
    source = tmp_path / "library.so"
    source.write_bytes(bytes(range(256)) * 10)
    source.chmod(0o755)
    (tmp_path / "empty").write_bytes(b"")
    manifest = run.pack(tmp_path / "packed", {"runtime/library.so": source, "empty": tmp_path / "empty"})
    assert [len(entry["pieces"]) for entry in manifest] == [3, 0]
    files = run.join(tmp_path / "packed")
    assert (files / "runtime/library.so").read_bytes() == source.read_bytes()
    assert (files / "runtime/library.so").stat().st_mode & 0o111 and (files / "empty").read_bytes() == b""
    piece = tmp_path / "packed" / manifest[0]["pieces"][1]["piece"]
    piece.write_bytes(b"x" + piece.read_bytes()[1:])
    with pytest.raises(SystemExit, match=f"{piece.name} of runtime/library.so is missing or damaged"):
        run.join(tmp_path / "packed")


@pytest.mark.skipif(run.gpu_count() > 0, reason="there is a GPU")
def test_without_a_gpu_each_check_says_so(tmp_path):
    packed, out = tmp_path / "packed", tmp_path / "gpu.json"
    ended = script("pack", packed, "--binary", binary())
    assert ended.returncode == 0 and max(path.stat().st_size for path in packed.glob("*.piece")) <= 64 << 20, ended.stderr
    assert script("join", packed).returncode == 0
    ended = script("check", packed, "--out", out)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(out.read_text())
    assert [row["check"] for row in report["checks"]] == [check.__name__ for check in run.CHECKS]
    assert {(row["state"], row["why"]) for row in report["checks"]} == {("skipped", "no GPU")}
    assert all(check.__name__ in ended.stdout for check in run.CHECKS)
    documented = (ROOT / "docs/gpu.md").read_text()
    assert all(f"`{check.__name__}`" in documented for check in run.CHECKS), "docs/gpu.md names each check"


@pytest.mark.parametrize("made, given, expected", [
    (lambda: models.dense(64, 3), [2, 64], [2, 64]),
    (models.resnet50, [1, 3, 224, 224], [1, 1000]),
])
def test_the_models_are_models(made, given, expected):
    session = onnxruntime.InferenceSession(made(), providers=["CPUExecutionProvider"])
    x = np.frombuffer(models.weights(int(np.prod(given)), 1.0), np.float32).reshape(given)
    (y,) = session.run(None, {"x": x})
    assert list(y.shape) == expected and np.isfinite(y).all() and np.abs(y).max() > 0


def test_the_scripts_servers_and_requests_work_on_the_cpu_as_they_would_on_a_gpu(tmp_path):
    (tmp_path / "roundhouse").symlink_to(binary())
    bench = run.Bench(tmp_path, ROOT / "models-examples")
    root = bench.models("dense", lambda: models.dense(64, 2), copies=3)
    for config in root.glob("*/config.pbtxt"):
        config.write_text(config.read_text().replace("KIND_GPU", "KIND_CPU"))
    given = models.weights(2 * 64, 1.0)
    with run.Server(bench, root, "--device", "cpu") as server:
        answers = {server.infer(f"dense{at}", given, [2, 64]) for at in range(3)}
        assert len(answers) == 1 and len(answers.pop()) == len(given)
        assert server.scrape()["nv_inference_request_success"] == 3
        assert '"cpu"' in json.dumps(server.ask("/v1/residency"))
        server.unload_all([f"dense{at}" for at in range(3)])
        with pytest.raises(RuntimeError, match="nothing: 404"):
            server.infer("nothing", given, [2, 64])
    assert server.process.returncode == 0
