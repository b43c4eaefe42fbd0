"""Two repositories with the same surface: the models that both servers answer with, under the same names and signatures."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "models-examples"

# The types that have a form in JSON, then those that have none in Triton.
TYPES = [
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP32",
    "FP64",
    "BYTES",
    "FP16",
    "BF16",
]


def tensor(kind, name, data_type, dims, more=""):
    type_name = "STRING" if data_type == "BYTES" else data_type
    return f'{kind} [ {{ name: "{name}" data_type: TYPE_{type_name} dims: [ {", ".join(map(str, dims))} ] {more} }} ]\n'


def both(data_type, dims, number=0, more="", output=""):
    """`INPUT0` and `OUTPUT0`, or another number."""
    return tensor("input", f"INPUT{number}", data_type, dims, more) + tensor(
        "output", f"OUTPUT{number}", data_type, dims, output
    )


def controls(data_type="UINT64"):
    def row(name, kind):
        return f'{{ name: "{name}" control [ {{ kind: {kind} int32_false_true: [ 0, 1 ] }} ] }}'

    rows = [
        row("START", "CONTROL_SEQUENCE_START"),
        row("END", "CONTROL_SEQUENCE_END"),
        row("READY", "CONTROL_SEQUENCE_READY"),
    ]
    rows.append(f'{{ name: "CORRID" control [ {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_{data_type} }} ] }}')
    return f"control_input [ {', '.join(rows)} ]\n"


def told(corrid="UINT64"):
    """The outputs of a model of sequences: its input, and what its controls say."""
    outputs = [tensor("output", name.lower(), "INT32", [1]) for name in ("START", "END", "READY")]
    return both("FP32", [1]) + "".join(outputs) + tensor("output", "corrid", corrid, [1])


def queued(policy):
    return f"dynamic_batching {{ default_queue_policy {{ {policy} }} }}\n"


ONE = "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
DELAY = 'parameters { key: "execute_delay_ms" value { string_value: "%d" } }\n'
# Two of the controls come as START, END, READY, CORRID; identity gives them as outputs in that order.
MODELS = {
    "identity": both("FP32", [-1, -1]),
    "batched": "max_batch_size: 8\n" + both("FP32", [4]) + "dynamic_batching { }\n",
    "preferred": "max_batch_size: 8\n"
    + both("FP32", [4])
    + "dynamic_batching { preferred_batch_size: [ 2, 4 ] max_queue_delay_microseconds: 1000 priority_levels: 2 default_priority_level: 1 }\n",
    "every_type": "".join(
        tensor("input", f"IN_{name}", name, [-1]) + tensor("output", f"OUT_{name}", name, [-1]) for name in TYPES
    ),
    "wide": both("FP32", [2, 3]),
    "labelled": "max_batch_size: 4\n" + both("FP32", [5], output='label_filename: "labels.txt"'),
    "unlabelled": both("INT32", [5]),
    "reshaped": "max_batch_size: 4\n"
    + both("FP32", [1], more="reshape { shape: [ ] }", output="reshape { shape: [ ] }"),
    "optional": both("FP32", [2]) + both("FP32", [2], 1, more="optional: true"),
    "prompt": both("BYTES", [1]) + both("INT32", [1], 1),
    "texts": "max_batch_size: 4\n" + both("BYTES", [-1]),
    "versions": both("FP32", [2]) + "version_policy { all { } }\n",
    "counted": "max_batch_size: 8\n" + both("FP32", [2]) + ONE,
    "limited": "max_batch_size: 1\n" + both("FP32", [1]) + ONE + DELAY % 1200 + queued("max_queue_size: 1"),
    "impatient": "max_batch_size: 1\n"
    + both("FP32", [1])
    + ONE
    + DELAY % 1200
    + queued("timeout_action: REJECT default_timeout_microseconds: 500000 allow_timeout_override: true"),
    "direct": "max_batch_size: 4\n"
    + told()
    + ONE
    + f"sequence_batching {{ direct {{ }} {controls()} max_sequence_idle_microseconds: 60000000 }}\n",
    "oldest": "max_batch_size: 4\n"
    + told()
    + ONE
    + f"sequence_batching {{ oldest {{ max_candidate_sequences: 4 }} {controls()} max_sequence_idle_microseconds: 60000000 }}\n",
    "lettered": "max_batch_size: 4\n"
    + told("STRING")
    + ONE
    + f"sequence_batching {{ oldest {{ max_candidate_sequences: 4 }} {controls('STRING')} max_sequence_idle_microseconds: 60000000 }}\n",
    "spare": both("FP32", [2]),
    "add_sub": None,
    "repeat": None,
}
# What cannot be loaded, and why: configuration, files.
BROKEN = {
    "torn": both("FP32", [2]) + "max_batch_size: }",
    "unknown_field": both("FP32", [2]) + "colour: 3\n",
    "negative": both("FP32", [2]) + "max_batch_size: -1\n",
    "untyped": 'input [ { name: "INPUT0" dims: [ 1 ] } ]\n' + tensor("output", "OUTPUT0", "FP32", [1]),
    "zero_dims": both("FP32", [0]),
    "too_preferred": "max_batch_size: 4\n" + both("FP32", [2]) + "dynamic_batching { preferred_batch_size: [ 8 ] }\n",
    "levels": "max_batch_size: 4\n"
    + both("FP32", [2])
    + "dynamic_batching { priority_levels: 2 default_priority_level: 3 }\n",
    "twice": both("FP32", [2]) + both("FP32", [2]),
    "versionless": both("FP32", [2]),
    "renamed": 'name: "other"\n' + both("FP32", [2]),
    "stranger": both("FP32", [2]) + 'backend: "nowhere"\n',
    "both_schedulers": "max_batch_size: 4\n" + both("FP32", [1]) + "dynamic_batching { }\nsequence_batching { }\n",
    "no_batch": both("FP32", [2]) + "dynamic_batching { }\n",
}
NOT_LOADED = ["spare", *BROKEN]
LOADED = [name for name in MODELS if name not in NOT_LOADED]
LABELS = "ant\nbee\ncat\ndog\nemu\n"


def make(folder, for_triton):
    """Writes the repository for Triton, whose models are of its Python backend, or for us."""
    source = (HERE / "triton_model.py").read_text()
    for name, text in {**MODELS, **BROKEN}.items():
        model = folder / name
        version = model / "1"
        behaviour = name if name in ("add_sub", "repeat") else "identity"
        if text is None:
            text = (EXAMPLES / name / "config.pbtxt").read_text()
            text = "\n".join(line for line in text.splitlines() if not line.startswith("backend:")) + "\n"
        ours = {"add_sub": "onnxruntime", "repeat": "repeat"}.get(name, "identity")
        if "backend:" not in text:
            text += f'backend: "{"python" if for_triton else ours}"\n'
        if 'name: "other"' not in text and not text.startswith("name:"):
            text = f'name: "{name}"\n' + text
        if "instance_group" not in text:
            text += ONE  # or the number is the machine's with us
        versions = {"versions": ["1", "3"], "versionless": []}.get(name, ["1"])
        for number in versions:
            version = model / number
            version.mkdir(parents=True)
            if for_triton:
                (version / "model.py").write_text(f'BEHAVIOUR = "{behaviour}"\n{source}')
            elif ours == "onnxruntime":
                (version / "model.onnx").write_bytes((EXAMPLES / name / "1/model.onnx").read_bytes())
        model.mkdir(exist_ok=True)
        (model / "config.pbtxt").write_text(text)
        if name == "labelled":
            (model / "labels.txt").write_text(LABELS)
