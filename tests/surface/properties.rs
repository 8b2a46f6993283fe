//! What holds for any target and any page, tried at random. A failure prints the smallest input that shows it.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use http::{Method, Uri};
use makegate::catalogue::Catalogue;
use makegate::clock::Clock;
use makegate::gateway::admit::target::Target;
use makegate::sandbox::{Sandbox, SandboxSettings, Seed};
use percent_encoding::percent_decode_str;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::{ALL, LIST, Plan, TOKEN, World, send, with_key};

/// Pieces that targets go wrong with.
const PIECES: [&str; 40] = [
    "/", "//", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", "\\", "%00", "%0a", "%25", "%252e", "%", "%3b", ";",
    "%3F", "%23", "%7f", "%c3%a4", "%ff", "11", "%31", "a", "apps", "organizations", "~", "$", "%24", "+", "%2B",
    "%20", ":", "@", "&", "=", "[]", "?", "%3f",
];

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(Catalogue::built_in);

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn uri(text: &str) -> Option<Uri> {
    text.parse().ok()
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn any_text_is_a_target_or_is_refused_with_a_reason(text in "\\PC{0,60}", pieces in pieces()) {
        for text in [&text, &format!("/{text}"), &pieces] {
            if let Some(uri) = uri(text)
                && let Err(why) = Target::parse(&uri)
            {
                prop_assert!(why.to_string().len() > 10, "{}", why);
            }
        }
    }

    #[test]
    fn no_accepted_path_can_be_read_two_ways(text in pieces()) {
        let uri = uri(&text);
        let Some(Ok(target)) = uri.as_ref().map(Target::parse) else { return Ok(()) };
        let once = percent_decode_str(uri.as_ref().unwrap().path()).decode_utf8().unwrap();
        prop_assert_eq!(&*target.path, &*once);
        prop_assert_eq!(percent_decode_str(&once).decode_utf8().unwrap(), once.clone(), "decoded twice it is another");
        let segments: Vec<&str> = once.strip_prefix('/').unwrap().split('/').collect();
        prop_assert_eq!(segments.len(), uri.as_ref().unwrap().path().matches('/').count());
        for segment in segments {
            prop_assert!(once == "/" || !["", ".", ".."].contains(&segment));
            prop_assert!(!segment.contains(|c: char| c.is_control() || matches!(c, '\\' | ';' | '%')), "{}", segment);
        }
    }

    #[test]
    fn the_canonical_form_of_a_canonical_form_is_itself(text in asked()) {
        let catalogue = &CATALOGUE;
        let Some(first) = planned(catalogue, &text) else { return Ok(()) };
        prop_assert_eq!(&planned(catalogue, &first.upstream), &Some(first.clone()));
        prop_assert!(first.upstream.bytes().all(|b| b.is_ascii_graphic()), "{}", first.upstream);
        let key = planned(catalogue, &first.key).unwrap();
        prop_assert_eq!((key.key, key.keyed), (first.key, first.keyed));
    }
}

/// A path and query out of [`PIECES`].
fn pieces() -> impl Strategy<Value = String> {
    prop::collection::vec(select(&PIECES[..]), 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

/// What a target means to the row that it is of.
#[derive(Clone, Debug, PartialEq)]
struct Planned {
    upstream: String,
    key: String,
    keyed: bool,
}

fn planned(catalogue: &Catalogue, text: &str) -> Option<Planned> {
    let uri = uri(text)?;
    let target = Target::parse(&uri).ok()?;
    let matched = catalogue.classify(&Method::GET, &target.path).ok()?;
    let plan = target.plan(matched.operation, &matched).ok()?;
    Some(Planned { upstream: plan.target.to_string(), key: plan.key().to_owned(), keyed: plan.keyed })
}

/// Paths, each with parameters in the spellings that clients send. Those of the last are in no row.
const PATHS: [(&str, &[&str]); 5] = [
    (
        "",
        &[
            "cols[]=id", "cols%5B%5D=id", "cols[]=name", "cols%5b%5d=%6eame", "cols[]=*", "cols[]=", "cols", "cols=id",
            "pg[sortBy]=name", "pg%5BsortBy%5D=id", "pg[sortDir]=asc", "pg[sortDir]=desc", "pg[sortDir]=DESC",
            "pg[offset]=0", "pg[offset]=1", "pg[offset]=01", "pg%5Blimit%5D=2", "pg[limit]=%32", "pg[limit]=x",
        ],
    ),
    ("/11", &["wait=true", "wait=false", "w%61it=false", "wait", "wait=TRUE", "wait="]),
    ("/11/usage", &["organizationTimezone=true", "organizationTimezone=false", "organizationTimezone=1"]),
    (
        "/11/feature-controls",
        &[
            "featureControlName=Make+AI+Tools",
            "featureControlName=Make%20AI%20Tools",
            "featureControlName=a",
            "featureControlName=",
            "cols[]=id",
            "cols[]=enabled",
            "cols%5B%5D=id",
            "name=a",
        ],
    ),
    ("/11/apps", &["x=1", "x=%2B", "%78=+", "x", ""]),
];

/// A target of one of the sandbox's reads.
fn asked() -> impl Strategy<Value = String> {
    let strange = prop::collection::vec(select(PATHS[4].1), 0..2);
    let indices = prop::collection::vec(any::<Index>(), 0..4);
    (select(&PATHS[..]), indices, strange, any::<Index>()).prop_map(|((path, pairs), indices, strange, rare)| {
        let mut query: Vec<&str> = indices.iter().map(|index| *index.get(pairs)).collect();
        query.extend(strange.into_iter().filter(|_| rare.index(4) == 0));
        if query.is_empty() { format!("{LIST}{path}") } else { format!("{LIST}{path}?{}", query.join("&")) }
    })
}

/// The sandbox reads queries by itself: it is the judge of what a target means. What goes upstream in its canonical form
/// is answered as what the caller wrote would be, and so is everything with the same cache key.
#[test]
fn what_goes_upstream_means_what_was_asked_and_equal_keys_mean_the_same() {
    let runtime = Runtime::new().unwrap();
    let settings = SandboxSettings {
        token: TOKEN.to_owned(),
        api_limit: u32::MAX,
        account_limit: u32::MAX,
        ..SandboxSettings::default()
    };
    let sandbox = Sandbox::start("127.0.0.1:0".parse().unwrap(), settings, Clock::frozen());
    let sandbox = runtime.block_on(sandbox).unwrap();
    let answers: Mutex<HashMap<String, (String, String)>> = Mutex::default();
    let property = |text: String| {
        let Some(planned) = planned(&CATALOGUE, &text) else { return Ok(()) };
        let ask = |target: &str| {
            let reply = runtime.block_on(send(sandbox.address(), "GET", target, &with_key(TOKEN, &[]), ""));
            format!("{} {}", reply.status, reply.text())
        };
        let direct = ask(&text);
        prop_assert_eq!(&ask(&planned.upstream), &direct, "{} became {}", text, planned.upstream);
        if planned.keyed {
            let mut answers = answers.lock().unwrap();
            let (first, known) = answers.entry(planned.key).or_insert_with(|| (text.clone(), direct.clone()));
            prop_assert_eq!(known, &direct, "{} has the key of {}", text, first);
        }
        Ok(())
    };
    TestRunner::new(config(600)).run(&asked(), property).unwrap();
    assert!(answers.lock().unwrap().len() > 30, "too few keys were tried");
}

/// The scopes of the callers of [`narrowed_lists`].
const SCOPES: [&[u64]; 5] = [&[999], &[11], &[12, 14, 16], &[11, 12, 13, 15, 999], &[11, 12, 13, 14, 15, 16, 17, 18]];
const COLUMNS: [&str; 7] = ["id", "name", "zone", "timezoneId", "countryId", "isPaused", "license"];

#[derive(Clone, Debug)]
struct Asked {
    scope: Index,
    columns: Vec<&'static str>,
    sort_by: Option<&'static str>,
    descending: Option<bool>,
    offset: Option<usize>,
    limit: Option<usize>,
}

fn page() -> impl Strategy<Value = Asked> {
    let columns = prop_oneof![Just(Vec::new()), Just(vec!["*"]), subsequence(&COLUMNS[..], 1..4)];
    let sort_by = prop::option::of(select(vec!["id", "name", "zone", "timezoneId", "countryId"]));
    let numbers = (prop::option::of(0..9_usize), prop::option::of(0..9_usize));
    (any::<Index>(), columns, sort_by, any::<Option<bool>>(), numbers).prop_map(
        |(scope, columns, sort_by, descending, (offset, limit))| Asked {
            scope,
            columns,
            sort_by,
            descending,
            offset,
            limit,
        },
    )
}

impl Asked {
    fn query(&self) -> String {
        let columns = self.columns.iter().map(|column| format!("cols[]={column}"));
        let pages = [
            self.sort_by.map(|by| format!("pg[sortBy]={by}")),
            self.descending.map(|down| format!("pg[sortDir]={}", if down { "desc" } else { "asc" })),
            self.offset.map(|n| format!("pg[offset]={n}")),
            self.limit.map(|n| format!("pg[limit]={n}")),
        ];
        columns.chain(pages.into_iter().flatten()).collect::<Vec<_>>().join("&")
    }

    /// The page by the book: filter the whole list, sort it, cut it, and keep the columns.
    fn model(&self, whole: &[Value], scope: &[u64]) -> Value {
        let mut rows: Vec<&Value> = whole.iter().filter(|row| scope.contains(&row["id"].as_u64().unwrap())).collect();
        let by = self.sort_by.unwrap_or("name");
        let down = self.descending.unwrap_or(false);
        rows.sort_by(|a, b| {
            let order = match (&a[by], &b[by]) {
                (Value::Number(a), Value::Number(b)) => a.as_u64().cmp(&b.as_u64()),
                (a, b) => a.as_str().cmp(&b.as_str()),
            };
            if down { order.reverse() } else { order }
        });
        let page = rows.into_iter().skip(self.offset.unwrap_or(0)).take(self.limit.unwrap_or(10_000));
        let columns = if self.columns.is_empty() { &["id", "name", "timezoneId", "zone"][..] } else { &self.columns };
        let shown = |row: &Value| -> Value {
            let row = row
                .as_object()
                .unwrap()
                .iter()
                .filter(|(name, _)| columns.contains(&"*") || columns.contains(&&***name));
            row.map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        json!({
            "organizations": page.map(shown).collect::<Vec<_>>(),
            "pg": {
                "sortBy": by, "limit": self.limit.unwrap_or(10_000), "sortDir": if down { "desc" } else { "asc" },
                "offset": self.offset.unwrap_or(0), "returnTotalCount": false,
            },
        })
    }
}

/// A caller of some organizations sees the page that Make would cut if there were no others.
#[test]
fn narrowed_lists_are_pages_of_what_the_caller_may_see() {
    let runtime = Runtime::new().unwrap();
    let world = runtime.block_on(narrowing_world());
    let whole = runtime.block_on(world.get(ALL, &format!("{LIST}?cols[]=*&pg[sortBy]=id"))).json();
    let whole = whole["organizations"].as_array().unwrap();
    let property = |asked: Asked| {
        let scope = asked.scope.index(SCOPES.len());
        let key = format!("scope-{scope}");
        let reply = runtime.block_on(world.get(&key, &format!("{LIST}?{}", asked.query())));
        prop_assert_eq!(reply.status, 200, "{:?}", reply);
        prop_assert_eq!(reply.json(), asked.model(whole, SCOPES[scope]), "{:?}: {}", SCOPES[scope], asked.query());
        Ok(())
    };
    TestRunner::new(config(400)).run(&page(), property).unwrap();
}

async fn narrowing_world() -> World {
    let mut seeds = Seed::demo();
    seeds.extend([Seed::new(16, "Acme Operations"), Seed::new(17, "Zeta"), Seed::new(18, "Fjord")]);
    let mut plan = Plan::default().clock(Clock::frozen()).sandbox(|settings| settings.seed_organizations = seeds);
    for (index, scope) in SCOPES.iter().enumerate() {
        let lines = format!("grants = [\"*\"]\norganizations = {scope:?}\nrate = \"1000000/min\"\nburst = 100000");
        plan = plan.caller(&format!("scope-{index}"), &lines);
    }
    plan.start().await
}
