//! Which execution providers compute a model on a GPU, and what they are told: text pairs, decided here and handed over
//! elsewhere.
//!
//! The names and values of a configuration's `gpu_execution_accelerator` are Triton's. What is the server's own to decide
//! (device, stream, memory, where engines are kept) no configuration can set.

use std::path::Path;

use crate::error::{Error, Result};
use crate::model_config::optimization::{Accelerator, Optimization};

/// Triton's name for TensorRT among the accelerators.
pub(super) const TENSORRT: &str = "tensorrt";

/// Options of a provider: names and values.
pub(super) type Options = Vec<(String, String)>;

/// What computes a model on a GPU, in the order in which providers are asked for each operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Providers {
    /// TensorRT's options, where it is to be used.
    pub(super) tensorrt: Option<Options>,
    /// CUDA's options.
    pub(super) cuda: Options,
}

/// The device that a session is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// CUDA's number of the device.
    pub(super) ordinal: u32,
    /// The stream that it computes on, in CUDA's words.
    pub(super) stream: usize,
    /// Where engines that TensorRT built may be kept.
    pub(super) engines: Option<&'a Path>,
    /// Whether TensorRT's libraries are there.
    pub(super) has_tensorrt: bool,
}

/// What a configuration may tell CUDA's provider (onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc).
const CUDA_KEYS: [&str; 13] = [
    "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace",
    "cudnn_conv1d_pad_to_nc1d",
    "do_copy_in_default_stream",
    "enable_skip_layer_norm_strict_mode",
    "fuse_conv_bias",
    "prefer_nhwc",
    "sdpa_kernel",
    "tunable_op_enable",
    "tunable_op_max_tuning_duration_ms",
    "tunable_op_tuning_enable",
    "use_ep_level_unified_stream",
    "use_tf32",
];

/// What is without effect, since memory is handed out by the server.
const MEMORY_KEYS: [&str; 2] = ["gpu_mem_limit", "arena_extend_strategy"];

/// Triton's names for what TensorRT is told, and the provider's.
const TENSORRT_NAMES: [(&str, &str); 3] = [
    ("max_workspace_size_bytes", "trt_max_workspace_size"),
    ("int8_calibration_table_name", "trt_int8_calibration_table_name"),
    ("int8_use_native_calibration_table", "trt_int8_use_native_calibration_table"),
];

/// What of TensorRT's is the server's own.
const TENSORRT_OURS: [&str; 5] = [
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
    "trt_cuda_graph_enable",
];

/// Decides on providers and options, and says what of the configuration is without effect and why.
///
/// # Errors
/// `InvalidArgument` naming an accelerator or a parameter that does not exist, or a value that is none.
pub(super) fn choose(optimization: &Optimization, target: &Target<'_>) -> Result<(Providers, Vec<String>)> {
    let mut remarks = Vec::new();
    let shared = || {
        vec![
            pair("device_id", target.ordinal),
            pair("has_user_compute_stream", 1),
            pair("user_compute_stream", target.stream),
        ]
    };
    let mut cuda = shared();
    // Searching exhaustively takes seconds and much memory for each new shape, and shapes change with the batch.
    cuda.push(pair("cudnn_conv_algo_search", "HEURISTIC"));
    let mut tensorrt = None;
    for accelerator in &optimization.gpu_accelerators {
        match accelerator.name.as_str() {
            "cuda" => tell_cuda(&mut cuda, accelerator, &mut remarks)?,
            TENSORRT if !target.has_tensorrt => {
                // Checked all the same: a wrong value should not wait for another machine to be found.
                tell_tensorrt(&mut shared(), accelerator, target, &mut remarks)?;
                remarks.push(
                    "gpu_execution_accelerator 'tensorrt': libnvinfer.so.10 is not on this machine, so that CUDA computes \
                     all of the model: install TensorRT 10, or leave the accelerator out"
                        .to_owned(),
                );
            }
            TENSORRT => {
                let mut options = shared();
                tell_tensorrt(&mut options, accelerator, target, &mut remarks)?;
                tensorrt = Some(options);
            }
            other => {
                return Err(Error::invalid(format!(
                    "gpu_execution_accelerator '{other}' is none that the onnxruntime backend has: cuda and tensorrt are"
                )));
            }
        }
    }
    Ok((Providers { tensorrt, cuda }, remarks))
}

fn pair(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

/// Sets an option, in the place of one of that name.
fn set(options: &mut Options, name: &str, value: &str) {
    match options.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => options.push(pair(name, value)),
    }
}

fn tell_cuda(options: &mut Options, accelerator: &Accelerator, remarks: &mut Vec<String>) -> Result<()> {
    for (key, value) in &accelerator.parameters {
        let key = key.as_str();
        if MEMORY_KEYS.contains(&key) {
            remarks.push(format!(
                "gpu_execution_accelerator 'cuda': {key} has no effect, since the server hands out the memory of GPUs: \
                 --memory-limit limits it"
            ));
        } else if CUDA_KEYS.contains(&key) && !value.is_empty() {
            set(options, key, value);
        } else {
            return Err(wrong("cuda", key, value, &CUDA_KEYS.join(", ")));
        }
    }
    Ok(())
}

fn tell_tensorrt(
    options: &mut Options,
    accelerator: &Accelerator,
    target: &Target<'_>,
    remarks: &mut Vec<String>,
) -> Result<()> {
    if let Some(folder) = target.engines.and_then(Path::to_str) {
        // An engine takes minutes to build and is good for one model, GPU and version, which its name says.
        for (name, value) in TENSORRT_OURS.iter().zip(["1", folder, "1", folder]) {
            options.push(pair(name, value));
        }
    }
    for (key, value) in &accelerator.parameters {
        let key = key.as_str();
        let ours = TENSORRT_NAMES.iter().find(|(theirs, _)| *theirs == key).map(|(_, ours)| *ours);
        match (key, value.as_str()) {
            ("precision_mode", "FP32") => {}
            ("precision_mode", "FP16") => set(options, "trt_fp16_enable", "1"),
            ("precision_mode", "INT8") => set(options, "trt_int8_enable", "1"),
            ("precision_mode", value) => return Err(wrong("tensorrt", key, value, "FP32, FP16 and INT8")),
            (key, _) if TENSORRT_OURS.contains(&key) => {
                remarks.push(format!(
                    "gpu_execution_accelerator 'tensorrt': {key} has no effect, since the server keeps engines beside the model"
                ));
            }
            (key, value) if !value.is_empty() && (ours.is_some() || key.starts_with("trt_")) => {
                set(options, ours.unwrap_or(key), value);
            }
            (key, value) => {
                return Err(wrong("tensorrt", key, value, "precision_mode, max_workspace_size_bytes and trt_..."));
            }
        }
    }
    Ok(())
}

fn wrong(accelerator: &str, key: &str, value: &str, known: &str) -> Error {
    Error::invalid(format!(
        "gpu_execution_accelerator '{accelerator}': '{key}' cannot be set to '{value}', what can be set is {known}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn asked(accelerators: &[(&str, &[(&str, &str)])], has_tensorrt: bool) -> Result<(Providers, Vec<String>)> {
        let accelerator = |(name, parameters): &(&str, &[(&str, &str)])| Accelerator {
            name: (*name).to_owned(),
            parameters: parameters.iter().map(|(key, value)| pair(key, value)).collect(),
        };
        let gpu_accelerators = accelerators.iter().map(accelerator).collect();
        let engines = Some(Path::new("/cache/m/tensorrt"));
        let target = Target { ordinal: 3, stream: 0x5000, engines, has_tensorrt };
        choose(&Optimization { gpu_accelerators, graph_level: 0 }, &target)
    }

    fn value<'a>(options: &'a Options, name: &str) -> Option<&'a str> {
        assert!(options.iter().filter(|(known, _)| known == name).count() < 2, "{name} is there twice");
        options.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn cuda_alone_is_told_its_device_and_its_stream() {
        let (providers, remarks) = asked(&[], true).unwrap();
        assert_eq!((providers.tensorrt, remarks), (None, Vec::new()));
        let cuda = &providers.cuda;
        assert_eq!(value(cuda, "device_id"), Some("3"));
        assert_eq!(value(cuda, "user_compute_stream"), Some("20480"));
        assert_eq!(value(cuda, "has_user_compute_stream"), Some("1"));
        // Together with a stream the provider refuses it: onnxruntime/core/providers/cuda/cuda_execution_provider.cc.
        assert_eq!(value(cuda, "gpu_external_alloc"), None);
    }

    #[test]
    fn a_configuration_sets_what_is_its_own_and_no_more() {
        let given =
            [("cuda", &[("cudnn_conv_algo_search", "EXHAUSTIVE"), ("gpu_mem_limit", "1"), ("use_tf32", "0")][..])];
        let (providers, remarks) = asked(&given, false).unwrap();
        assert_eq!(value(&providers.cuda, "cudnn_conv_algo_search"), Some("EXHAUSTIVE"));
        assert_eq!(value(&providers.cuda, "use_tf32"), Some("0"));
        assert_eq!(value(&providers.cuda, "gpu_mem_limit"), None);
        assert!(remarks.len() == 1 && remarks[0].contains("--memory-limit"), "{remarks:?}");
        for key in ["device_id", "user_compute_stream", "gpu_external_alloc", "enable_cuda_graph", "typo"] {
            let error = asked(&[("cuda", &[(key, "1")])], false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.report().contains(&format!("'{key}' cannot be set to '1'")), "{}", error.report());
        }
        assert!(asked(&[("openvino", &[])], true).unwrap_err().report().contains("cuda and tensorrt are"));
    }

    #[test]
    fn tensorrt_is_told_in_tritons_words_and_keeps_its_engines_beside_the_model() {
        let given = [("precision_mode", "FP16"), ("max_workspace_size_bytes", "1073741824"), ("trt_dla_enable", "1")];
        let (providers, remarks) = asked(&[("tensorrt", &given)], true).unwrap();
        let options = providers.tensorrt.unwrap();
        for (name, expected) in [
            ("device_id", "3"),
            ("trt_fp16_enable", "1"),
            ("trt_max_workspace_size", "1073741824"),
            ("trt_dla_enable", "1"),
            ("trt_engine_cache_path", "/cache/m/tensorrt"),
            ("trt_timing_cache_enable", "1"),
        ] {
            assert_eq!(value(&options, name), Some(expected), "{name}");
        }
        assert!(remarks.is_empty() && value(&options, "trt_cuda_graph_enable").is_none());
        let (_, remarks) = asked(&[("tensorrt", &[("trt_engine_cache_path", "/tmp")])], true).unwrap();
        assert!(remarks[0].contains("keeps engines beside the model"), "{remarks:?}");
        for (key, text) in [("precision_mode", "FP16 please"), ("workspace", "1"), ("trt_x", "")] {
            assert_eq!(asked(&[("tensorrt", &[(key, text)])], false).unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn without_tensorrts_libraries_cuda_computes_and_that_is_said() {
        let (providers, remarks) = asked(&[("tensorrt", &[("precision_mode", "FP16")])], false).unwrap();
        assert_eq!(providers.tensorrt, None);
        assert!(remarks.len() == 1 && remarks[0].contains("install TensorRT 10"), "{remarks:?}");
    }
}
