//! What is sent upstream, and the limits on what comes back.

use http::HeaderValue;

use super::*;

#[tokio::test]
async fn the_request_carries_the_token_and_the_gateways_own_name() {
    let origin = Origin::start(vec![serving(2)]);
    let upstream = upstream(&origin);
    let mut outgoing = post("{\"name\":\"Acme\"}");
    for (name, value) in [
        ("authorization", "Token of-the-caller"),
        ("host", "elsewhere.example"),
        ("user-agent", "Python-urllib/3.12"),
        ("accept-encoding", "gzip"),
        ("content-length", "3"),
        ("transfer-encoding", "chunked"),
        ("content-type", "application/json"),
    ] {
        outgoing.headers.append(name, HeaderValue::from_static(value));
    }
    answered(upstream.once(&outgoing, LONG, false).await);
    answered(upstream.once(&get(), LONG, false).await);

    let received = origin.received();
    let post = &received[0];
    assert_eq!(post.head.lines().next(), Some("POST /api/v2/organizations/11?wait=true HTTP/1.1"));
    assert_eq!(post.header("host"), Some(origin.address().to_string()));
    assert_eq!(post.header("authorization"), Some(format!("Token {TOKEN}")));
    assert_eq!(post.header("user-agent"), Some(format!("makegate/{}", env!("CARGO_PKG_VERSION"))));
    assert_eq!(post.header("accept-encoding"), Some("identity".to_owned()));
    assert_eq!(post.header("content-type"), Some("application/json".to_owned()));
    assert_eq!((post.header("content-length"), post.header("transfer-encoding")), (Some("15".to_owned()), None));
    assert_eq!(post.body, b"{\"name\":\"Acme\"}");
    assert_eq!(received[1].header("content-length"), None);
}

#[tokio::test]
async fn an_empty_post_says_that_it_is_empty() {
    let origin = Origin::start(vec![serving(1)]);
    answered(upstream(&origin).once(&post(""), LONG, true).await);
    assert_eq!(origin.received()[0].header("content-length"), Some("0".to_owned()));
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let origin = Origin::start(vec![answering(
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/elsewhere\r\nContent-Length: 0\r\n\r\n",
        &[Step::Hang],
    )]);
    assert_eq!(answered(upstream(&origin).once(&get(), LONG, false).await).status, 302);
    assert_eq!((origin.received().len(), origin.connections()), (1, 1));
}

#[tokio::test]
async fn a_body_beyond_its_bound_is_given_up() {
    let sized = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n", &[Step::Read]);
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let endless =
        answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &[Step::Flood(chunk.into_bytes())]);
    for script in [sized, endless] {
        let origin = Origin::start(vec![script]);
        let upstream = upstream_with(&origin, Clock::system(), |_, limits| limits.answer_bytes = 1 << 20);
        let ending = upstream.once(&get(), LONG, false).await;
        assert_eq!(shape(&ending), ("unusable", Some(200), Some(ProxyError::HttpResponseBodySize)));
        until("the connection is closed", || origin.open() == 0).await;
    }
}

#[tokio::test]
async fn a_body_at_its_bound_is_whole() {
    let body = "x".repeat(1 << 20);
    let origin = Origin::start(vec![answering(
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        &[Step::Hang],
    )]);
    let upstream = upstream_with(&origin, Clock::system(), |_, limits| limits.answer_bytes = 1 << 20);
    assert_eq!(answered(upstream.once(&get(), LONG, false).await).body.bytes(), &body);
}

#[tokio::test]
async fn a_head_beyond_its_bound_is_given_up() {
    let endless = answering(b"HTTP/1.1 200 OK\r\n", &[Step::Flood(b"X-Filler: 0123456789\r\n".to_vec())]);
    let fields =
        |count: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}\r\n", "X-F: 1\r\n".repeat(count - 1));
    for script in [endless, answering(fields(101), &[Step::Hang])] {
        let ending = ending_of(script).await;
        assert_eq!(shape(&ending), ("unusable", None, Some(ProxyError::HttpResponseHeaderSectionSize)));
    }
    answered(ending_of(answering(fields(100), &[Step::Hang])).await);
    let long = answering(format!("HTTP/1.1 200 OK\r\nX-F: {}\r\n\r\n", "x".repeat(32 << 10)), &[Step::Hang]);
    assert_eq!(shape(&ending_of(long).await).0, "unusable");
}

#[tokio::test]
async fn interim_answers_are_passed_over_as_long_as_they_are_few() {
    let hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let some = [Step::Read, Step::write(hint), Step::write(hint), Step::write(OK), Step::Hang];
    assert_eq!(answered(ending_of(some.to_vec()).await).status, 200);
    let origin = Origin::start(vec![vec![Step::Read, Step::Flood(hint.repeat(100))]]);
    let ending = upstream(&origin).once(&get(), LONG, false).await;
    assert_eq!(shape(&ending), ("lost", None, Some(ProxyError::HttpProtocolError)));
    until("the connection is closed", || origin.open() == 0).await;
}

#[tokio::test]
async fn an_encoded_answer_does_not_go_on() {
    let encoded = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b";
    let ending = ending_of(answering(encoded, &[Step::Hang])).await;
    assert_eq!(shape(&ending), ("unusable", Some(200), Some(ProxyError::HttpResponseContentCoding)));
    for coding in ["gzip, chunked", "gzip"] {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n");
        let ending = ending_of(answering(answer, &[Step::Close])).await;
        assert_eq!(shape(&ending), ("unusable", Some(200), Some(ProxyError::HttpResponseTransferCoding)), "{coding}");
    }
    let plain = b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}";
    answered(ending_of(answering(plain, &[Step::Hang])).await);
}

#[tokio::test]
async fn all_answers_together_are_bounded() {
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: 204800\r\n\r\n{}", "x".repeat(200 << 10));
    let origin = Origin::start(vec![repeated(&[Step::Read, Step::write(large)], 4), serving(4)]);
    let upstream = upstream(&origin);
    let get = Outgoing { answers: SharedLimit::new(260 << 10).holder(), ..get() };
    let first = answered(upstream.once(&get, LONG, false).await);
    let ending = upstream.once(&get, LONG, false).await;
    assert_eq!(shape(&ending), ("no-room", None, None));
    assert_eq!(ending.breaker_report(), BreakerReport::Nothing);
    assert_eq!(origin.received().len(), 1, "refused before it was sent");
    let counted = first.body.into_counted();
    assert_eq!(shape(&upstream.once(&get, LONG, false).await), ("no-room", None, None));
    drop(counted);

    let small = answered(upstream.once(&get, LONG, true).await);
    let ending = upstream.once(&get, LONG, false).await;
    assert!(matches!(shape(&ending), ("answered" | "no-room", Some(200), None)), "{ending:?}");
    drop((small, ending));
    answered(upstream.once(&get, LONG, false).await);
}

#[tokio::test]
async fn a_small_answer_holds_little() {
    let origin = Origin::start(vec![serving(3)]);
    let upstream = upstream(&origin);
    let get = Outgoing { answers: SharedLimit::new(76 << 10).holder(), ..get() };
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(answered(upstream.once(&get, LONG, false).await));
    }
}

#[tokio::test]
async fn a_token_change_is_seen_by_the_next_attempt() {
    let origin = Origin::start(vec![serving(2)]);
    let upstream = upstream(&origin);
    answered(upstream.once(&get(), LONG, false).await);
    assert!(!upstream.set_token(token(TOKEN)), "the same again");
    assert_eq!(upstream.token_generation(), 0);
    assert!(upstream.set_token(token("another-token-altogether")));
    assert_eq!(upstream.token_generation(), 1);
    answered(upstream.once(&get(), LONG, false).await);
    assert_eq!(origin.received()[1].header("authorization"), Some("Token another-token-altogether".to_owned()));
}
