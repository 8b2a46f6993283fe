//! Promise 1, in memory: a token that was replaced is nowhere in the process any more, whatever libraries do with their buffers.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use futures_util::future::join_all;
use memchr::memmem;
use rustix::process::Signal;

use crate::support::process::{Home, Process};
use crate::support::{ALL, LIST, ORG, OTHER, Plan, TOKEN, VARIABLES, attempt, sandbox_at, until, with_key};

const NEXT: &str = "3c8f0a52-61d7-49be-b0c4-e29f7a615d83";
/// So much of a token in one place is no coincidence.
const PART_BYTES: usize = 16;

/// The parts of a token in the forms that it could lie around in, each with the form's name.
fn parts(token: &str) -> Vec<(&'static str, Vec<u8>)> {
    let hex: String = token.bytes().map(|byte| format!("{byte:02x}")).collect();
    let wide = token.bytes().flat_map(|byte| [byte, 0]).collect();
    let encoded = base64(token.as_bytes());
    let forms =
        [("plain", token.as_bytes().to_vec()), ("hex", hex.into_bytes()), ("UTF-16", wide), ("base64", encoded)];
    forms
        .into_iter()
        .flat_map(|(name, form)| {
            form.windows(PART_BYTES).step_by(10).map(|part| (name, part.to_vec())).collect::<Vec<_>>()
        })
        .collect()
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let of = |three: &[u8]| {
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        [18, 12, 6, 0].map(|shift| ALPHABET[(bits >> shift & 63) as usize])
    };
    bytes.chunks_exact(3).flat_map(of).collect()
}

/// Where in the memory of a process parts of this token are; `None`: its memory cannot be read.
fn places(process: &mut Process, token: &str) -> Option<Vec<String>> {
    let id = process.child().id();
    let maps = fs::read_to_string(format!("/proc/{id}/maps")).ok()?;
    let memory = File::open(format!("/proc/{id}/mem")).ok()?;
    let (parts, mut found, mut bytes_read) = (parts(token), Vec::new(), 0);
    for line in maps.lines().filter(|line| !line.contains("[v")) {
        let mut words = line.split_whitespace();
        let (range, rights, name) = (words.next()?, words.next()?, words.nth(3).unwrap_or("anonymous"));
        let (start, end) = range.split_once('-')?;
        let [start, end] = [start, end].map(|digits| u64::from_str_radix(digits, 16).unwrap());
        // What was never written to came from a file.
        if !rights.starts_with("rw") {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        if memory.read_exact_at(&mut bytes, start).is_err() {
            continue;
        }
        bytes_read += bytes.len();
        let of_range = parts.iter().filter_map(|(form, part)| {
            let at = memmem::find(&bytes, part)?;
            let around = &bytes[at.saturating_sub(64)..(at + 96).min(bytes.len())];
            Some(format!("{form} in {name} {range} +{at:x}: {}", around.escape_ascii()))
        });
        found.extend(of_range);
    }
    (bytes_read > 0).then_some(found)
}

/// Reads and writes, one after the other and at the same time.
async fn use_it(home: &Home) {
    let ask = async |method, target, body| {
        let key = with_key(ALL, &[]);
        attempt(home.gateway, method, target, &key, body).await.unwrap().expect(200);
    };
    for target in [ORG, ORG, OTHER, LIST, VARIABLES, "/api/v2/organizations?pg%5Blimit%5D=7"] {
        ask("GET", target, "").await;
    }
    join_all((0..8).map(|_| ask("GET", VARIABLES, ""))).await;
    ask("PATCH", ORG, r#"{"name": "Renamed"}"#).await;
    // More than is written together with the token.
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(20_000));
    attempt(home.gateway, "PATCH", ORG, &with_key(ALL, &[]), &large).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_replaced_is_in_no_memory_of_the_process() {
    let sandbox = sandbox_at("127.0.0.1:0").await;
    let home = Home::new(&Plan::default(), &format!("http://{}", sandbox.address()));
    let mut process = home.serve().await;
    use_it(&home).await;
    let Some(found) = places(&mut process, TOKEN) else {
        eprintln!("SKIPPED: the memory of another process cannot be read here (root can)");
        return;
    };
    assert!(!found.is_empty(), "what is there is not found");
    sandbox.set_token(NEXT);
    fs::write(home.path().join("token"), NEXT).unwrap();
    process.signal(Signal::HUP);
    until(|| home.process_log().contains("was reloaded")).await;
    use_it(&home).await;
    // What the reload replaced is wiped by whoever lets go of it last, which may be a thread that is just ending its work.
    for _ in 0..5 {
        if places(&mut process, TOKEN).unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let found = places(&mut process, TOKEN).unwrap();
    assert!(found.is_empty(), "the old token is still there: {found:#?}");
    assert!(!places(&mut process, NEXT).unwrap().is_empty());
    assert_eq!(process.end(), Some(0));
}
