//! Tests of each kind of ending, and that an incomplete response never counts as a response.

use super::*;

#[tokio::test]
async fn nobody_listens() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let upstream =
        Upstream::new(&settings("127.0.0.1", port), &limits(), token(TOKEN), Clock::system(), &Snapshot::new())
            .unwrap();
    let ending = upstream.once(&post("{}"), LONG, true).await;
    assert_eq!(shape(&ending), ("not-sent", None, Some(ProxyError::ConnectionRefused)));
    assert_eq!(ending.breaker_report(), BreakerReport::Unreachable);
}

#[tokio::test]
async fn a_name_that_is_none() {
    // Too long for DNS: rejected before any query.
    let host = "x".repeat(300);
    let upstream =
        Upstream::new(&settings(&host, 80), &limits(), token(TOKEN), Clock::system(), &Snapshot::new()).unwrap();
    let ending = upstream.once(&get(), LONG, false).await;
    assert_eq!(shape(&ending), ("not-sent", None, Some(ProxyError::DnsError)));
    assert!(!ending.error().unwrap().to_string().contains("organizations"));
}

#[tokio::test]
async fn the_connection_ends_without_an_answer() {
    for end in [Step::Reset, Step::Close] {
        let read = Origin::start(vec![vec![Step::Read, end.clone()]]);
        let ending = upstream(&read).once(&post("{}"), LONG, true).await;
        assert_eq!(shape(&ending), ("lost", None, Some(ProxyError::ConnectionTerminated)), "after reading, {end:?}");
        assert_eq!(read.received().len(), 1);
        assert_eq!(ending.breaker_report(), BreakerReport::Reached);

        let unread = Origin::start(vec![vec![Step::ReadHead, end.clone()]]);
        let ending = upstream(&unread).once(&post("{}"), LONG, true).await;
        assert_eq!(shape(&ending), ("lost", None, Some(ProxyError::ConnectionTerminated)), "unread, {end:?}");
        assert_eq!(unread.received().len(), 0);
    }
}

#[tokio::test]
async fn a_reset_at_once_is_never_an_answer_nor_sent_again() {
    let origin = Origin::start(vec![vec![Step::Reset], serving(1)]);
    let ending = upstream(&origin).once(&post("{}"), LONG, true).await;
    assert!(matches!(ending, Ending::NotSent(_) | Ending::Lost(_)), "{ending:?}");
    assert_eq!(origin.received().len(), 0);
}

#[tokio::test]
async fn silence_after_the_request() {
    let origin = Origin::start(vec![vec![Step::Read, Step::Hang]]);
    let upstream = upstream(&origin);
    // Enough time to be sent.
    let ending = upstream.once(&get(), Duration::from_secs(3), false).await;
    assert_eq!(shape(&ending), ("timed-out", None, Some(ProxyError::HttpResponseTimeout)));
    assert_eq!(ending.breaker_report(), BreakerReport::Silent);
}

#[tokio::test]
async fn silence_within_the_body() {
    let origin = Origin::start(vec![answering(&OK[..OK.len() - 1], &[Step::Hang])]);
    let ending = upstream(&origin).once(&get(), Duration::from_secs(3), false).await;
    assert_eq!(shape(&ending), ("cut", Some(200), Some(ProxyError::HttpResponseTimeout)));
    assert_eq!(ending.breaker_report(), BreakerReport::Silent);
}

#[tokio::test]
async fn a_cut_at_any_byte_is_never_an_answer() {
    let chunked = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4;x=y\r\n\":1}\r\n0\r\n\r\n";
    let sized = b"HTTP/1.1 201 Created\r\nContent-Length: 7\r\n\r\n{\"a\":1}";
    for (whole, end) in
        [(&sized[..], Step::Close), (sized, Step::Reset), (chunked, Step::Close), (chunked, Step::Reset)]
    {
        let head = whole.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        // Sends byte by byte and cuts after each length, with a new connection every time.
        let pause = Step::Sleep(Duration::from_millis(5));
        let script = |length| answering(&whole[..length], &[pause.clone(), end.clone()]);
        let origin = Origin::start((0..=whole.len()).map(script).collect());
        let upstream = upstream(&origin);
        for length in 0..whole.len() {
            let ending = upstream.once(&post("{}"), LONG, true).await;
            let expected = if length < head { ("lost", None) } else { ("cut", Some(201)) };
            assert_eq!((shape(&ending).0, shape(&ending).1), expected, "{end:?} after {length} bytes: {ending:?}");
        }
        let whole = answered(upstream.once(&post("{}"), LONG, true).await);
        assert_eq!((whole.body.bytes().as_ref(), whole.framed), (&b"{\"a\":1}"[..], true));
    }
}

#[tokio::test]
async fn an_answer_byte_by_byte_is_whole() {
    let bytes = OK.iter().map(|byte| Step::write([*byte]));
    let script: Script = std::iter::once(Step::Read).chain(bytes).chain([Step::Hang]).collect();
    assert_eq!(answered(ending_of(script).await).body.bytes(), "{}");
}

#[tokio::test]
async fn an_answer_without_a_marked_end_says_so() {
    let answer = answered(ending_of(answering(b"HTTP/1.1 200 OK\r\n\r\n{\"a\":1}", &[Step::Close])).await);
    assert_eq!((answer.body.bytes().as_ref(), answer.framed), (&b"{\"a\":1}"[..], false));
    let answer = answered(ending_of(answering(b"HTTP/1.1 204 No Content\r\n\r\n", &[Step::Hang])).await);
    assert_eq!((answer.body.bytes().len(), answer.framed), (0, true));
}

#[tokio::test]
async fn an_answer_that_holds_the_token_does_not_go_on() {
    let (first, second) = TOKEN.split_at(9);
    let body = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: 38\r\n\r\n\"{TOKEN}\"");
    let head = format!("HTTP/1.1 200 OK\r\nX-Echo: Token {TOKEN}\r\nContent-Length: 0\r\n\r\n");
    let name = format!("HTTP/1.1 200 OK\r\nX-{TOKEN}: yes\r\nContent-Length: 0\r\n\r\n");
    let chunks = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{first}\r\n");
    let rest = format!("1b\r\n{second}\r\n0\r\n\r\n");
    let split = [Step::Sleep(Duration::from_millis(30)), Step::write(rest)];
    for (script, status) in [
        (answering(body, &[]), 400),
        (answering(head, &[]), 200),
        (answering(name, &[]), 200),
        (answering(chunks, &split), 200),
    ] {
        let ending = ending_of(script).await;
        assert_eq!(shape(&ending), ("leaked", Some(status), None));
        assert!(!format!("{ending:?}").contains(TOKEN));
    }
}

#[tokio::test]
async fn neither_the_token_sent_nor_the_one_that_replaced_it_may_come_back() {
    const NEW: &str = "another-token-altogether";
    for echoed in [TOKEN, NEW] {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{echoed}", echoed.len());
        let gate = Gate::default();
        let origin = Origin::start(vec![vec![Step::Read, Step::Wait(gate.clone()), Step::write(answer)]]);
        let upstream = upstream(&origin);
        let attempt = begin(&upstream);
        until("the request is there", || origin.received().len() == 1).await;
        assert!(upstream.set_token(token(NEW)));
        gate.open();
        assert_eq!(shape(&attempt.await.unwrap()).0, "leaked", "{echoed}");
    }
}

#[tokio::test]
async fn a_cut_head_or_garbage_is_no_answer() {
    for garbage in
        [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", b"HTTP/2.0 200 OK\r\n\r\n"]
    {
        let ending = ending_of(answering(garbage, &[Step::Hang])).await;
        assert_eq!(shape(&ending), ("lost", None, Some(ProxyError::HttpProtocolError)), "{garbage:?}");
    }
    let lengths = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}";
    assert_eq!(shape(&ending_of(answering(lengths, &[Step::Hang])).await).0, "lost");
    let upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
    assert_eq!(shape(&ending_of(answering(upgrade, &[Step::Hang])).await).0, "lost");
}
