//! Promise 10, over many reloads: what outlives one goes by name. Rows, callers, keys and secrets come, go and change places under
//! load, and every count, right and token stays with whom it belongs to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use makegate::hash;

use crate::support::random::{Random, seeds};
use crate::support::{OPERATOR, Plan, TOKEN, World, send, with_key};

/// Operations that may be added, beside the built-in ones.
const ROWS: [&str; 5] = ["teams", "scenarios", "users", "hooks", "devices"];
const CALLERS: [&str; 4] = ["anna", "ben", "cleo", "dora"];
const RELOADS: u64 = 25;

/// One configuration of the many.
#[derive(Clone, Debug)]
struct Wanted {
    rows: Vec<&'static str>,
    /// Each with its keys and the grants that it has.
    callers: Vec<(&'static str, Vec<String>, Vec<&'static str>)>,
}

impl Wanted {
    fn random(random: &mut Random) -> Self {
        let mut rows: Vec<_> = ROWS.into_iter().filter(|_| random.below(3) > 0).collect();
        shuffle(&mut rows, random);
        let mut callers = Vec::new();
        for name in CALLERS {
            if random.below(5) == 0 {
                continue;
            }
            let keys = (0..1 + random.below(2)).map(|_| format!("{name}-{}", random.below(3))).collect();
            let grants = rows.iter().copied().filter(|_| random.below(3) > 0).collect();
            callers.push((name, keys, grants));
        }
        shuffle(&mut callers, random);
        Self { rows, callers }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let _infallible = write!(
                text,
                "[[operation]]\nid = \"{row}.get\"\nmethod = \"GET\"\npath = \"/api/v2/{row}/{{organizationId}}\"\ngrant = \"{row}:read\"\n"
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

    /// What a request for this row with this key is answered, and by whom it is counted.
    fn expected(&self, key: &str, row: &str) -> (u16, Option<&'static str>) {
        let Some((name, _, grants)) = self.callers.iter().find(|(_, keys, _)| keys.iter().any(|own| own == key)) else {
            return (401, None);
        };
        match (self.rows.contains(&row), grants.contains(&row)) {
            (false, _) => (404, Some(name)),
            (true, false) => (403, Some(name)),
            // The sandbox has no such path.
            (true, true) => (404, Some(name)),
        }
    }
}

fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for last in (1..items.len()).rev() {
        let other = usize::try_from(random.below(last as u64 + 1)).unwrap();
        items.swap(last, other);
    }
}

/// Answers by caller and operation (empty: not classified).
type Counts = BTreeMap<(String, String), u64>;

/// What the operators' page says of those that are configured now.
async fn shown(world: &World) -> Counts {
    let operator = world.service.operator_addresses()[0];
    let headers = format!("authorization: Bearer {OPERATOR}\r\n");
    let page = send(operator, "GET", "/callers.json", &headers, "").await.expect(200).json();
    let mut counts = Counts::new();
    for caller in page["callers"].as_array().unwrap() {
        for (operation, answers) in caller["operations"].as_object().unwrap() {
            let sum = answers.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
            counts.insert((caller["name"].as_str().unwrap().to_owned(), operation.clone()), sum);
        }
    }
    counts
}

#[tokio::test]
async fn what_outlives_a_reload_goes_by_name() {
    for seed in seeds(2) {
        println!("MAKEGATE_SEED={seed}");
        let mut random = Random::new(seed);
        let world = Plan::default().start().await;
        let base = fs::read_to_string(world.file()).unwrap();
        let mut counted = Counts::new();
        for number in 0..RELOADS {
            let wanted = Wanted::random(&mut random);
            fs::write(world.file(), format!("{base}{}", wanted.text())).unwrap();
            if random.below(3) == 0 {
                let token = format!("{}{number:04}", &TOKEN[..TOKEN.len() - 4]);
                world.sandbox.set_token(&token);
                fs::write(world.dir.path().join("token"), &token).unwrap();
            }
            world.service.reload().await.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            // A caller that is not configured is forgotten, with what it did.
            counted.retain(|(caller, _), _| wanted.callers.iter().any(|(name, ..)| name == caller));
            for _ in 0..30 {
                let (name, row) = (*random.pick(&CALLERS), *random.pick(&ROWS));
                let key = format!("{name}-{}", random.below(3));
                let (status, caller) = wanted.expected(&key, row);
                let target = format!("/api/v2/{row}/11");
                let reply = send(world.gateway, "GET", &target, &with_key(&key, &[]), "").await;
                assert_eq!(reply.status, status, "seed {seed}, reload {number}: {key} {row} in {wanted:?}: {reply:?}");
                if let Some(caller) = caller {
                    let known = if wanted.rows.contains(&row) { format!("{row}.get") } else { String::new() };
                    *counted.entry((caller.to_owned(), known)).or_default() += 1;
                }
            }
            let mut shown = shown(&world).await;
            shown.retain(|(caller, _), _| CALLERS.contains(&&**caller));
            assert_eq!(shown, counted, "seed {seed}, reload {number}: {wanted:?}");
        }
    }
}
