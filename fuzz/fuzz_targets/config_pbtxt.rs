//! Any text is a configuration or an error that names a place; a configuration can be printed and read back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use roundhouse::frontend::config_json::{from_json, to_json};
use roundhouse::model_config::{InstanceKind, UnknownFields, parse};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for unknown in [UnknownFields::Deny, UnknownFields::Warn] {
        match parse(text, unknown) {
            Ok(parsed) => {
                let mut config = parsed.config;
                // Zeros that stand for defaults are written out before a configuration is shown.
                config.normalize("model.onnx", InstanceKind::Cpu, 2).expect("the defaults can always be written out");
                let printed = to_json(&config);
                let read = from_json(printed.to_string().as_bytes()).expect("what is printed can be read back");
                assert_eq!(to_json(&read.config), printed);
                assert_eq!(read.config.inputs, config.inputs);
                assert_eq!(read.config.outputs, config.outputs);
                assert_eq!(read.config.instance_groups, config.instance_groups);
                assert_eq!(read.config.dynamic_batching, config.dynamic_batching);
                assert_eq!(read.config.version_policy, config.version_policy);
                assert_eq!(read.config.parameters, config.parameters);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
