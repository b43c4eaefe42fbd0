//! Shared memory over gRPC: regions that are wrong, that vanish, or that are given up while requests use them. The
//! unmodified clients use it in `tests/python/test_shared_memory.py`.

use roundhouse::backend::gated::Step;
use roundhouse::frontend::kserve_grpc::proto::inference as pb;
use tonic::{Code, Status};

use super::client::{Grpc, number};
use super::streams::Talk;
use crate::shared_memory::Object;
use crate::support::repository::{ONE_INSTANCE, Repository};
use crate::support::server::TestServer;

use pb::infer_parameter::ParameterChoice::{Int64Param, StringParam, Uint64Param};

async fn start() -> (TestServer, Grpc) {
    let repository = Repository::empty().with("a", "gated", ONE_INSTANCE).with("same", "identity", "");
    let server = TestServer::start_with(repository, |config| config.allow_client_shm = true).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    (server, grpc)
}

async fn register(grpc: &Grpc, name: &str, object: &Object, offset: u64, byte_size: u64) -> Result<(), Status> {
    let asked =
        pb::SystemSharedMemoryRegisterRequest { name: name.to_owned(), key: object.key.clone(), offset, byte_size };
    grpc.ask::<_, pb::SystemSharedMemoryRegisterResponse>("SystemSharedMemoryRegister", asked).await.map(|_| ())
}

async fn unregister(grpc: &Grpc, name: &str) -> Result<(), Status> {
    let asked = pb::SystemSharedMemoryUnregisterRequest { name: name.to_owned() };
    grpc.ask::<_, pb::SystemSharedMemoryUnregisterResponse>("SystemSharedMemoryUnregister", asked).await.map(|_| ())
}

async fn status(grpc: &Grpc, name: &str) -> Result<Vec<(String, String, u64, u64)>, Status> {
    let asked = pb::SystemSharedMemoryStatusRequest { name: name.to_owned() };
    let answer: pb::SystemSharedMemoryStatusResponse = grpc.ask("SystemSharedMemoryStatus", asked).await?;
    Ok(answer.regions.into_values().map(|region| (region.name, region.key, region.offset, region.byte_size)).collect())
}

type Place<'a> = (&'a str, u64, u64);

/// A request whose input is read from one place and whose output is written to another.
fn between(model: &str, input: Place<'_>, output: Place<'_>) -> pb::ModelInferRequest {
    let parameters = |(region, offset, byte_size): Place<'_>| {
        let values = [
            ("shared_memory_region", StringParam(region.to_owned())),
            ("shared_memory_offset", Uint64Param(offset)),
            ("shared_memory_byte_size", byte_size.try_into().map_or(Uint64Param(byte_size), Int64Param)),
        ];
        values.map(|(key, value)| (key.to_owned(), pb::InferParameter { parameter_choice: Some(value) })).into()
    };
    let mut request = number(model, 1);
    request.raw_input_contents.clear();
    request.inputs[0].shape = vec![i64::try_from(input.2 / 4).unwrap()];
    request.inputs[0].parameters = parameters(input);
    request.outputs = vec![pb::model_infer_request::InferRequestedOutputTensor {
        name: "y".to_owned(),
        parameters: parameters(output),
    }];
    request
}

#[tokio::test]
async fn tensors_stay_off_the_wire_in_calls_and_in_streams() {
    let (server, grpc) = start().await;
    let object = Object::of(&[1, 2, 3, 4, 0, 0, 0]);
    register(&grpc, "r", &object, 4, 24).await.unwrap();
    let answer = grpc.infer(between("same", ("r", 4, 8), ("r", 12, 12))).await.unwrap();
    assert_eq!(object.numbers(), [1, 2, 3, 4, 3, 4, 0]);
    assert_eq!((answer.outputs[0].name.as_str(), &answer.outputs[0].shape[..]), ("y", &[2][..]));
    assert_eq!(answer.raw_output_contents, [bytes::Bytes::new()], "an output has contents, of no bytes");
    let mut talk = Talk::begin(&grpc, &[]).await;
    talk.ask(between("same", ("r", 0, 12), ("r", 4, 12)));
    talk.ask(number("same", 9));
    let answer = talk.next().await.unwrap().unwrap().infer_response.unwrap();
    assert_eq!(answer.raw_output_contents, [bytes::Bytes::new()]);
    assert_eq!(talk.tag().await, 9);
    assert_eq!(object.numbers(), [1, 2, 2, 3, 4, 4, 0]);
    drop((talk, grpc));
    server.finish().await;
}

#[tokio::test]
async fn what_is_out_of_bounds_or_gone_is_refused_and_writes_nothing() {
    let (server, grpc) = start().await;
    let object = Object::of(&[1, 2, 3, 4]);
    register(&grpc, "r", &object, 0, 16).await.unwrap();
    let whole = ("r", 0, 16);
    let mut talk = Talk::begin(&grpc, &[]).await;
    for (input, output, code, text) in [
        (whole, ("r", 0, 12), Code::InvalidArgument, "(12 bytes) should be at least 16 bytes to hold the results"),
        (whole, ("r", 16, 4), Code::InvalidArgument, "Invalid offset for shared memory region: 'r'"),
        (whole, ("r", 8, u64::MAX), Code::InvalidArgument, "Invalid offset + byte size for shared memory region: 'r'"),
        (whole, ("s", 0, 16), Code::NotFound, "Unable to find shared memory region: 's'"),
        (("r", u64::MAX, 16), whole, Code::InvalidArgument, "Invalid offset for shared memory region: 'r'"),
        (("r", 4, 16), whole, Code::InvalidArgument, "Invalid offset + byte size for shared memory region: 'r'"),
        (("s", 0, 16), whole, Code::NotFound, "Unable to find shared memory region: 's'"),
    ] {
        let refused = grpc.infer(between("same", input, output)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(text), "{refused}");
        talk.ask(between("same", input, output));
        let item = talk.next().await.unwrap().unwrap().error_message;
        assert!(item.contains(text), "{item}");
    }
    std::fs::OpenOptions::new().write(true).open(&object.path).unwrap().set_len(12).unwrap();
    for (input, output) in [(whole, ("r", 0, 4)), (("r", 0, 4), ("r", 12, 4))] {
        let refused = grpc.infer(between("same", input, output)).await.unwrap_err();
        assert!(refused.message().contains("has become shorter"), "{refused}");
    }
    std::fs::remove_file(&object.path).unwrap();
    grpc.infer(between("same", ("r", 0, 4), ("r", 8, 4))).await.expect("what is open outlives its name");
    let refused = register(&grpc, "q", &object, 0, 4).await.unwrap_err();
    assert!(refused.message().contains("Unable to open shared memory region"), "{refused}");
    drop((talk, grpc));
    server.finish().await;
}

#[tokio::test]
async fn a_region_given_up_while_requests_use_it_is_theirs_until_they_end() {
    let (server, grpc) = start().await;
    let (object, other) = (Object::of(&[5, 0]), Object::of(&[0, 0]));
    register(&grpc, "r", &object, 0, 8).await.unwrap();
    server.gated.close("a", Step::Execute);
    let asked = between("a", ("r", 0, 4), ("r", 4, 4));
    let (answer, ()) = tokio::join!(grpc.infer(asked), async {
        server.until("a", |counts| counts.executions_begun == 1).await;
        unregister(&grpc, "r").await.unwrap();
        assert_eq!(status(&grpc, "r").await.unwrap_err().code(), Code::NotFound);
        register(&grpc, "r", &other, 0, 8).await.unwrap();
        server.gated.open("a", Step::Execute);
    });
    answer.unwrap();
    assert_eq!((object.numbers(), other.numbers()), (vec![5, 5], vec![0, 0]));
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn the_inputs_of_a_request_are_no_larger_than_a_message() {
    let repository = Repository::empty().with("same", "identity", "");
    let server = TestServer::start_with(repository, |config| {
        config.allow_client_shm = true;
        config.grpc.max_message_bytes = 1000;
    })
    .await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    let object = Object::of(&[7; 251]);
    register(&grpc, "r", &object, 0, 1004).await.unwrap();
    grpc.infer(between("same", ("r", 0, 1000), ("r", 0, 1000))).await.unwrap();
    let refused = grpc.infer(between("same", ("r", 0, 1004), ("r", 0, 1004))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("--grpc-max-message-bytes 1000"), "{refused}");
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn regions_are_listed_by_name_and_an_empty_name_is_all_of_them() {
    let (server, grpc) = start().await;
    let object = Object::of(&[0; 4]);
    assert!(status(&grpc, "").await.unwrap().is_empty());
    register(&grpc, "b", &object, 4, 8).await.unwrap();
    register(&grpc, "a", &object, 0, 16).await.unwrap();
    let row = |name: &str, offset, byte_size| (name.to_owned(), object.key.clone(), offset, byte_size);
    assert_eq!(status(&grpc, "").await.unwrap(), [row("a", 0, 16), row("b", 4, 8)]);
    assert_eq!(status(&grpc, "b").await.unwrap(), [row("b", 4, 8)]);
    assert_eq!(register(&grpc, "a", &object, 0, 16).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(register(&grpc, "", &object, 0, 16).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(register(&grpc, "c", &object, 0, 17).await.unwrap_err().code(), Code::InvalidArgument);
    unregister(&grpc, "nobody").await.unwrap();
    unregister(&grpc, "").await.unwrap();
    assert!(status(&grpc, "").await.unwrap().is_empty());
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn cuda_regions_are_understood_and_wait_for_a_driver() {
    let (server, grpc) = start().await;
    for (length, code) in [(64, Code::Unimplemented), (63, Code::InvalidArgument)] {
        let asked = pb::CudaSharedMemoryRegisterRequest {
            name: "c".to_owned(),
            raw_handle: vec![0; length].into(),
            device_id: 0,
            byte_size: 4,
        };
        let refused = grpc.ask::<_, pb::CudaSharedMemoryRegisterResponse>("CudaSharedMemoryRegister", asked).await;
        assert_eq!(refused.unwrap_err().code(), code);
    }
    let all: pb::CudaSharedMemoryStatusResponse =
        grpc.ask("CudaSharedMemoryStatus", pb::CudaSharedMemoryStatusRequest::default()).await.unwrap();
    assert!(all.regions.is_empty());
    let one = pb::CudaSharedMemoryStatusRequest { name: "c".to_owned() };
    let refused = grpc.ask::<_, pb::CudaSharedMemoryStatusResponse>("CudaSharedMemoryStatus", one).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let asked = pb::CudaSharedMemoryUnregisterRequest { name: "c".to_owned() };
    grpc.ask::<_, pb::CudaSharedMemoryUnregisterResponse>("CudaSharedMemoryUnregister", asked).await.unwrap();
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn it_is_off_unless_the_operator_says_otherwise() {
    let server = TestServer::start(Repository::empty().with("same", "identity", "")).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    let object = Object::of(&[1]);
    for refused in [
        status(&grpc, "").await.unwrap_err(),
        unregister(&grpc, "").await.unwrap_err(),
        register(&grpc, "r", &object, 0, 4).await.unwrap_err(),
        grpc.infer(between("same", ("r", 0, 4), ("r", 0, 4))).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::Unimplemented);
        assert!(refused.message().contains("--allow-client-shm"), "{refused}");
    }
    drop(grpc);
    server.finish().await;
}
