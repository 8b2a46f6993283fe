//! What the tests themselves stand on: a server that ends in every way, and links that carry.

use std::time::Duration;

use crate::support::link::{Link, LinkState};
use crate::support::pooler::Pooler;
use crate::support::postgres::{Postgres, Replication, Shutdown};

#[test]
fn a_server_crashes_comes_back_and_leaves_nothing() {
    if !Postgres::available() {
        return;
    }
    let mut engine = Postgres::start(&[]);
    engine.database("d");
    engine.sql("d", "create unlogged table soft (n int); create table hard (n int)");
    let counts = "select (select count(*) from soft), (select count(*) from hard)";
    let fill = "insert into soft values (1); insert into hard values (1)";
    engine.sql("d", fill);
    engine.restart(Shutdown::Fast);
    assert_eq!(engine.sql("d", counts), "1|1");
    engine.kill_backend();
    engine.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(engine.sql("d", counts), "0|1");
    engine.sql("d", fill);
    engine.restart(Shutdown::Immediate);
    assert_eq!(engine.sql("d", counts), "0|2");
    let session = engine.pin_snapshot("d");
    drop(session);
    engine.pause();
    engine.resume();
    assert_eq!(engine.sql("d", counts), "0|2");
}

#[test]
fn a_standby_is_promoted() {
    if !Postgres::available() {
        return;
    }
    let mut engine = Postgres::start(&[]);
    engine.database("d");
    let standby = engine.standby(Replication::Synchronous);
    engine.sql("d", "create table hard (n int); insert into hard values (1)");
    engine.stop(Shutdown::Immediate);
    standby.promote();
    assert_eq!(standby.sql("d", "insert into hard values (2); select count(*) from hard"), "2");
}

#[test]
fn the_engines_clock_is_stepped() {
    if !Postgres::available() || !Postgres::clock_available() {
        return;
    }
    let engine = Postgres::start_with_clock(&[]);
    let now = || engine.sql("postgres", "select extract(epoch from clock_timestamp())::bigint").parse::<i64>().unwrap();
    let before = now();
    engine.step_clock(100_000);
    let after = now() - before;
    assert!((100_000..150_000).contains(&after), "{after}");
    engine.step_clock(0);
    assert!(now() - before < 50_000);
}

#[test]
fn a_pooler_gives_each_transaction_another_backend() {
    if !Postgres::available() || !Pooler::available() {
        return;
    }
    let engine = Postgres::start(&[]);
    let pooler = Pooler::start(engine.address());
    let url = Postgres::url_at(&[pooler.address()], "postgres");
    assert!(url.starts_with("postgresql://makegate@127."), "{url}");
    assert_eq!(engine.sql("postgres", "select 1"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_is_cut_held_and_half_open() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = Link::to(listener.local_addr().unwrap());
    let pair = async || {
        let near = tokio::net::TcpStream::connect(link.address()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    };
    let quiet = async |stream: &mut tokio::net::TcpStream| {
        let mut byte = [0];
        tokio::time::timeout(Duration::from_millis(100), stream.read(&mut byte)).await.is_err()
    };
    let mut byte = [0];
    let (mut near, mut far) = pair().await;
    link.set(LinkState::Hold);
    near.write_all(b"a").await.unwrap();
    assert!(quiet(&mut far).await);
    link.set(LinkState::Deaf);
    far.read_exact(&mut byte).await.unwrap();
    far.write_all(b"b").await.unwrap();
    assert!(quiet(&mut near).await);
    link.set(LinkState::Delay(Duration::from_millis(1)));
    near.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"b");
    link.set(LinkState::HalfOpen);
    assert!(far.read_exact(&mut byte).await.is_err());
    near.write_all(b"c").await.unwrap();
    assert!(quiet(&mut near).await);
    link.set(LinkState::Open);
    assert!(near.read_exact(&mut byte).await.is_err());
    let (mut near, mut far) = pair().await;
    link.set(LinkState::Cut);
    assert!(near.read_exact(&mut byte).await.is_err());
    assert!(far.read_exact(&mut byte).await.is_err());
}
