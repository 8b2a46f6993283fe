//! Connections: TLS, reuse, limits.

use std::io::Write as _;

use hyper_util::rt::TokioIo;

use super::*;
use crate::upstream::SetupError;
use crate::upstream::interim::Allowance;
use crate::upstream::pool::PooledConnection;
use hostile::tls_identity;

/// An https upstream at this origin, trusting this certificate authority.
fn https(origin: &Origin, authority: &str, connect: Duration) -> Arc<Upstream> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(authority.as_bytes()).unwrap();
    upstream_with(origin, Clock::system(), |settings, _| {
        settings.url.tls = true;
        settings.connect = connect;
        settings.ca_file = Some(file.path().to_owned());
    })
}

/// Turns off idle timeouts, so that only the code under test closes connections.
fn never_idle_too_long(settings: &mut config::UpstreamConfig, _: &mut Limits) {
    settings.idle = Duration::from_secs(3600);
}

#[tokio::test]
async fn tls_with_an_authority_of_ones_own() {
    let (authority, identity) = tls_identity(&["127.0.0.1"]);
    let origin = Origin::start_tls(vec![serving(2)], identity);
    let upstream = https(&origin, &authority, LONG);
    for _ in 0..2 {
        assert_eq!(answered(upstream.once(&get(), LONG, false).await).body.bytes(), "{}");
    }
    assert_eq!((origin.received().len(), origin.connections()), (2, 1));
    upstream.check_connection(LONG).await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_is_not_the_upstreams_gets_no_request() {
    let (authority, identity) = tls_identity(&["127.0.0.1"]);
    let (stranger, other_name) = tls_identity(&["localhost"]);
    for (identity, authority) in
        [(identity, &stranger), (other_name, &stranger), (tls_identity(&["::1"]).1, &authority)]
    {
        let origin = Origin::start_tls(vec![serving(1)], identity);
        let ending = https(&origin, authority, LONG).once(&get(), LONG, true).await;
        assert_eq!(shape(&ending), ("not-sent", None, Some(ProxyError::TlsCertificateError)));
        assert_eq!(ending.breaker_report(), BreakerReport::Unreachable);
        assert_eq!(origin.received().len(), 0);
    }
}

#[tokio::test]
async fn what_ends_within_the_handshake_was_not_sent() {
    let authority = tls_identity(&["127.0.0.1"]).0;
    for script in [
        vec![Step::write("HTTP/1.1 400 Bad Request\r\n\r\n"), Step::Hang],
        vec![Step::Sleep(Duration::from_millis(30)), Step::Reset],
        vec![Step::Close],
    ] {
        let origin = Origin::start(vec![script.clone()]);
        let ending = https(&origin, &authority, LONG).once(&get(), LONG, true).await;
        let (name, status, error) = shape(&ending);
        assert_eq!((name, status), ("not-sent", None), "{script:?}");
        // A reset or an end may arrive before the handshake begins.
        let is_early =
            error == Some(ProxyError::ConnectionTerminated) && !matches!(script.as_slice(), [Step::Write(_), ..]);
        assert!(is_early || error == Some(ProxyError::TlsProtocolError), "{script:?}: {error:?}");
    }
    let origin = Origin::start(vec![vec![Step::Hang]]);
    for (connect, time) in [(SHORT, LONG), (LONG, SHORT)] {
        let ending = https(&origin, &authority, connect).once(&get(), time, true).await;
        assert_eq!(shape(&ending), ("not-sent", None, Some(ProxyError::ConnectionTimeout)), "{connect:?} of {time:?}");
    }
}

#[tokio::test]
async fn a_tls_connection_cut_without_notice_is_no_end_of_an_answer() {
    let (authority, identity) = tls_identity(&["127.0.0.1"]);
    let answer = b"HTTP/1.1 200 OK\r\n\r\n{}";
    let origin = Origin::start_tls(vec![answering(answer, &[Step::Cut]), answering(answer, &[Step::Close])], identity);
    let upstream = https(&origin, &authority, LONG);
    assert_eq!(shape(&upstream.once(&get(), LONG, true).await).0, "cut");
    assert!(!answered(upstream.once(&get(), LONG, true).await).framed);
}

#[test]
fn a_ca_file_without_certificates_is_refused_with_words() {
    let mut settings = settings("127.0.0.1", 1);
    settings.url.tls = true;
    settings.ca_file = Some("/nowhere/ca.pem".into());
    let new = |settings: &config::UpstreamConfig| {
        Upstream::new(settings, &limits(), token(TOKEN), Clock::system(), &Snapshot::new()).err()
    };
    assert!(new(&settings).unwrap().to_string().contains("/nowhere/ca.pem"));
    let empty = tempfile::NamedTempFile::new().unwrap();
    settings.ca_file = Some(empty.path().to_owned());
    assert!(new(&settings).unwrap().to_string().contains("it contains no certificate"));
    settings.url.host = "not a host".to_owned();
    assert!(matches!(new(&settings), Some(SetupError::Host(_))));
}

#[tokio::test]
async fn connections_are_used_again_unless_a_fresh_one_is_wanted() {
    let origin = Origin::start(vec![serving(5)]);
    let upstream = upstream(&origin);
    for (fresh, connections) in [(false, 1), (false, 1), (true, 2), (false, 2)] {
        answered(upstream.once(&get(), LONG, fresh).await);
        assert_eq!(origin.connections(), connections);
        until("the connection is kept", || upstream.pool.idle_count() == connections).await;
    }
    let last = origin.received().last().unwrap().connection;
    assert_eq!(last, 1, "the one that was idle shortest");
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_not_used() {
    let origin = Origin::start(vec![answering(OK, &[Step::Close]), serving(1)]);
    let upstream = upstream(&origin);
    answered(upstream.once(&get(), LONG, false).await);
    until("the origin closed it", || origin.open() == 0).await;
    answered(upstream.once(&get(), LONG, false).await);
    assert_eq!((origin.received().len(), origin.connections()), (2, 2));
}

#[tokio::test]
async fn a_closed_connection_does_not_hide_an_open_one() {
    let gate = Gate::default();
    let origin = Origin::start(vec![serving(2), answering(OK, &[Step::Wait(gate.clone()), Step::Close]), serving(1)]);
    let upstream = upstream(&origin);
    answered(upstream.once(&get(), LONG, false).await);
    until("the connection is kept", || upstream.pool.idle_count() == 1).await;
    answered(upstream.once(&get(), LONG, true).await);
    until("the second is kept", || upstream.pool.idle_count() == 2).await;
    gate.open();
    until("the origin closed the second", || origin.open() == 1).await;
    // Its task must run before it can notice.
    tokio::time::sleep(Duration::from_millis(50)).await;
    answered(upstream.once(&get(), LONG, false).await);
    assert_eq!((origin.received()[2].connection, origin.connections()), (0, 2));
}

/// On a single thread the dead connection's task has not run yet when the request is handed to it.
#[tokio::test(flavor = "current_thread")]
async fn what_an_idle_connection_hands_back_goes_out_on_a_fresh_one() {
    let origin = Origin::start(vec![serving(1)]);
    let upstream = upstream(&origin);
    let (near, far) = tokio::io::duplex(1024);
    drop(far);
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await.unwrap();
    let driver = Tasks::new().spawn(connection);
    upstream.pool.store(PooledConnection::new(sender, driver.abort_handle(), (Allowance::new(), Arc::default())));
    answered(upstream.once(&get(), LONG, false).await);
    assert_eq!((origin.received().len(), origin.connections()), (1, 1));
    assert_eq!(driver.await.unwrap().map_err(|error| error.is_incomplete_message()), Ok(()), "it handed back");
}

#[tokio::test]
async fn bytes_after_an_answer_are_never_the_next_answer() {
    let poisoned = [OK, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"].concat();
    let origin = Origin::start(vec![answering(poisoned, &[Step::Read, Step::write(OK)]), serving(1)]);
    let upstream = upstream(&origin);
    answered(upstream.once(&get(), LONG, false).await);
    let next = answered(upstream.once(&get(), LONG, false).await);
    assert_eq!((next.body.bytes().as_ref(), origin.connections()), (&b"{}"[..], 2));
}

#[tokio::test]
async fn a_connection_whose_request_was_not_read_whole_is_not_used_again() {
    let early = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n";
    let origin = Origin::start(vec![vec![Step::ReadHead, Step::write(early), Step::Hang], serving(1)]);
    let upstream = upstream_with(&origin, Clock::system(), never_idle_too_long);
    let ending = upstream.once(&post(vec![b'x'; 32 << 20]), LONG, true).await;
    assert_eq!(answered(ending).status, 413);
    assert_eq!(upstream.pool.idle_count(), 0);
    assert!(upstream.pool.closed(LONG).await, "closed, though the origin reads nothing more");
    answered(upstream.once(&get(), LONG, false).await);
    assert_eq!(origin.received()[0].connection, 1);
}

#[tokio::test]
async fn an_answer_with_two_lengths_ends_its_connection() {
    let both = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    let origin = Origin::start(vec![answering(both, &[Step::Read, Step::write(OK)]), serving(1)]);
    let upstream = upstream_with(&origin, Clock::system(), never_idle_too_long);
    assert_eq!(answered(upstream.once(&get(), LONG, false).await).body.bytes(), "{}");
    until("the connection is closed", || origin.open() == 0).await;
    answered(upstream.once(&get(), LONG, false).await);
}

#[tokio::test]
async fn connections_are_bounded_everybody_gets_one_and_nobody_the_last() {
    let gate = Gate::default();
    let slow = repeated(&[Step::Read, Step::Wait(gate.clone()), Step::write(OK)], 20);
    let origin = Origin::start(vec![slow]);
    let upstream = upstream_with(&origin, Clock::system(), |settings, limits| {
        settings.connections = 3;
        never_idle_too_long(settings, limits);
    });
    let attempts: Vec<_> = (0..20).map(|_| begin(&upstream)).collect();
    until("one leaves a connection to others", || upstream.load() == (2, 18)).await;
    let of_another = upstream.acquire_connection(Some(&"another".into()), LONG).await.unwrap();
    assert_eq!(upstream.load(), (3, 18), "who has none takes it at once");
    drop(of_another);
    gate.open();
    for attempt in attempts {
        answered(attempt.await.unwrap());
    }
    assert_eq!((origin.received().len(), origin.peak()), (20, 2));
    answered(upstream.once(&get(), LONG, true).await);
    until("an idle one has made way", || origin.open() <= 3).await;
}

#[tokio::test]
async fn who_gets_no_connection_in_time_has_sent_nothing() {
    let origin = Origin::start(vec![vec![Step::Read, Step::Read]]);
    let upstream = upstream_with(&origin, Clock::system(), |settings, _| settings.connections = 1);
    let holder = begin(&upstream);
    until("the request is there", || origin.received().len() == 1).await;
    assert!(upstream.acquire_connection(None, SHORT).await.is_none());
    let why = upstream.check_connection(SHORT).await.unwrap_err();
    assert_eq!((why.error, why.breaker_report()), (ProxyError::ConnectionLimitReached, BreakerReport::Nothing));
    holder.abort();
    until("an attempt given up closes its connection", || origin.open() == 0).await;
}

#[tokio::test]
async fn idle_connections_are_closed_after_their_time() {
    let clock = Clock::movable();
    let origin = Origin::start(vec![serving(5)]);
    let upstream = upstream_with(&origin, clock.clone(), |_, _| {});
    answered(upstream.once(&get(), LONG, false).await);
    until("the connection is kept", || upstream.pool.idle_count() == 1).await;
    clock.advance(Duration::from_secs(16));
    answered(upstream.once(&get(), LONG, false).await);
    assert_eq!(origin.connections(), 2);

    let origin = Origin::start(vec![serving(5)]);
    let upstream = upstream_with(&origin, Clock::system(), |settings, _| settings.idle = Duration::from_millis(100));
    for _ in 0..2 {
        answered(upstream.once(&get(), LONG, false).await);
        until("nobody asked, and still it is closed", || origin.open() == 0).await;
    }
}
