//! Queries over all replicas' records: they mean what the same queries of each log's files mean.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use makegate::audit::{Filter, LedgerColumn, LedgerQuery, ReplicasPage, ReplicasQuery, with_replica};
use makegate::clock::Clock;
use makegate::config::ShippedRecords;
use makegate::replicas::records::RecordPlace;
use serde_json::Value;

use crate::one_replica::{DATABASE, KEY, engine};
use crate::shared_log::{SharedLog, any_record};
use crate::support::postgres::Postgres;
use crate::support::random::{number, seeds};

/// A random filter, by names and values.
fn any_filter(random: &mut fastrand::Rng) -> Vec<(&'static str, String)> {
    let choices: [(&str, &[&str]); 17] = [
        ("caller", &["billing", "a\0b", "ä \"quoted\" \\", "%_'", "nobody"]),
        ("operation", &["organizations.get", "payments.create"]),
        ("organization", &["11", "12", "18446744073709551615"]),
        ("status", &["200", "404", "4xx", "5xx"]),
        ("answer", &["hit", "stale", "miss", "refused"]),
        ("kind", &["request", "intent", "outcome", "settlement", "event", "refusals"]),
        ("request", &["r-1", "r-2", "r-3", "r-17"]),
        ("seq", &["7", "19", "100"]),
        ("intent", &["3", "11"]),
        ("outcome", &["done", "in-doubt"]),
        ("refusal", &["MG131"]),
        ("event", &["start", "heads"]),
        ("path", &["/api/v2/organizations/1", "/api"]),
        ("attempts", &["1", "2"]),
        ("min_duration", &["2ms"]),
        ("since", &["10m", "40m", "3h"]),
        ("until", &["20m", "1m"]),
    ];
    let mut filter = Vec::new();
    for (name, values) in choices {
        if random.u8(..5) == 0 {
            filter.push((name, values[random.usize(..values.len())].to_owned()));
        }
    }
    filter
}

fn parsed(filter: &[(&'static str, String)], now: Timestamp, limit: usize) -> Filter {
    let mut filter = Filter::parse(filter.iter().map(|(name, value)| (*name, value.as_str())), now).unwrap();
    filter.limit = limit;
    filter
}

/// All that a replica's own log finds, page by page.
async fn of_log(one: &SharedLog, filter: &Filter) -> Vec<String> {
    let (mut lines, mut filter) = (Vec::new(), filter.clone());
    loop {
        let page = one.log.query(&Arc::from("test"), filter.clone()).await.unwrap();
        lines.extend(
            page.records.iter().map(|line| with_replica(line.get(), one.replicas.name()).unwrap().get().to_owned()),
        );
        match page.next {
            Some(next) => filter.after = Some(next),
            None => return lines,
        }
    }
}

/// All that the table finds, page by page.
async fn of_table(one: &SharedLog, filter: &Filter, replica: Option<&str>) -> Vec<String> {
    let (mut lines, mut after) = (Vec::new(), None);
    loop {
        let query = ReplicasQuery { filter: filter.clone(), replica: replica.map(Arc::from), after };
        let page: ReplicasPage =
            one.log.query_replicas(&one.replicas, &Arc::from("test"), query, |page| page).await.unwrap();
        assert!(page.records.len() <= filter.limit);
        lines.extend(page.records.iter().map(|line| line.get().to_owned()));
        match page.next {
            Some(next) => after = Some(RecordPlace::parse(&next).unwrap()),
            None => return lines,
        }
    }
}

fn place(line: &str) -> RecordPlace {
    let record: Value = serde_json::from_str(line).unwrap();
    RecordPlace {
        time: record["time"].as_str().unwrap().parse().unwrap(),
        replica: record["replica"].as_str().unwrap().into(),
        seq: record["seq"].as_u64().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sources_find_the_same_records() {
    if !Postgres::available() {
        return;
    }
    for seed in seeds(1) {
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let engine = engine(&KEY);
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let open = |at: usize| {
            SharedLog::open(&engine.url(DATABASE), &format!("m-{at}"), dirs[at].path(), ShippedRecords::All)
        };
        let all: Vec<SharedLog> = (0..3).map(open).collect();
        let now = Clock::system().wall();
        for one in &all {
            (0..400).for_each(|_| one.record(any_record(&mut random, now)));
        }
        let shipping: Vec<_> = all.iter().map(SharedLog::ship).collect();
        for one in &all {
            one.shipped().await;
        }
        // The others' heads are noted at the start; from here on nothing is recorded.
        tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
        for one in &all {
            one.shipped().await;
        }
        shipping.iter().for_each(tokio::task::JoinHandle::abort);
        for _ in 0..number("MAKEGATE_FILTERS").unwrap_or(150) {
            let wanted = any_filter(&mut random);
            let filter = parsed(
                &wanted,
                now,
                [1, 7, 100, 10_000][random.usize(..4)].max(if wanted.is_empty() { 50 } else { 1 }),
            );
            let mut expected = Vec::new();
            for one in &all {
                let mut own = of_log(one, &filter).await;
                own.sort_by_key(|line| std::cmp::Reverse(place(line)));
                let name = one.replicas.name().clone();
                assert_eq!(of_table(&all[0], &filter, Some(&name)).await, own, "seed {seed}: {wanted:?} of {name}");
                expected.append(&mut own);
            }
            expected.sort_by_key(|line| std::cmp::Reverse(place(line)));
            assert_eq!(of_table(&all[1], &filter, None).await, expected, "seed {seed}: {wanted:?}");
        }
        same_ledgers(&all, &mut random, now).await;
        for one in all {
            one.close().await;
        }
    }
}

/// The ledger of all replicas is the sum of each one's own.
async fn same_ledgers(all: &[SharedLog], random: &mut fastrand::Rng, now: Timestamp) {
    let choices: [&[(&str, &str)]; 5] = [
        &[("by", "hour")],
        &[("by", "caller")],
        &[("by", "hour,caller,operation,organization"), ("since", "3h")],
        &[("by", "operation"), ("caller", "billing")],
        &[("by", "organization,caller"), ("organization", "account")],
    ];
    for pairs in choices {
        let query = LedgerQuery::parse(pairs.iter().copied(), &[LedgerColumn::Hour], now).unwrap();
        let mut expected = BTreeMap::<String, [i64; 3]>::new();
        let add = |rows: &[makegate::audit::LedgerRow], sums: &mut BTreeMap<String, [i64; 3]>| {
            for row in rows {
                // As a column has it.
                let caller = row
                    .caller
                    .as_deref()
                    .map(|name| name.replace('\0', "\u{fffd}").chars().take(512).collect::<String>());
                let key = format!("{:?} {caller:?} {:?} {:?}", row.hour, row.operation, row.organization);
                let sum = sums.entry(key).or_default();
                [row.sums.requests, row.sums.spent, row.sums.refused]
                    .iter()
                    .zip(sum)
                    .for_each(|(more, sum)| *sum += more);
            }
        };
        for one in all {
            let page = one.log.ledger(&Arc::from("test"), query.clone(), |page| page).await.unwrap();
            add(&page.rows, &mut expected);
        }
        let asked = &all[random.usize(..all.len())];
        let shared = asked
            .log
            .ledger_of_replicas(&asked.replicas, &Arc::from("test"), (query, None), |page, behind| (page, behind))
            .await;
        let (page, behind) = shared.unwrap();
        let mut found = BTreeMap::new();
        add(&page.rows, &mut found);
        assert_eq!(found, expected, "{pairs:?}");
        assert_eq!(behind.len(), 3);
    }
}
