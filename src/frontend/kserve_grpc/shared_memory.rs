//! The shared memory extensions: regions as messages. An empty name is all regions.

use super::super::tensor_body::off_the_io_threads;
use super::GrpcService;
use super::proto::inference as pb;
use crate::error::Result;
use crate::inference::Deadline;

type By = Option<Deadline>;

/// One region, or all.
fn named(name: &str) -> Option<&str> {
    (!name.is_empty()).then_some(name)
}

pub(super) async fn system_status(
    grpc: &GrpcService,
    asked: pb::SystemSharedMemoryStatusRequest,
    _: By,
) -> Result<pb::SystemSharedMemoryStatusResponse> {
    let regions = grpc.server().shared_memory().system_status(named(&asked.name))?.into_iter().map(|region| {
        let status = pb::system_shared_memory_status_response::RegionStatus {
            name: region.name.to_string(),
            key: region.key.to_string(),
            offset: region.offset,
            byte_size: region.byte_size,
        };
        (region.name.into(), status)
    });
    Ok(pb::SystemSharedMemoryStatusResponse { regions: regions.collect() })
}

pub(super) async fn register_system(
    grpc: &GrpcService,
    asked: pb::SystemSharedMemoryRegisterRequest,
    _: By,
) -> Result<pb::SystemSharedMemoryRegisterResponse> {
    let pb::SystemSharedMemoryRegisterRequest { name, key, offset, byte_size } = asked;
    grpc.server().shared_memory().register_system(&name, &key, offset, byte_size)?;
    Ok(pb::SystemSharedMemoryRegisterResponse {})
}

pub(super) async fn unregister_system(
    grpc: &GrpcService,
    asked: pb::SystemSharedMemoryUnregisterRequest,
    _: By,
) -> Result<pb::SystemSharedMemoryUnregisterResponse> {
    grpc.server().shared_memory().unregister_system(named(&asked.name))?;
    Ok(pb::SystemSharedMemoryUnregisterResponse {})
}

pub(super) async fn cuda_status(
    grpc: &GrpcService,
    asked: pb::CudaSharedMemoryStatusRequest,
    _: By,
) -> Result<pb::CudaSharedMemoryStatusResponse> {
    let regions = grpc.server().shared_memory().cuda_status(named(&asked.name))?.into_iter().map(|region| {
        let status = pb::cuda_shared_memory_status_response::RegionStatus {
            name: region.name.to_string(),
            // A driver has taken it: no device has a number below 0.
            device_id: region.device_id.unsigned_abs(),
            byte_size: region.byte_size,
        };
        (region.name.into(), status)
    });
    Ok(pb::CudaSharedMemoryStatusResponse { regions: regions.collect() })
}

pub(super) async fn register_cuda(
    grpc: &GrpcService,
    asked: pb::CudaSharedMemoryRegisterRequest,
    _: By,
) -> Result<pb::CudaSharedMemoryRegisterResponse> {
    let pb::CudaSharedMemoryRegisterRequest { name, raw_handle, device_id, byte_size } = asked;
    let memory = grpc.server().shared_memory().clone();
    off_the_io_threads(true, move || memory.register_cuda(&name, &raw_handle, device_id, byte_size)).await?;
    Ok(pb::CudaSharedMemoryRegisterResponse {})
}

pub(super) async fn unregister_cuda(
    grpc: &GrpcService,
    asked: pb::CudaSharedMemoryUnregisterRequest,
    _: By,
) -> Result<pb::CudaSharedMemoryUnregisterResponse> {
    let memory = grpc.server().shared_memory().clone();
    off_the_io_threads(true, move || memory.unregister_cuda(named(&asked.name))).await?;
    Ok(pb::CudaSharedMemoryUnregisterResponse {})
}
