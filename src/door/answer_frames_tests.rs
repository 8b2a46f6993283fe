use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::connections::{ConnectionState, Connections};
use super::super::continues::ContinueAsker;
use super::*;

const SETTINGS: u8 = 4;
const INTERIM: &[u8] = b"\x08\x03100";

fn frames(random: &mut fastrand::Rng, stream: u32) -> Vec<Vec<u8>> {
    let mut any = |kind: u8, flags: u8| {
        let payload = [b"\x88\x20x".repeat(random.usize(1..4)), vec![b'y'; random.usize(..30)]].concat();
        let head = FrameHead { length: payload.len(), kind, flags, stream };
        [&head.bytes()[..], &payload].concat()
    };
    let mut all = vec![any(HEADERS, 0), any(CONTINUATION, 0), any(CONTINUATION, END_HEADERS)];
    all.extend([any(DATA, 0), any(SETTINGS, 0), any(HEADERS, END_HEADERS), any(DATA, END_STREAM)]);
    all
}

/// The frames in these bytes.
fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(head) = FrameHead::of(bytes) {
        let (own, rest) = bytes.split_at(FRAME_HEAD_BYTES + head.length);
        all.push(own.to_vec());
        bytes = rest;
    }
    assert_eq!(bytes, b"", "a frame that is cut");
    all
}

fn state() -> Arc<ConnectionState> {
    let connections = Arc::new(Connections::new(1, Clock::frozen()));
    Arc::new(ConnectionState::new(&connections, Some(IpAddr::V4(Ipv4Addr::LOCALHOST))))
}

proptest! {
    /// A socket that takes a few bytes at a time, into which bodies are asked for at any time.
    #[test]
    fn a_body_is_asked_for_between_two_frames_and_nothing_else_is_changed(seed in any::<u64>()) {
        let mut random = fastrand::Rng::with_seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let expected: Vec<_> = (1..8).step_by(2).flat_map(|stream| frames(&mut random, stream)).collect();
        let bytes = expected.concat();
        let continues = Continues::new(&state());
        let unread = Arc::new(UnreadRequests::new(Box::new(|_| http::Response::new(Bytes::new()))));
        let mut answers = AnswerFrames::new(unread, continues.clone());
        let (got, asked) = runtime.block_on(tokio::task::unconstrained(async {
            let (mut socket, mut client) = tokio::io::duplex(random.usize(1..40));
            let (mut at, mut got, mut askers, mut asked_at) = (0, Vec::new(), Vec::new(), Vec::new());
            let (mut window, clock) = (ClientWindow::default(), Clock::frozen());
            let mut cx = Context::from_waker(std::task::Waker::noop());
            while at < bytes.len() {
                if random.u8(..4) == 0 && askers.len() < 20 {
                    let asker = ContinueAsker::new(&continues, 101 + u32::try_from(askers.len()).unwrap());
                    asker.ask();
                    askers.push(asker);
                    asked_at.push(at);
                }
                // h2 hands over whole heads of frames, and then the rest of a large body.
                let written = answers.poll_write(&mut socket, &mut cx, (&bytes[at..], &mut window, &clock));
                if let Poll::Ready(written) = written {
                    at += written.unwrap();
                } else {
                    let mut piece = vec![0; random.usize(1..40)];
                    let read = client.read(&mut piece).await.unwrap();
                    got.extend_from_slice(&piece[..read]);
                }
            }
            while answers.poll_own(&mut socket, &mut cx).is_pending() {
                let mut piece = [0; 9];
                let read = client.read(&mut piece).await.unwrap();
                got.extend_from_slice(&piece[..read]);
            }
            socket.shutdown().await.unwrap();
            client.read_to_end(&mut got).await.unwrap();
            (got, asked_at)
        }));
        let got = split(&got);
        let (interim, rest): (Vec<_>, Vec<_>) = got.iter().cloned().partition(|frame| &frame[FRAME_HEAD_BYTES..] == INTERIM);
        prop_assert_eq!(rest, expected);
        let streams: Vec<_> = interim.iter().map(|frame| FrameHead::of(frame).unwrap().stream).collect();
        prop_assert_eq!(streams, (0..asked.len()).map(|at| 101 + u32::try_from(at).unwrap()).collect::<Vec<_>>());
        // Each comes at the first such place, because the answer may come next.
        let (mut at, mut is_between, mut asked) = (0, true, asked.into_iter().peekable());
        for frame in &got {
            if frame[FRAME_HEAD_BYTES..] == *INTERIM {
                asked.next();
                continue;
            }
            prop_assert!(!is_between || asked.peek().is_none_or(|asked| *asked > at));
            at += frame.len();
            is_between = !is_within_block(FrameHead::of(frame).unwrap());
        }
        for pair in got.windows(2) {
            let first = FrameHead::of(&pair[0]).unwrap();
            prop_assert!(!is_within_block(first) || FrameHead::of(&pair[1]).unwrap().kind == CONTINUATION);
        }
    }
}

#[test]
fn a_body_that_is_given_up_is_not_asked_for() {
    let continues = Continues::new(&state());
    let [first, second] = [1, 3].map(|stream| ContinueAsker::new(&continues, stream));
    first.ask();
    second.ask();
    drop(first);
    assert_eq!(split(&continues.take_frames()).len(), 1);
    assert!(!continues.is_any_asked());
    drop(second);
    assert!(continues.take_frames().is_empty());
}
