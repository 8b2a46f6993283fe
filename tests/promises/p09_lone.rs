//! Promise 9 for a lone caller: it gets the quota, waits for its turn, and is told the truth.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use futures_util::future::{join_all, select};
use makegate::clock::Clock;
use makegate::gateway::explain::explain;
use makegate::quota::BucketId;

use crate::support::{ALL, Plan, Reply, TOO, World};

/// A read that is never stored.
const APPS: &str = "/api/v2/organizations/11/apps";
const QUOTA: u32 = 60;
const QUOTA_WAIT: Duration = Duration::from_secs(5);
/// How far the clock is moved at a time.
const STEP: Duration = Duration::from_millis(500);
/// A slot is held for 61 s. Here it is found free up to a step later, and so is the end of its attempt.
const WINDOW: Duration = Duration::from_millis(62_500);

/// A refused request: how long it waited, and what it was told.
struct Refused {
    waited: Duration,
    reply: Reply,
}

/// Clients of one caller over two windows of a movable clock. Each asks again when it has its answer or, after a
/// refusal, when it may.
struct Crowd {
    world: World,
    clients: usize,
    /// Refused clients that are waiting until they may ask again.
    pausing: Cell<usize>,
    answered: RefCell<Vec<Instant>>,
    refused: RefCell<Vec<Refused>>,
}

impl Crowd {
    async fn run(clients: usize) -> Self {
        let upstream = format!("quota = \"{QUOTA}/min\"\nquota_wait = \"{}s\"", QUOTA_WAIT.as_secs());
        let make = |settings: &mut makegate::sandbox::SandboxSettings| settings.api_limit = QUOTA;
        let world = Plan::default().set("upstream", &upstream).sandbox(make).clock(Clock::frozen()).start().await;
        let (pausing, answered, refused) = Default::default();
        let crowd = Self { world, clients, pausing, answered, refused };
        let end = crowd.world.clock.now() + WINDOW * 2;
        let asking = join_all((0..clients).map(|_| crowd.ask()));
        select(Box::pin(crowd.tick(end)), Box::pin(asking)).await;
        crowd
    }

    async fn ask(&self) {
        let clock = &self.world.clock;
        loop {
            let asked = clock.now();
            let reply = self.world.get(ALL, APPS).await;
            let now = clock.now();
            if reply.status == 200 {
                self.answered.borrow_mut().push(now);
                continue;
            }
            let pause = reply.header("retry-after").expect("no Retry-After").parse().unwrap();
            self.refused.borrow_mut().push(Refused { waited: now - asked, reply });
            self.pausing.set(self.pausing.get() + 1);
            clock.sleep_until(now + Duration::from_secs(pause)).await;
            self.pausing.set(self.pausing.get() - 1);
        }
    }

    /// Moves the clock whenever all clients are waiting, for a slot or to ask again.
    async fn tick(&self, end: Instant) {
        while self.world.clock.now() < end {
            self.world.clock.advance(STEP);
            // Waiters check a movable clock every 5 ms.
            tokio::time::sleep(Duration::from_millis(12)).await;
            for _ in 0..10_000 {
                let waiting = self.world.service.gateway().quota.view(BucketId::Organization(11)).waiting;
                if waiting + self.pausing.get() == self.clients {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn assert_it_got_the_quota(&self) {
        let answered = self.answered.borrow();
        let begin = answered[0];
        for window in [begin..begin + WINDOW, begin + WINDOW..begin + WINDOW * 2] {
            let got = answered.iter().filter(|at| window.contains(*at)).count();
            assert!(got * 100 >= QUOTA as usize * 97, "{got} of {QUOTA} with {} clients", self.clients);
        }
        let received = self.world.sandbox.received_of("GET", APPS);
        assert!(received.iter().all(|one| one.status == Some(200)), "Make answered 429");
    }
}

#[tokio::test]
async fn one_client_gets_97_percent_and_is_never_refused() {
    let crowd = Crowd::run(1).await;
    crowd.assert_it_got_the_quota();
    assert_eq!(crowd.refused.borrow().len(), 0);
}

#[tokio::test]
async fn eight_clients_get_97_percent_and_wait_for_their_turns() {
    let crowd = Crowd::run(8).await;
    crowd.assert_it_got_the_quota();
    let refused = crowd.refused.borrow();
    let mut while_slots_were_free = 0;
    for Refused { waited, reply } in refused.iter() {
        let detail = reply.clone().refused(429, "MG171").json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("60/min, this caller has had") || detail.contains("60/min is used up"), "{detail}");
        assert!(detail.contains("(its share: 60)"), "{detail}");
        let numbers = detail.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok());
        if let [_limit, _spent, _share, free, others @ .., _wait] = numbers.collect::<Vec<_>>().as_slice() {
            while_slots_were_free += 1;
            // A request is refused early only if its turn cannot come in time, whatever others leave to it.
            let is_in_vain = others.first().is_some_and(|waiting| waiting >= free);
            assert!(*waited >= QUOTA_WAIT || is_in_vain, "refused after {waited:?}: {detail}");
        }
    }
    assert!(while_slots_were_free > 0, "none of {} was refused while slots were free", refused.len());
}

#[tokio::test]
async fn sixty_four_clients_get_97_percent() {
    Crowd::run(64).await.assert_it_got_the_quota();
}

#[tokio::test]
async fn explain_says_what_will_happen_to_the_request() {
    // Without waiting, the explanation matches what happens, slot for slot, for a lone caller and then for two.
    let world =
        Plan::default().set("upstream", "quota = \"20/min\"\nquota_wait = \"0s\"").clock(Clock::frozen()).start().await;
    let mut verdicts = [0, 0];
    for round in 0..120 {
        world.clock.advance(Duration::from_secs(1));
        let (name, key) = if round > 60 && round % 3 == 0 { ("too", TOO) } else { ("all", ALL) };
        let gateway = world.service.gateway();
        let told = explain(&gateway.policy(), Some(gateway), name, "GET", APPS);
        let reply = world.get(key, APPS).await;
        let step = told.steps.iter().find(|step| step.step == "quota").unwrap();
        if reply.status == 200 {
            assert_eq!((told.verdict, told.status), ("allow", None), "round {round}: {}", step.why);
            assert!(step.why.ends_with("it goes at once"), "{}", step.why);
            verdicts[0] += 1;
        } else {
            let refused = reply.refused(429, "MG171");
            assert_eq!((told.verdict, told.status, told.code), ("refuse", Some(429), Some("MG171")), "round {round}");
            let detail = refused.json()["detail"].as_str().unwrap().to_owned();
            let until = |text: &str| text.split(": wait ").next().unwrap().to_owned();
            assert!(until(&step.why).ends_with(&until(&detail)), "{} is not {detail}", step.why);
            verdicts[1] += 1;
        }
    }
    assert!(verdicts.iter().all(|seen| *seen >= 20), "{verdicts:?}");
}

#[tokio::test]
async fn explain_says_how_long_it_would_wait_and_takes_nothing() {
    let upstream = "quota = \"20/min\"\nquota_wait = \"10s\"";
    let world = Plan::default().set("upstream", upstream).clock(Clock::frozen()).start().await;
    let gateway = world.service.gateway();
    let told = || explain(&gateway.policy(), Some(gateway), "all", "GET", APPS);
    let why = |told: makegate::gateway::explain::Explanation| {
        told.steps.into_iter().find(|step| step.step == "quota").unwrap().why
    };
    let mut sent = 0;
    while why(told()).ends_with("it goes at once") {
        world.get(ALL, APPS).await.expect(200);
        sent += 1;
    }
    assert!((6..20).contains(&sent), "{sent}");
    let told = told();
    assert_eq!(told.verdict, "allow");
    let why = why(told);
    assert!(
        why.contains(&format!("{} of 20 attempts a minute are free, this caller has used {sent}", 20 - sent)),
        "{why}"
    );
    assert!(why.contains("; it waits ") && why.ends_with(" s"), "{why}");
    let view = gateway.quota.view(BucketId::Organization(11));
    assert_eq!((view.used, view.callers.len(), view.callers[0].refused), (sent, 1, 0));
}
