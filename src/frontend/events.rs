//! The answers to one request as server-sent events, each written when it comes: `data: {json}` and an empty line.

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::HeaderValue;

use super::generate::write_event;
use super::tensor_body::off_the_io_threads;
use super::tensor_json;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::InferenceResponse;
use crate::server::responses::Responses;

/// The content type of events.
pub const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

/// Answers whose tensors have this many bytes are written where they hold up no connection.
const LARGE: usize = 32 << 10;

/// The answers of a model, of which the first is there.
pub struct Events {
    first: Option<InferenceResponse>,
    rest: Responses,
}

impl Events {
    /// Waits for the first answer.
    ///
    /// # Errors
    /// The model's, where it comes before any answer: it has a status of its own yet.
    pub async fn begin(mut answers: Responses) -> Result<Self> {
        let first = answers.next().await.transpose()?;
        Ok(Self { first, rest: answers })
    }

    /// The events as they come; an error is the last item. One is made at a time, when it is asked for.
    pub fn events(self) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        let Self { first, rest } = self;
        let answers = stream::iter(first.map(Ok)).chain(rest);
        stream::unfold(Some(Box::pin(answers)), |answers| async {
            let mut answers = answers?;
            match answers.next().await? {
                // A model that ends without more to say ends the stream, and that is all.
                Ok(answer) if answer.last && answer.outputs.is_empty() => None,
                Ok(answer) => {
                    let event = write(answer).await;
                    let rest = event.is_ok().then_some(answers);
                    Some((event, rest))
                }
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// The events with an error as an event of its own, as Triton ends such a stream: its status has been sent.
    pub fn into_text(self) -> impl Stream<Item = Bytes> + Send + 'static {
        self.events().map(|event| event.unwrap_or_else(|error| error_event(&error)))
    }
}

async fn write(answer: InferenceResponse) -> Result<Bytes> {
    let bytes: usize = answer.outputs.iter().map(|output| output.tensor.data().len()).sum();
    off_the_io_threads(bytes >= LARGE, move || write_event(&answer).map(Bytes::from)).await
}

/// An error as an event.
#[must_use]
pub fn error_event(error: &Error) -> Bytes {
    let json = tensor_json::encode_error(&error.report(), error.kind().code());
    [b"data: ", json.as_ref(), b"\n\n"].concat().into()
}

/// The one answer that `generate` has a place for.
///
/// # Errors
/// The model's, or `BackendFailed` where it gave none, or several.
pub async fn exactly_one(mut answers: Responses) -> Result<InferenceResponse> {
    let wrong = || {
        Error::new(
            ErrorKind::BackendFailed,
            "generate expects model to produce exactly 1 response, use generate stream for model that generates various \
             number of responses",
        )
    };
    let mut only = None;
    while let Some(answer) = answers.next().await.transpose()? {
        let says_nothing = answer.last && answer.outputs.is_empty();
        if !says_nothing && only.replace(answer).is_some() {
            return Err(wrong());
        }
    }
    only.ok_or_else(wrong)
}
