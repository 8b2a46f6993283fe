//! Promise 10, over many reloads: state that outlives a reload goes by name. Rows, callers, keys and secrets come, go
//! and change places under load, and every answer, right, count, record and token stays with its owner.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fastrand::Rng;
use futures_util::future::join_all;
use makegate::hash;
use makegate::sandbox::{Fault, FaultKind};
use serde_json::Value;

use crate::support::random::seeds;
use crate::support::{OPERATOR, Plan, Reply, TOKEN, World, send, with_key};

/// Operations that may be added to the built-in ones.
const ROWS: [&str; 5] = ["teams", "scenarios", "users", "hooks", "devices"];
const CALLERS: [&str; 4] = ["anna", "ben", "cleo", "dora"];
const RELOADS: u64 = 25;
/// The number of clients that never pause during a reload, and of sequential requests after it.
const CLIENTS: u64 = 4;
const AFTERWARDS: usize = 20;

/// One of the many configurations.
#[derive(Clone, Debug)]
struct Wanted {
    rows: Vec<&'static str>,
    /// Each with its keys and grants.
    callers: Vec<(&'static str, Vec<String>, Vec<&'static str>)>,
}

impl Wanted {
    fn random(random: &mut Rng) -> Self {
        let mut rows: Vec<_> = ROWS.into_iter().filter(|_| random.u64(..3) > 0).collect();
        random.shuffle(&mut rows);
        let mut callers = Vec::new();
        for name in CALLERS {
            if random.u64(..5) == 0 {
                continue;
            }
            let keys = (0..1 + random.u64(..2)).map(|_| format!("{name}-{}", random.u64(..3))).collect();
            let grants = rows.iter().copied().filter(|_| random.u64(..3) > 0).collect();
            callers.push((name, keys, grants));
        }
        random.shuffle(&mut callers);
        Self { rows, callers }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let _infallible = write!(
                text,
                "[[operation]]\nid = \"{row}.get\"\nmethod = \"GET\"\npath = \"/api/v2/{row}/{{organizationId}}\"\ngrant = \"{row}:read\"\n{}",
                if row.len() % 2 == 0 { "" } else { "cache = \"usage\"\n" },
            );
        }
        for (name, keys, grants) in &self.callers {
            let mut keys: Vec<_> =
                keys.iter().map(|key| format!("sha256:{}", hash::hex(&hash::sha256(key.as_bytes())))).collect();
            keys.sort();
            keys.dedup();
            let mut grants: Vec<_> = grants.iter().map(|row| format!("{row}:read")).collect();
            grants.push("organizations:read".to_owned());
            let _infallible = write!(
                text,
                "[[caller]]\nname = \"{name}\"\nkeys = {keys:?}\ngrants = {grants:?}\nrate = \"1000000/min\"\nburst = 100000\n"
            );
        }
        text
    }

    /// The expected status of a request for this row with this key.
    fn expected(&self, key: &str, row: &str) -> u16 {
        let Some((_, _, grants)) = self.callers.iter().find(|(_, keys, _)| keys.iter().any(|own| own == key)) else {
            return 401;
        };
        match (self.rows.contains(&row), grants.contains(&row)) {
            (false, _) => 404,
            (true, false) => 403,
            (true, true) => 200,
        }
    }

    fn has_caller(&self, name: &str) -> bool {
        self.callers.iter().any(|(own, ..)| *own == name)
    }
}

/// Number of answers by caller and operation (empty if not classified).
type Counts = BTreeMap<(String, String), u64>;

/// The operators' page of callers.
async fn page(world: &World, operator: &str) -> Value {
    let headers = format!("authorization: Bearer {operator}\r\n");
    send(world.service.operator_addresses()[0], "GET", "/callers.json", &headers, "").await.expect(200).json()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What the page shows for the callers configured now: their answers, and when each key was last used.
fn shown(page: &Value) -> (Counts, HashMap<String, Value>) {
    let (mut counts, mut used) = (Counts::new(), HashMap::new());
    for caller in page["callers"].as_array().unwrap() {
        let name = text(&caller["name"]);
        if !CALLERS.contains(&&*name) {
            continue;
        }
        for (operation, answers) in caller["operations"].as_object().unwrap() {
            let sum = answers.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
            counts.insert((name.clone(), operation.clone()), sum);
        }
        for key in caller["keys"].as_array().unwrap() {
            used.insert(text(&key["key"]), key["last_used"].clone());
        }
    }
    (counts, used)
}

/// One request with a random key for a random row.
#[derive(Debug)]
struct Asked {
    key: String,
    row: &'static str,
    reply: Reply,
}

async fn ask(gateway: SocketAddr, random: &mut Rng) -> Asked {
    let (name, row) = (random.choice(CALLERS).unwrap(), random.choice(ROWS).unwrap());
    let key = format!("{name}-{}", random.u64(..3));
    let reply = send(gateway, "GET", &format!("/api/v2/{row}/11"), &with_key(&key, &[]), "").await;
    if reply.status == 200 {
        assert_eq!(reply.text(), answer(row), "this answer belongs to another row");
    }
    Asked { key, row, reply }
}

/// What the upstream answers for a row.
fn answer(row: &str) -> String {
    format!("{{\"{row}\":1}}")
}

/// Puts the configuration in force while clients keep asking: each gets the answer of before or after. Unless it
/// already `has_token`, the upstream may refuse the previous one.
async fn reload_under_load(world: &World, random: &mut Rng, (before, after): (&Wanted, &Wanted), has_token: bool) {
    let over = Arc::new(AtomicBool::new(false));
    let clients = (0..CLIENTS).map(|_| {
        let (mut random, over, gateway) = (random.fork(), over.clone(), world.gateway);
        async move {
            let mut last = false;
            while !last {
                // One more time when it is over.
                last = over.load(Ordering::SeqCst);
                let asked = ask(gateway, &mut random).await;
                let allowed = [before, after].map(|wanted| wanted.expected(&asked.key, asked.row));
                let status = match asked.reply.status {
                    502 if !has_token => 200,
                    status => status,
                };
                assert!(allowed.contains(&status), "{asked:?}, not {allowed:?}: {before:?}, {after:?}");
            }
        }
    });
    let reload = async {
        tokio::task::yield_now().await;
        world.reload().await;
        over.store(true, Ordering::SeqCst);
    };
    tokio::join!(join_all(clients), reload);
}

#[tokio::test]
async fn state_that_outlives_a_reload_goes_by_name() {
    for seed in seeds(2) {
        println!("MAKEGATE_SEED={seed}");
        let mut random = Rng::with_seed(seed);
        let world = Plan::default().start().await;
        for row in ROWS {
            let own = FaultKind::Answer {
                status: 200,
                body: Some(answer(row)),
                content_type: None,
                headers: BTreeMap::new(),
                effect: false,
            };
            world.sandbox.fault(Fault::always("GET", &format!("/api/v2/{row}/11"), own));
        }
        let base = fs::read_to_string(world.file()).unwrap();
        let mut before = Wanted { rows: Vec::new(), callers: Vec::new() };
        let (mut counted, mut read, mut operator) = (Counts::new(), 0, OPERATOR.to_owned());
        for number in 0..RELOADS {
            let wanted = Wanted::random(&mut random);
            fs::write(world.file(), format!("{base}{}", wanted.text())).unwrap();
            let has_token = random.u64(..3) > 0;
            if !has_token {
                let token = format!("{}{number:04}", &TOKEN[..TOKEN.len() - 4]);
                world.sandbox.set_token(&token);
                fs::write(world.dir.path().join("token"), &token).unwrap();
            }
            if random.u64(..3) == 0 {
                operator = format!("{OPERATOR}-{number}");
                fs::write(world.dir.path().join("operator"), &operator).unwrap();
            }
            reload_under_load(&world, &mut random, (&before, &wanted), has_token).await;
            for _ in 0..AFTERWARDS {
                let asked = ask(world.gateway, &mut random).await;
                let expected = wanted.expected(&asked.key, asked.row);
                assert_eq!(asked.reply.status, expected, "reload {number}: {asked:?} in {wanted:?}");
            }
            // The page agrees with the records. A caller that is no longer configured is forgotten along with its
            // counts.
            counted.retain(|(caller, _), _| wanted.has_caller(caller));
            let records = world.records().await;
            let mut times: HashMap<String, Vec<i64>> = HashMap::new();
            for record in records[read..].iter().filter(|record| wanted.has_caller(&text(&record["caller"]))) {
                let caller = text(&record["caller"]);
                let operation = text(&record["operation"]);
                let path = text(&record["path"]);
                assert!(
                    operation.is_empty() || path == format!("/api/v2/{}/11", operation.trim_end_matches(".get")),
                    "{record}"
                );
                times.entry(text(&record["key"])).or_default().push(moment(&record["time"]));
                *counted.entry((caller, operation)).or_default() += 1;
            }
            read = records.len();
            let (counts, used) = shown(&page(&world, &operator).await);
            assert_eq!(counts, counted, "reload {number}: {wanted:?}");
            for (key, times) in times {
                let is_own = used.get(&key).is_none_or(|used| times.contains(&moment(used)));
                assert!(is_own, "reload {number}: {key} was used {times:?}, not {:?}: {wanted:?}", used.get(&key));
            }
            before = wanted;
        }
    }
}

/// Milliseconds since 1970.
fn moment(time: &Value) -> i64 {
    text(time).parse::<jiff::Timestamp>().unwrap().as_millisecond()
}
