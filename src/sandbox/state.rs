//! The sandbox's state: its organizations (current, and as a lagging zone still shows them) and invitations.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::answer::MakeError;
use super::seed::{Seed, SeedPlan, ZONE, feature_controls};

/// Maximum number of organizations, not counting deleted ones.
const ORGANIZATIONS_MAX: usize = 10_000;
/// Maximum number of pending invitations.
const INVITATIONS_MAX: usize = 10_000;
/// Maximum number of writes to one organization that a lagging zone remembers; beyond it the zone catches up early.
const LAG_WRITES_MAX: usize = 1_000;
/// Maximum number of payments per organization and of history entries per variable; the oldest are dropped.
const HISTORY_MAX: usize = 1_000;
/// Maximum number of custom variables per organization.
pub(super) const VARIABLES_MAX: usize = 1_000;

/// The hash of the invitation that every sandbox starts with, from the example in Make's document.
const SEED_INVITATION: &str = "bf1effe1-bc9d-4ab3-9414-9c3b66175305";

/// Which state a request sees.
#[derive(Clone, Copy, Debug)]
pub(super) enum View {
    /// The current state, which writes modify and `wait=true` waits for.
    Current,
    /// The state the zone shows at this time, without writes younger than the lag.
    Zone(Instant),
}

/// A value, and the older values that the zone still shows until their time is over.
#[derive(Clone, Debug)]
struct Lagging<T> {
    current: T,
    before: VecDeque<(Instant, T)>,
}

impl<T> Lagging<T> {
    const fn new(current: T) -> Self {
        Self { current, before: VecDeque::new() }
    }

    /// The oldest value that is still shown, or the current one.
    fn seen(&self, view: View) -> &T {
        match view {
            View::Current => &self.current,
            View::Zone(now) => {
                self.before.iter().find(|(until, _)| *until > now).map_or(&self.current, |(_, value)| value)
            }
        }
    }

    fn set(&mut self, value: T, now: Instant, lag: Duration) {
        let old = std::mem::replace(&mut self.current, value);
        self.before.retain(|(until, _)| *until > now);
        if !lag.is_zero() {
            self.before.push_back((now + lag, old));
        }
        if self.before.len() > LAG_WRITES_MAX {
            self.before.pop_front();
        }
    }
}

/// The whole state behind the simulated API.
#[derive(Debug)]
pub(super) struct MakeState {
    organizations: BTreeMap<u64, Lagging<Option<Arc<MakeOrganization>>>>,
    invitations: HashMap<String, Invitation>,
    lag: Duration,
    ids: u64,
}

impl MakeState {
    pub(super) fn new(seeds: &[Seed], lag: Duration) -> Self {
        let slot = |seed: &Seed| (seed.id, Lagging::new(Some(Arc::new(seed.organization()))));
        let mut state = Self {
            organizations: seeds.iter().map(slot).collect(),
            invitations: HashMap::new(),
            lag,
            ids: seeds.iter().map(|seed| seed.id).max().unwrap_or(0).max(100),
        };
        if let Some(host) = seeds.iter().find(|seed| seed.id == 13).or_else(|| seeds.first()) {
            let guest = MakeUser { id: 1, name: "Martin".to_owned(), email: "martin@example.com".to_owned() };
            let invitation = Invitation { organization: host.id, user: guest, role: 12 };
            state.invitations.insert(SEED_INVITATION.to_owned(), invitation);
        }
        state
    }

    /// A new id for anything: one sequence, so that ids are never mistaken for each other.
    pub(super) fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    pub(super) fn organizations(&self, view: View) -> impl Iterator<Item = &Arc<MakeOrganization>> {
        self.organizations.values().filter_map(move |slot| slot.seen(view).as_ref())
    }

    pub(super) fn organization(&self, id: u64, view: View) -> Result<&Arc<MakeOrganization>, MakeError> {
        self.organizations
            .get(&id)
            .and_then(|slot| slot.seen(view).as_ref())
            .ok_or_else(|| MakeError::NotFound(format!("Organization {id}")))
    }

    /// Adds an organization, unless there are too many.
    pub(super) fn add(&mut self, organization: MakeOrganization, now: Instant) -> Result<(), MakeError> {
        if self.organizations(View::Current).count() >= ORGANIZATIONS_MAX {
            return Err(MakeError::Full("organizations"));
        }
        self.forget_deleted(now);
        let slot = self.organizations.entry(organization.id).or_insert_with(|| Lagging::new(None));
        slot.set(Some(Arc::new(organization)), now, self.lag);
        Ok(())
    }

    /// Applies `edit` to an organization completely, or not at all if it fails.
    pub(super) fn change<T>(
        &mut self,
        id: u64,
        now: Instant,
        edit: impl FnOnce(&mut MakeOrganization) -> Result<T, MakeError>,
    ) -> Result<T, MakeError> {
        let mut next = MakeOrganization::clone(self.organization(id, View::Current)?);
        let out = edit(&mut next)?;
        if let Some(slot) = self.organizations.get_mut(&id) {
            slot.set(Some(Arc::new(next)), now, self.lag);
        }
        Ok(out)
    }

    pub(super) fn remove(&mut self, id: u64, now: Instant) {
        if let Some(slot) = self.organizations.get_mut(&id) {
            slot.set(None, now, self.lag);
        }
        self.invitations.retain(|_, invitation| invitation.organization != id);
    }

    fn forget_deleted(&mut self, now: Instant) {
        self.organizations.retain(|_, slot| slot.current.is_some() || slot.seen(View::Zone(now)).is_some());
    }

    /// Remembers an invitation under its hash.
    pub(super) fn invite(&mut self, hash: String, invitation: Invitation) -> Result<(), MakeError> {
        if self.invitations.len() >= INVITATIONS_MAX {
            return Err(MakeError::Full("invitations"));
        }
        self.invitations.insert(hash, invitation);
        Ok(())
    }

    pub(super) fn invitation(&self, hash: &str) -> Result<&Invitation, MakeError> {
        self.invitations.get(hash).ok_or_else(|| MakeError::not_found("The invitation"))
    }

    /// Removes an invitation; a second attempt does not find it.
    pub(super) fn accept(&mut self, hash: &str) -> Result<Invitation, MakeError> {
        self.invitations.remove(hash).ok_or_else(|| MakeError::not_found("The invitation"))
    }

    /// The pending invitations with their hashes, which Make sends only by e-mail.
    pub(super) fn invitations(&self) -> impl Iterator<Item = (&String, &Invitation)> {
        self.invitations.iter()
    }

    /// Gives an organization its own quota immediately.
    pub(super) fn set_api_limit(&mut self, id: u64, limit: u32) {
        if let Some(slot) = self.organizations.get_mut(&id) {
            slot.current.iter_mut().for_each(|org| Arc::make_mut(org).api_limit = Some(limit));
        }
    }

    /// The organization's own quota, or `default`.
    pub(super) fn api_limit(&self, id: u64, default: u32) -> u32 {
        self.organization(id, View::Current).ok().and_then(|org| org.api_limit).unwrap_or(default)
    }
}

/// One organization with everything that belongs to it.
#[derive(Clone, Debug)]
pub(super) struct MakeOrganization {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) timezone_id: u64,
    pub(super) country_id: u64,
    pub(super) zone: String,
    pub(super) api_limit: Option<u32>,
    pub(super) scenarios: u64,
    pub(super) active_scenarios: u64,
    /// Operations used since the last reset, and those bought in addition to the plan.
    pub(super) operations: u64,
    pub(super) operations_extra: u64,
    pub(super) teams: Vec<Team>,
    pub(super) apps: Vec<App>,
    pub(super) subscription: Option<Subscription>,
    /// Newest last.
    pub(super) payments: VecDeque<Arc<Value>>,
    pub(super) variables: BTreeMap<String, Variable>,
    /// By ascending id.
    pub(super) feature_controls: Vec<FeatureControl>,
}

impl MakeOrganization {
    /// A newly created organization: Teams plan without subscription dates, one team.
    pub(super) fn new(id: u64, name: &str) -> Self {
        Self {
            id,
            name: name.to_owned(),
            timezone_id: 113,
            country_id: 1,
            zone: ZONE.to_owned(),
            api_limit: None,
            scenarios: 0,
            active_scenarios: 0,
            operations: 0,
            operations_extra: 0,
            teams: Vec::new(),
            apps: Vec::new(),
            subscription: None,
            payments: VecDeque::new(),
            variables: BTreeMap::new(),
            feature_controls: feature_controls(),
        }
    }

    /// The subscription's plan; free without one.
    pub(super) fn plan(&self) -> SeedPlan {
        self.subscription.as_ref().map_or(SeedPlan::Free, |subscription| subscription.plan)
    }

    pub(super) fn is_here(&self) -> bool {
        self.zone == ZONE
    }

    pub(super) fn pay(&mut self, payment: Value) {
        self.payments.push_back(Arc::new(payment));
        if self.payments.len() > HISTORY_MAX {
            self.payments.pop_front();
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Team {
    pub(super) id: u64,
    pub(super) name: String,
}

#[derive(Clone, Debug)]
pub(super) struct App {
    pub(super) name: &'static str,
    pub(super) version: u64,
}

impl App {
    pub(super) const fn new(name: &'static str, version: u64) -> Self {
        Self { name, version }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Subscription {
    pub(super) plan: SeedPlan,
    /// Valid for 7 days from this wall time in milliseconds.
    pub(super) coupon_since_ms: Option<i64>,
}

impl Subscription {
    pub(super) const fn new(plan: SeedPlan) -> Self {
        Self { plan, coupon_since_ms: None }
    }
}

/// A custom variable with the history of its changes, newest first.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) type_id: u64,
    pub(super) value: Value,
    pub(super) history: VecDeque<Arc<Value>>,
}

impl Variable {
    pub(super) fn note(&mut self, change: Value) {
        self.history.push_front(Arc::new(change));
        self.history.truncate(HISTORY_MAX);
    }
}

#[derive(Clone, Debug)]
pub(super) struct FeatureControl {
    pub(super) id: u64,
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    pub(super) description: &'static str,
    pub(super) tag: &'static str,
    pub(super) warning: &'static str,
    pub(super) enabled: bool,
}

#[derive(Clone, Debug)]
pub(super) struct MakeUser {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) email: String,
}

#[derive(Clone, Debug)]
pub(super) struct Invitation {
    pub(super) organization: u64,
    pub(super) user: MakeUser,
    pub(super) role: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn the_zone_shows_each_write_after_its_own_lag() {
        let start = Clock::movable().now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut slot = Lagging::new("first");
        slot.set("second", at(0), Duration::from_millis(100));
        slot.set("third", at(50), Duration::from_millis(100));
        let seen = |ms: u64| *slot.seen(View::Zone(at(ms)));
        assert_eq!(
            [seen(60), seen(99), seen(100), seen(149), seen(150)],
            ["first", "first", "second", "second", "third"]
        );
        assert_eq!(*slot.seen(View::Current), "third");
    }

    #[test]
    fn an_edit_that_refuses_changes_nothing() {
        let mut state = MakeState::new(&Seed::demo(), Duration::ZERO);
        let refused = state.change(11, Clock::system().now(), |org| {
            org.name = "half done".to_owned();
            Err::<(), _>(MakeError::invalid("no"))
        });
        assert!(refused.is_err());
        assert_eq!(state.organization(11, View::Current).unwrap().name, "Acme Operations");
    }
}
