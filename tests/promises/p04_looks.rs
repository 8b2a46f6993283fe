//! Promise 4, at random: writes in doubt with and without an effect, other writes in between, a lagging zone, and
//! restarts. Whatever a look settles matches what the sandbox knows, and no write arrives twice.

use std::collections::HashMap;
use std::time::Duration;

use fastrand::Rng;
use makegate::clock::Clock;
use makegate::sandbox::{Fault, FaultKind, Seed};

use crate::support::random::seeds;
use crate::support::{ALL, LIST, Plan, TOO, World};

const STEPS: u64 = 40;

/// A unique write: method, target, body.
type Write = (&'static str, String, String);

fn write(random: &mut Rng, step: u64) -> Write {
    let organization = format!("{LIST}/{}", 100 + random.u64(..4));
    match random.u64(..5) {
        0 => ("PATCH", organization, format!(r#"{{"name":"name {step}"}}"#)),
        1 => (
            "POST",
            format!("{organization}/variables"),
            format!(r#"{{"name":"made{step}","typeId":1,"value":{step}}}"#),
        ),
        2 => ("PATCH", format!("{organization}/variables/changing"), format!(r#"{{"value":"value {step}"}}"#)),
        3 => ("DELETE", format!("{organization}/variables/going{step}?confirmed=true"), String::new()),
        _ => ("DELETE", format!("{LIST}/{}?confirmed=true", 110 + step), String::new()),
    }
}

async fn start(seed: u64) -> World {
    let seeds = (100..104).chain(110..110 + STEPS).map(|id| Seed::new(id, "Some organization")).collect();
    let world = Plan::default()
        .set("limits", "attempts = 1\nbreaker_failures = 0")
        .sandbox(|sandbox| {
            sandbox.seed_organizations = seeds;
            sandbox.lag = Duration::from_secs(seed % 3 * 4);
        })
        .clock(Clock::frozen())
        .start()
        .await;
    for organization in 100..104 {
        let variables = format!("{LIST}/{organization}/variables");
        for name in (0..STEPS).map(|step| format!("going{step}")).chain(["changing".to_owned()]) {
            let body = format!(r#"{{"name":"{name}","typeId":2,"value":"first"}}"#);
            world.post(TOO, &variables, &body).await.expect(200);
        }
    }
    world.clock.advance(Duration::from_secs(20));
    world
}

/// Lets time pass, and with it rounds of looks.
async fn pass(world: &World, time: Duration) {
    world.clock.advance(time);
    for _ in 0..15 {
        world.clock.advance(Duration::from_millis(200));
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

async fn play(seed: u64) -> (usize, usize, usize) {
    let mut random = Rng::with_seed(seed);
    let mut world = start(seed).await;
    // By request id: the write, and whether it took effect.
    let mut doubts: HashMap<String, (Write, bool)> = HashMap::new();
    for step in 0..STEPS {
        let (method, target, body) = write(&mut random, step);
        let path = target.split('?').next().unwrap().to_owned();
        let effect = random.bool();
        world.sandbox.fault(Fault::once(method, &path, FaultKind::Reset { effect }));
        let answer = world.send(ALL, method, &target, &[], &body).await.refused(502, "MG222");
        doubts.insert(answer.header("x-request-id").unwrap().to_owned(), ((method, target, body), effect));
        match random.u64(..6) {
            0 => drop(world.patch(TOO, &format!("{LIST}/{}", 100 + random.u64(..4)), r#"{"name":"theirs"}"#).await),
            1 | 2 => drop(world.get_with(TOO, LIST, &["cache-control: no-store"]).await.expect(200)),
            3 => pass(&world, Duration::from_secs(random.u64(..60))).await,
            4 if random.u64(..4) == 0 => world = world.restart().await,
            _ => {}
        }
    }
    for _ in 0..4 {
        world.get_with(TOO, LIST, &["cache-control: no-store"]).await.expect(200);
        pass(&world, Duration::from_secs(140)).await;
    }
    judge(&world, seed, &doubts).await
}

/// The numbers of writes settled as done, settled as not done, and still open.
async fn judge(world: &World, seed: u64, doubts: &HashMap<String, (Write, bool)>) -> (usize, usize, usize) {
    let settlements: Vec<_> = world.records().await.into_iter().filter(|one| one["kind"] == "settlement").collect();
    let mut settled: HashMap<&str, bool> = HashMap::new();
    for settlement in &settlements {
        let id = settlement["request"].as_str().unwrap();
        let (write, effect) = &doubts[id];
        let done = settlement["outcome"] == "done";
        assert_eq!(done, *effect, "seed {seed}: {write:?} was settled wrongly: {settlement}");
        assert!(settled.insert(id, done).is_none(), "seed {seed}: {write:?} was settled twice");
    }
    for (write @ (method, target, body), _) in doubts.values() {
        let received = world.sandbox.received_of(method, target.split('?').next().unwrap());
        let times = received.iter().filter(|one| one.body == *body).count();
        assert_eq!(times, 1, "seed {seed}: {write:?} arrived {times} times");
    }
    let open = world.service.gateway().log.doubts().count();
    assert_eq!(settled.len() + open, doubts.len(), "seed {seed}: a doubt was forgotten");
    let done = settled.values().filter(|done| **done).count();
    (done, settled.len() - done, open)
}

#[tokio::test]
async fn whatever_a_look_settles_is_true() {
    let mut sum = (0, 0, 0);
    for seed in seeds(4) {
        let (done, not_done, open) = play(seed).await;
        println!("MAKEGATE_SEED={seed}: {done} done, {not_done} not done, {open} open");
        sum = (sum.0 + done, sum.1 + not_done, sum.2 + open);
    }
    assert!(sum.0 >= 10 && sum.1 >= 2 && sum.2 >= 2, "{sum:?}: too few to prove anything");
}
