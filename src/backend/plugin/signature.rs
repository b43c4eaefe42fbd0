//! What a plugin's model takes and gives, as it says, checked.

use std::ffi::CStr;
use std::ptr::NonNull;

use roundhouse_abi as abi;

use super::library::Table;
use super::outputs::{data_type, dims};
use super::{broken, check};
use crate::error::Result;
use crate::model_config::complete::{RuntimeSignature, TensorSignature};

/// More tensors than this no model has.
const MOST_TENSORS: usize = 4096;

/// Asks for a model's signature, and whether it needs its files.
pub(super) fn read(table: &Table, model: NonNull<abi::RoundhouseModel>) -> Result<(RuntimeSignature, bool)> {
    let mut error = abi::RoundhouseError::empty();
    let mut info = abi::RoundhouseModelInfo {
        inputs: std::ptr::null(),
        input_count: 0,
        outputs: std::ptr::null(),
        output_count: 0,
        flags: 0,
        reserved: 0,
    };
    // SAFETY: a function of the table, with a model that lives and room for the answers.
    let status = unsafe { (table.describe)(model.as_ptr(), &raw mut info, &raw mut error) };
    check(status, &error, "describe the model")?;
    let (inputs, optional_inputs) = tensors(info.inputs, info.input_count)?;
    let (outputs, _) = tensors(info.outputs, info.output_count)?;
    if outputs.is_empty() {
        return Err(broken("the model has no outputs"));
    }
    Ok((RuntimeSignature { inputs, outputs, optional_inputs }, info.flags & abi::MODEL_KEEPS_FILES != 0))
}

/// Tensors of a description, and the names of the optional ones.
fn tensors(infos: *const abi::RoundhouseTensorInfo, count: usize) -> Result<(Vec<TensorSignature>, Vec<String>)> {
    if count == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    if count > MOST_TENSORS || infos.is_null() {
        return Err(broken(format_args!("{count} tensors are described nowhere, or are too many")));
    }
    let (mut found, mut optional) = (Vec::<TensorSignature>::with_capacity(count), Vec::new());
    // SAFETY: so many descriptions, as the backend says.
    for info in unsafe { std::slice::from_raw_parts(infos, count) } {
        if info.name.is_null() {
            return Err(broken("a tensor has no name"));
        }
        // SAFETY: a string that ends with a NUL, as the ABI says.
        let name = unsafe { CStr::from_ptr(info.name) }.to_str();
        let name = name.map_err(|_| broken("the name of a tensor is not UTF-8"))?.to_owned();
        if found.iter().any(|other| other.name == name) {
            return Err(broken(format_args!("two tensors are called '{name}'")));
        }
        // SAFETY: null, or the dimensions of this tensor.
        let dims = unsafe { dims(info.dims, info.rank) }?.to_vec();
        if dims.iter().any(|dim| *dim < -1) {
            return Err(broken(format_args!("tensor '{name}' has a dimension below -1")));
        }
        if info.flags & abi::TENSOR_OPTIONAL != 0 {
            optional.push(name.clone());
        }
        found.push(TensorSignature { name, data_type: data_type(info.data_type)?, dims });
    }
    Ok((found, optional))
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;
    use crate::tensor::DataType;

    #[test]
    fn a_description_is_read_or_refused() {
        let sizes = [-1_i64, 3];
        let good = abi::RoundhouseTensorInfo {
            name: c"x".as_ptr(),
            dims: sizes.as_ptr(),
            rank: 2,
            data_type: abi::FP16,
            flags: abi::TENSOR_OPTIONAL,
        };
        let (found, optional) = tensors(&raw const good, 1).unwrap();
        let expected = TensorSignature { name: "x".to_owned(), data_type: DataType::Fp16, dims: vec![-1, 3] };
        assert_eq!((found, optional), (vec![expected], vec!["x".to_owned()]));
        let below = [-2_i64];
        let bad = [
            ("no name", abi::RoundhouseTensorInfo { name: ptr::null(), ..good }),
            ("not UTF-8", abi::RoundhouseTensorInfo { name: c"\xff".as_ptr(), ..good }),
            ("0 is no data type", abi::RoundhouseTensorInfo { data_type: 0, ..good }),
            ("of rank 65", abi::RoundhouseTensorInfo { rank: 65, ..good }),
            ("of rank 2", abi::RoundhouseTensorInfo { dims: ptr::null(), ..good }),
            ("below -1", abi::RoundhouseTensorInfo { dims: below.as_ptr(), rank: 1, ..good }),
        ];
        for (why, info) in bad {
            let error = tensors(&raw const info, 1).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        assert!(tensors([good, good].as_ptr(), 2).unwrap_err().to_string().contains("two tensors"));
        assert!(tensors(ptr::null(), 1).is_err() && tensors(&raw const good, MOST_TENSORS + 1).is_err());
    }
}
