//! The TLS door: HTTP/1.1 and HTTP/2, by ALPN.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{USAGE, still};
use crate::support::tls::{self, Authority};
use crate::support::{ALL, LIST, ORG, World};

async fn door() -> (World, Arc<RootCertStore>) {
    tls::world(still(), "", &[]).await
}

async fn connect(world: &World, roots: &Arc<RootCertStore>, protocols: &[&str]) -> TlsStream<TcpStream> {
    tls::connect(world, roots, protocols, None).await.unwrap()
}

fn request(method: Method, target: &str, body: &'static str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(format!("https://localhost{target}"));
    let request = request.header("authorization", format!("Token {ALL}")).header("x-request-id", "mine");
    request.body(Full::from(body)).unwrap()
}

/// An answer with its body read whole.
async fn whole(response: Response<hyper::body::Incoming>) -> (http::response::Parts, Bytes) {
    let (parts, body) = response.into_parts();
    (parts, body.collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn http_2_by_alpn() {
    let (world, roots) = door().await;
    let stream = connect(&world, &roots, &["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    let driven = async { connection.await.unwrap() };
    let asked = async move {
        let (head, body) = whole(sender.send_request(request(Method::GET, USAGE, "")).await.unwrap()).await;
        assert_eq!((head.status.as_u16(), head.version), (200, Version::HTTP_2));
        assert_eq!(head.headers["x-request-id"], "mine");
        let (same, none) = whole(sender.send_request(request(Method::HEAD, USAGE, "")).await.unwrap()).await;
        assert_eq!((same.headers["content-length"].to_str().unwrap(), none.len()), (&*body.len().to_string(), 0));
        let (written, _) = whole(sender.send_request(request(Method::PATCH, ORG, "{}")).await.unwrap()).await;
        assert_eq!((written.status.as_u16(), &written.headers["makegate-outcome"]), (200, &"done".parse().unwrap()));
        let (refused, body) = whole(sender.send_request(request(Method::GET, "/api/v2/x", "")).await.unwrap()).await;
        assert_eq!(refused.status, 404);
        assert!(body.starts_with(b"{\"type\":\"urn:makegate:refusal:MG121\""));
    };
    tokio::join!(driven, asked);
}

#[tokio::test]
async fn http_1_1_where_the_client_wants_it_or_says_nothing() {
    let (world, roots) = door().await;
    for protocols in [&["http/1.1"][..], &[]] {
        let stream = connect(&world, &roots, protocols).await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let asked = async move {
            let mut request = request(Method::GET, USAGE, "");
            *request.uri_mut() = USAGE.parse().unwrap();
            request.headers_mut().insert("host", "localhost".parse().unwrap());
            let (head, _) = whole(sender.send_request(request).await.unwrap()).await;
            assert_eq!((head.status.as_u16(), head.version), (200, Version::HTTP_11));
        };
        let (driven, ()) = tokio::join!(connection, asked);
        driven.unwrap();
    }
}

#[tokio::test]
async fn plain_http_is_not_served_there() {
    let (world, _) = door().await;
    let text = format!("GET {LIST} HTTP/1.1\r\nhost: a\r\nauthorization: Token {ALL}\r\n\r\n");
    assert!(crate::support::raw(world.gateway, &text).await.is_none());
    assert_eq!(world.sandbox.received().len(), 0);
}

#[tokio::test]
async fn without_an_authority_no_certificate_is_asked_for() {
    let (world, roots) = door().await;
    let identity = Authority::new().identity("a tool", &["all"]);
    tls::get(&world, &roots, Some(&identity), ORG, &[]).await.unwrap().refused(401, "MG111");
}
