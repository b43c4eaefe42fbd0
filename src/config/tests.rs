//! How options become a configuration: what wins, and what a wrong one is told.

use super::*;

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "model-repository = 'from-file'\nhttp-port = 9000\ndevice = ['cpu']\n").unwrap();
    let options = ServeOptions {
        config: Some(file.path().to_owned()),
        http_port: Some(Port::At(9100)),
        runtime_dir: Some("rt".into()),
        ..ServeOptions::default()
    };
    let config = options.resolve().unwrap();
    assert_eq!(config.model_repository.as_deref(), Some("from-file"));
    assert_eq!(config.http_port, Some(9100));
    assert_eq!(config.metrics_port, Some(8002));
    assert_eq!(config.sagemaker.port, None);
    assert_eq!(config.devices, [DeviceChoice::Cpu]);
}

#[test]
fn a_misspelt_option_in_the_file_is_named_with_its_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "model-repository = 'x'\nhttp-prot = 1\n").unwrap();
    let options = ServeOptions { config: Some(file.path().to_owned()), ..ServeOptions::default() };
    let text = options.resolve().unwrap_err().report();
    assert!(text.contains("http-prot") && text.contains("line 2"), "{text}");
}

#[test]
fn a_missing_repository_says_what_to_give() {
    let text = ServeOptions::default().resolve().unwrap_err().to_string();
    assert!(text.contains("--model-repository"), "{text}");
}

#[test]
fn devices_are_parsed() {
    assert_eq!("gpu:3".parse::<DeviceChoice>().unwrap(), DeviceChoice::Gpu(3));
    assert!("gpu".parse::<DeviceChoice>().is_err());
    assert!("tpu:0".parse::<DeviceChoice>().is_err());
}
