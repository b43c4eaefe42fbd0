//! The shared memory extensions: `/v2/systemsharedmemory` and `/v2/cudasharedmemory`, each with `status`, `register` and
//! `unregister`, of one region (`/region/NAME/`) or of all.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::Method;
use serde_json::{Map, Value, json};

use super::super::percent::decode;
use super::super::status::Failure;
use super::super::tensor_body::off_the_io_threads;
use super::{Kserve, empty, json as document, method_not_allowed, not_found, read_control};
use crate::error::{Error, Result};
use crate::server::shared_memory::SharedMemory;

/// What is asked, of one region or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Status,
    Register,
    Unregister,
}

/// The path behind the extension's name: `[region/NAME/]ACTION`, the name percent-encoded.
fn parse(path: &str) -> Option<(Option<String>, Action)> {
    let (before, action) = path.rsplit_once('/').map_or(("", path), |(before, action)| (before, action));
    let action = match action {
        "status" => Action::Status,
        "register" => Action::Register,
        "unregister" => Action::Unregister,
        _ => return None,
    };
    if before.is_empty() {
        return Some((None, action));
    }
    let name = decode(before.strip_prefix("region/")?)?;
    (!name.is_empty()).then(|| (Some(name.into_owned()), action))
}

/// `/v2/systemsharedmemory/...`.
pub(super) async fn system(State(kserve): State<Kserve>, request: Request) -> Response {
    answer("/v2/systemsharedmemory/", &kserve, request, |memory, name, action, body| match (action, name) {
        (Action::Status, name) => {
            let regions = memory.system_status(name)?.into_iter().map(|region| {
                json!({
                    "name": region.name.as_str(),
                    "key": region.key.as_str(),
                    "offset": region.offset,
                    "byte_size": region.byte_size,
                })
            });
            Ok(document(regions.collect::<Value>().to_string()))
        }
        (Action::Unregister, name) => memory.unregister_system(name).map(|()| empty()),
        (Action::Register, None) => {
            Err(Error::invalid("'region name' is necessary to register system shared memory region"))
        }
        (Action::Register, Some(name)) => {
            let offset = if body.contains_key("offset") { unsigned(body, "offset")? } else { 0 };
            let key = text(body, "key")?;
            memory.register_system(name, key, offset, unsigned(body, "byte_size")?).map(|()| empty())
        }
    })
    .await
}

/// `/v2/cudasharedmemory/...`.
pub(super) async fn cuda(State(kserve): State<Kserve>, request: Request) -> Response {
    answer(CUDA, &kserve, request, |memory, name, action, body| match (action, name) {
        (Action::Status, name) => {
            let regions = memory.cuda_status(name)?.into_iter().map(|region| {
                json!({
                    "name": region.name.as_str(),
                    "device_id": region.device_id,
                    "byte_size": region.byte_size,
                })
            });
            Ok(document(regions.collect::<Value>().to_string()))
        }
        (Action::Unregister, name) => memory.unregister_cuda(name).map(|()| empty()),
        (Action::Register, None) => {
            Err(Error::invalid("'region name' is necessary to register cuda shared memory region"))
        }
        (Action::Register, Some(name)) => {
            let handle = match field(body, "raw_handle")? {
                Value::Object(handle) => text(handle, "b64")?,
                _ => return Err(Error::invalid("'raw_handle' must be an object with the member 'b64'")),
            };
            let handle = decode_base64(handle)
                .filter(|handle| handle.len() == crate::server::shared_memory::cuda::HANDLE_BYTES)
                .ok_or_else(|| Error::invalid("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t"))?;
            let device_id =
                field(body, "device_id")?.as_i64().ok_or_else(|| Error::invalid("'device_id' must be an integer"))?;
            memory.register_cuda(name, &handle, device_id, unsigned(body, "byte_size")?).map(|()| empty())
        }
    })
    .await
}

/// What CUDA's paths begin with.
const CUDA: &str = "/v2/cudasharedmemory/";

type Handler = fn(&SharedMemory, Option<&str>, Action, &Map<String, Value>) -> Result<Response>;

async fn answer(prefix: &str, kserve: &Kserve, request: Request, handler: Handler) -> Response {
    let path = request.uri().path().strip_prefix(prefix).unwrap_or_default();
    let Some((name, action)) = parse(path) else { return not_found() };
    let expected = if action == Action::Status { Method::GET } else { Method::POST };
    if *request.method() != expected {
        return method_not_allowed();
    }
    let body = match action {
        Action::Register => read_control(request).await,
        // Clients send bodies here that mean nothing.
        Action::Status | Action::Unregister => Ok(Map::new()),
    };
    let memory = kserve.server().shared_memory().clone();
    // The driver takes its time.
    let is_slow = prefix == CUDA && action != Action::Status;
    let answer = match body {
        Ok(body) => off_the_io_threads(is_slow, move || handler(&memory, name.as_deref(), action, &body)).await,
        Err(error) => Err(error),
    };
    answer.unwrap_or_else(|error| Failure(error).into_response())
}

fn field<'a>(body: &'a Map<String, Value>, key: &str) -> Result<&'a Value> {
    // Triton's text.
    body.get(key).ok_or_else(|| Error::invalid(format!("Shared memory register request has no '{key}' field")))
}

fn text<'a>(body: &'a Map<String, Value>, key: &str) -> Result<&'a str> {
    field(body, key)?.as_str().ok_or_else(|| Error::invalid(format!("'{key}' must be a string")))
}

fn unsigned(body: &Map<String, Value>, key: &str) -> Result<u64> {
    field(body, key)?
        .as_u64()
        .ok_or_else(|| Error::invalid(format!("'{key}' must be an integer from 0 to {}", u64::MAX)))
}

/// Base64 of RFC 4648, section 4, with its padding; `None` for anything else. For handles of 64 bytes, not for bulk.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let unpadded = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - unpadded.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0_u32, 0);
    for digit in unpadded.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = (held << 6) | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from((held >> bits) & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_a_region_or_all() {
        let one = |name: &str, action| Some((Some(name.to_owned()), action));
        assert_eq!(parse("status"), Some((None, Action::Status)));
        assert_eq!(parse("region/r/register"), one("r", Action::Register));
        assert_eq!(parse("region/a%20b%2Fc/unregister"), one("a b/c", Action::Unregister));
        assert_eq!(parse("region/status/status"), one("status", Action::Status));
        for path in ["", "region//status", "region/status", "other/r/status", "region/r/other", "region/%ff/status"] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn base64_is_read_as_the_standard_has_it() {
        assert_eq!(decode_base64("").as_deref(), Some(&b""[..]));
        assert_eq!(decode_base64("Zg==").as_deref(), Some(&b"f"[..]));
        assert_eq!(decode_base64("Zm9vYmE=").as_deref(), Some(&b"fooba"[..]));
        assert_eq!(decode_base64("+/+/").as_deref(), Some(&[0xfb, 0xff, 0xbf][..]));
        for wrong in ["Zg", "Zg=", "Z===", "Zm9v\n", "Zm-v", "=Zm9"] {
            assert_eq!(decode_base64(wrong), None, "{wrong}");
        }
    }
}
