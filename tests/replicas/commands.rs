//! `makegate replicas` and `makegate check --online` beside a real PostgreSQL.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::fleet::{DATABASE, Fleet, FleetPlan, Replica, wait};
use crate::support::link::LinkState;
use crate::support::pooler::Pooler;
use crate::support::postgres::Postgres;
use crate::support::process::{binary, output_of};

/// Runs a command with this replica's configuration.
fn run(replica: &Replica, words: &[&str]) -> Output {
    let config = replica.home.path().join("makegate.toml");
    let mut command = Command::new(binary());
    command.args(words).arg("--config").arg(config).env_remove("MAKEGATE_LOG").env_remove("NO_COLOR");
    output_of(&mut command)
}

/// What it says on both streams, when it must end with this code.
#[track_caller]
fn told(code: i32, output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let told = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{told}");
    told
}

#[track_caller]
fn says(code: i32, replica: &Replica, words: &[&str], parts: &[&str]) {
    let told = told(code, &run(replica, words));
    // The process log escapes quotes.
    let plain = told.replace('\\', "");
    for part in parts {
        assert!(plain.contains(part), "{words:?} does not say {part:?}: {told}");
    }
}

fn key(replica: &Replica) -> std::path::PathBuf {
    replica.home.path().join("replicas.key")
}

/// Gives a replica the key of another one.
fn copy_key(from: &Replica, to: &Replica) {
    fs::copy(key(from), key(to)).unwrap();
}

/// Changes its configuration.
fn edit(replica: &Replica, from: &str, to: &str) {
    let file = replica.home.path().join("makegate.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&file, text.replace(from, to)).unwrap();
}

/// Two replicas that have not started, on a database without a schema.
async fn two(settings: &[&str]) -> Fleet {
    let engine = Postgres::start(settings);
    engine.database(DATABASE);
    FleetPlan { replicas: 2, ..FleetPlan::default() }.prepare(engine).await
}

/// Starts it, and waits until it is a member.
async fn start(fleet: &mut Fleet, number: usize) {
    fleet.replicas[number].start().await;
    let is_member = format!("select count(*) from mg.member where not gone and replica = 'replica-{number}'");
    wait("it joins", async || fleet.engine.sql(DATABASE, &is_member) == "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_makes_schema_and_key_once_and_no_replica_starts_without() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = two(&[]).await;
    let [one, two] = &fleet.replicas[..] else { panic!() };
    says(2, one, &["serve"], &["replicas.key", "does not exist: `makegate replicas init` makes it"]);
    says(
        2,
        one,
        &["check", "--online"],
        &["error: replicas: the database has no schema for makegate", "makegate replicas init"],
    );
    says(2, one, &["replicas", "status"], &["the database has no schema for makegate: run `makegate replicas init`"]);
    fs::write(key(one), [7; 32]).unwrap();
    says(2, one, &["serve"], &["the database has no schema for makegate: run `makegate replicas init`"]);
    fs::remove_file(key(one)).unwrap();

    let own = one.home.path().join("audit/fingerprint.key");
    assert!(!own.exists(), "a start that is refused binds its folder to no key");

    // From the key of its folder, so that its writes in doubt are recognized.
    let of_folder = vec![9; 32];
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::write(&own, &of_folder).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).unwrap();
    says(0, one, &["replicas", "init"], &["has the schema mg now, version 1", "fingerprint.key", "next: copy the key"]);
    assert_eq!(fs::read(key(one)).unwrap(), of_folder);
    assert_eq!(fs::metadata(key(one)).unwrap().permissions().mode() & 0o777, 0o600);
    says(0, one, &["replicas", "init"], &["has the schema mg already", "is there already"]);
    assert_eq!(fs::read(key(one)).unwrap(), of_folder);

    // Another replica gets that key, and makes none.
    says(
        2,
        two,
        &["replicas", "init"],
        &["the other replicas use another key: copy the file that replicas.key_file names"],
    );
    assert!(!key(two).exists());
    fs::write(key(two), [8; 32]).unwrap();
    for words in [&["serve"] as &[&str], &["check", "--online"], &["replicas", "init"]] {
        says(2, two, words, &["key"]);
    }
    assert_eq!(fs::read(key(two)).unwrap(), [8; 32], "it is never overwritten");
    copy_key(one, two);
    says(0, two, &["replicas", "init"], &["already"]);

    fleet.sql("update mg.about set version = 99, works_with = 99");
    for words in [&["replicas", "init"] as &[&str], &["serve"], &["check", "--online"]] {
        says(2, one, words, &["version 99"]);
    }
    says(2, one, &["serve"], &["start a newer makegate"]);
    fleet.sql("update mg.about set version = 0, works_with = 0");
    says(2, one, &["serve"], &["run `makegate replicas init`"]);
    says(0, one, &["replicas", "init"], &["has version 1 now, after 0"]);
    fleet.replicas[0].engine.set(LinkState::Cut);
    says(1, &fleet.replicas[0], &["replicas", "init"], &["cannot reach "]);
    fleet.heal();

    // Two at once.
    fleet.sql("drop schema mg cascade");
    let (one, two) = (&fleet.replicas[0], &fleet.replicas[1]);
    std::thread::scope(|scope| {
        let both = [one, two].map(|replica| scope.spawn(|| told(0, &run(replica, &["replicas", "init"]))));
        both.into_iter().for_each(|one| assert!(one.join().unwrap().contains("next: ")));
    });
    start(&mut fleet, 0).await;
    assert_eq!(fleet.replicas[0].end(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_starts_under_its_own_name_in_its_own_folder_and_never_alone_beside_others() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = two(&[]).await;
    fleet.init();
    start(&mut fleet, 0).await;
    let [_, two] = &fleet.replicas[..] else { panic!() };
    edit(two, "replica-1", "replica-0");
    says(2, two, &["serve"], &["another makegate with the name replica-0 is running", "replicas.name"]);
    edit(two, "replica-0", "replica-1");
    start(&mut fleet, 1).await;
    assert_eq!(fleet.replicas[1].end(), Some(0));
    // Its folder is known.
    let two = &fleet.replicas[1];
    edit(two, "replica-1", "replica-2");
    says(2, two, &["serve"], &["belongs to the replica replica-1, and this one is replica-2: set replicas.name to"]);
    let config = two.home.path().join("makegate.toml");
    let text = fs::read_to_string(&config).unwrap();
    let start_of = text.find("[replicas]").unwrap();
    let end_of = text[start_of + 1..].find("\n[").map_or(text.len(), |at| start_of + 1 + at);
    fs::write(&config, format!("{}{}", &text[..start_of], &text[end_of..])).unwrap();
    says(
        2,
        two,
        &["serve"],
        &["belongs to the replica replica-1, which shares quota and writes with others", "makegate replicas leave"],
    );
    // A process that was killed is followed by another one with its name, although no other replica is there to give it up.
    fleet.replicas[0].kill();
    let before = fleet.sql("select incarnation from mg.member where replica = 'replica-0'");
    fleet.replicas[0].start().await;
    wait("its successor joins", async || {
        fleet.engine.sql(DATABASE, "select incarnation from mg.member where replica = 'replica-0' and not gone")
            != before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_who_takes_part_and_leave_ends_it() {
    if !Postgres::available() {
        return;
    }
    let mut fleet = two(&[]).await;
    fleet.init();
    start(&mut fleet, 0).await;
    start(&mut fleet, 1).await;
    let state = |fleet: &Fleet, number: usize| {
        let page: Value =
            serde_json::from_str(&told(0, &run(&fleet.replicas[0], &["replicas", "status", "-o", "json"]))).unwrap();
        assert!(page["epoch"]["id"].is_string() && page["engine"]["schema"] == 1, "{page}");
        page["replicas"][number]["state"].as_str().unwrap().to_owned()
    };
    assert_eq!([state(&fleet, 0), state(&fleet, 1)], ["live", "live"]);
    says(
        0,
        &fleet.replicas[0],
        &["replicas", "status"],
        &["NAME", "replica-0", "replica-1", "live", "epoch: ", "PostgreSQL"],
    );
    says(1, &fleet.replicas[0], &["replicas", "leave"], &["another makegate is using the audit folder", "stop it"]);
    edit(&fleet.replicas[0], "replica-0", "replica-1");
    says(
        2,
        &fleet.replicas[0],
        &["replicas", "leave"],
        &["belongs to the replica replica-0, and replicas.name is replica-1"],
    );
    edit(&fleet.replicas[0], "replica-1", "replica-0");
    fleet.replicas[1].pause();
    wait("it is given up", async || state(&fleet, 1) != "live").await;
    fleet.replicas[1].resume();
    wait("it is back", async || state(&fleet, 1) == "live").await;

    // One leaves: another one has its doubts, and nobody expects it any more.
    assert_eq!(fleet.replicas[0].end(), Some(0));
    fleet.sql(
        "insert into mg.write (id, request, sender, replica, incarnation, caller, operation, path, fingerprint, time, state) \
         select gen_random_uuid(), 'r', 'replica-0', 'replica-0', incarnation, 'key-all', 'organizations.create', '/api/v2/organizations', \
         decode(repeat('00', 16), 'hex'), now(), 'd' from mg.replica where name = 'replica-0'",
    );
    let left = told(0, &run(&fleet.replicas[0], &["replicas", "leave"]));
    assert!(left.contains("replica-0 has left; replica-1 takes over its open writes (1 in doubt)"), "{left}");
    assert_eq!(fleet.sql("select replica from mg.write"), "replica-1");
    let is_noted = |record: &Value| record["event"] == "adopted" && record["adopted"]["replica"] == "replica-0";
    wait("that one takes note", async || fleet.replicas[1].log().iter().any(is_noted)).await;
    assert_eq!(state(&fleet, 0), "left");
    says(1, &fleet.replicas[0], &["replicas", "leave"], &["has not joined any replicas, or has left them"]);
    fleet.sql("delete from mg.write");

    // So does the last one, and can start alone.
    fleet.replicas[1].kill();
    let left = told(0, &run(&fleet.replicas[1], &["replicas", "leave"]));
    assert!(left.contains("replica-1 has left, and was the last"), "{left}");
    assert!(!fleet.replicas[1].home.path().join("audit/quota.slots").exists());
    let config = fleet.replicas[1].home.path().join("makegate.toml");
    let text = fs::read_to_string(&config).unwrap();
    let (before, section) = text.split_once("[replicas]").unwrap();
    let after = section.find("\n[").map_or("", |at| &section[at..]);
    fs::write(&config, format!("{before}{after}")).unwrap();
    fleet.replicas[1].start().await;
    assert!(
        fleet.replicas[1].home.process_log().contains("every quota counts as used up"),
        "{}",
        fleet.replicas[1].home.process_log()
    );
    assert_eq!(fleet.replicas[1].end(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_online_tries_the_database() {
    if !Postgres::available() {
        return;
    }
    let fleet = two(&["fsync=on", "max_connections=20"]).await;
    fleet.init();
    let one = &fleet.replicas[0];
    let online = |code| told(code, &run(one, &["check", "--online"]));
    let told_now = online(0);
    assert!(
        told_now.contains("warning: replicas: max_connections is 20, and 100 replicas make 400 connections"),
        "{told_now}"
    );
    assert!(!told_now.contains("LISTEN") && !told_now.contains("clocks"), "{told_now}");
    for (sql, words) in [
        ("alter database makegate set synchronous_commit = off", "synchronous_commit is off"),
        (
            "alter database makegate set default_transaction_isolation = 'serializable'",
            "default_transaction_isolation is not",
        ),
        ("alter table mg.record owner to other", "does not own mg.record"),
        ("revoke all on mg.rate from makegate", "must not change mg.rate"),
    ] {
        fleet.engine.try_sql(DATABASE, "create role other login").ok();
        fleet.sql(sql);
        let url = fs::read_to_string(one.home.path().join("engine")).unwrap();
        // The owner of everything may do everything.
        let is_right = sql.contains("owner") || sql.contains("revoke");
        if is_right {
            fleet.sql("create role plain login; grant usage on schema mg to plain; grant all on all tables in schema mg to plain; \
                       grant all on database makegate to plain; revoke all on mg.rate from plain");
            fs::write(one.home.path().join("engine"), url.replace("//makegate@", "//plain@")).unwrap();
        }
        let told_now = online(2);
        let wanted = if sql.contains("owner") { "must not change mg.rate" } else { words };
        assert!(told_now.contains(wanted), "{sql}: {told_now}");
        fs::write(one.home.path().join("engine"), url).unwrap();
        fleet.sql("alter database makegate reset all");
        fleet.engine.try_sql(DATABASE, "drop owned by plain; drop role plain").ok();
    }
    let url = fs::read_to_string(one.home.path().join("engine")).unwrap();
    for (wrong, words) in [
        (format!("{url}?sslmode=verify-full"), "cannot reach"),
        (url.replace("/makegate", "/nowhere"), "nowhere"),
        ("postgresql://localhost".to_owned(), "the URL names no database"),
    ] {
        fs::write(one.home.path().join("engine"), &wrong).unwrap();
        let told_now = online(2);
        assert!(told_now.contains("error: replicas: ") && told_now.contains(words), "{wrong}: {told_now}");
    }
    if Pooler::available() {
        let pooler = Pooler::start(fleet.engine.address());
        one.engine_at(&[pooler.address()]);
        let told_now = online(0);
        assert!(told_now.contains("warning: replicas: announcements (LISTEN) are not heard"), "{told_now}");
    }
}
