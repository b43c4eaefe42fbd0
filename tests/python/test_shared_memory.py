"""Shared memory as its users have it: tritonclient's own module makes, fills and reads the regions, unmodified."""

import base64
import os
import queue
import threading

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialized_byte_size, serialize_byte_tensor

from harness import EXAMPLES, TEXTS, assert_same, expected, inputs_of, running_server


@pytest.fixture(scope="module")
def sharing(tmp_path_factory):
    with running_server(EXAMPLES, tmp_path_factory.mktemp("shm"), "--allow-client-shm") as server:
        yield server


@pytest.fixture
def client(sharing):
    with httpclient.InferenceServerClient(sharing.http, concurrency=8) as client:
        yield client
        client.unregister_system_shared_memory()


@pytest.fixture
def make(client):
    """Makes and registers a region; its object goes with the test."""
    made = []

    def make(name, byte_size, key=None):
        key = key or f"/rh_{os.getpid()}_{name}"
        made.append(shm.create_shared_memory_region(name, key, byte_size))
        client.register_system_shared_memory(name, key, byte_size)
        return made[-1]

    yield make
    for handle in made:
        shm.destroy_shared_memory_region(handle)


@pytest.fixture
def grpc(sharing):
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpcclient.InferenceServerClient(sharing.grpc, channel_args=options) as client:
        yield client


def input_at(name, array, region, offset=0, byte_size=None):
    datatype = httpclient.InferInput(name, list(array.shape), {"O": "BYTES"}.get(array.dtype.char, "FP32"))
    size = byte_size if byte_size is not None else array.nbytes
    return datatype.set_shared_memory(region, size, offset=offset)


def output_at(name, region, byte_size, offset=0):
    output = httpclient.InferRequestedOutput(name)
    output.set_shared_memory(region, byte_size, offset=offset)
    return output


def test_two_inputs_from_one_region_and_two_outputs_into_another(client, make):
    inputs = inputs_of("add_sub", 4)
    size = inputs["INPUT0"].nbytes
    source, target = make("source", 2 * size), make("target", 3 * size)
    shm.set_shared_memory_region(source, [inputs["INPUT0"], inputs["INPUT1"]])
    result = client.infer(
        "add_sub",
        [input_at("INPUT0", inputs["INPUT0"], "source"), input_at("INPUT1", inputs["INPUT1"], "source", size)],
        outputs=[output_at("OUTPUT0", "target", size), output_at("OUTPUT1", "target", 2 * size, size)],
    )
    wanted = expected("add_sub", inputs)
    for at, name in enumerate(["OUTPUT0", "OUTPUT1"]):
        told = result.get_output(name)
        assert "data" not in told
        assert told["parameters"]["shared_memory_region"] == "target"
        assert told["parameters"]["shared_memory_byte_size"] == size
        actual = shm.get_contents_as_numpy(target, np.float32, told["shape"], offset=at * size)
        assert_same(actual, wanted[name])


def test_an_output_over_its_own_input(client, make):
    inputs = inputs_of("identity", 2)
    region = make("both", 3 * inputs["INPUT0"].nbytes)
    shm.set_shared_memory_region(region, [inputs["INPUT0"]])
    size = inputs["INPUT0"].nbytes
    client.infer("identity", [input_at("INPUT0", inputs["INPUT0"], "both")], outputs=[output_at("OUTPUT0", "both", size, size // 2)])
    assert_same(shm.get_contents_as_numpy(region, np.float32, [2, 16], offset=size // 2), inputs["INPUT0"])


def test_strings_both_ways(client, make):
    array = np.array(TEXTS, dtype=object)
    serialized = serialize_byte_tensor(array)
    size = serialized_byte_size(serialized)
    region = make("strings", 4096)
    shm.set_shared_memory_region(region, [serialized])
    wanted = expected("text", {"TEXT": array})
    names = list(wanted)
    client.infer(
        "text",
        [input_at("TEXT", array, "strings", byte_size=size)],
        outputs=[output_at(name, "strings", 1024, 1024 * (at + 1)) for at, name in enumerate(names[:3])],
    )
    for at, name in enumerate(names[:3]):
        actual = shm.get_contents_as_numpy(region, wanted[name].dtype, wanted[name].shape, offset=1024 * (at + 1))
        assert_same(actual, wanted[name], name)
    with pytest.raises(InferenceServerException, match="unexpected size for input 'TEXT'"):
        client.infer("text", [input_at("TEXT", array, "strings", byte_size=size - 1)])


def test_status_lists_what_is_registered(client, make):
    make("one", 64, f"/rh_{os.getpid()}_key_1")
    make("two", 128, f"/rh_{os.getpid()}_key_2")
    rows = client.get_system_shared_memory_status()
    assert [(row["name"], row["byte_size"], row["offset"]) for row in rows] == [("one", 64, 0), ("two", 128, 0)]
    assert client.get_system_shared_memory_status("two") == rows[1:]
    client.unregister_system_shared_memory("one")
    assert client.get_system_shared_memory_status() == rows[1:]
    with pytest.raises(InferenceServerException, match="Unable to find system shared memory region: 'one'"):
        client.get_system_shared_memory_status("one")
    assert client.get_cuda_shared_memory_status() == []
    assert {"system_shared_memory", "cuda_shared_memory"} <= set(client.get_server_metadata()["extensions"])


def test_what_is_out_of_bounds_is_refused(client, make):
    inputs = inputs_of("identity", 1)
    region = make("small", 64)
    shm.set_shared_memory_region(region, [inputs["INPUT0"]])
    whole = input_at("INPUT0", inputs["INPUT0"], "small")
    for given, output, text in [
        (input_at("INPUT0", inputs["INPUT0"], "small", 4), None, "Invalid offset \\+ byte size"),
        (input_at("INPUT0", inputs["INPUT0"], "small", 64), None, "Invalid offset for shared memory"),
        (input_at("INPUT0", inputs["INPUT0"], "small", byte_size=2**63), None, "mismatch"),
        (input_at("INPUT0", inputs["INPUT0"], "other"), None, "Unable to find shared memory region: 'other'"),
        (whole, output_at("OUTPUT0", "small", 32), "should be at least 64 bytes to hold the results"),
        (whole, output_at("OUTPUT0", "small", 64, 2**64 - 1), "Invalid offset for shared memory"),
    ]:
        with pytest.raises(InferenceServerException, match=text):
            client.infer("identity", [given], outputs=output and [output])
    assert_same(shm.get_contents_as_numpy(region, np.float32, [1, 16]), inputs["INPUT0"])
    with pytest.raises(InferenceServerException, match="already in manager"):
        client.register_system_shared_memory("small", "/whatever", 64)
    with pytest.raises(InferenceServerException, match="Unable to open shared memory region: '/rh_nothing'"):
        client.register_system_shared_memory("more", "/rh_nothing", 64)
    with pytest.raises(InferenceServerException, match="reserved prefix"):
        client.register_system_shared_memory("more", "triton_python_backend_shm_region_9", 64)


def test_a_region_that_is_truncated_and_unlinked_under_load(client, sharing, make):
    """The server, and who uses other regions, go on; whoever mapped such a region would be killed."""
    rows = 2048
    array = np.arange(rows * 16, dtype=np.float32).reshape(rows, 16)
    steady = make("steady", 2 * array.nbytes)
    shm.set_shared_memory_region(steady, [array])
    key = f"rh_{os.getpid()}_shaky"
    path = f"/dev/shm/{key}"
    with open(path, "wb") as file:
        file.truncate(2 * array.nbytes)
    client.register_system_shared_memory("shaky", f"/{key}", 2 * array.nbytes)
    stop, faults, answered = threading.Event(), [], {"steady": 0, "shaky": 0}

    def load(region):
        with httpclient.InferenceServerClient(sharing.http) as own:
            while not stop.is_set():
                try:
                    own.infer(
                        "identity",
                        [input_at("INPUT0", array, region)],
                        outputs=[output_at("OUTPUT0", region, array.nbytes, array.nbytes)],
                    )
                    answered[region] += 1
                except InferenceServerException as error:
                    if region == "steady" or "has become shorter" not in str(error):
                        faults.append(str(error))
                except Exception as error:  # a connection that breaks is what must not happen
                    faults.append(repr(error))

    threads = [threading.Thread(target=load, args=[region]) for region in ["steady", "shaky", "shaky"]]
    for thread in threads:
        thread.start()
    for turn in range(300):
        os.truncate(path, 0 if turn % 2 else 2 * array.nbytes)
    os.unlink(path)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults, faults[:3]
    assert answered["steady"] > 0
    assert sharing.process.poll() is None
    assert_same(shm.get_contents_as_numpy(steady, np.float32, [rows, 16], offset=array.nbytes), array)


def test_a_thousand_registrations_leave_no_descriptor(client, sharing):
    descriptors = f"/proc/{sharing.process.pid}/fd"
    key = f"/rh_{os.getpid()}_loop"
    handle = shm.create_shared_memory_region("loop", key, 4096)
    try:
        client.get_system_shared_memory_status()
        before = len(os.listdir(descriptors))
        for turn in range(1000):
            client.register_system_shared_memory("loop", key, 4096)
            if turn % 100 == 0:
                with pytest.raises(InferenceServerException):
                    client.register_system_shared_memory("loop", key, 4096)
                with pytest.raises(InferenceServerException):
                    client.register_system_shared_memory("long", key, 4097)
            client.unregister_system_shared_memory("loop")
        assert len(os.listdir(descriptors)) <= before
    finally:
        shm.destroy_shared_memory_region(handle)


def test_it_is_off_unless_the_operator_says_otherwise(server):
    with httpclient.InferenceServerClient(server.http) as client:
        with pytest.raises(InferenceServerException, match="--allow-client-shm"):
            client.get_system_shared_memory_status()
        assert "system_shared_memory" not in client.get_server_metadata()["extensions"]


# --- over gRPC --------------------------------------------------------------------------------------------------------


def grpc_input(name, array, region, offset=0, byte_size=None):
    datatype = {"O": "BYTES"}.get(array.dtype.char, "FP32")
    given = grpcclient.InferInput(name, list(array.shape), datatype)
    return given.set_shared_memory(region, array.nbytes if byte_size is None else byte_size, offset=offset)


def grpc_output(name, region, byte_size, offset=0):
    output = grpcclient.InferRequestedOutput(name)
    output.set_shared_memory(region, byte_size, offset=offset)
    return output


def test_grpc_reads_inputs_from_a_region_and_writes_outputs_to_another(grpc, make):
    inputs = inputs_of("add_sub", 4)
    size = inputs["INPUT0"].nbytes
    source, target = make("source", 2 * size), make("target", 3 * size)
    shm.set_shared_memory_region(source, [inputs["INPUT0"], inputs["INPUT1"]])
    given = [grpc_input("INPUT0", inputs["INPUT0"], "source"), grpc_input("INPUT1", inputs["INPUT1"], "source", size)]
    wanted = expected("add_sub", inputs)
    result = grpc.infer("add_sub", given, outputs=[grpc_output("OUTPUT0", "target", size), grpcclient.InferRequestedOutput("OUTPUT1")])
    told = result.get_output("OUTPUT0")
    assert_same(shm.get_contents_as_numpy(target, np.float32, list(told.shape)), wanted["OUTPUT0"])
    assert_same(result.as_numpy("OUTPUT1"), wanted["OUTPUT1"])
    # One input in the region, one in the message.
    plain = grpcclient.InferInput("INPUT0", list(inputs["INPUT0"].shape), "FP32").set_data_from_numpy(inputs["INPUT0"])
    grpc.infer("add_sub", [plain, given[1]], outputs=[grpc_output("OUTPUT1", "target", 2 * size, size)])
    assert_same(shm.get_contents_as_numpy(target, np.float32, [4, 16], offset=size), wanted["OUTPUT1"])


def test_a_grpc_stream_uses_regions(grpc, make):
    array = inputs_of("identity", 2)["INPUT0"]
    region = make("both", 3 * array.nbytes)
    shm.set_shared_memory_region(region, [array])
    answers = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put((result, error)))
    output = [grpc_output("OUTPUT0", "both", array.nbytes, array.nbytes)]
    grpc.async_stream_infer("identity", [grpc_input("INPUT0", array, "both")], outputs=output)
    grpc.async_stream_infer("identity", [grpc_input("INPUT0", array, "nowhere")], outputs=output)
    assert answers.get(timeout=10)[1] is None
    assert "Unable to find shared memory region: 'nowhere'" in str(answers.get(timeout=10)[1])
    grpc.stop_stream()
    assert_same(shm.get_contents_as_numpy(region, np.float32, [2, 16], offset=array.nbytes), array)


def test_strings_over_grpc(grpc, make):
    array = np.array(TEXTS, dtype=object)
    serialized = serialize_byte_tensor(array)
    size = serialized_byte_size(serialized)
    region = make("strings", 4096)
    shm.set_shared_memory_region(region, [serialized])
    name, wanted = next(iter(expected("text", {"TEXT": array}).items()))
    grpc.infer("text", [grpc_input("TEXT", array, "strings", byte_size=size)], outputs=[grpc_output(name, "strings", 1024, 1024)])
    assert_same(shm.get_contents_as_numpy(region, wanted.dtype, wanted.shape, offset=1024), wanted, name)


def test_regions_are_registered_listed_and_forgotten_over_grpc(grpc, sharing):
    key = f"/rh_{os.getpid()}_own"
    handle = shm.create_shared_memory_region("own", key, 128)
    try:
        grpc.register_system_shared_memory("own", key, 128)
        with pytest.raises(InferenceServerException, match="already in manager"):
            grpc.register_system_shared_memory("own", key, 128)
        region = grpc.get_system_shared_memory_status("own").regions["own"]
        assert (region.name, region.key, region.offset, region.byte_size) == ("own", key, 0, 128)
        assert list(grpc.get_system_shared_memory_status().regions) == ["own"]
        grpc.unregister_system_shared_memory("own")
        with pytest.raises(InferenceServerException, match="Unable to find system shared memory region: 'own'"):
            grpc.get_system_shared_memory_status("own")
        grpc.unregister_system_shared_memory()
        assert not grpc.get_cuda_shared_memory_status().regions
        with pytest.raises(InferenceServerException) as refused:
            grpc.register_cuda_shared_memory("cuda", base64.b64encode(bytes(64)), 0, 128)
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
        assert "system_shared_memory" in grpc.get_server_metadata().extensions
    finally:
        shm.destroy_shared_memory_region(handle)


def test_what_is_out_of_bounds_is_refused_over_grpc(grpc, make):
    array = inputs_of("identity", 1)["INPUT0"]
    region = make("small", 64)
    shm.set_shared_memory_region(region, [array])
    whole = grpc_input("INPUT0", array, "small")
    for given, output, text in [
        (grpc_input("INPUT0", array, "small", 4), None, "Invalid offset \\+ byte size"),
        (grpc_input("INPUT0", array, "small", byte_size=2**62), None, "mismatch"),
        (grpc_input("INPUT0", array, "other"), None, "Unable to find shared memory region: 'other'"),
        (whole, grpc_output("OUTPUT0", "small", 32), "should be at least 64 bytes to hold the results"),
        (whole, grpc_output("OUTPUT0", "small", 64, 2**62), "Invalid offset for shared memory"),
    ]:
        with pytest.raises(InferenceServerException, match=text):
            grpc.infer("identity", [given], outputs=output and [output])
    assert_same(shm.get_contents_as_numpy(region, np.float32, [1, 16]), array)
