//! Unix sockets: who may connect, and whom a peer's user id identifies.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use tokio::net::UnixStream;

use super::still;
use crate::support::{ALL, LIST, OPERATOR, ORG, Plan, READER, Reply, World, exchange, new_dir, send};

/// A world that listens on a Unix socket with these settings; this process's user is the caller `by-uid`.
async fn world(socket: &str) -> World {
    let uid = rustix::process::getuid().as_raw();
    world_with(socket, &format!("uids = [{uid}]")).await
}

async fn world_with(socket: &str, uids: &str) -> World {
    let gateway = format!("listen = [\"127.0.0.1:0\", \"unix:gate.sock\"]\n{socket}");
    let caller =
        format!("[[caller]]\nname = \"by-uid\"\n{uids}\ngrants = [\"organizations:read\"]\norganizations = [11]\n");
    still().set("gateway", &gateway).tables(&caller).start_in(new_dir()).await
}

async fn get(world: &World, target: &str, headers: &str) -> Reply {
    let stream = UnixStream::connect(world.dir.path().join("gate.sock")).await.unwrap();
    let head = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
    exchange(stream, &head).await.unwrap()
}

#[tokio::test]
async fn a_peers_user_id_identifies_its_caller() {
    let world = world("").await;
    get(&world, ORG, "").await.expect(200);
    let record = world.last_record().await;
    let uid = rustix::process::getuid().as_raw();
    assert_eq!((&record["caller"], &record["credential"]), (&"by-uid".into(), &"peer".into()), "{record}");
    assert_eq!(record["peer"], format!("unix:uid={uid}"), "{record}");
    assert!(record.get("key").is_none(), "{record}");
    let key = format!("authorization: Bearer {OPERATOR}\r\n");
    let operator = world.service.operator_addresses()[0];
    for (kind, count) in [("peer", 1), ("certificate", 0)] {
        let page = send(operator, "GET", &format!("/audit.json?credential={kind}"), &key, "").await.expect(200);
        assert_eq!(page.json()["records"].as_array().unwrap().len(), count, "{kind}");
    }
    get(&world, "/api/v2/organizations/12", "").await.refused(403, "MG132");
    // Another credential goes before it.
    get(&world, "/api/v2/organizations/12", &format!("authorization: Token {READER}\r\n")).await.expect(200);
    get(&world, ORG, "authorization: Token unknown\r\n").await.refused(401, "MG112");
    // Over TCP nobody has a user id.
    let text = format!("GET {LIST} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    crate::support::raw(world.gateway, &text).await.unwrap().refused(401, "MG111");
}

#[tokio::test]
async fn a_user_id_that_is_taken_away_identifies_nobody() {
    let world = world("").await;
    get(&world, ORG, "").await.expect(200);
    let text = std::fs::read_to_string(world.file()).unwrap();
    let uid = rustix::process::getuid().as_raw();
    std::fs::write(world.file(), text.replace(&format!("uids = [{uid}]"), "uids = [4294967294]")).unwrap();
    world.reload().await;
    get(&world, ORG, "").await.refused(401, "MG111");
    get(&world, ORG, &format!("authorization: Token {ALL}\r\n")).await.expect(200);
}

#[tokio::test]
async fn the_configuration_says_who_may_connect() {
    let mode = |world: &World| {
        let file = std::fs::metadata(world.dir.path().join("gate.sock")).unwrap();
        (file.permissions().mode() & 0o777, file.gid())
    };
    let plan = still().set("operator", "listen = [\"127.0.0.1:0\", \"unix:gate.sock\"]\nsocket = { mode = \"600\" }");
    assert_eq!(mode(&plan.start_in(new_dir()).await).0, 0o600, "the operator door's");
    let (own, group) = (rustix::process::getgid().as_raw(), 4242);
    assert_eq!(mode(&world("").await), (0o660, own));
    assert_eq!(mode(&world("socket = { mode = \"606\" }").await), (0o606, own));
    if !rustix::process::getuid().is_root() {
        return eprintln!("not tested: only root can give a socket to another group");
    }
    assert_eq!(mode(&world(&format!("socket = {{ mode = \"600\", group = \"{group}\" }}")).await), (0o600, group));
}

/// A key with `from` is for addresses; a Unix socket has none.
#[tokio::test]
async fn a_key_for_certain_addresses_is_not_for_a_socket() {
    let hash = makegate::hash::hex(&makegate::hash::sha256(b"key-near"));
    let caller = format!(
        "[[caller]]\nname = \"near\"\nkeys = [{{ hash = \"sha256:{hash}\", from = [\"127.0.0.0/8\", \"::1\"] }}]\ngrants = [\"*\"]\n"
    );
    let plan = Plan::default().set("gateway", "listen = [\"127.0.0.1:0\", \"unix:gate.sock\"]").tables(&caller);
    let world = plan.start().await;
    world.get("key-near", ORG).await.expect(200);
    get(&world, ORG, "authorization: Token key-near\r\n").await.refused(401, "MG114");
}
