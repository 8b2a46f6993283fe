//! Heads and proofs as an auditor takes them from a running gateway, checked by RFC 9162 alone.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use makegate::audit::{Head, Verifier, heads};
use serde_json::Value;

use super::{KEY, ORG, World, send};

fn node(left: &[u8], right: &[u8]) -> [u8; 32] {
    makegate::hash::sha256_parts(&[&[1], left, right])
}

fn hashes(value: &Value) -> Vec<Vec<u8>> {
    value.as_array().unwrap().iter().map(|hash| STANDARD.decode(hash.as_str().unwrap()).unwrap()).collect()
}

/// RFC 9162, section 2.1.3.2.
fn leads_to(leaf: [u8; 32], index: u64, size: u64, path: &[Vec<u8>]) -> [u8; 32] {
    let (mut at, mut last, mut root) = (index, size - 1, leaf);
    for beside in path {
        assert_ne!(last, 0, "the path is too long");
        if at % 2 == 1 || at == last {
            root = node(beside, &root);
            while at % 2 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            root = node(&root, beside);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    assert_eq!(last, 0, "the path is too short");
    root
}

/// RFC 9162, section 2.1.4.2: the roots of both trees.
fn both(from: u64, to: u64, old_root: &[u8; 32], path: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
    let mut path = path.to_vec();
    if from.is_power_of_two() {
        path.insert(0, old_root.to_vec());
    }
    let (mut at, mut last) = (from - 1, to - 1);
    while at % 2 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let (mut old, mut new) = (path[0].clone(), path[0].clone());
    for beside in &path[1..] {
        if at % 2 == 1 || at == last {
            (old, new) = (node(beside, &old).to_vec(), node(beside, &new).to_vec());
            while at % 2 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            new = node(&new, beside).to_vec();
        }
        (at, last) = (at >> 1, last >> 1);
    }
    assert_eq!(last, 0);
    (old, new)
}

async fn head(world: &World) -> (Head, Verifier) {
    let page = world.look("/audit/head.json").await;
    let (status, note) = send(world.service.operator_addresses()[0], "GET", "/audit/head", KEY).await;
    assert_eq!((status, note.as_str()), (200, page["head"].as_str().unwrap()));
    (Head::parse(&note).unwrap(), Verifier::parse(page["key"].as_str().unwrap()).unwrap())
}

#[tokio::test]
async fn every_record_is_proven_by_the_newest_head_and_heads_grow_into_each_other() {
    let world = World::start().await;
    world.call("tool", "GET", ORG).await;
    let (early, key) = head(&world).await;
    for _ in 0..9 {
        world.call("tool", "GET", ORG).await;
    }
    let (late, _) = head(&world).await;
    assert_eq!(late.size, early.size + 9);
    assert!(early.is_signed_by(&key) && late.is_signed_by(&key));
    for seq in 1..=late.size {
        let proof = world.look(&format!("/audit/proof?seq={seq}")).await;
        let record = proof["record"].to_string();
        let leaf = makegate::hash::sha256_parts(&[&[0], record.as_bytes()]);
        assert_eq!(leads_to(leaf, seq - 1, late.size, &hashes(&proof["audit_path"])), late.root, "record {seq}");
        assert_eq!((proof["record"]["seq"].as_u64(), proof["head"].as_str()), (Some(seq), Some(&*late.to_string())));
        let growth = world.look(&format!("/audit/proof?from={seq}")).await;
        if seq == early.size {
            let (old, new) = both(seq, late.size, &early.root, &hashes(&growth["consistency_path"]));
            assert_eq!((old.as_slice(), new.as_slice()), (early.root.as_slice(), late.root.as_slice()));
        }
    }
    for (query, status) in
        [("seq=0", 404), ("seq=99", 404), ("seq=x", 400), ("seq=1&from=1", 400), ("", 400), ("n=1", 400)]
    {
        let (answered, body) =
            send(world.service.operator_addresses()[0], "GET", &format!("/audit/proof?{query}"), KEY).await;
        assert_eq!(answered, status, "{query}: {body}");
    }
}

#[tokio::test]
async fn a_new_key_is_introduced_by_the_old_one() {
    let world = World::start().await;
    let (_, old) = head(&world).await;
    let operator = world.service.operator_addresses()[0];
    let (status, body) = send(operator, "POST", "/audit/rotate", KEY).await;
    assert_eq!(status, 200, "{body}");
    let (newest, new) = head(&world).await;
    assert_ne!(old, new);
    assert!(newest.is_signed_by(&new) && !newest.is_signed_by(&old));
    let keys = heads(&std::fs::read_to_string(world.service.gateway().log.dir().join("keys")).unwrap()).unwrap();
    assert!(keys[0].is_signed_by(&old) && keys[0].next.as_ref() == Some(&old), "the first introduces itself");
    assert!(keys[1].is_signed_by(&old) && keys[1].next.as_ref() == Some(&new));
    let events = world.look("/audit.json?kind=event").await;
    let told =
        |event: &&Value| event["event"] == "head-key" && event["detail"].as_str().unwrap().contains(&new.to_string());
    assert_eq!(events["records"].as_array().unwrap().iter().filter(told).count(), 1);
}
