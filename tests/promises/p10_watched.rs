//! Promise 10. A bad file never disturbs a running gateway, whatever kind of file it has become: it says why and keeps the old.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::Value;

use crate::support::{ALL, ORG, Plan, TOKEN, World, tls};

/// How long a change may take to be in force, generously for a busy machine.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// All watched files, by their names in the world's folder.
const FOLLOWED: [&str; 6] = ["makegate.toml", "token", "operator", "cert.pem", "key.pem", "callers.pem"];

async fn secure_world() -> (World, std::sync::Arc<rustls::RootCertStore>) {
    let callers = tls::Authority::new().pem;
    tls::world(Plan::default(), ", client_ca = \"callers.pem\"", &[("callers.pem", &callers)]).await
}

#[tokio::test]
async fn a_watched_file_that_becomes_something_else_is_reported_and_the_old_content_stays() {
    let (world, roots) = secure_world().await;
    let token = format!("authorization: Token {ALL}");
    type Become = fn(&Path);
    let kinds: [(&str, Become, &str); 4] = [
        ("a pipe", |path| mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap(), "not a regular file"),
        ("a folder", |path| fs::create_dir(path).unwrap(), "not a regular file"),
        ("a device", |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap(), "not a regular file"),
        // It is sparse, so no disk has to hold it.
        ("400 MiB", |path| File::create(path).unwrap().set_len(400 << 20).unwrap(), "larger than"),
    ];
    for name in FOLLOWED {
        let (path, aside) = (world.dir.path().join(name), world.dir.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        for (kind, make, expected) in kinds {
            make(&path);
            let why = world.service.reload().await.unwrap_err().to_string();
            assert!(why.contains(expected) && why.contains(name) || name == "makegate.toml", "{name}, {kind}: {why}");
            tls::get(&world, &roots, None, ORG, &[&token]).await.unwrap().expect(200);
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        }
        fs::rename(&aside, &path).unwrap();
        world.reload().await;
    }
}

/// The events with this name, oldest first.
async fn events(world: &World, event: &str) -> Vec<Value> {
    world.log().await.into_iter().filter(|record| record["event"] == event).collect()
}

/// Waits for this many events and returns the last.
async fn told(world: &World, event: &str, number: usize) -> String {
    let within = async {
        loop {
            match events(world, event).await.get(number - 1) {
                Some(told) => return told["detail"].as_str().unwrap().to_owned(),
                None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    tokio::time::timeout(TAKEN_WITHIN, within).await.unwrap_or_else(|_| panic!("no {event} number {number}"))
}

#[tokio::test]
async fn a_secret_missing_at_a_reload_is_used_once_it_appears() {
    let world = World::start().await;
    let text = fs::read_to_string(world.file()).unwrap();
    fs::write(world.file(), text.replace("token_file = \"token\"", "token_file = \"later/token\"")).unwrap();
    let why = told(&world, "reload-failed", 1).await;
    assert!(why.contains("later/token") && why.contains("does not exist"), "{why}");
    world.get(ALL, ORG).await.expect(200);
    fs::create_dir(world.dir.path().join("later")).unwrap();
    fs::write(world.dir.path().join("later/token"), TOKEN).unwrap();
    told(&world, "reload", 1).await;
    world.get(ALL, ORG).await.expect(200);
    assert_eq!(events(&world, "reload-failed").await.len(), 1, "it is reported once");
}

/// A configuration that stays unchanged this long is no longer being written. Half a second less than what the
/// gateway says.
const STILL: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_configuration_that_is_being_written_takes_effect_whole() {
    // Proves nothing on a machine that keeps stopping the writer for longer than that.
    for _ in 0..20 {
        if let Some((reloads, failed)) = written_piece_by_piece().await {
            assert_eq!((reloads, failed), (1, 0), "a part of it took effect");
            return;
        }
    }
    println!("whoever writes was stopped again and again");
}

/// The numbers of reloads and of failed reloads. Returns `None` if the writer was stopped for too long.
async fn written_piece_by_piece() -> Option<(usize, usize)> {
    let world = World::start().await;
    let text = fs::read_to_string(world.file()).unwrap();
    // Each of these states is a valid configuration: only patience shows that it is not the last.
    let mut written = text.replace("burst = 100000", "burst = 99999");
    fs::write(world.file(), &written).unwrap();
    let (mut last, mut longest) = (world.clock.now(), Duration::ZERO);
    for number in 0..30 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let key = makegate::hash::hex(&makegate::hash::sha256(format!("key-{number}").as_bytes()));
        written += &format!("[[caller]]\nname = \"c{number}\"\nkeys = [\"sha256:{key}\"]\ngrants = [\"*\"]\n");
        fs::write(world.file(), &written).unwrap();
        longest = longest.max(world.clock.now() - std::mem::replace(&mut last, world.clock.now()));
    }
    if longest > STILL {
        return None;
    }
    told(&world, "reload", 1).await;
    world.get("key-29", ORG).await.expect(200);
    Some((events(&world, "reload").await.len(), events(&world, "reload-failed").await.len()))
}

#[cfg(target_os = "linux")]
mod hanging {
    use rustix::process::{Pid, Signal, kill_process};

    use super::*;
    use crate::support::disk::{Disk, Effect, Fault, Operation};
    use crate::support::process::{Home, Process};
    use crate::support::{LIST, sandbox_at, send, until, with_key};

    /// An answer that waits for no file arrives within this time, even on a busy machine.
    const AT_ONCE: Duration = Duration::from_secs(20);

    async fn polite(home: &Home) {
        let headers = with_key(ALL, &[]);
        let hit = send(home.gateway, "GET", LIST, &headers, "");
        let hit = tokio::time::timeout(AT_ONCE, hit).await.expect("a hit waits").expect(200);
        assert!(hit.header("cache-status").unwrap().contains("hit"), "{hit:?}");
        let alive = send(home.operator, "GET", "/livez", "", "");
        tokio::time::timeout(AT_ONCE, alive).await.expect("/livez waits").expect(200);
        let body = r#"{"name":"x"}"#;
        let write = send(home.gateway, "PATCH", "/api/v2/organizations/12", &headers, body);
        tokio::time::timeout(AT_ONCE, write).await.expect("a write waits").expect(200);
        send(home.gateway, "GET", LIST, &with_key(ALL, &[]), "").await.expect(200);
    }

    fn end(mut process: Process) {
        kill_process(Pid::from_child(process.child()), Signal::TERM).unwrap();
        let ended = (0..300).find_map(|_| {
            std::thread::sleep(Duration::from_millis(100));
            process.child().try_wait().unwrap()
        });
        assert_eq!(ended.map(|status| status.code()), Some(Some(0)), "SIGTERM waits for a file");
    }

    /// A binary whose watched files are on our own disk, and its log on the machine's.
    async fn start() -> Option<(makegate::sandbox::Sandbox, Home, Disk)> {
        let sandbox = sandbox_at("127.0.0.1:0").await;
        let plan = Plan::default().set("limits", "drain = \"1s\"");
        let home = Home::new(&plan, &format!("http://{}", sandbox.address()));
        let (below, at) = (home.path().join("below"), home.path().join("at"));
        fs::create_dir(&below).unwrap();
        fs::create_dir(&at).unwrap();
        for name in ["token", "operator"] {
            fs::rename(home.path().join(name), below.join(name)).unwrap();
        }
        let disk = Disk::mount(&below, &at)?;
        let file = home.path().join("makegate.toml");
        let text = fs::read_to_string(&file).unwrap();
        let text = text.replace("key_file = \"", "key_file = \"at/").replace("token_file = \"", "token_file = \"at/");
        fs::write(file, text).unwrap();
        Some((sandbox, home, disk))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_watched_file_that_hangs_stops_nobody() {
        for (operation, by_signal) in
            [(Operation::Look, true), (Operation::Open, true), (Operation::Read, true), (Operation::Look, false)]
        {
            let Some((_sandbox, home, disk)) = start().await else { return };
            let mut process = home.serve().await;
            send(home.gateway, "GET", LIST, &with_key(ALL, &[]), "").await.expect(200);
            for name in ["token", "operator"] {
                disk.fault(Fault::of(name, operation, Effect::Hang));
            }
            if by_signal {
                // An unchanged file is read from the kernel's cache, without touching the disk.
                fs::write(home.path().join("below/token"), format!("{TOKEN}\n\n")).unwrap();
                fs::write(home.path().join("below/token"), format!("{TOKEN}\n")).unwrap();
                kill_process(Pid::from_child(process.child()), Signal::HUP).unwrap();
            }
            let waited = tokio::time::timeout(TAKEN_WITHIN, async { until(|| disk.waiting() > 0).await }).await;
            assert!(waited.is_ok(), "{operation:?}: nothing was read");
            polite(&home).await;
            let log = || fs::read_to_string(home.path().join("log")).unwrap();
            let says =
                tokio::time::timeout(TAKEN_WITHIN, async { until(|| log().contains("could not be read")).await });
            assert!(says.await.is_ok(), "{operation:?}: {}", log());
            polite(&home).await;
            end(process);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_hung_is_watched_again_when_it_is_back() {
        let Some((sandbox, home, disk)) = start().await else { return };
        let mut process = home.serve().await;
        disk.fault(Fault::every("token", Effect::Hang));
        kill_process(Pid::from_child(process.child()), Signal::HUP).unwrap();
        until(|| disk.waiting() > 0).await;
        let new = TOKEN.replace('9', "8");
        fs::write(home.path().join("below/token"), &new).unwrap();
        sandbox.set_token(&new);
        disk.heal();
        let headers = with_key(ALL, &["cache-control: no-store"]);
        let taken = async {
            while send(home.gateway, "GET", ORG, &headers, "").await.status != 200 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(TAKEN_WITHIN, taken).await.expect("the new token was never taken");
        end(process);
    }
}
