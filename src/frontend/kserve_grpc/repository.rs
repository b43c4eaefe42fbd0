//! The model repository extension: index, load, unload.

use std::collections::BTreeMap;

use super::GrpcService;
use super::proto::inference as pb;
use super::proto::inference::model_repository_parameter::ParameterChoice;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::config_json;
use crate::inference::Deadline;
use crate::lifecycle::state::ModelState;
use crate::model_config::ModelConfig;

type By = Option<Deadline>;

/// Every model of the repository and the states of its versions, or the ready ones alone.
pub(super) async fn index(
    grpc: &GrpcService,
    asked: pb::RepositoryIndexRequest,
    _: By,
) -> Result<pb::RepositoryIndexResponse> {
    refuse_named_repository(&asked.repository_name)?;
    let mut models = Vec::new();
    for entry in grpc.server().repository_index().await? {
        if entry.versions.is_empty() && !asked.ready {
            let name = entry.name.clone();
            models.push(pb::repository_index_response::ModelIndex { name, ..Default::default() });
        }
        for row in entry.versions.iter().filter(|row| !asked.ready || row.state == ModelState::Ready) {
            models.push(pb::repository_index_response::ModelIndex {
                name: entry.name.clone(),
                version: row.version.map(|version| version.to_string()).unwrap_or_default(),
                state: row.state.name().to_owned(),
                reason: row.reason.to_string(),
            });
        }
    }
    Ok(pb::RepositoryIndexResponse { models })
}

/// Loads a model, or a fresh copy of it. A caller that leaves stops a load that nobody else waits for.
pub(super) async fn load(
    grpc: &GrpcService,
    asked: pb::RepositoryModelLoadRequest,
    _: By,
) -> Result<pb::RepositoryModelLoadResponse> {
    refuse_named_repository(&asked.repository_name)?;
    let name = &asked.model_name;
    let config = load_parameters(&asked.parameters)?;
    grpc.server().load_model(name, config).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => error.wrap(format!("failed to load '{name}', failed to poll from model repository")),
        _ => error.wrap("load failed"),
    })?;
    Ok(pb::RepositoryModelLoadResponse {})
}

/// The configuration a load request brings along.
fn load_parameters(parameters: &BTreeMap<String, pb::ModelRepositoryParameter>) -> Result<Option<ModelConfig>> {
    let mut config = None;
    for (key, value) in parameters {
        match (key.as_str(), &value.parameter_choice) {
            ("config", Some(ParameterChoice::StringParam(text))) => {
                let parsed =
                    config_json::from_json(text.as_bytes()).map_err(|error| error.wrap("parameter 'config'"))?;
                for warning in &parsed.warnings {
                    tracing::warn!("configuration of a load request: {}", warning.message);
                }
                config = Some(parsed.config);
            }
            ("config", _) => {
                return Err(Error::invalid(
                    "invalid value type for load parameter 'config', expected string_param with the configuration as \
                     JSON.",
                ));
            }
            (file, _) if file.starts_with("file:") => {
                return Err(Error::unsupported(
                    "files in a load request are not taken: put them into the model repository",
                ));
            }
            (other, _) => {
                return Err(Error::invalid(format!("unrecognized load parameter '{other}', known is 'config'.")));
            }
        }
    }
    Ok(config)
}

/// Unloads a model; its memory is free when this returns.
pub(super) async fn unload(
    grpc: &GrpcService,
    asked: pb::RepositoryModelUnloadRequest,
    _: By,
) -> Result<pb::RepositoryModelUnloadResponse> {
    refuse_named_repository(&asked.repository_name)?;
    let mut dependents = false;
    for (key, value) in &asked.parameters {
        match value.parameter_choice {
            Some(ParameterChoice::BoolParam(given)) if key == "unload_dependents" => dependents = given,
            _ => {
                return Err(Error::invalid(format!(
                    "unrecognized unload parameter '{key}', known is 'unload_dependents' as bool_param."
                )));
            }
        }
    }
    grpc.server().unload_model(&asked.model_name, dependents).await?;
    Ok(pb::RepositoryModelUnloadResponse {})
}

fn refuse_named_repository(name: &str) -> Result<()> {
    match name {
        "" => Ok(()),
        _ => Err(Error::unsupported("'repository_name' specification is not supported")),
    }
}
