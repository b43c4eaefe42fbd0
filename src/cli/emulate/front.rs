//! The emulator's own port: `POST /endpoints/{name}/invocations` of the runtime API, in the service's words.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use uuid::Uuid;

use super::container::{Answer, Invocation};
use super::platform::Platform;
use crate::error::ErrorKind;
use crate::frontend::body::{self, Body, BodyLimits};
use crate::frontend::percent;
use crate::frontend::sagemaker::failure::{Code, ERROR_TYPE, ServiceError};
use crate::frontend::sagemaker::target::{
    ALL_TRAFFIC, CUSTOM_ATTRIBUTES, INVOKED_VARIANT, REQUEST_ID, TARGET_VARIANT, custom_attributes, target_model,
};
use crate::inference::Deadline;

/// The largest body of an invocation, in bytes.
const PAYLOAD_BYTES: usize = 6_291_456;

/// How long one may take to come.
const BODY: Duration = Duration::from_secs(60);

/// Pieces it may come in where no length was announced.
const PIECES: usize = 65_536;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct Front {
    platform: Platform,
    /// The only endpoint there is; any if `None`.
    endpoint: Option<Arc<str>>,
}

impl Front {
    pub(super) fn new(platform: Platform, endpoint: Option<&str>) -> Self {
        Self { platform, endpoint: endpoint.map(Into::into) }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// Never.
    pub(super) async fn handle(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let id = Uuid::new_v4().to_string();
        let mut response = match endpoint_of(request.uri().path()).filter(|_| request.method() == Method::POST) {
            Some(name) => self.answer(name, request).await.unwrap_or_else(|error| error.response()),
            None => unknown(),
        };
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        Ok(response)
    }

    async fn answer(&self, name: String, request: Request<Incoming>) -> Result<Response<Body>, ServiceError> {
        if self.endpoint.as_deref().is_some_and(|known| known != name) {
            return Err(ServiceError::validation(format!("Endpoint {} is not found", name.escape_debug())));
        }
        let (head, body) = request.into_parts();
        let target = target_model(&head.headers)?.ok_or_else(|| {
            ServiceError::validation(
                "TargetModel is missing, and the endpoint has many models: name one in the header \
                 X-Amzn-SageMaker-Target-Model",
            )
        })?;
        let custom_attributes = custom_attributes(&head.headers)?;
        let limits = BodyLimits {
            bytes: PAYLOAD_BYTES,
            chunks: PIECES,
            deadline: Deadline::after(Instant::now(), BODY),
            flag: "an invocation may have:",
        };
        let body = body::read(body, &head.headers, None, &limits).await.map_err(|error| {
            let code = if error.kind() == ErrorKind::TooLarge { Code::TooLarge } else { Code::Validation };
            ServiceError::new(code, error.report())
        })?;
        let call = Invocation {
            content_type: head.headers.get(CONTENT_TYPE).cloned(),
            accept: head.headers.get(ACCEPT).cloned(),
            custom_attributes,
            body,
        };
        let variant = head.headers.get(TARGET_VARIANT).cloned().unwrap_or(ALL_TRAFFIC);
        let answer = self.platform.invoke(&target, &call).await?;
        Ok(handed_through(answer, variant))
    }
}

/// A model's answer with what the service lets through of its headers.
fn handed_through(answer: Answer, variant: HeaderValue) -> Response<Body> {
    let mut response = Response::new(Body::full(answer.body));
    let headers = response.headers_mut();
    for name in [CONTENT_TYPE, CUSTOM_ATTRIBUTES] {
        if let Some(value) = answer.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    headers.insert(INVOKED_VARIANT, variant);
    response
}

/// The endpoint of a path `/endpoints/{name}/invocations`.
fn endpoint_of(path: &str) -> Option<String> {
    let name = path.strip_prefix("/endpoints/")?.strip_suffix("/invocations")?;
    if name.is_empty() || name.contains('/') {
        return None;
    }
    percent::decode(name).map(Into::into)
}

/// For what is no request to an endpoint of many models.
fn unknown() -> Response<Body> {
    let text = serde_json::json!({
        "Message": "Not Found: an endpoint of many models has POST /endpoints/NAME/invocations alone"
    });
    let mut response = Response::new(Body::full(text.to_string().into_bytes().into()));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static("UnknownOperationException"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_invocations_of_an_endpoint_have_a_route() {
        assert_eq!(endpoint_of("/endpoints/a%20b/invocations").as_deref(), Some("a b"));
        for path in [
            "/",
            "/endpoints//invocations",
            "/endpoints/invocations",
            "/endpoints/a/b/invocations",
            "/endpoints/a/invocations/",
            "/endpoints/a/invocations-response-stream",
            "/endpoints/a/async-invocations",
            "/endpoints/%ff/invocations",
            "/ping",
        ] {
            assert_eq!(endpoint_of(path), None, "{path}");
        }
    }
}
