//! A small HTTP client for the operator door of a running makegate: one connection per request, no redirects.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryFutureExt as _;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tower::service_fn;

use super::client_tls::TlsOptions;
use super::failure::CommandFailure;
use crate::http_client::cause;
use crate::toml_reader::mask_secrets;

/// Longest wait from connecting to the response head.
const HEAD_WAIT: Duration = Duration::from_secs(15);
/// Longest wait for a whole response body.
const BODY_WAIT: Duration = Duration::from_mins(1);
const BODY_BYTES_MAX: usize = 256 << 20;
/// Longest line of a streamed response.
const LINE_BYTES_MAX: usize = 1 << 20;

/// The operator door of a running makegate.
pub(super) struct OperatorClient {
    url: String,
    /// What a request's target is appended to.
    base: String,
    sender: Sender,
    key: Option<SecretString>,
}

/// Opens a connection and sends a request over it.
type Sender = Box<dyn Fn(Request<Full<Bytes>>) -> ResponseFuture>;

impl OperatorClient {
    /// A client for `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`.
    pub(super) fn new(url: &str, tls: &TlsOptions, key: Option<SecretString>) -> Result<Self, CommandFailure> {
        let (base, sender) = match url.strip_prefix("unix:") {
            Some(path) => {
                let path = PathBuf::from(path);
                let connect = move |_: Uri| Box::pin(UnixStream::connect(path.clone()).map_ok(TokioIo::new));
                ("http://localhost".to_owned(), sender(service_fn(connect)))
            }
            None => over_tcp(url, tls)?,
        };
        Ok(Self { url: url.to_owned(), base, sender, key })
    }

    pub(super) async fn get(&self, target: &str) -> Result<(StatusCode, Bytes), CommandFailure> {
        self.ask(Method::GET, target, Bytes::new()).await
    }

    /// Posts this JSON and returns the body of a successful response.
    pub(super) async fn post(&self, target: &str, json: String) -> Result<String, CommandFailure> {
        let (status, body) = self.ask(Method::POST, target, json.into()).await?;
        self.success_text(status, body)
    }

    async fn ask(&self, method: Method, target: &str, body: Bytes) -> Result<(StatusCode, Bytes), CommandFailure> {
        let answer = self.send(method, target, body).await?;
        let status = answer.status();
        let body = timeout(BODY_WAIT, Limited::new(answer.into_body(), BODY_BYTES_MAX).collect()).await;
        let body = body.map_err(|_late| self.failed("the response took too long"))?;
        Ok((status, body.map_err(|error| self.failed(&error.to_string()))?.to_bytes()))
    }

    /// The body of a successful response, as text.
    pub(super) async fn text(&self, target: &str) -> Result<String, CommandFailure> {
        let (status, body) = self.get(target).await?;
        self.success_text(status, body)
    }

    fn success_text(&self, status: StatusCode, body: Bytes) -> Result<String, CommandFailure> {
        if !status.is_success() {
            return Err(self.refused(status, &body));
        }
        String::from_utf8(body.into()).map_err(|_| self.failed("the response is not text"))
    }

    /// A streamed response, to be read line by line.
    pub(super) async fn lines(&self, target: &str) -> Result<ResponseLines<'_>, CommandFailure> {
        let answer = self.send(Method::GET, target, Bytes::new()).await?;
        if !answer.status().is_success() {
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LINE_BYTES_MAX).collect().await;
            return Err(self.refused(status, &body.map(http_body_util::Collected::to_bytes).unwrap_or_default()));
        }
        Ok(ResponseLines { client: self, answer, rest: Vec::new() })
    }

    async fn send(&self, method: Method, target: &str, body: Bytes) -> Result<Response<Incoming>, CommandFailure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{target}", self.base))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("makegate/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = &self.key {
            let mut bearer =
                HeaderValue::try_from(format!("Bearer {}", key.expose_secret())).map_err(CommandFailure::failed)?;
            bearer.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, bearer);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(CommandFailure::failed)?;
        let answer = timeout(HEAD_WAIT, (self.sender)(request)).await;
        answer.map_err(|_late| self.failed("no response within 15 s"))?.map_err(|error| self.failed(&cause(&error)))
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn failed(&self, why: &str) -> CommandFailure {
        CommandFailure::failed(format!("{}: {why}; is makegate running, and is that its operator door?", self.url))
    }

    /// Turns a refusal into a failure, with the refusal's own text if it has one.
    fn refused(&self, status: StatusCode, body: &[u8]) -> CommandFailure {
        if status == StatusCode::UNAUTHORIZED {
            let help = "set MAKEGATE_OPERATOR_KEY or give --key-file FILE";
            return CommandFailure::failed(format!("{}: the operator key is missing or wrong; {help}", self.url));
        }
        let problem: Value = serde_json::from_slice(body).unwrap_or_default();
        let words = ["detail", "message", "title"].iter().find_map(|name| problem.get(name)?.as_str());
        if problem.get("type").is_some_and(|kind| kind == UNKNOWN_CALLER) {
            return CommandFailure::usage(format!("--caller: {}", words.unwrap_or("no caller has this name")));
        }
        CommandFailure::failed(format!("{}: {status}: {}", self.url, words.unwrap_or("no reason given")))
    }
}

/// The `type` of the refusal of a caller that nobody knows.
const UNKNOWN_CALLER: &str = "urn:makegate:operator:unknown-caller";

/// The lines of a streamed response.
pub(super) struct ResponseLines<'c> {
    client: &'c OperatorClient,
    answer: Response<Incoming>,
    rest: Vec<u8>,
}

impl ResponseLines<'_> {
    /// The next line that is not empty, as soon as it has come; `None`: the stream has ended.
    pub(super) async fn next(&mut self) -> Result<Option<String>, CommandFailure> {
        loop {
            while let Some(newline) = memchr::memchr(b'\n', &self.rest) {
                let line: Vec<u8> = self.rest.drain(..=newline).collect();
                let line = String::from_utf8_lossy(&line);
                if !line.trim().is_empty() {
                    return Ok(Some(line.trim_end().to_owned()));
                }
            }
            if self.rest.len() > LINE_BYTES_MAX {
                return Err(self.client.failed("a line of the response is too long"));
            }
            let Some(frame) = self.answer.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| self.client.failed(&error.to_string()))?;
            self.rest.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
    }
}

fn not_a_door(url: &str) -> CommandFailure {
    let url = mask_secrets(url);
    CommandFailure::usage(format!(
        "--url {url} is not a valid address; use http://127.0.0.1:8081, https://HOST or unix:PATH"
    ))
}

/// The base URL and sender for an http or https URL, which must have no path.
fn over_tcp(url: &str, tls: &TlsOptions) -> Result<(String, Sender), CommandFailure> {
    let uri: Uri = url.parse().map_err(|_| not_a_door(url))?;
    let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(not_a_door(url));
    };
    if authority.as_str().contains('@') {
        return Err(not_a_door(url));
    }
    if uri.path() != "/" || uri.query().is_some() {
        return Err(CommandFailure::usage(format!("--url {url}: remove everything after the port")));
    }
    let sender = if scheme == "https" {
        ServerName::try_from(authority.host().trim_matches(['[', ']'])).map_err(|_| not_a_door(url))?;
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls.with_environment().config(url)?);
        sender(builder.https_only().enable_http1().build())
    } else {
        sender(HttpConnector::new())
    };
    Ok((format!("{scheme}://{authority}"), sender))
}

/// Connections are not kept: each request runs on a runtime of its own, which its connection does not outlive.
fn sender(connector: impl Connect + Clone + Send + Sync + 'static) -> Sender {
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    Box::new(move |request| client.request(request))
}
