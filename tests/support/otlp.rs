//! A receiver of OTLP over HTTP. It reads protobuf by the field numbers of OpenTelemetry's own files, and uses none of makegate's messages.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use makegate::hash::hex;
use makegate::tasks::Tasks;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::until;

/// What the receiver does with what it gets.
#[derive(Clone, Debug)]
pub(crate) enum Taking {
    /// Answers with this status, these headers and this body.
    With(u16, &'static str, Vec<u8>),
    /// Writes these bytes instead of an answer, and goes on writing them.
    Garbage(&'static [u8]),
    /// Reads and never answers.
    Hanging,
}

/// A request that it got.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

/// The receiver.
#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    taking: Arc<Mutex<Taking>>,
    exports: Arc<Mutex<Vec<Export>>>,
    /// Bytes of garbage that were written.
    pub(crate) garbage: Arc<AtomicUsize>,
}

/// A span as it was received. Ids are hexadecimal.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReceivedSpan {
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) name: String,
    /// 1: internal, 2: server, 3: client.
    pub(crate) kind: u64,
    pub(crate) times: (u64, u64),
    pub(crate) attributes: BTreeMap<String, String>,
    /// 0: unset, 2: error.
    pub(crate) status: u64,
    pub(crate) flags: u64,
}

impl ReceivedSpan {
    pub(crate) fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", |value| value)
    }
}

/// A sample of a metric, with the name that it has in Prometheus's text format.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReceivedSample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// One that speaks TLS.
    pub(crate) async fn start_tls(tls: Arc<ServerConfig>) -> Self {
        Self::start_with(Some(TlsAcceptor::from(tls))).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taking = Arc::new(Mutex::new(Taking::With(200, "", Vec::new())));
        let receiver =
            Self { address: listener.local_addr().unwrap(), taking, exports: Arc::default(), garbage: Arc::default() };
        let own = receiver.clone();
        let _runs = Tasks::new().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (own, tls) = (own.clone(), tls.clone());
                let _runs = Tasks::new().spawn(async move {
                    match tls {
                        None => own.receive(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                own.receive(stream).await;
                            }
                        }
                    }
                });
            }
        });
        receiver
    }

    /// The lines of `[otel]` that send everything here.
    pub(crate) fn section(&self, further: &str) -> String {
        format!("[otel]\nendpoint = \"http://{}\"\ninterval = \"1s\"\n{further}\n", self.address)
    }

    pub(crate) fn take(&self, taking: Taking) {
        *self.taking.lock().unwrap() = taking;
    }

    async fn receive(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut all = Vec::new();
        let end = loop {
            if let Some(at) = all.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut all).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8(all[..end].to_vec()).unwrap().to_ascii_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse::<usize>().unwrap();
        while all.len() < end + length {
            if stream.read_buf(&mut all).await.unwrap_or(0) == 0 {
                return;
            }
        }
        self.exports.lock().unwrap().push(Export { head, body: all[end..].to_vec() });
        let taking = self.taking.lock().unwrap().clone();
        match taking {
            Taking::With(status, headers, body) => {
                let head = format!(
                    "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _gone = stream.write_all(&[head.as_bytes(), &body].concat()).await;
                let _gone = stream.shutdown().await;
            }
            Taking::Garbage(bytes) => {
                while stream.write_all(bytes).await.is_ok() {
                    self.garbage.fetch_add(bytes.len(), Ordering::Relaxed);
                }
            }
            Taking::Hanging => std::future::pending().await,
        }
    }

    pub(crate) fn exports(&self) -> Vec<Export> {
        self.exports.lock().unwrap().clone()
    }

    fn of_signal(&self, signal: &str) -> Vec<Export> {
        let mut exports = self.exports();
        exports.retain(|export| export.head.starts_with(&format!("post /v1/{signal} http/1.1\r\n")));
        exports
    }

    /// All spans that came so far, in the order of their beginnings.
    pub(crate) fn spans(&self) -> Vec<ReceivedSpan> {
        let requests = self.of_signal("traces");
        let messages = requests.iter().map(|export| Message::parse(&export.body));
        let scopes = messages.flat_map(|request| request.messages(1)).flat_map(|resource| resource.messages(2));
        let mut spans: Vec<_> = scopes.flat_map(|scope| scope.messages(2)).map(|span| span_of(&span)).collect();
        spans.sort_by_key(|span| span.times);
        spans
    }

    /// The spans, once there are so many.
    pub(crate) async fn wait_for_spans(&self, count: usize) -> Vec<ReceivedSpan> {
        until(|| self.spans().len() >= count).await;
        let spans = self.spans();
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }

    /// The attributes of the resource that spans or metrics came from last.
    pub(crate) fn resource(&self, signal: &str) -> BTreeMap<String, String> {
        let last = Message::parse(&self.of_signal(signal).pop().unwrap().body);
        attributes(&last.messages(1).remove(0).messages(1).remove(0), 1)
    }

    /// The samples that came last; none if none came yet.
    pub(crate) fn samples(&self) -> Vec<ReceivedSample> {
        let Some(last) = self.of_signal("metrics").pop() else { return Vec::new() };
        let resources = Message::parse(&last.body).messages(1);
        let scopes = resources.iter().flat_map(|resource| resource.messages(2));
        scopes.flat_map(|scope| scope.messages(2)).flat_map(|metric| samples_of(&metric)).collect()
    }
}

fn span_of(span: &Message) -> ReceivedSpan {
    ReceivedSpan {
        trace: hex(span.bytes(1)),
        id: hex(span.bytes(2)),
        parent: hex(span.bytes(4)),
        name: span.text(5),
        kind: span.number(6),
        times: (span.number(7), span.number(8)),
        attributes: attributes(span, 9),
        status: span.messages(15).first().map_or(0, |status| status.number(3)),
        flags: span.number(16),
    }
}

/// The samples of a metric, named and shaped as in Prometheus's text format.
fn samples_of(metric: &Message) -> Vec<ReceivedSample> {
    let (name, unit) = (metric.text(1), metric.text(3));
    let sample = |name: String, labels, value| ReceivedSample { name, labels, value };
    let number = |point: &Message| match point.all(4).first() {
        Some(Wire::Number(double)) => f64::from_bits(*double),
        _ => point.number(6).cast_signed() as f64,
    };
    if let Some(gauge) = metric.messages(5).first() {
        return gauge
            .messages(1)
            .iter()
            .map(|point| sample(name.clone(), attributes(point, 7), number(point)))
            .collect();
    }
    if let Some(sum) = metric.messages(7).first() {
        assert_eq!((sum.number(2), sum.number(3)), (2, 1), "{name} is not cumulative and monotonic");
        let points = sum.messages(1);
        assert!(points.iter().all(|point| point.number(2) > 0 && point.number(3) >= point.number(2)), "{name}");
        return points
            .iter()
            .map(|point| sample(format!("{name}_total"), attributes(point, 7), number(point)))
            .collect();
    }
    let histogram = metric.messages(9).remove(0);
    assert_eq!((histogram.number(2), &*unit), (2, "s"), "{name}");
    let mut samples = Vec::new();
    for point in histogram.messages(1) {
        let (labels, doubles) = (attributes(&point, 9), |n| fixed_list(point.bytes(n)));
        let (counts, bounds) = (doubles(6), doubles(7));
        assert_eq!(counts.len(), bounds.len() + 1, "{name}");
        let mut sum = 0;
        let bounds = bounds.into_iter().map(f64::from_bits).chain([f64::INFINITY]);
        for (bound, count) in bounds.zip(counts) {
            sum += count;
            let mut labels = labels.clone();
            labels.insert("le".to_owned(), if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() });
            samples.push(sample(format!("{name}_seconds_bucket"), labels, sum as f64));
        }
        samples.push(sample(format!("{name}_seconds_count"), labels.clone(), point.number(4) as f64));
        samples.push(sample(format!("{name}_seconds_sum"), labels, f64::from_bits(point.number(5))));
    }
    samples
}

fn attributes(of: &Message, number: u64) -> BTreeMap<String, String> {
    let pair = |pair: &Message| {
        let value = pair.messages(2).remove(0);
        let text = match value.all(1).first() {
            Some(_) => value.text(1),
            None => value.number(3).cast_signed().to_string(),
        };
        (pair.text(1), text)
    };
    of.messages(number).iter().map(pair).collect()
}

fn fixed_list(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|eight| u64::from_le_bytes(*eight)).collect()
}

/// A message of protobuf: its fields as they are on the wire.
struct Message(Vec<(u64, Wire)>);

#[derive(Clone, Debug)]
enum Wire {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Message {
    #[track_caller]
    fn parse(mut rest: &[u8]) -> Self {
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let key = varint(&mut rest);
            let value = match key & 7 {
                0 => Wire::Number(varint(&mut rest)),
                1 => Wire::Number(u64::from_le_bytes(take(&mut rest, 8).try_into().unwrap())),
                2 => {
                    let length = usize::try_from(varint(&mut rest)).unwrap();
                    Wire::Bytes(take(&mut rest, length).to_vec())
                }
                5 => Wire::Number(u32::from_le_bytes(take(&mut rest, 4).try_into().unwrap()).into()),
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, value));
        }
        Self(fields)
    }

    fn all(&self, number: u64) -> Vec<&Wire> {
        self.0.iter().filter(|(own, _)| *own == number).map(|(_, value)| value).collect()
    }

    fn number(&self, number: u64) -> u64 {
        match self.all(number).first() {
            None => 0,
            Some(Wire::Number(value)) => *value,
            Some(Wire::Bytes(_)) => panic!("{number} is not a number"),
        }
    }

    fn bytes(&self, number: u64) -> &[u8] {
        match self.all(number).first() {
            None => &[],
            Some(Wire::Bytes(bytes)) => bytes,
            Some(Wire::Number(_)) => panic!("{number} is a number"),
        }
    }

    fn text(&self, number: u64) -> String {
        String::from_utf8(self.bytes(number).to_vec()).unwrap()
    }

    fn messages(&self, number: u64) -> Vec<Self> {
        let message = |value: &Wire| match value {
            Wire::Bytes(bytes) => Self::parse(bytes),
            Wire::Number(_) => panic!("{number} is a number"),
        };
        self.all(number).into_iter().map(message).collect()
    }
}

fn take<'r>(rest: &mut &'r [u8], length: usize) -> &'r [u8] {
    let (taken, left) = rest.split_at(length);
    *rest = left;
    taken
}

fn varint(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for place in 0.. {
        let byte = take(rest, 1)[0];
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            break;
        }
    }
    value
}
