//! Reports by `PutMetricData`, through what the S3 client stands on: its credentials, signatures and connections. CloudWatch's own
//! client is left out: it is twice the size of S3's and brings a second HTTP stack, for one request a minute.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::identity::Identity as Signer;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use aws_smithy_types::date_time::{DateTime, Format};
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;

use super::{Identity, Refusal, Report, Sink};
use crate::error::{Error, Result};

/// How long an attempt may take, connection and answer together.
const ATTEMPT: Duration = Duration::from_secs(5);

/// How often a report is tried before it waits for the next one, and the first pause.
const ATTEMPTS: u32 = 3;
const BACK_OFF: Duration = Duration::from_millis(200);

/// Codes of answers that another try may better though their status is 400.
const FOR_NOW: [&str; 5] =
    ["Throttling", "ThrottlingException", "RequestLimitExceeded", "ExpiredToken", "RequestExpired"];

/// Where CloudWatch is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Another address than AWS's: `http://host:port` or `https://host`.
    pub endpoint: Option<String>,
    /// Instead of the region of environment, profile or instance.
    pub region: Option<String>,
}

/// Sends reports to CloudWatch.
#[derive(Debug)]
pub struct Put {
    identity: Identity,
    options: PutOptions,
    runtime: Handle,
    connector: Connector,
    /// Made with the first report: looking for a region may take a request of its own.
    found: OnceCell<Found>,
}

/// What was found out about AWS here.
#[derive(Debug)]
struct Found {
    region: String,
    endpoint: String,
    config: SdkConfig,
}

impl Put {
    /// Reports of the metrics of `identity`, sent on `runtime`. Asks nothing of the network yet.
    #[must_use]
    pub fn new(identity: Identity, options: PutOptions, runtime: Handle) -> Self {
        let connector = Connector::builder().tls_provider(Provider::Rustls(CryptoMode::Ring)).build();
        Self { identity, options, runtime, connector, found: OnceCell::new() }
    }

    async fn find(&self) -> Result<Found> {
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT).build();
        let config =
            aws_config::defaults(BehaviorVersion::latest()).http_client(http).timeout_config(timeouts).load().await;
        let region = self.options.region.clone().or_else(|| config.region().map(ToString::to_string));
        let given = self.options.endpoint.clone().or_else(|| config.endpoint_url().map(str::to_owned));
        let region = match (region, &given) {
            (Some(region), _) => region,
            // Who stands in CloudWatch's place takes any.
            (None, Some(_)) => "us-east-1".to_owned(),
            (None, None) => {
                return Err(Error::not_ready("no region is known: set --cloudwatch-region or AWS_REGION"));
            }
        };
        let endpoint = given.unwrap_or_else(|| {
            let top = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
            format!("https://monitoring.{region}.{top}")
        });
        Ok(Found { region, endpoint: format!("{}/", endpoint.trim_end_matches('/')), config })
    }

    /// One attempt: the status, and the answer where it is not 200.
    async fn attempt(&self, body: &str) -> Result<(u16, String)> {
        let found = self.found.get_or_try_init(|| self.find()).await?;
        let provider = found.config.credentials_provider();
        let provider = provider.ok_or_else(|| Error::not_ready("credentials are looked for nowhere"))?;
        // Asked anew each time: it knows when those it has run out.
        let credentials = provider.provide_credentials().await.map_err(|_source| {
            // What lies below may name files and roles.
            Error::not_ready(
                "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role",
            )
        })?;
        let request = signed(found, credentials, body, SystemTime::now())?;
        let unreachable = |why: &str| Error::not_ready(format!("{} gives no answer: {why}", found.endpoint));
        let answering = tokio::time::timeout(ATTEMPT, async {
            let answer = self.connector.call(request).await.map_err(|_source| unreachable("no connection"))?;
            let status = answer.status().as_u16();
            let text =
                ByteStream::new(answer.into_body()).collect().await.map_err(|_source| unreachable("it broke off"))?;
            Ok((status, String::from_utf8_lossy(&text.into_bytes()).into_owned()))
        });
        answering.await.unwrap_or_else(|_elapsed| Err(unreachable("it took too long")))
    }

    async fn put(&self, body: &str) -> std::result::Result<(), Refusal> {
        let mut pause = BACK_OFF;
        for last in (0..ATTEMPTS).rev() {
            let refusal = match self.attempt(body).await {
                Ok((200, _)) => return Ok(()),
                Ok((status, text)) => refusal(status, &text),
                Err(error) => Refusal::ForNow(error),
            };
            if last == 0 || matches!(refusal, Refusal::ForGood(_)) {
                return Err(refusal);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Ok(())
    }
}

impl Sink for std::sync::Arc<Put> {
    fn send<'a>(&'a self, report: &'a Report) -> BoxFuture<'a, std::result::Result<(), Refusal>> {
        let (put, body) = (Self::clone(self), form(&self.identity, report));
        Box::pin(async move {
            // On the threads that fetch: they give way to those that answer.
            let runtime = put.runtime.clone();
            let sending = AbortOnDropHandle::new(runtime.spawn(async move { put.put(&body).await }));
            sending.await.unwrap_or_else(|error| {
                Err(Refusal::ForNow(Error::internal("sending a report was stopped").with_source(error)))
            })
        })
    }
}

/// The report as a form of the query protocol.
fn form(identity: &Identity, report: &Report) -> String {
    let mut form = "Action=PutMetricData&Version=2010-08-01".to_owned();
    // Writing into a String cannot fail.
    let _ = write!(form, "&Namespace={}", encoded(&identity.namespace));
    let at = DateTime::from(report.at).fmt(Format::DateTime).unwrap_or_default();
    for (number, (metric, set)) in (1..).zip(&report.sets) {
        let datum = format!("&MetricData.member.{number}");
        let _ = write!(form, "{datum}.MetricName={}{datum}.Unit={}", metric.name(), metric.unit().name());
        let _ = write!(form, "{datum}.Timestamp={}", encoded(&at));
        for (number, (name, value)) in (1..).zip(identity.dimensions()) {
            let dimension = format!("{datum}.Dimensions.member.{number}");
            let _ = write!(form, "{dimension}.Name={name}{dimension}.Value={}", encoded(value));
        }
        let values = [
            ("SampleCount", set.count.to_string()),
            ("Sum", set.sum.to_string()),
            ("Minimum", set.least.to_string()),
            ("Maximum", set.greatest.to_string()),
        ];
        for (name, value) in values {
            let _ = write!(form, "{datum}.StatisticValues.{name}={value}");
        }
    }
    form
}

/// Percent-encoded as signatures want it: all but what RFC 3986 leaves alone.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn signed(found: &Found, credentials: Credentials, body: &str, now: SystemTime) -> Result<HttpRequest> {
    let wrong = |error| Error::internal("a report cannot be signed").with_source(error);
    let type_of = "application/x-www-form-urlencoded; charset=utf-8";
    let signer: Signer = credentials.into();
    let parameters = v4::SigningParams::builder()
        .identity(&signer)
        .region(&found.region)
        .name("monitoring")
        .time(now)
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| Error::internal("a report cannot be signed").with_source(error))?;
    let headers = std::iter::once(("content-type", type_of));
    let request = SignableRequest::new("POST", &*found.endpoint, headers, SignableBody::Bytes(body.as_bytes()));
    let signed = sign(request.map_err(wrong)?, &parameters.into()).map_err(wrong)?;
    let mut request = HttpRequest::new(SdkBody::from(body));
    let unusable = |_| Error::invalid(format!("--cloudwatch-endpoint {} is no address", found.endpoint));
    request.set_method("POST").map_err(|error| Error::internal("POST is no method").with_source(error))?;
    request.set_uri(found.endpoint.as_str()).map_err(unusable)?;
    request.headers_mut().insert("content-type", type_of);
    for header in signed.output().headers() {
        request.headers_mut().insert(header.0.to_owned(), header.1.to_owned());
    }
    Ok(request)
}

/// What an answer that is not 200 says of another try. Only its code and the first of its words are repeated.
fn refusal(status: u16, text: &str) -> Refusal {
    let between = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once('<')?.0)
    };
    let code = between("Code").unwrap_or_default();
    let words: String = between("Message").unwrap_or_default().chars().take(200).collect();
    let error = Error::not_ready(format!("it answers {status} {code}: {words}"));
    // 401 and 403 are keys, clocks and policies, which somebody may mend while the server runs.
    if matches!(status, 401 | 403 | 408 | 429 | 500..) || FOR_NOW.contains(&code) {
        Refusal::ForNow(error)
    } else {
        Refusal::ForGood(error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::super::super::observations::{Observed, StatisticSet};
    use super::*;

    #[test]
    fn a_report_is_a_form_with_a_set_for_each_metric() {
        let identity = Identity {
            namespace: "My/Space".to_owned(),
            endpoint: "e 1&".to_owned(),
            variant: "AllTraffic".to_owned(),
        };
        let set = StatisticSet { count: 2, sum: 40.5, least: 10.0, greatest: 30.5 };
        let sets = vec![(Observed::ModelLatency, set), (Observed::LoadedModelCount, set)];
        let form = form(&identity, &Report { at: UNIX_EPOCH + Duration::from_millis(1_500), sets });
        assert!(form.starts_with("Action=PutMetricData&Version=2010-08-01&Namespace=My%2FSpace&"), "{form}");
        for part in [
            "&MetricData.member.1.MetricName=ModelLatency&MetricData.member.1.Unit=Microseconds",
            "&MetricData.member.1.Timestamp=1970-01-01T00%3A00%3A01.5Z",
            "&MetricData.member.1.Dimensions.member.1.Name=EndpointName",
            "&MetricData.member.1.Dimensions.member.1.Value=e%201%26",
            "&MetricData.member.1.StatisticValues.SampleCount=2&MetricData.member.1.StatisticValues.Sum=40.5",
            "&MetricData.member.2.MetricName=LoadedModelCount&MetricData.member.2.Unit=None",
        ] {
            assert!(form.contains(part), "{part} is not in {form}");
        }
    }

    #[test]
    fn an_answer_says_whether_another_try_may_better_it() {
        let answer =
            |code| format!("<ErrorResponse><Error><Code>{code}</Code><Message>why</Message></Error></ErrorResponse>");
        for (status, code) in [(400, "Throttling"), (403, "ExpiredToken"), (400, "ExpiredToken"), (503, ""), (500, "")]
        {
            assert!(matches!(refusal(status, &answer(code)), Refusal::ForNow(_)), "{status} {code}");
        }
        let Refusal::ForGood(error) = refusal(400, &answer("InvalidParameterValue")) else {
            panic!("it never will be")
        };
        assert_eq!(error.report(), "it answers 400 InvalidParameterValue: why");
    }

    #[test]
    fn a_request_carries_the_signature_and_not_the_secret() {
        let found = Found {
            region: "eu-west-1".to_owned(),
            endpoint: "http://127.0.0.1:1/".to_owned(),
            config: SdkConfig::builder().build(),
        };
        let credentials = Credentials::new("AKID", "hidden", Some("token".to_owned()), None, "test");
        let request = signed(&found, credentials, "Action=x", UNIX_EPOCH).unwrap();
        let authorization = request.headers().get("authorization").unwrap();
        assert!(authorization.contains("AKID/19700101/eu-west-1/monitoring/aws4_request"), "{authorization}");
        assert_eq!(request.headers().get("x-amz-security-token"), Some("token"));
        assert!(!format!("{request:?}").contains("hidden"));
    }
}
