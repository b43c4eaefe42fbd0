//! The trace and logging extensions: what is traced and logged, read and changed. A call that changes nothing reads.

use super::GrpcService;
use super::proto::inference as pb;
use crate::error::{Error, Result};
use crate::inference::Deadline;
use crate::telemetry::logging::{LogSettings, LogUpdate, LogValue};
use crate::telemetry::trace::settings::{TraceSettings, TraceUpdate};

type By = Option<Deadline>;

/// What is traced, of a model or of the server. A setting without a value is cleared, as `null` does over HTTP.
pub(super) async fn trace(
    grpc: &GrpcService,
    asked: pb::TraceSettingRequest,
    _: By,
) -> Result<pb::TraceSettingResponse> {
    let model = (!asked.model_name.is_empty()).then_some(asked.model_name.as_str());
    if asked.settings.is_empty() {
        return Ok(trace_message(&grpc.server().trace_settings(model).await?));
    }
    let mut update = TraceUpdate::default();
    for (name, setting) in &asked.settings {
        update.take(name, (!setting.value.is_empty()).then_some(setting.value.as_slice()))?;
    }
    Ok(trace_message(&grpc.server().update_trace_settings(model, &update).await?))
}

fn trace_message(settings: &TraceSettings) -> pb::TraceSettingResponse {
    let settings = settings
        .rows()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), pb::trace_setting_response::SettingValue { value }));
    pb::TraceSettingResponse { settings: settings.collect() }
}

/// What is logged. A setting without a value stays as it is.
pub(super) async fn logging(
    grpc: &GrpcService,
    asked: pb::LogSettingsRequest,
    _: By,
) -> Result<pb::LogSettingsResponse> {
    use pb::log_settings_request::setting_value::ParameterChoice;
    let mut update = LogUpdate::default();
    for (name, setting) in &asked.settings {
        let Some(choice) = &setting.parameter_choice else { continue };
        let value = match choice {
            ParameterChoice::BoolParam(value) => LogValue::Bool(*value),
            ParameterChoice::Uint32Param(value) => LogValue::Number(u64::from(*value)),
            ParameterChoice::StringParam(value) => LogValue::Text(value),
        };
        let expected = match name.as_str() {
            "log_info" | "log_warning" | "log_error" => ("bool_param", matches!(value, LogValue::Bool(_))),
            "log_verbose_level" => ("uint32_param", matches!(value, LogValue::Number(_))),
            "log_format" => ("string_param", matches!(value, LogValue::Text(_))),
            _ => ("", true),
        };
        if let (kind, false) = expected {
            return Err(Error::invalid(format!("invalid value type for log setting '{name}', expected {kind}")));
        }
        update.take(name, value)?;
    }
    Ok(log_message(match update == LogUpdate::default() {
        true => grpc.server().log_settings(),
        false => grpc.server().update_log_settings(&update)?,
    }))
}

fn log_message(settings: LogSettings) -> pb::LogSettingsResponse {
    use pb::log_settings_response::SettingValue;
    use pb::log_settings_response::setting_value::ParameterChoice::{BoolParam, StringParam, Uint32Param};
    let settings = [
        ("log_file", StringParam(String::new())),
        ("log_info", BoolParam(settings.info)),
        ("log_warning", BoolParam(settings.warning)),
        ("log_error", BoolParam(settings.error)),
        ("log_verbose_level", Uint32Param(settings.verbose_level)),
        ("log_format", StringParam(settings.format.name().to_owned())),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), SettingValue { parameter_choice: Some(value) }));
    pb::LogSettingsResponse { settings: settings.into() }
}
