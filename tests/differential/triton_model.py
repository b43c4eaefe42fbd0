"""What Triton's Python backend runs; the line before this one says as what. Counterparts of our backends `identity` and
`repeat`, and of models-examples/add_sub.
"""

import json
import threading
import time

import numpy as np
import triton_python_backend_utils as pb

CONTROLS = ["START", "END", "READY", "CORRID"]


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        if "sequence_batching" in config:
            self.inputs += CONTROLS
        delay = config["parameters"].get("execute_delay_ms", {"string_value": "0"})["string_value"]
        self.delay = int(delay) / 1000

    def execute(self, requests):
        time.sleep(self.delay)
        if BEHAVIOUR == "repeat":
            for request in requests:
                threading.Thread(target=repeat, args=(request, request.get_response_sender())).start()
            return None
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = {tensor.name(): tensor for tensor in request.inputs()}
        wanted = set(request.requested_output_names())
        if BEHAVIOUR == "add_sub":
            first, second = given["INPUT0"].as_numpy(), given["INPUT1"].as_numpy()
            made = [pb.Tensor("OUTPUT0", first + second), pb.Tensor("OUTPUT1", first - second)]
            return pb.InferenceResponse([tensor for tensor in made if tensor.name() in wanted])
        made = []
        for source, name in zip(self.inputs, self.outputs):
            if name in wanted and source in given:
                made.append(copy(name, given[source]))
        return pb.InferenceResponse(made)


def copy(name, tensor):
    if name == "OUT_BF16":  # numpy has no such type
        return pb.Tensor.from_dlpack(name, tensor.to_dlpack())
    return pb.Tensor(name, tensor.as_numpy())


def repeat(request, sender):
    values, delays = (pb.get_input_tensor_by_name(request, name).as_numpy() for name in ("IN", "DELAY"))
    wanted = set(request.requested_output_names())
    for index, (value, delay) in enumerate(zip(values, delays)):
        time.sleep(int(delay) / 1000)
        made = [pb.Tensor("OUT", np.array([value], np.int32)), pb.Tensor("IDX", np.array([index], np.uint32))]
        sender.send(pb.InferenceResponse([tensor for tensor in made if tensor.name() in wanted]))
    sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
