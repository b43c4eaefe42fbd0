"""The response cache as Triton's own client sees it: the same answer, and its statistics."""

import numpy as np
import tritonclient.http as triton

from harness import running_server


def test_hits_and_misses_are_in_the_statistics(tmp_path):
    folder = tmp_path / "models" / "kept" / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(
        'backend: "identity" response_cache { enable: true }\n'
        'input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }\n'
        'model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] '
        "random_data: true } } }"
    )
    with running_server(tmp_path / "models", tmp_path, "--cache-config", "local,size=1048576") as server:
        client = triton.InferenceServerClient(server.http)
        for number in [1, 2, 1, 1]:
            values = np.full(3, number, np.float32)
            request = triton.InferInput("x", [3], "FP32")
            request.set_data_from_numpy(values)
            np.testing.assert_array_equal(client.infer("kept", [request]).as_numpy("y"), values)
        row = client.get_inference_statistics("kept")["model_stats"][0]
        counts = {name: row["inference_stats"][name]["count"] for name in ("success", "cache_hit", "cache_miss")}
        assert counts == {"success": 4, "cache_hit": 2, "cache_miss": 2}
        assert (row["inference_count"], row["execution_count"]) == (2, 2)
        assert server.metric("nv_cache_num_hits_per_model", 'model="kept"') == 2
        client.close()
