//! Each variable alone, then all layers together.

use std::fmt::Debug;

use super::*;
use crate::config::{Eviction, ModelControl};

const MULTI: [(&str, &str); 1] = [(MULTI_MODEL, "true")];

fn platform(variables: &[(&str, &str)]) -> Platform {
    let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Platform::new(owned, "/nowhere/at/all".into())
}

/// What one variable becomes in the container of a multi-model endpoint.
fn options(variables: &[(&str, &str)]) -> Result<ServeOptions> {
    platform(variables).options(SageMakerMode::MultiModel, &mut Remarks::default())
}

/// The whole configuration: these flags, these variables, no file.
fn resolve(flags: ServeOptions, variables: &[(&str, &str)]) -> Result<ServerConfig> {
    let folders = ServeOptions { runtime_dir: Some("rt".into()), cache_dir: Some("cache".into()), ..flags };
    folders.resolve_on(&platform(variables))
}

/// The model's folder of a single-model endpoint that holds the model `resnet`.
fn single_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("resnet/1")).unwrap();
    folder
}

fn in_single_model(folder: &Path, flags: ServeOptions, variables: &[(&str, &str)]) -> Result<ServerConfig> {
    let folders = ServeOptions { runtime_dir: Some("rt".into()), cache_dir: Some("cache".into()), ..flags };
    folders.resolve_on(&Platform { single_model: folder.to_owned(), ..platform(variables) })
}

/// Each of these values is read as that.
fn reads<T: Debug + PartialEq>(name: &str, cases: &[(&str, T)], read: impl Fn(ServeOptions) -> Option<T>) {
    for (value, expected) in cases {
        let found = read(options(&[(name, value)]).unwrap());
        assert_eq!(found.as_ref(), Some(expected), "{name}={value}");
    }
    assert_eq!(read(options(&[(name, "")]).unwrap()), None, "{name}: empty is not set");
}

#[test]
fn each_variable_becomes_its_option() {
    let inference_types = [
        ("infer", InferenceType::Infer),
        ("generate", InferenceType::Generate),
        ("generate_stream", InferenceType::GenerateStream),
    ];
    let pings = [("live", Ping::Live), ("ready", Ping::Ready)];
    reads(BIND_TO_PORT, &[("8081", Port::At(8081))], |options| options.sagemaker_port);
    reads(INFERENCE_TYPE, &inference_types, |options| options.sagemaker_inference_type);
    reads(OVERRIDE_PING_MODE, &pings, |options| options.sagemaker_ping);
    reads(PING_MODE, &pings, |options| options.sagemaker_ping);
    reads(ALLOW_METRICS, &[("true", Port::At(8002)), ("True", Port::At(8002))], |options| options.metrics_port);
    reads(THREAD_COUNT, &[("3", 3)], |options| options.io_threads.map(NonZeroUsize::get));
    reads(
        LOG_VERBOSE,
        &[("true", "debug".to_owned()), ("2", "debug".to_owned()), ("0", "info".to_owned())],
        |options| options.log,
    );
    reads(LOG_INFO, &[("false", "warn".to_owned()), ("true", "info".to_owned())], |options| options.log);
    reads(ADDITIONAL_ARGS, &[("--queue-capacity 7", 7)], |options| options.queue_capacity.map(NonZeroUsize::get));
}

#[test]
fn variables_work_together() {
    let both = options(&[(OVERRIDE_PING_MODE, "live"), (PING_MODE, "ready")]).unwrap();
    assert_eq!(both.sagemaker_ping, Some(Ping::Live));
    let metrics = options(&[(ALLOW_METRICS, "1"), (METRICS_PORT, "23000")]).unwrap();
    assert_eq!(metrics.metrics_port, Some(Port::At(23000)));
    assert_eq!(options(&[(ALLOW_METRICS, "false"), (METRICS_PORT, "23000")]).unwrap().metrics_port, None);
    let quiet = [(LOG_INFO, "false"), (LOG_WARNING, "false")];
    assert_eq!(options(&quiet).unwrap().log.as_deref(), Some("error"));
    assert_eq!(options(&[quiet[0], quiet[1], (LOG_ERROR, "0")]).unwrap().log.as_deref(), Some("off"));
}

#[test]
fn a_wrong_value_is_refused_with_the_variable_and_what_it_may_be() {
    let cases = [
        (BIND_TO_PORT, "0", "a port from 1 to 65535"),
        (BIND_TO_PORT, "65536", "a port"),
        (INFERENCE_TYPE, "Infer", "one of: infer, generate, generate_stream"),
        (OVERRIDE_PING_MODE, "alive", "one of: live, ready"),
        (PING_MODE, "alive", "one of: live, ready"),
        (ALLOW_METRICS, "yes", "true or false"),
        (METRICS_PORT, "off", "a port"),
        (ALLOW_GRPC, "yes", "true or false"),
        (GRPC_PORT, "-1", "a port"),
        (THREAD_COUNT, "0", "a number from 1"),
        (LOG_VERBOSE, "much", "true, false or a level from 0"),
        (LOG_INFO, "much", "true or false"),
        (LOG_WARNING, "2", "true or false"),
        (LOG_ERROR, "off", "true or false"),
        (MODEL_LOAD_GPU_LIMIT, "1.1", "a fraction from 0 to 1"),
        (MODEL_LOAD_GPU_LIMIT, "NaN", "a fraction from 0 to 1"),
    ];
    for (name, value, expected) in cases {
        let error = options(&[(name, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name} is '{value}', expected {expected}")), "{error}");
    }
}

#[test]
fn a_part_of_each_gpu_is_the_limit_of_its_book() {
    let limits = options(&[(MODEL_LOAD_GPU_LIMIT, "0.8")]).unwrap().memory_limit;
    assert_eq!(limits, Some(vec!["gpu=0.8".parse().unwrap()]));
    let flags = [(MODEL_LOAD_GPU_LIMIT, "0.8"), (ADDITIONAL_ARGS, "--memory-limit gpu:0=1GiB")];
    assert_eq!(options(&flags).unwrap().memory_limit, Some(vec!["gpu:0=1GiB".parse().unwrap()]), "flags win");
}

#[test]
fn flags_in_a_variable_are_ours_alone() {
    let several = options(&[
        (ADDITIONAL_ARGS, "--log 'warn,roundhouse=debug' --http-port=8000 --load-model a --load-model b,c"),
        (LOG_VERBOSE, "true"),
    ])
    .unwrap();
    assert_eq!((several.log.as_deref(), several.http_port), (Some("warn,roundhouse=debug"), Some(Port::At(8000))));
    assert_eq!(several.load_model.unwrap(), ["a", "b", "c"]);
    for (text, parts) in [
        ("--strict-readiness=false", ["'--strict-readiness'", "tritonserver"]),
        ("--help", ["'--help'", "tritonserver"]),
        ("--http-port 8000 stray", ["'stray'", "tritonserver"]),
        ("--http-port eighty", ["eighty", "--http-port"]),
        ("--log 'open", ["quote ' is not closed", ADDITIONAL_ARGS]),
        ("--config x.toml", ["--config", "ROUNDHOUSE_CONFIG"]),
        ("--sagemaker off", ["--sagemaker", "ROUNDHOUSE_SAGEMAKER"]),
    ] {
        let error = options(&[(ADDITIONAL_ARGS, text)]).unwrap_err().to_string();
        assert!(error.starts_with(ADDITIONAL_ARGS), "{error}");
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{text}: {error}");
    }
}

#[test]
fn what_has_no_effect_is_told() {
    let remarks = |mode, variables: &[(&str, &str)]| {
        let mut remarks = Remarks::default();
        platform(variables).options(mode, &mut remarks).unwrap();
        (remarks.warnings.join("; "), remarks.notes.join("; "))
    };
    for name in WITHOUT_EFFECT {
        let (warnings, notes) = remarks(SageMakerMode::MultiModel, &[(name, "what ever")]);
        assert!(warnings.is_empty() && notes.contains(name), "{warnings} {notes}");
    }
    for (name, value, part) in [
        (GRPC_PORT, "8011", "opens no port"),
        (METRICS_PORT, "23000", ALLOW_METRICS),
        ("SAGEMAKER_TRITON_MODLE", "x", "unknown"),
    ] {
        let (warnings, _) = remarks(SageMakerMode::MultiModel, &[(name, value)]);
        assert!(warnings.contains(name) && warnings.contains(part), "{warnings}");
    }
    let (_, notes) = remarks(SageMakerMode::MultiModel, &[(DEFAULT_MODEL_NAME, "a")]);
    assert!(notes.contains(DEFAULT_MODEL_NAME), "{notes}");
    let quiet = [(ALLOW_GRPC, "false"), (THREAD_COUNT, "8"), ("SAGEMAKER_REGION", "x"), (DEFAULT_MODEL_NAME, "a")];
    assert_eq!(remarks(SageMakerMode::SingleModel, &quiet), (String::new(), String::new()));
    let (warnings, notes) = remarks(SageMakerMode::Off, &[(THREAD_COUNT, "many"), (BIND_TO_PORT, "x")]);
    assert!(warnings.is_empty() && notes.contains(THREAD_COUNT) && notes.contains(BIND_TO_PORT), "{warnings} {notes}");
}

#[test]
fn the_platform_says_what_the_server_is() {
    let folder = single_model();
    let of = |variables: &[(&str, &str)], asked, has_repository, single_model: &Path| {
        let platform = Platform { single_model: single_model.to_owned(), ..platform(variables) };
        platform.mode(asked, has_repository, &mut Remarks::default())
    };
    let (here, nowhere) = (folder.path(), Path::new("/nowhere/at/all"));
    use SageMakerMode::{Auto, MultiModel, Off, SingleModel};
    for (variables, asked, has_repository, single_model, expected) in [
        (&MULTI[..], Auto, false, nowhere, MultiModel),
        (&MULTI[..], Auto, true, here, MultiModel),
        (&MULTI[..], Off, false, here, Off),
        (&MULTI[..], SingleModel, false, here, SingleModel),
        (&[], Auto, false, here, SingleModel),
        (&[], Auto, true, here, Off),
        (&[], Auto, false, nowhere, Off),
        (&[], MultiModel, true, here, MultiModel),
        (&[(MULTI_MODEL, "false")], Auto, false, here, SingleModel),
        (&[(MULTI_MODEL, "True")], Auto, false, nowhere, Off),
    ] {
        assert_eq!(of(variables, asked, has_repository, single_model), expected, "{variables:?} {asked:?}");
    }
    let mut remarks = Remarks::default();
    platform(&[(MULTI_MODEL, "True")]).mode(Auto, true, &mut remarks);
    assert!(remarks.warnings[0].contains("'True'"), "{remarks:?}");
}

#[test]
fn a_multi_model_container_listens_where_the_platform_asks_and_leaves_eviction_to_it() {
    let config = resolve(ServeOptions::default(), &MULTI).unwrap();
    assert_eq!((config.sagemaker.port, config.http_port, config.metrics_port), (Some(8080), None, None));
    assert_eq!(config.address.to_string(), "0.0.0.0");
    assert_eq!((config.model_repository, config.model_control), (None, ModelControl::Explicit));
    assert_eq!((config.cache.eviction, config.sagemaker.ping), (Eviction::External, Ping::Live));
    assert!(config.drain_grace.as_secs() < 30, "the platform kills after 30 seconds");
}

#[test]
fn a_single_model_container_loads_its_model_at_start() {
    let folder = single_model();
    let config = in_single_model(folder.path(), ServeOptions::default(), &[(BIND_TO_PORT, "9000")]).unwrap();
    assert_eq!(config.model_repository.as_deref(), folder.path().to_str());
    assert_eq!(
        (config.sagemaker.model.as_deref(), &config.load_model[..]),
        (Some("resnet"), &["resnet".to_owned()][..])
    );
    assert_eq!((config.sagemaker.port, config.sagemaker.ping), (Some(9000), Ping::Ready));
    assert!(config.warnings[0].contains("resnet"), "{:?}", config.warnings);
    let named = in_single_model(folder.path(), ServeOptions::default(), &[(DEFAULT_MODEL_NAME, "bert")]);
    assert!(named.unwrap_err().to_string().contains("bert"));
    // Another repository makes it a server of its own, whatever lies in that folder.
    let other = ServeOptions { model_repository: Some("models".to_owned()), ..ServeOptions::default() };
    let config = in_single_model(folder.path(), other, &[(BIND_TO_PORT, "9000")]).unwrap();
    assert_eq!((config.sagemaker.mode, config.sagemaker.port), (SageMakerMode::Off, None));
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "sagemaker-port = 1\nlog = 'error'\nio-threads = 9\nsagemaker-ping = 'live'\n")
        .unwrap();
    let flags = ServeOptions {
        config: Some(file.path().to_owned()),
        sagemaker_port: Some(Port::At(8083)),
        ..ServeOptions::default()
    };
    let variables = [
        MULTI[0],
        (BIND_TO_PORT, "8082"),
        (LOG_VERBOSE, "true"),
        (OVERRIDE_PING_MODE, "ready"),
        (ADDITIONAL_ARGS, "--sagemaker-port 8084 --log trace"),
    ];
    let config = resolve(flags.clone(), &variables).unwrap();
    assert_eq!((config.sagemaker.port, config.log.as_str(), config.io_threads), (Some(8083), "trace", 9));
    assert_eq!(config.sagemaker.ping, Ping::Ready);
    std::fs::write(file.path(), "sagemaker = 'multi-model'\nlog = 'error'\n").unwrap();
    let config = resolve(flags, &[(BIND_TO_PORT, "8082"), (ALLOW_METRICS, "true")]).unwrap();
    assert_eq!((config.sagemaker.mode, config.metrics_port), (SageMakerMode::MultiModel, Some(8002)));
    assert_eq!((config.log.as_str(), config.grpc.port), ("error", None));
    let grpc = |more: &[(&str, &str)]| resolve(ServeOptions::default(), &[&MULTI, more].concat()).unwrap().grpc.port;
    assert_eq!(grpc(&[(ALLOW_GRPC, "true")]), Some(8001));
    assert_eq!(grpc(&[(ALLOW_GRPC, "true"), (GRPC_PORT, "23001")]), Some(23001));
    assert_eq!(grpc(&[(ALLOW_GRPC, "false"), (GRPC_PORT, "23001")]), None);
}

#[test]
fn other_ports_lie_in_the_range_that_the_platform_allows() {
    let resolve_in = |range, http: Option<Port>, more: &[(&str, &str)]| {
        let flags = ServeOptions { http_port: http, ..ServeOptions::default() };
        resolve(flags, &[&MULTI, &[(SAFE_PORT_RANGE, range)], more].concat())
    };
    let metrics = [(ALLOW_METRICS, "true"), (METRICS_PORT, "23999")];
    let config = resolve_in("23000-23999", Some(Port::At(23000)), &metrics).unwrap();
    assert_eq!((config.sagemaker.port, config.metrics_port), (Some(8080), Some(23999)));
    for (range, http, more, parts) in [
        ("23000-23999", Some(Port::At(24000)), &[][..], ["--http-port 24000", "23000-23999"]),
        ("23000-23999", Some(Port::At(0)), &[], ["--http-port 0", "23000-23999"]),
        ("23000-23999", None, &metrics[..1], ["--metrics-port 8002", METRICS_PORT]),
        ("23999-23000", None, &[], ["is '23999-23000'", "two ports"]),
        ("23000", None, &[], ["is '23000'", "two ports"]),
    ] {
        let error = resolve_in(range, http, more).unwrap_err().to_string();
        assert!(error.contains(SAFE_PORT_RANGE) && parts.iter().all(|part| error.contains(part)), "{error}");
    }
    let own = ServeOptions { model_repository: Some("models".to_owned()), ..ServeOptions::default() };
    assert_eq!(resolve(own, &[(SAFE_PORT_RANGE, "1-2")]).unwrap().http_port, Some(8000));
}
