//! Traces in a file, as Triton writes them: one JSON array of objects that belong together by their `id`
//! (docs/user_guide/trace.md of triton-inference-server/server). Moments are nanoseconds since 1970.
//!
//! The file is a whole array after every write, so that it can be read while the server runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};

use super::Clock;
use super::record::{Event, Record, TensorRecord};
use crate::error::{Error, Result};
use crate::tensor::DataType;

/// Numbered files that are open at a time: one for each log frequency that is in use.
const OPEN: usize = 16;

/// The files that traces are written to.
#[derive(Debug)]
pub(super) struct TraceFiles {
    path: PathBuf,
    /// The next numbered file's number.
    next: u64,
    /// By log frequency; 0 is the file without a number.
    open: BTreeMap<u32, Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    traces: u32,
}

impl TraceFiles {
    pub(super) const fn at(path: PathBuf) -> Self {
        Self { path, next: 0, open: BTreeMap::new() }
    }

    /// Writes traces behind those that are there. What an earlier server wrote is replaced.
    ///
    /// # Errors
    /// `Internal` naming the file that cannot be written.
    pub(super) fn write(&mut self, records: &[Record], clock: &Clock) -> Result<()> {
        let mut text = String::new();
        for same in records.chunk_by(|one, other| one.log_frequency == other.log_frequency) {
            let frequency = same.first().map_or(0, |record| record.log_frequency);
            let mut rest = same;
            while !rest.is_empty() {
                let taken = self.open.get(&frequency).map_or(0, |open| open.traces);
                let room = if frequency == 0 { rest.len() } else { (frequency - taken) as usize };
                let (now, later) = rest.split_at(room.min(rest.len()));
                text.clear();
                now.iter().for_each(|record| render(record, clock, &mut text));
                self.append(frequency, &text, now.len())?;
                rest = later;
            }
        }
        Ok(())
    }

    fn append(&mut self, frequency: u32, text: &str, traces: usize) -> Result<()> {
        let path = match frequency {
            0 => self.path.clone(),
            _ => numbered(&self.path, self.next),
        };
        let failed = |path: &Path, error| {
            Error::internal(format!("cannot write the trace file {}", path.display())).with_source(error)
        };
        if !self.open.contains_key(&frequency) {
            if self.open.len() >= OPEN {
                self.open.clear();
            }
            let file = File::create(&path).map_err(|error| failed(&path, error))?;
            self.next += u64::from(frequency != 0);
            self.open.insert(frequency, Open { file, traces: 0 });
        }
        let Some(open) = self.open.get_mut(&frequency) else { return Ok(()) };
        let written = (|| {
            let whole = if open.file.stream_position()? == 0 {
                format!("[{text}]")
            } else {
                // Over the bracket that closes the array.
                open.file.seek(SeekFrom::End(-1))?;
                format!(",{text}]")
            };
            open.file.write_all(whole.as_bytes())
        })();
        open.traces = open.traces.saturating_add(u32::try_from(traces).unwrap_or(u32::MAX));
        if written.is_err() || (frequency != 0 && open.traces >= frequency) {
            self.open.remove(&frequency);
        }
        written.map_err(|error| failed(&path, error))
    }
}

fn numbered(path: &Path, number: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Writes the objects of a trace, with commas between and, where others are there already, before them.
fn render(record: &Record, clock: &Clock, text: &mut String) {
    let moments = |text: &mut String, id: u64, events: &[Event]| {
        for (activity, at) in events {
            comma(text);
            let (name, ns) = (activity.name(), clock.nanoseconds(*at));
            let _ = write!(text, "{{\"id\":{id},\"timestamps\":[{{\"name\":\"{name}\",\"ns\":{ns}}}]}}");
        }
    };
    let timed = record.levels.timestamps;
    if timed {
        moments(text, record.id, &record.events);
    }
    for node in &record.nodes {
        let Some((model, version)) = &node.model else { continue };
        comma(text);
        let _ = write!(text, "{{\"id\":{},\"model_name\":{},\"model_version\":{version}", node.id, quoted(model));
        if !node.request_id.is_empty() {
            let _ = write!(text, ",\"request_id\":{}", quoted(&node.request_id));
        }
        if node.parent != 0 {
            let _ = write!(text, ",\"parent_id\":{}", node.parent);
        }
        text.push('}');
        if timed {
            moments(text, node.id, &node.events);
        }
        for tensor in &node.tensors {
            comma(text);
            let TensorRecord { activity, name, data_type, shape, .. } = tensor;
            let dims: Vec<String> = shape.dims().iter().map(i64::to_string).collect();
            let _ = write!(
                text,
                "{{\"id\":{},\"activity\":\"{}\",\"tensor\":{{\"name\":{},\"data\":{},\"shape\":\"{}\",\"dtype\":\"{}\"",
                node.id,
                activity.name(),
                quoted(name),
                quoted(&elements(tensor)),
                dims.join(","),
                data_type.name(),
            );
            if tensor.data.len() < tensor.bytes {
                let _ = write!(text, ",\"truncated_from_bytes\":{}", tensor.bytes);
            }
            text.push_str("}}");
        }
    }
}

fn comma(text: &mut String) {
    if !text.is_empty() {
        text.push(',');
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The elements that are whole, with commas between.
fn elements(tensor: &TensorRecord) -> String {
    fn list<const N: usize, T: ToString>(data: &[u8], read: impl Fn([u8; N]) -> T) -> String {
        let (whole, _rest) = data.as_chunks::<N>();
        whole.iter().map(|bytes| read(*bytes).to_string()).collect::<Vec<_>>().join(",")
    }
    let data = tensor.data.as_slice();
    match tensor.data_type {
        DataType::Bool => list(data, |[byte]: [u8; 1]| u8::from(byte != 0)),
        DataType::Uint8 => list(data, u8::from_le_bytes),
        DataType::Uint16 => list(data, u16::from_le_bytes),
        DataType::Uint32 => list(data, u32::from_le_bytes),
        DataType::Uint64 => list(data, u64::from_le_bytes),
        DataType::Int8 => list(data, i8::from_le_bytes),
        DataType::Int16 => list(data, i16::from_le_bytes),
        DataType::Int32 => list(data, i32::from_le_bytes),
        DataType::Int64 => list(data, i64::from_le_bytes),
        DataType::Fp16 => list(data, f16::from_le_bytes),
        DataType::Bf16 => list(data, bf16::from_le_bytes),
        DataType::Fp32 => list(data, f32::from_le_bytes),
        DataType::Fp64 => list(data, f64::from_le_bytes),
        DataType::Bytes => {
            let (mut strings, mut rest) = (Vec::new(), data);
            while let Some((length, after)) = rest.split_first_chunk::<4>()
                && let Some((string, next)) = after.split_at_checked(u32::from_le_bytes(*length) as usize)
            {
                strings.push(quoted(&String::from_utf8_lossy(string)));
                rest = next;
            }
            strings.join(",")
        }
    }
}
