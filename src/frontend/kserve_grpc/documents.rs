//! Health, metadata, configuration and statistics as messages.

use super::config::ConfigAnswer;
use super::proto::inference as pb;
use super::{GrpcService, parameters};
use crate::error::{Error, Result};
use crate::frontend::kserve_http::documents::extensions;
use crate::inference::Deadline;
use crate::lifecycle::handle::{LoadedVersion, TensorMetadata};
use crate::metrics::statistics::DurationSum;
use crate::server;

type By = Option<Deadline>;

pub(super) async fn server_live(_: &GrpcService, _: pb::ServerLiveRequest, _: By) -> Result<pb::ServerLiveResponse> {
    Ok(pb::ServerLiveResponse { live: true })
}

pub(super) async fn server_ready(
    grpc: &GrpcService,
    _: pb::ServerReadyRequest,
    _: By,
) -> Result<pb::ServerReadyResponse> {
    Ok(pb::ServerReadyResponse { ready: grpc.server().is_ready() })
}

/// Whether the model is in memory. Loads nothing: probes ask this.
pub(super) async fn model_ready(
    grpc: &GrpcService,
    asked: pb::ModelReadyRequest,
    _: By,
) -> Result<pb::ModelReadyResponse> {
    let version = parameters::version(&asked.version)?;
    Ok(pb::ModelReadyResponse { ready: grpc.server().is_model_ready(&asked.name, version) })
}

pub(super) async fn server_metadata(
    grpc: &GrpcService,
    _: pb::ServerMetadataRequest,
    _: By,
) -> Result<pb::ServerMetadataResponse> {
    Ok(pb::ServerMetadataResponse {
        name: server::NAME.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: extensions(grpc.server()).map(str::to_owned).collect(),
    })
}

/// Loads the model if it must and may: who asks for metadata is about to ask for more.
pub(super) async fn model_metadata(
    grpc: &GrpcService,
    asked: pb::ModelMetadataRequest,
    deadline: By,
) -> Result<pb::ModelMetadataResponse> {
    let version = parameters::version(&asked.version)?;
    let handle = grpc.server().model(&asked.name, version, deadline).await?;
    let versions = match version {
        Some(version) => vec![version.to_string()],
        None => {
            let versions = grpc.server().versions_of(&handle.id.name);
            versions.iter().map(|loaded| loaded.id.version.to_string()).collect()
        }
    };
    let platform = if handle.config.platform.is_empty() { &handle.config.backend } else { &handle.config.platform };
    let tensors = |tensors: &[TensorMetadata]| {
        let written = tensors.iter().map(|tensor| pb::model_metadata_response::TensorMetadata {
            name: tensor.name.to_string(),
            datatype: tensor.data_type.name().to_owned(),
            shape: tensor.dims.clone(),
        });
        written.collect()
    };
    Ok(pb::ModelMetadataResponse {
        name: handle.id.name.to_string(),
        versions,
        platform: platform.clone(),
        inputs: tensors(&handle.inputs),
        outputs: tensors(&handle.outputs),
    })
}

pub(super) async fn model_config(
    grpc: &GrpcService,
    asked: pb::ModelConfigRequest,
    deadline: By,
) -> Result<ConfigAnswer> {
    let version = parameters::version(&asked.version)?;
    let handle = grpc.server().model(&asked.name, version, deadline).await?;
    Ok(ConfigAnswer::of(&handle.config_now()))
}

/// One model's rows, or those of all models in memory where no name is given.
pub(super) async fn model_statistics(
    grpc: &GrpcService,
    asked: pb::ModelStatisticsRequest,
    _: By,
) -> Result<pb::ModelStatisticsResponse> {
    if asked.name.is_empty() {
        let versions = grpc.server().resident_versions();
        return Ok(pb::ModelStatisticsResponse { model_stats: versions.iter().map(|row| statistics(row)).collect() });
    }
    let (name, version) = (&asked.name, parameters::version(&asked.version)?);
    let versions = grpc.server().versions_of(name);
    if versions.is_empty() {
        return Err(Error::invalid(format!("requested model '{name}' is not available")));
    }
    let wanted = versions.iter().filter(|loaded| version.is_none_or(|version| version == loaded.id.version));
    let model_stats: Vec<_> = wanted.map(|loaded| statistics(loaded)).collect();
    if model_stats.is_empty() {
        return Err(Error::invalid(format!("requested model version is not available for model '{name}'")));
    }
    Ok(pb::ModelStatisticsResponse { model_stats })
}

/// One row of the statistics extension.
fn statistics(loaded: &LoadedVersion) -> pb::ModelStatistics {
    let own = &loaded.statistics;
    let sum = |sum: &DurationSum| Some(pb::StatisticDuration { count: sum.count(), ns: sum.nanoseconds() });
    let none = Some(pb::StatisticDuration::default());
    let batches = own.batches().into_iter().map(|(batch_size, [count, input, infer, output])| {
        let part = |ns: u64| Some(pb::StatisticDuration { count, ns });
        pb::InferBatchStatistics {
            batch_size,
            compute_input: part(input),
            compute_infer: part(infer),
            compute_output: part(output),
        }
    });
    pb::ModelStatistics {
        name: loaded.id.name.to_string(),
        version: loaded.id.version.to_string(),
        last_inference: own.last_inference_ms(),
        inference_count: own.inferences(),
        execution_count: own.executions(),
        inference_stats: Some(pb::InferStatistics {
            success: sum(&own.success),
            fail: sum(&own.fail),
            queue: sum(&own.queue),
            compute_input: sum(&own.compute_input),
            compute_infer: sum(&own.compute_infer),
            compute_output: sum(&own.compute_output),
            cache_hit: none,
            cache_miss: none,
        }),
        batch_stats: batches.collect(),
        ..pb::ModelStatistics::default()
    }
}
