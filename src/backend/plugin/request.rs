//! A model that is to be loaded, in the words of the ABI.

use std::ffi::{CString, c_char};
use std::mem::size_of;
use std::path::Path;
use std::ptr;

use roundhouse_abi as abi;

use super::outputs::code;
use crate::backend::ModelFiles;
use crate::error::{Error, Result};
use crate::inference::DeviceId;
use crate::model_config::ModelConfig;
use crate::model_config::sequence::SequenceBatching;
use crate::tensor::DataType;

/// A request with all that it points to.
pub(super) struct Request {
    pub(super) raw: abi::RoundhouseLoadRequest,
    _strings: Vec<CString>,
    _dims: Vec<Box<[i64]>>,
    _inputs: Box<[abi::RoundhouseTensorInfo]>,
    _outputs: Box<[abi::RoundhouseTensorInfo]>,
    _parameters: Box<[abi::RoundhouseParameter]>,
}

/// The ABI's words for a device.
pub(super) const fn device(device: DeviceId) -> (abi::RoundhouseDeviceKind, u32) {
    match device {
        DeviceId::Cpu => (abi::CPU, 0),
        DeviceId::Gpu(index) => (abi::GPU, index),
    }
}

/// Strings and dimensions that the request points to. Boxes and C strings do not move when their vector grows.
#[derive(Default)]
struct Kept {
    strings: Vec<CString>,
    dims: Vec<Box<[i64]>>,
}

impl Kept {
    fn string(&mut self, text: impl Into<Vec<u8>>, what: &str) -> Result<*const c_char> {
        let string = CString::new(text).map_err(|_| Error::invalid(format!("{what} has a NUL in it")))?;
        let pointer = string.as_ptr();
        self.strings.push(string);
        Ok(pointer)
    }

    fn path(&mut self, path: &Path) -> Result<*const c_char> {
        let text = path.to_str().ok_or_else(|| {
            Error::invalid(format!("the path {} is not UTF-8, which a plugin's model needs", path.display()))
        })?;
        self.string(text, "the model's path")
    }

    fn tensor(
        &mut self,
        (name, data_type, dims): (&str, DataType, Vec<i64>),
        optional: bool,
    ) -> Result<abi::RoundhouseTensorInfo> {
        let dims: Box<[i64]> = dims.into();
        let info = abi::RoundhouseTensorInfo {
            name: self.string(name, "a tensor's name")?,
            dims: dims.as_ptr(),
            rank: dims.len(),
            data_type: code(data_type),
            flags: if optional { abi::TENSOR_OPTIONAL } else { 0 },
        };
        self.dims.push(dims);
        Ok(info)
    }
}

impl Request {
    /// The request for a version of a model. Control inputs and states of sequences are inputs and outputs like others.
    pub(super) fn new(files: &ModelFiles, config: &ModelConfig, on: DeviceId, usual_file: &str) -> Result<Self> {
        let mut kept = Kept::default();
        let sequences = || config.sequence_batching.iter();
        let whole = |dims: &[i64]| config.metadata_dims(dims);
        let inputs = config.inputs.iter().map(|input| {
            let dims = if input.allow_ragged_batch { vec![-1] } else { whole(input.runtime_dims()) };
            ((input.name.as_str(), input.data_type, dims), input.optional)
        });
        let controls = sequences().flat_map(SequenceBatching::inputs);
        let inputs = inputs.chain(controls.map(|(name, data_type, dims)| ((name, data_type, whole(dims)), false)));
        let inputs = inputs.map(|(tensor, optional)| kept.tensor(tensor, optional)).collect::<Result<Box<[_]>>>()?;
        let outputs = config.outputs.iter().map(|output| {
            let is_ragged = config.batch_outputs.iter().any(|ragged| ragged.targets.contains(&output.name));
            let dims = if is_ragged { vec![-1] } else { whole(output.runtime_dims()) };
            (output.name.as_str(), output.data_type, dims)
        });
        let states = sequences().flat_map(SequenceBatching::outputs);
        let outputs = outputs.chain(states.map(|(name, data_type, dims)| (name, data_type, whole(dims))));
        let outputs = outputs.map(|tensor| kept.tensor(tensor, false)).collect::<Result<Box<[_]>>>()?;
        let parameters = config.parameters.iter().map(|(key, value)| {
            let (key, value) = (kept.string(key.as_str(), "a parameter")?, kept.string(value.as_str(), "a parameter")?);
            Ok(abi::RoundhouseParameter { key, value })
        });
        let parameters = parameters.collect::<Result<Box<[_]>>>()?;
        let instances: u64 = config.instance_groups.iter().map(|group| u64::from(group.count)).sum();
        let has_file =
            files.model_file.is_some() || !config.default_model_filename.is_empty() || !usual_file.is_empty();
        let (device_kind, device_id) = device(on);
        let raw = abi::RoundhouseLoadRequest {
            struct_size: size_of::<abi::RoundhouseLoadRequest>(),
            model_name: kept.string(config.name.as_str(), "the model's name")?,
            version: files.version,
            directory: kept.path(&files.directory)?,
            version_directory: kept.path(&files.version_directory)?,
            model_file: match has_file {
                true => kept.path(&files.find(config, usual_file)?)?,
                false => ptr::null(),
            },
            derived_directory: files.derived.as_deref().map_or(Ok(ptr::null()), |folder| kept.path(folder))?,
            device_kind,
            device_id,
            max_batch_size: config.max_batch_size,
            instance_count: u32::try_from(instances).unwrap_or(u32::MAX),
            inputs: inputs.as_ptr(),
            input_count: inputs.len(),
            outputs: outputs.as_ptr(),
            output_count: outputs.len(),
            parameters: parameters.as_ptr(),
            parameter_count: parameters.len(),
        };
        let Kept { strings, dims } = kept;
        Ok(Self { raw, _strings: strings, _dims: dims, _inputs: inputs, _outputs: outputs, _parameters: parameters })
    }
}
