use std::collections::{BTreeMap, VecDeque};

use futures_util::FutureExt as _;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::door::stream_mark::with_fragment;

const TABLE_BYTES: usize = 4096;
const FRAME_BYTES: usize = 16 << 10;
const NO_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const END_STREAM: u8 = 1;

/// The lengths of the Huffman codes of all bytes (RFC 7541 appendix B). Codes are numbered by length, then by byte.
#[rustfmt::skip]
const CODE_BITS: [u32; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

fn huffman(text: &[u8]) -> Vec<u8> {
    let mut order: Vec<u8> = (0..=255).collect();
    order.sort_by_key(|byte| CODE_BITS[usize::from(*byte)]);
    let (mut codes, mut code, mut length) = ([0_u32; 256], 0_u32, 5);
    for byte in order {
        let bits = CODE_BITS[usize::from(byte)];
        code <<= bits - length;
        (codes[usize::from(byte)], length) = (code, bits);
        code += 1;
    }
    let code =
        |byte: &u8| format!("{:0width$b}", codes[usize::from(*byte)], width = CODE_BITS[usize::from(*byte)] as usize);
    let mut bits: String = text.iter().map(code).collect();
    bits.extend(std::iter::repeat_n('1', bits.len().next_multiple_of(8) - bits.len()));
    bits.as_bytes().chunks(8).map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap()).collect()
}

fn number(first: u8, prefix_bits: u32, value: usize) -> Vec<u8> {
    let most = (1 << prefix_bits) - 1;
    if value < most {
        return vec![first | u8::try_from(value).unwrap()];
    }
    let (mut bytes, mut rest) = (vec![first | u8::try_from(most).unwrap()], value - most);
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

fn text(text: &[u8], is_huffman: bool) -> Vec<u8> {
    let (flag, bytes) = if is_huffman { (0x80, huffman(text)) } else { (0, text.to_vec()) };
    [number(flag, 7, bytes.len()), bytes].concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

type Field = (Vec<u8>, Vec<u8>);

/// A client that encodes fields in every way there is.
struct Client {
    random: fastrand::Rng,
    table: VecDeque<Field>,
    bytes_max: usize,
}

impl Client {
    fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), table: VecDeque::new(), bytes_max: TABLE_BYTES }
    }

    fn evict(&mut self) {
        let size = |(name, value): &Field| name.len() + value.len() + 32;
        while self.table.iter().map(size).sum::<usize>() > self.bytes_max {
            self.table.pop_back();
        }
    }

    fn resize(&mut self) -> Vec<u8> {
        self.bytes_max = [0, 64, 100, 200, 500, TABLE_BYTES][self.random.usize(..6)];
        self.evict();
        number(0x20, 5, self.bytes_max)
    }

    fn field(&mut self, (name, value): Field) -> Vec<u8> {
        let fixed: &[(usize, &[u8])] = match &*name {
            b":path" => &[(4, b"/"), (5, b"/index.html")],
            b":method" => &[(2, b"GET"), (3, b"POST")],
            b":scheme" => &[(6, b"http"), (7, b"https")],
            b":authority" => &[(1, b"")],
            b"authorization" => &[(23, b"")],
            b"etag" => &[(34, b"")],
            b"expect" => &[(35, b"")],
            _ => &[],
        };
        let mut whole: Vec<_> = fixed.iter().filter(|(_, one)| **one == *value).map(|(at, _)| *at).collect();
        let mut names: Vec<usize> = fixed.iter().map(|(at, _)| *at).chain([0]).collect();
        for (at, (known, own)) in self.table.iter().enumerate() {
            if *known == name {
                names.push(at + 62);
                whole.extend((*own == value).then_some(at + 62));
            }
        }
        if !whole.is_empty() && self.random.bool() {
            return number(0x80, 7, whole.swap_remove(self.random.usize(..whole.len())));
        }
        let (first, bits) = [(0x40, 6), (0, 4), (0x10, 4)][self.random.usize(..3)];
        let index = names[self.random.usize(..names.len())];
        let mut bytes = number(first, bits, index);
        if index == 0 {
            bytes.extend(text(&name, self.random.bool()));
        }
        bytes.extend(text(&value, self.random.bool()));
        if first == 0x40 {
            self.table.push_front((name, value));
            self.evict();
        }
        bytes
    }

    fn any(&mut self, alphabet: &[u8], most: usize) -> Vec<u8> {
        (0..self.random.usize(..=most)).map(|_| alphabet[self.random.usize(..alphabet.len())]).collect()
    }

    /// The frames of a request, and what the service must get of it.
    fn request(&mut self, stream: u32, path: &[u8]) -> (Vec<u8>, Got) {
        let method = ["GET", "HEAD", "HEAP"][self.random.usize(..3)];
        let mut fields: Vec<Field> = [(":method", method), (":scheme", "https"), (":authority", "a")]
            .map(|(name, value)| (name.into(), value.into()))
            .into();
        fields.insert(self.random.usize(..=3), (b":path".to_vec(), path.to_vec()));
        for _ in 0..self.random.usize(..5) {
            let name = ["x", "etag", "authorization", "idempotency-key", "expect", "expecu"][self.random.usize(..6)];
            let value = if self.random.bool() { b"100-continue".to_vec() } else { self.any(b"##ab>^~\\\x80\xff0", 40) };
            fields.push((name.into(), value));
        }
        let mut block = if self.random.u8(..4) == 0 { self.resize() } else { Vec::new() };
        let mut headers = HeaderMap::new();
        for (name, value) in &fields {
            let known = HeaderName::from_bytes(name).ok();
            if let Some(name) = known {
                headers.append(name, HeaderValue::from_bytes(value).unwrap());
            }
        }
        fields.into_iter().for_each(|field| block.extend(self.field(field)));
        let has_fragment = path.contains(&b'#');
        let is_marked = has_fragment || headers.contains_key("expect");
        let mark = is_marked.then_some(StreamMark { stream, has_fragment });
        let before = path.split(|byte| *byte == b'#').next().unwrap();
        let target = String::from_utf8(before.to_vec()).unwrap() + if has_fragment { "^" } else { "" };
        (self.frames(stream, &block), Got { target, headers, mark, is_head: method == "HEAD" })
    }

    fn frames(&mut self, stream: u32, block: &[u8]) -> Vec<u8> {
        let mut cuts: Vec<usize> = (0..self.random.usize(..4)).map(|_| self.random.usize(..=block.len())).collect();
        cuts.extend([0, block.len()]);
        cuts.sort_unstable();
        let parts: Vec<&[u8]> = cuts.windows(2).map(|ends| &block[ends[0]..ends[1]]).collect();
        let mut bytes = match self.random.u8(..4) {
            0 => frame(0x42, 0xff, stream, &self.any(b"#\x00\x01\x04", 30)),
            1 => frame(2, 0, stream, &[0, 0, 0, 0, 7]),
            _ => Vec::new(),
        };
        for (at, part) in parts.iter().enumerate() {
            let end = if at + 1 == parts.len() { END_HEADERS } else { 0 };
            if at > 0 {
                bytes.extend(frame(CONTINUATION, end, stream, part));
                continue;
            }
            let (padding, priority) = (self.random.bool(), self.random.bool());
            let length = self.random.u8(..20);
            let before =
                [if padding { vec![length] } else { vec![] }, if priority { vec![0, 0, 0, 0, 9] } else { vec![] }];
            let behind = vec![b'#'; if padding { length.into() } else { 0 }];
            let flags = END_STREAM | end | if padding { PADDED } else { 0 } | if priority { PRIORITY } else { 0 };
            bytes.extend(frame(HEADERS, flags, stream, &[&before.concat(), *part, &behind].concat()));
        }
        bytes
    }
}

/// What the service gets of a request.
#[derive(Clone, Debug, PartialEq)]
struct Got {
    target: String,
    headers: HeaderMap,
    mark: Option<StreamMark>,
    is_head: bool,
}

fn connection(frames: &[u8]) -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &NO_SETTINGS[..], frames].concat()
}

/// What h2 may read of these bytes if they arrive in pieces.
fn passed(frames: &mut RequestFrames, bytes: &[u8], mut piece: impl FnMut() -> usize) -> Vec<u8> {
    let (mut rest, mut pieces) = (bytes, Vec::new());
    while !rest.is_empty() {
        let (own, behind) = rest.split_at(piece().clamp(1, rest.len()));
        pieces.push(own);
        rest = behind;
    }
    frames.pass(pieces).0
}

fn marked(bytes: &[u8], piece: impl FnMut() -> usize) -> Vec<u8> {
    passed(&mut RequestFrames::new(TABLE_BYTES, FRAME_BYTES), bytes, piece)
}

/// The requests that h2 reads, by stream.
fn served(bytes: &[u8]) -> BTreeMap<u32, Got> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(tokio::task::unconstrained(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let (start, rest) = bytes.split_at((PREFACE_BYTES + NO_SETTINGS.len()).min(bytes.len()));
        client.write_all(start).await.unwrap();
        let mut connection = h2::server::handshake(server).await.unwrap();
        let mut got = BTreeMap::new();
        for piece in rest.chunks(40) {
            client.write_all(piece).await.unwrap();
            while let Some(next) = connection.accept().now_or_never() {
                let Some(Ok((mut request, respond))) = next else { return got };
                let mark = StreamMark::take(request.headers_mut());
                let mut uri = request.uri().clone();
                if mark.is_some_and(|mark| mark.has_fragment) {
                    uri = with_fragment(uri);
                }
                let target = uri.path_and_query().map_or("", PathAndQuery::as_str).to_owned();
                let (headers, is_head) = (request.headers().clone(), request.method() == "HEAD");
                got.insert(respond.stream_id().as_u32(), Got { target, headers, mark, is_head });
            }
        }
        got
    }))
}

proptest! {
    #[test]
    fn every_fragment_and_expectation_is_marked_and_all_else_stays_however_it_is_encoded(seed in any::<u64>()) {
        let mut client = Client::new(seed);
        let (mut all, mut expected) = (Vec::new(), BTreeMap::new());
        for stream in (1..12).step_by(2) {
            let path = [b"/".to_vec(), client.any(b"#?a/0~", 12)].concat();
            let (frames, got) = client.request(stream, &path);
            all.extend(frames);
            expected.insert(stream, got);
        }
        let most = client.random.usize(1..60);
        // Where no frame may grow, another one follows.
        let frame_bytes = if client.random.bool() { FRAME_BYTES } else { largest_payload(&all) };
        let all = connection(&all);
        let mut frames = RequestFrames::new(TABLE_BYTES, frame_bytes);
        let all_passed = passed(&mut frames, &all, || client.random.usize(1..=most));
        let at_once = passed(&mut RequestFrames::new(TABLE_BYTES, frame_bytes), &all, || usize::MAX);
        prop_assert_eq!(&all_passed, &at_once);
        for (stream, got) in &expected {
            prop_assert_eq!(frames.window_mut().spend(*stream, 0), !got.is_head);
        }
        prop_assert_eq!(served(&all_passed), expected);
    }
}

fn largest_payload(frames: &[u8]) -> usize {
    let (mut at, mut largest) = (0, 0);
    while let Some(head) = FrameHead::of(&frames[at..]) {
        (at, largest) = (at + FRAME_HEAD_BYTES + head.length, largest.max(head.length));
    }
    largest
}

/// Bytes that are changed at random, so that most blocks break some rule: whatever h2 makes of them, it cuts off no fragment.
/// `MAKEGATE_SEED` plays a run again.
#[test]
fn no_broken_block_hides_a_fragment() {
    let seed = std::env::var("MAKEGATE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MAKEGATE_SEED={seed}");
    let mut served_count = 0;
    for round in 0..1000 {
        let mut client = Client::new(seed.wrapping_add(round));
        let mut all = Vec::new();
        for stream in (1..8).step_by(2) {
            let mut frames = client.request(stream, b"/organizations#old").0;
            for _ in 0..client.random.usize(..3) {
                let at = client.random.usize(..frames.len());
                match client.random.u8(..4) {
                    0 => frames[at] = client.random.u8(..),
                    1 => frames[at] ^= 1 << client.random.u8(..8),
                    2 => frames[at] = 0,
                    _ => drop(frames.splice(at..at, [0_u8; 2])),
                }
            }
            all.extend(frames);
        }
        let passed = marked(&connection(&all), || usize::MAX);
        for (stream, got) in served(&passed) {
            served_count += 1;
            assert_ne!(got.target, "/organizations", "round {round}, stream {stream}: {all:02x?}");
        }
    }
    assert!(served_count > 100, "{served_count}");
}

/// h2 gets nothing behind a frame that it and this could read differently.
#[test]
fn nothing_passes_behind_a_frame_that_cannot_be_followed() {
    let whole = END_STREAM | END_HEADERS;
    let block = [&[0x82, 0x87, 0x04][..], &text(b"/a#b", false)].concat();
    let itself = [&[0, 0, 0, 1, 0][..], &block].concat();
    let held: [(&str, Vec<u8>); 13] = [
        ("a stream that depends on itself", frame(HEADERS, whole | PRIORITY, 1, &itself)),
        ("a promise", frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &block].concat())),
        ("an empty name", frame(HEADERS, END_STREAM, 1, &[0, 0, 0x82, 0x04, 0x04])),
        ("an empty name in Huffman code", frame(HEADERS, END_STREAM, 1, &[0, 0x80, 0x82, 0x04, 0x04])),
        ("index 0", frame(HEADERS, whole, 1, &[0x80])),
        ("an index beyond the table", frame(HEADERS, whole, 1, &[0x80 | 62])),
        ("a name beyond the table", frame(HEADERS, whole, 1, &[0x40 | 62, 1, b'x'])),
        ("a table too large", frame(HEADERS, whole, 1, &number(0x20, 5, TABLE_BYTES + 1))),
        ("an overlong number", frame(HEADERS, whole, 1, &[0xff, 0x80, 0x80, 0x80, 0x80, 0])),
        ("more padding than frame", frame(HEADERS, whole | PADDED, 1, &[3, 0x82, 0])),
        ("a frame without its padding length", frame(HEADERS, whole | PADDED, 1, &[])),
        ("a priority that is cut", frame(HEADERS, whole | PRIORITY, 1, &[0, 0, 0, 0])),
        ("a field that is cut", frame(HEADERS, whole, 1, &[0x04, 9, b'/'])),
    ];
    for (name, bad) in held {
        let good = frame(HEADERS, whole, 3, &block);
        for piece in [1, 7, usize::MAX] {
            let passed = marked(&connection(&[&*bad, &*good].concat()), || piece);
            assert_eq!(passed.len(), connection(&bad).len(), "{name}");
            assert!(served(&passed).is_empty(), "{name}");
        }
    }
    let cut = frame(HEADERS, END_STREAM, 1, &[0x82, 0x04, 9, b'/']);
    let other = frame(HEADERS, whole, 3, &block);
    let passed = marked(&connection(&[&*cut, &*other, &*other].concat()), || usize::MAX);
    assert_eq!(passed.len(), connection(&[&*cut, &*other].concat()).len(), "a block in another one");
}

/// Each byte has a code of its own length, from 5 to 30 bits.
#[test]
fn a_number_sign_is_found_behind_every_byte() {
    for byte in (0..=255).filter(|byte| *byte != b'#') {
        let block = |path: &[u8]| connection(&frame(HEADERS, END_HEADERS, 1, &[&[0x04], &*text(path, true)].concat()));
        for piece in [1, usize::MAX] {
            let (with, without) = (block(&[byte, b'#', byte, byte]), block(&[byte, b'>', byte, byte]));
            assert!(marked(&with, || piece).ends_with(b"\x0f\x14\x021#"), "{byte:#x}");
            assert_eq!(marked(&without, || piece), without, "{byte:#x}");
        }
    }
}

/// h2 is told all that a client grants, except what it owes; a frame is as long as before.
#[test]
fn what_was_spent_without_h2_is_taken_from_the_next_grants() {
    let mut frames = RequestFrames::new(TABLE_BYTES, FRAME_BYTES);
    let grant = |stream, bytes: u32| frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
    assert_eq!(passed(&mut frames, &connection(&grant(0, 100)), || usize::MAX), connection(&grant(0, 100)));
    assert!(frames.window_mut().spend(1, 1000) && frames.window_mut().spend(3, 500));
    assert!(!frames.window_mut().spend(5, 3000), "so much is never owed");
    assert_eq!(passed(&mut frames, &grant(5, 20_000), || 3), grant(5, 20_000));
    for (granted, told) in [(1, 1), (1000, 1), (20_000, 20_000 - 501), (20_000, 20_000), (0, 0)] {
        assert_eq!(passed(&mut frames, &grant(0, granted), || 3), grant(0, told));
    }
    // 65,535 and the grants, less what was spent.
    let left = 65_535 + 100 + 41_001 - 1500;
    assert!(frames.window_mut().take(left - 20_000) && frames.window_mut().spend(7, 100));
    assert!(!frames.window_mut().take(19_901), "the client does not take so much");
    assert!(frames.window_mut().take(19_900) && !frames.window_mut().spend(9, 1));
    assert_eq!(passed(&mut frames, &grant(0, u32::MAX >> 1), || usize::MAX), grant(0, (u32::MAX >> 1) - 100));
    let none = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9, 0, 4, 0, 0, 0, 0]);
    assert_eq!(passed(&mut frames, &none, || 1), none);
    assert!(!frames.window_mut().spend(11, 1), "a new stream has no window");
}

/// The table's memory is bounded by what the client is told, whatever it sends.
#[test]
fn the_table_stays_within_its_size() {
    let mut frames = RequestFrames::new(TABLE_BYTES, FRAME_BYTES);
    let fields = [0x40, 1, b'x', 0].repeat(4000);
    let bytes = connection(&frame(HEADERS, END_HEADERS, 1, &fields));
    assert_eq!(frames.pass([&*bytes]).0, bytes);
    let empty = format!("{frames:?}").matches("Entry").count();
    assert_eq!(empty, TABLE_BYTES / 33);
}
