"""KServe v2 over gRPC through unmodified clients: tritonclient.grpc, its aio sibling, gRPC's health and reflection."""

import asyncio
import itertools
import queue
import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import InferInput, InferRequestedOutput, model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from harness import EXAMPLES, MODELS, assert_same, expected, inputs_of, running_server

FLOATS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def triton(server):
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture
def stub(server):
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def client_input(name, array):
    return InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)


def client_inputs(inputs):
    return [client_input(name, array) for name, array in inputs.items()]


def identity(array=FLOATS):
    return [client_input("INPUT0", array)]


def code(error):
    return error.value.status()


# --- inference --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("model", MODELS)
def test_tensors_give_what_onnxruntime_gives(triton, model, batch):
    inputs = inputs_of(model, batch)
    result = triton.infer(model, client_inputs(inputs), request_id="r")
    for name, array in expected(model, inputs).items():
        assert_same(result.as_numpy(name), array, name)
    assert result.get_response().id == "r"


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_compressed_requests_and_large_tensors(triton, algorithm):
    array = np.random.default_rng(3).random((64, 65_536), np.float32)
    result = triton.infer("identity", identity(array), compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("OUTPUT0"), array)


def test_answers_are_compressed_where_the_server_is_told_so(tmp_path):
    flags = ["--grpc-infer-response-compression-level", "high"]
    with running_server(EXAMPLES, tmp_path, *flags) as server:
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            result = client.infer("identity", identity(np.zeros((1000, 1000), np.float32)))
            assert not result.as_numpy("OUTPUT0").any()
            answers = queue.Queue()
            client.start_stream(lambda result, error: answers.put((result, error)))
            client.async_stream_infer("identity", identity())
            result, error = answers.get(timeout=10)
            assert error is None and np.array_equal(result.as_numpy("OUTPUT0"), FLOATS)
            client.stop_stream()


def test_many_asynchronous_calls(triton):
    answers = queue.Queue()
    for number in range(200):
        array = np.full((1, 4), number, np.float32)
        triton.async_infer("identity", identity(array), lambda result, error: answers.put((result, error)))
    found = set()
    for _ in range(200):
        result, error = answers.get(timeout=30)
        assert error is None
        found.add(int(result.as_numpy("OUTPUT0")[0, 0]))
    assert found == set(range(200))


def test_typed_contents(stub):
    def ask(data_type, **contents):
        request = service_pb2.ModelInferRequest(model_name="identity")
        tensor = request.inputs.add(name="INPUT0", datatype=data_type, shape=[1, 2])
        for field, values in contents.items():
            getattr(tensor.contents, field).extend(values)
        return stub.ModelInfer(request)

    answer = ask("FP32", fp32_contents=[1.5, -2])
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [1.5, -2]
    with pytest.raises(grpc.RpcError) as error:
        ask("FP32", int_contents=[1, 2])
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "of type 'INT32', expected datatype 'FP32'" in error.value.details()


def test_classification(triton):
    inputs = inputs_of("digits", 1)
    output = next(iter(expected("digits", inputs)))
    result = triton.infer("digits", client_inputs(inputs), outputs=[InferRequestedOutput(output, class_count=2)])
    best = result.as_numpy(output)
    assert best.dtype == np.object_ and best.size == 2 and b":" in best.flat[0]


def test_errors_have_their_codes(triton):
    for expected_code, call in [
        ("StatusCode.NOT_FOUND", lambda: triton.infer("nowhere", identity())),
        ("StatusCode.INVALID_ARGUMENT", lambda: triton.infer("identity", [client_input("WRONG", FLOATS)])),
        ("StatusCode.INVALID_ARGUMENT", lambda: triton.infer("identity", identity(), model_version="x")),
        ("StatusCode.NOT_FOUND", lambda: triton.infer("identity", identity(), model_version="9")),
        ("StatusCode.INVALID_ARGUMENT", lambda: triton.infer("identity", identity(), parameters={"a": 1}, timeout=-1)),
    ]:
        with pytest.raises(InferenceServerException) as error:
            call()
        assert code(error) == expected_code, error.value
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nowhere' is not found"):
        triton.get_model_metadata("nowhere")


def test_calls_end_at_their_deadline_or_where_they_are_cancelled(tmp_path):
    tensor = '[{"name": "%s", "data_type": "TYPE_FP32", "dims": [-1, -1]}]'
    slow = f'{{"backend": "identity", "input": {tensor % "INPUT0"}, "output": {tensor % "OUTPUT0"}, '
    slow += '"parameters": {"execute_delay_ms": {"string_value": "400"}}}'
    with running_server(EXAMPLES, tmp_path) as server:
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            client.load_model("identity", config=slow)
            for limits in ({"client_timeout": 0.1}, {"timeout": 100_000}):
                with pytest.raises(InferenceServerException) as error:
                    client.infer("identity", identity(), **limits)
                assert code(error) == "StatusCode.DEADLINE_EXCEEDED"
            ended = queue.Queue()
            call = client.async_infer("identity", identity(), lambda result, error: ended.put((result, error)))
            call.cancel()
            result, error = ended.get(timeout=10)
            assert result is None and "CANCELLED" in str(error.status())
            assert np.array_equal(client.infer("identity", identity()).as_numpy("OUTPUT0"), FLOATS)


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_answers_in_order_and_tells_errors_apart(triton):
    answers = queue.Queue()
    triton.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(300):
        model = "nowhere" if number == 150 else ["identity", "scale"][number % 2]
        inputs = identity() if model != "scale" else [client_input("x", FLOATS[0])]
        triton.async_stream_infer(model, inputs, request_id=str(number))
    for number in range(300):
        result, error = answers.get(timeout=30)
        if number == 150:
            assert result is None and "Request for unknown model" in str(error)
            continue
        assert error is None
        response = result.get_response()
        assert response.id == str(number)
        assert response.parameters["triton_final_response"].bool_param
    triton.stop_stream()


def test_sequence_parameters_and_the_empty_final_response_are_taken(triton):
    answers = queue.Queue()
    triton.start_stream(lambda result, error: answers.put((result, error)))
    triton.async_stream_infer(
        "identity",
        identity(),
        sequence_id=7,
        sequence_start=True,
        sequence_end=True,
        priority=1,
        timeout=5_000_000,
        enable_empty_final_response=True,
    )
    result, error = answers.get(timeout=10)
    assert error is None and np.array_equal(result.as_numpy("OUTPUT0"), FLOATS)
    triton.stop_stream()


def test_a_stream_can_be_cancelled_and_another_begun(triton):
    for _ in range(5):
        answers = queue.Queue()
        triton.start_stream(lambda result, error: answers.put((result, error)))
        triton.async_stream_infer("identity", identity())
        answers.get(timeout=10)
        triton.stop_stream(cancel_requests=True)


def test_the_asynchronous_client(server):
    async def talk():
        async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:
            assert await client.is_server_live() and await client.is_server_ready()
            results = await asyncio.gather(*(client.infer("identity", identity()) for _ in range(50)))
            assert all(np.array_equal(result.as_numpy("OUTPUT0"), FLOATS) for result in results)

            async def requests():
                for number in range(50):
                    yield {"model_name": "identity", "inputs": identity(), "request_id": str(number)}

            numbers = itertools.count()
            async for result, error in client.stream_infer(requests()):
                assert error is None and result.get_response().id == str(next(numbers))
            assert next(numbers) == 50

    asyncio.run(talk())


# --- everything else --------------------------------------------------------------------------------------------------


def test_documents_are_those_of_http(triton, client):
    assert triton.is_server_live() and triton.is_server_ready()
    by_http = client.get_server_metadata()
    metadata = triton.get_server_metadata(as_json=True)
    assert [metadata[key] for key in ("name", "version", "extensions")] == [
        by_http[key] for key in ("name", "version", "extensions")
    ]
    for model in MODELS:
        metadata, by_http = triton.get_model_metadata(model), client.get_model_metadata(model)
        assert triton.is_model_ready(model)
        assert (metadata.name, list(metadata.versions)) == (by_http["name"], by_http["versions"])
        for ours, theirs in zip([*metadata.inputs, *metadata.outputs], [*by_http["inputs"], *by_http["outputs"]]):
            assert (ours.name, ours.datatype, list(ours.shape)) == (theirs["name"], theirs["datatype"], theirs["shape"])
        config, by_http = triton.get_model_config(model).config, client.get_model_config(model)
        assert (config.name, config.max_batch_size) == (by_http["name"], by_http["max_batch_size"])
        assert [list(each.dims) for each in config.input] == [each["dims"] for each in by_http["input"]]
        types = [model_config_pb2.DataType.Name(each.data_type) for each in config.output]
        assert types == [each["data_type"] for each in by_http["output"]]
    assert not triton.is_model_ready("nowhere")
    assert not triton.is_model_ready("identity", "9")


def test_statistics_count(triton):
    def count():
        (row,) = triton.get_inference_statistics("identity").model_stats
        return row.inference_stats.success.count

    triton.infer("identity", identity())
    before = count()
    triton.infer("identity", identity())
    assert count() == before + 1
    assert len(triton.get_inference_statistics().model_stats) >= 1


def test_models_are_loaded_and_unloaded(tmp_path):
    with running_server(EXAMPLES, tmp_path, "--model-control", "explicit") as server:
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            with pytest.raises(InferenceServerException) as error:
                client.infer("identity", identity())
            assert "Request for unknown model" in str(error.value)
            client.load_model("identity")
            assert client.is_model_ready("identity")
            states = {row.name: row.state for row in client.get_model_repository_index().models}
            assert states["identity"] == "READY" and states["scale"] == ""
            config = '{"name": "identity", "backend": "identity", "max_batch_size": 3, "input": [{"name": "INPUT0", '
            config += '"data_type": "TYPE_FP32", "dims": [4]}], "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [4]}]}'
            client.load_model("identity", config=config)
            assert client.get_model_config("identity").config.max_batch_size == 3
            client.unload_model("identity")
            assert not client.is_model_ready("identity")
            with pytest.raises(InferenceServerException, match="failed to load 'nowhere'"):
                client.load_model("nowhere")
            with pytest.raises(InferenceServerException) as error:
                client.load_model("identity", config=config, files={"file:1/model.onnx": b"x"})
            assert code(error) == "StatusCode.UNIMPLEMENTED"


def test_health_and_its_watch(server, triton):
    triton.infer("identity", identity())
    with grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService", "identity"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as error:
            health.Check(health_pb2.HealthCheckRequest(service="nowhere"))
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest(service="nowhere"))
        assert next(iter(watch)).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


# --- the contract -----------------------------------------------------------------------------------------------------


def shape_of(message):
    """The fields of a message type: number, type, label, and the type that it refers to, by name."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            (field.message_type or field.enum_type) and (field.message_type or field.enum_type).full_name,
            field.containing_oneof and field.containing_oneof.name,
        )
        for field in message.fields
    }


def messages_of(messages):
    for message in messages:
        yield message
        yield from messages_of(message.nested_types)


def enums_of(file):
    yield from file.enum_types_by_name.values()
    for message in messages_of(file.message_types_by_name.values()):
        yield from message.enum_types


def test_reflection_shows_the_contract_that_clients_were_built_from(server):
    with grpc.insecure_channel(server.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(database.get_services())
        pool = descriptor_pool.DescriptorPool(database)
        for theirs in (model_config_pb2.DESCRIPTOR, service_pb2.DESCRIPTOR):
            ours = pool.FindFileByName(theirs.name)
            assert (ours.package, set(ours.message_types_by_name)) == (theirs.package, set(theirs.message_types_by_name))
            pairs = zip(
                sorted(messages_of(ours.message_types_by_name.values()), key=lambda message: message.full_name),
                sorted(messages_of(theirs.message_types_by_name.values()), key=lambda message: message.full_name),
                strict=True,
            )
            for one, other in pairs:
                assert one.full_name == other.full_name
                assert shape_of(one) == shape_of(other), one.full_name
            values = [
                {enum.full_name: {value.name: value.number for value in enum.values} for enum in enums_of(file)}
                for file in (ours, theirs)
            ]
            assert values[0] == values[1]
        ours = pool.FindServiceByName("inference.GRPCInferenceService")
        theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

        def calls(service):
            proto = descriptor_pb2.ServiceDescriptorProto()
            service.CopyToProto(proto)
            return {
                call.name: (call.input_type, call.output_type, call.client_streaming, call.server_streaming)
                for call in proto.method
            }

        assert calls(ours) == calls(theirs)


def test_shared_memory_is_off_unless_the_operator_says_otherwise(triton):
    for call in (triton.get_system_shared_memory_status, triton.get_cuda_shared_memory_status):
        with pytest.raises(InferenceServerException, match="--allow-client-shm") as error:
            call()
        assert code(error) == "StatusCode.UNIMPLEMENTED"


def test_a_drain_ends_streams_and_the_server(tmp_path):
    with running_server(EXAMPLES, tmp_path) as server:
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            answers = queue.Queue()
            client.start_stream(lambda result, error: answers.put((result, error)))
            client.async_stream_infer("identity", identity())
            assert answers.get(timeout=10)[1] is None
            began = time.monotonic()
            server.process.terminate()
            _, error = answers.get(timeout=10)
            assert "UNAVAILABLE" in str(error.status())
            server.process.wait(timeout=10)
            assert time.monotonic() - began < 10
