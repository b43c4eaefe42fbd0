//! From the body of a request to an inference request.

use std::borrow::Cow;

use bytes::Bytes;
use compact_str::CompactString;
use smallvec::SmallVec;

use super::elements::read_elements;
use super::parameters::{
    boolean, check_name, check_once, count_parameter, read_request_parameters, refuse_duplicates, unsigned,
};
use super::shared::{SharedParameters, check_size, is_shared};
use super::{DecodedRequest, Limits, OutputFormat, ResponseFormat, SharedInput};
use crate::error::{Error, Result};
use crate::frontend::json::{Cursor, Kind, Number};
use crate::inference::NamedTensor;
use crate::tensor::{DataType, Shape, Tensor, push_string};

/// Decodes the body of an inference request (KServe v2, with Triton's binary tensor data extension).
///
/// `header_length` is the value of the header `Inference-Header-Content-Length`: the bytes of the JSON part, behind
/// which binary tensors follow in the order of the inputs. `None` means that the whole body is JSON. For 0, the raw
/// form, see [`decode_raw`].
///
/// Keys may come in any order; unknown keys are skipped, known keys may stand only once in an object. Neither the
/// model's metadata nor which inputs it wants is known here: a shape and its elements agree, no more.
///
/// # Errors
/// `InvalidArgument` for what is malformed or contradicts itself, `TooLarge` for what passes `limits`.
pub fn decode_request(body: Bytes, header_length: Option<usize>, limits: &Limits) -> Result<DecodedRequest> {
    let json_length = header_length.unwrap_or(body.len());
    let Some(json) = body.get(..json_length) else {
        return Err(Error::invalid(format!(
            "the header Inference-Header-Content-Length is {json_length}, but the body has only {} bytes",
            body.len()
        )));
    };
    if json_length > limits.json_bytes {
        return Err(Error::too_large(format!(
            "the JSON part of the request has {json_length} bytes, over --max-json-bytes {}; send large \
             tensors as binary data",
            limits.json_bytes
        )));
    }
    let mut decoder = Decoder { body: &body, binary_at: json_length, limits, decoded: DecodedRequest::default() };
    let mut cursor = Cursor::new(json, limits.json_depth);
    decoder.read_request(&mut cursor)?;
    let left = body.len() - decoder.binary_at;
    if left > 0 {
        return Err(Error::invalid(format!(
            "unexpected additional input data: {left} bytes are left behind the last binary input"
        )));
    }
    Ok(decoder.decoded)
}

/// Decodes a raw request (`Inference-Header-Content-Length: 0`): the whole body is the one input of a model. The
/// answer is binary.
///
/// `dims` is the input's shape in the model's metadata, with the batch dimension. At most one dimension may be -1; it
/// takes what the size of the body gives. A BYTES input takes the body as its one element, so that its dimensions must
/// all be 1, save for a -1 in front of others, the batch dimension, which becomes 1.
///
/// # Errors
/// `InvalidArgument` if the shape cannot be deduced or the size does not fit it.
pub fn decode_raw(body: Bytes, name: &str, data_type: DataType, dims: &[i64]) -> Result<DecodedRequest> {
    let tensor = match data_type.size() {
        Some(size) => raw_tensor(body, name, data_type, size, dims)?,
        None => raw_string(&body, dims)?,
    };
    let mut decoded = DecodedRequest {
        format: ResponseFormat { binary_default: true, outputs: SmallVec::new() },
        ..DecodedRequest::default()
    };
    decoded.request.inputs.push(NamedTensor { name: name.into(), tensor });
    Ok(decoded)
}

fn raw_tensor(body: Bytes, name: &str, data_type: DataType, size: usize, dims: &[i64]) -> Result<Tensor> {
    if dims.iter().filter(|&&dim| dim == -1).count() > 1 {
        // Triton's text.
        return Err(Error::invalid(format!(
            "The shape of the raw input '{name}' can not be deduced because there are more than one variable-sized \
             dimension"
        )));
    }
    let known: Shape = dims.iter().map(|&dim| if dim == -1 { 1 } else { dim }).collect();
    let known_bytes = known.element_count().and_then(|count| count.checked_mul(size)).unwrap_or(0);
    let deduced = body.len().checked_div(known_bytes).unwrap_or(0);
    let deduced = i64::try_from(deduced).unwrap_or(i64::MAX);
    let shape = dims.iter().map(|&dim| if dim == -1 { deduced } else { dim }).collect();
    let length = body.len();
    Tensor::new(data_type, shape, body).map_err(|_| {
        Error::invalid(format!(
            "unexpected size for input '{name}': a raw body of {length} bytes does not fill shape {} of {data_type}",
            Shape::new(dims)
        ))
    })
}

fn raw_string(body: &[u8], dims: &[i64]) -> Result<Tensor> {
    let (batch, rest) = dims.split_first().unwrap_or((&1, &[]));
    let one_element = rest.iter().all(|&dim| dim == 1) && (*batch == 1 || (*batch == -1 && !rest.is_empty()));
    if !one_element {
        // Triton's text.
        return Err(Error::invalid("For BYTE datatype raw input, the model must have input shape [1]"));
    }
    let mut data = Vec::with_capacity(4 + body.len());
    push_string(&mut data, body)?;
    Tensor::new(DataType::Bytes, dims.iter().map(|_| 1).collect(), data.into())
}

struct Decoder<'a> {
    body: &'a Bytes,
    /// Where the next binary tensor begins.
    binary_at: usize,
    limits: &'a Limits,
    decoded: DecodedRequest,
}

/// One entry of `inputs`, as far as it was read.
struct Input<'a> {
    /// Borrowed until all is known: the less is moved about, the faster a small request.
    name: Option<Cow<'a, str>>,
    data_type: Option<DataType>,
    shape: Option<Shape>,
    data: Option<Data<'a>>,
    parameters: Option<()>,
    binary_size: Option<u64>,
    shared: Option<Box<SharedParameters>>,
}

enum Data<'a> {
    Read(Tensor),
    /// It stood before what one must know to read it.
    Skipped(Cursor<'a>),
}

impl<'a> Decoder<'a> {
    fn read_request(&mut self, cursor: &mut Cursor<'a>) -> Result<()> {
        let (mut id, mut parameters, mut inputs, mut outputs) = (None, None, None, None);
        cursor.enter_object()?;
        while let Some(key) = cursor.next_key()? {
            match &*key {
                "id" => {
                    check_once(&id, &key)?;
                    let text = cursor.string()?;
                    check_name(&text, "the request, its 'id',", self.limits)?;
                    self.decoded.request.id = CompactString::new(&text);
                    id = Some(());
                }
                "parameters" => {
                    check_once(&parameters, &key)?;
                    parameters = Some(());
                    read_request_parameters(cursor, self.limits, &mut self.decoded)?;
                }
                "inputs" => {
                    check_once(&inputs, &key)?;
                    inputs = Some(());
                    self.read_inputs(cursor)?;
                }
                "outputs" => {
                    check_once(&outputs, &key)?;
                    outputs = Some(());
                    self.read_outputs(cursor)?;
                }
                _ => cursor.skip_value()?,
            }
        }
        cursor.end()?;
        if inputs.is_none() {
            return Err(Error::invalid("the request JSON has no 'inputs'"));
        }
        Ok(())
    }

    fn read_inputs(&mut self, cursor: &mut Cursor<'a>) -> Result<()> {
        cursor.enter_array()?;
        while cursor.next_element()? {
            if self.decoded.request.inputs.len() + self.decoded.shared_inputs.len() == self.limits.inputs {
                return Err(Error::too_large(format!("more inputs than the limit of {} (inputs)", self.limits.inputs)));
            }
            self.read_input(cursor)?;
        }
        let read = self.decoded.request.inputs.iter().map(|input| input.name.as_str());
        if self.decoded.shared_inputs.is_empty() {
            return refuse_duplicates(read, "input");
        }
        let shared = self.decoded.shared_inputs.iter().map(|input| input.name.as_str());
        refuse_duplicates(read.chain(shared), "input")
    }

    fn read_input(&mut self, cursor: &mut Cursor<'a>) -> Result<()> {
        let mut input = Input {
            name: None,
            data_type: None,
            shape: None,
            data: None,
            parameters: None,
            binary_size: None,
            shared: None,
        };
        cursor.enter_object()?;
        while let Some(key) = cursor.next_key()? {
            match &*key {
                "name" => {
                    check_once(&input.name, &key)?;
                    let name = cursor.string()?;
                    check_name(&name, "an input", self.limits)?;
                    input.name = Some(name);
                }
                "datatype" => {
                    check_once(&input.data_type, &key)?;
                    input.data_type = Some(cursor.string()?.parse().map_err(|error: Error| input.error(error))?);
                }
                "shape" => {
                    check_once(&input.shape, &key)?;
                    input.shape = Some(self.read_shape(cursor, &input)?);
                }
                "data" => {
                    check_once(&input.data, &key)?;
                    let data = match (&input.name, input.data_type, &input.shape) {
                        (Some(name), Some(data_type), Some(shape)) => {
                            Data::Read(self.read_data(cursor, name, data_type, shape)?)
                        }
                        _ => {
                            let before = cursor.clone();
                            cursor.skip_array_unchecked()?;
                            Data::Skipped(before)
                        }
                    };
                    input.data = Some(data);
                }
                "parameters" => {
                    check_once(&input.parameters, &key)?;
                    input.parameters = Some(());
                    self.read_input_parameters(cursor, &mut input)?;
                }
                _ => cursor.skip_value()?,
            }
        }
        let Input { name, data_type, shape, data, binary_size, shared, .. } = input;
        let Some(name) = name else { return Err(Error::invalid("an input has no 'name'")) };
        let missing = |key: &str| Error::invalid(format!("input '{name}' has no '{key}'"));
        let data_type = data_type.ok_or_else(|| missing("datatype"))?;
        let shape = shape.ok_or_else(|| missing("shape"))?;
        let place = shared.map_or(Ok(None), |shared| shared.finish(&name))?;
        let tensor = match (data, binary_size, place) {
            (Some(Data::Read(tensor)), None, None) => tensor,
            (Some(Data::Skipped(mut cursor)), None, None) => self.read_data(&mut cursor, &name, data_type, &shape)?,
            (None, Some(size), None) => self.take_binary(&name, data_type, shape, size)?,
            (None, None, Some(place)) => {
                check_size(&name, data_type, &shape, place.byte_size)?;
                self.decoded.shared_inputs.push(SharedInput {
                    name: CompactString::new(&name),
                    data_type,
                    shape,
                    place,
                });
                return Ok(());
            }
            (data, binary_size, place) => {
                return Err(not_one_place(&name, data.is_some(), binary_size.is_some(), place.is_some()));
            }
        };
        self.decoded.request.inputs.push(NamedTensor { name: CompactString::new(&name), tensor });
        Ok(())
    }

    fn read_shape(&self, cursor: &mut Cursor<'a>, input: &Input<'a>) -> Result<Shape> {
        let mut shape = Shape::default();
        cursor.enter_array()?;
        while cursor.next_element()? {
            if shape.rank() == self.limits.rank {
                let text = format!("more dimensions than the limit of {} (rank)", self.limits.rank);
                return Err(input.error(Error::too_large(text)));
            }
            match cursor.number()? {
                Number::Int(dim @ 0..) => shape.push(dim),
                Number::Int(dim) => return Err(input.error(Error::invalid(format!("dimension {dim} is negative")))),
                _ => return Err(input.error(Error::invalid("a dimension is not an integer below 2^63"))),
            }
        }
        Ok(shape)
    }

    fn read_data(&self, cursor: &mut Cursor<'a>, name: &str, data_type: DataType, shape: &Shape) -> Result<Tensor> {
        if cursor.kind()? != Kind::Array {
            return Err(Error::invalid(format!("'data' of input '{name}' must be an array")));
        }
        let count = shape.element_count().ok_or_else(|| too_many_elements(name, shape))?;
        let elements = read_elements(cursor, name, data_type, Some(count), self.limits)?;
        Tensor::new(data_type, shape.clone(), elements.data)
            .map_err(|error| Error::new(error.kind(), format!("input '{name}': {error}")))
    }

    fn read_input_parameters(&self, cursor: &mut Cursor<'a>, input: &mut Input<'a>) -> Result<()> {
        cursor.enter_object()?;
        let mut count = 0;
        while let Some(key) = cursor.next_key()? {
            count_parameter(&mut count, &key, self.limits)?;
            match &*key {
                "binary_data_size" => {
                    check_once(&input.binary_size, &key)?;
                    input.binary_size = Some(unsigned(cursor, &key)?);
                }
                _ if is_shared(&key) => input.shared.get_or_insert_default().read(cursor, &key, self.limits)?,
                _ => cursor.skip_value()?,
            }
        }
        Ok(())
    }

    fn take_binary(&mut self, name: &str, data_type: DataType, shape: Shape, size: u64) -> Result<Tensor> {
        let there = self.body.len() - self.binary_at;
        let size = match usize::try_from(size) {
            Ok(size) if size <= there => size,
            _ => {
                return Err(Error::invalid(format!(
                    "unexpected size for input '{name}': binary_data_size is {size}, but only {there} bytes of binary \
                     data are left in the body (is the header Inference-Header-Content-Length right?)"
                )));
            }
        };
        if shape.element_count().is_none() {
            return Err(too_many_elements(name, &shape));
        }
        let data = self.body.slice(self.binary_at..self.binary_at + size);
        self.binary_at += size;
        Tensor::new(data_type, shape, data)
            .map_err(|error| Error::new(error.kind(), format!("unexpected size for input '{name}': {error}")))
    }

    fn read_outputs(&mut self, cursor: &mut Cursor<'a>) -> Result<()> {
        cursor.enter_array()?;
        while cursor.next_element()? {
            if self.decoded.request.outputs.len() == self.limits.inputs {
                return Err(Error::too_large(format!(
                    "more requested outputs than the limit of {} (inputs)",
                    self.limits.inputs
                )));
            }
            self.read_output(cursor)?;
        }
        refuse_duplicates(self.decoded.request.outputs.iter().map(CompactString::as_str), "requested output")
    }

    fn read_output(&mut self, cursor: &mut Cursor<'a>) -> Result<()> {
        let mut output_name = None;
        let (mut parameters, mut binary, mut classification) = (None, None, None);
        let mut shared = SharedParameters::default();
        cursor.enter_object()?;
        while let Some(key) = cursor.next_key()? {
            match &*key {
                "name" => {
                    check_once(&output_name, &key)?;
                    let name = cursor.string()?;
                    check_name(&name, "a requested output", self.limits)?;
                    output_name = Some(name);
                }
                "parameters" => {
                    check_once(&parameters, &key)?;
                    parameters = Some(());
                    cursor.enter_object()?;
                    let mut count = 0;
                    while let Some(key) = cursor.next_key()? {
                        count_parameter(&mut count, &key, self.limits)?;
                        match &*key {
                            "binary_data" => {
                                check_once(&binary, &key)?;
                                binary = Some(boolean(cursor, &key)?);
                            }
                            "classification" => {
                                check_once(&classification, &key)?;
                                classification = Some(top_classes(cursor, &key)?);
                            }
                            _ if is_shared(&key) => shared.read(cursor, &key, self.limits)?,
                            _ => cursor.skip_value()?,
                        }
                    }
                }
                _ => cursor.skip_value()?,
            }
        }
        let Some(name) = output_name else { return Err(Error::invalid("a requested output has no 'name'")) };
        let shared = shared.finish(&name)?;
        if shared.is_some() && (classification.is_some() || binary == Some(true)) {
            let other = if classification.is_some() { "classification" } else { "binary_data" };
            // Triton's text.
            return Err(Error::invalid(format!("Output can't set both 'shared_memory_region' and '{other}'")));
        }
        if binary.is_some() || classification.is_some() || shared.is_some() {
            let name = CompactString::new(&name);
            self.decoded.format.outputs.push(OutputFormat { name, binary, classification, shared });
        }
        self.decoded.request.outputs.push(CompactString::new(&name));
        Ok(())
    }
}

impl Input<'_> {
    /// Names the input in an error, if its name is known by now.
    #[cold]
    fn error(&self, error: Error) -> Error {
        match &self.name {
            Some(name) => Error::new(error.kind(), format!("input '{name}': {error}")),
            None => Error::new(error.kind(), format!("an input: {error}")),
        }
    }
}

fn top_classes(cursor: &mut Cursor<'_>, key: &str) -> Result<u32> {
    u32::try_from(unsigned(cursor, key)?)
        .ok()
        .filter(|&count| count > 0)
        .ok_or_else(|| Error::invalid(format!("parameter '{key}' must be an integer from 1 to {}", u32::MAX)))
}

#[cold]
pub(super) fn too_many_elements(name: &str, shape: &Shape) -> Error {
    Error::invalid(format!("input '{name}': shape {shape} has more elements than can be counted"))
}

/// Triton's text, with the input's name behind it.
#[cold]
fn not_one_place(name: &str, data: bool, binary_size: bool, region: bool) -> Error {
    let places = [(data, "data"), (binary_size, "binary_data_size"), (region, "shared_memory_region")];
    let mut set = String::new();
    for (_, place) in places.iter().filter(|(is_set, _)| *is_set) {
        set.push_str(&format!(" '{place}'"));
    }
    let but = if set.is_empty() { "no field is set".to_owned() } else { format!("set{set}") };
    Error::invalid(format!(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', \
         'shared_memory_region' in 'parameters'. But {but} (input '{name}')"
    ))
}
