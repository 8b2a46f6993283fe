//! The initial organizations of a sandbox, chosen to show how Make's organizations differ.

use super::state::{App, FeatureControl, MakeOrganization, Subscription, Team};

/// The zone that the sandbox simulates.
pub(super) const ZONE: &str = "eu1.make.com";

/// Make's plans, as far as the sandbox distinguishes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedPlan {
    /// No price and no custom variables: their operations answer 404.
    Free = 1,
    /// The smallest paid plan; no custom variables either.
    Core = 2,
    /// The first plan with custom variables.
    Pro = 3,
    /// The plan of most companies.
    Teams = 4,
    /// The largest plan.
    Enterprise = 5,
}

impl SeedPlan {
    const ALL: [Self; 5] = [Self::Free, Self::Core, Self::Pro, Self::Teams, Self::Enterprise];

    /// The plan that a `priceId` of a subscription buys.
    pub(super) fn of_price(id: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|plan| plan.price_id() == id)
    }

    pub(super) const fn price_id(self) -> u64 {
        self as u64
    }

    /// The name, and the price as Make's document writes it: text with two decimals.
    const fn name_and_price(self) -> (&'static str, &'static str) {
        match self {
            Self::Free => ("FREE", "0.00"),
            Self::Core => ("Core", "10.59"),
            Self::Pro => ("Pro", "18.82"),
            Self::Teams => ("Teams", "34.12"),
            Self::Enterprise => ("Enterprise", "666.00"),
        }
    }

    pub(super) const fn name(self) -> &'static str {
        self.name_and_price().0
    }

    pub(super) const fn price(self) -> &'static str {
        self.name_and_price().1
    }

    pub(super) const fn custom_variables(self) -> bool {
        !matches!(self, Self::Free | Self::Core)
    }
}

/// An organization that exists from the start and after a reset.
#[derive(Clone, Debug)]
pub struct Seed {
    /// Id, as in `/api/v2/organizations/ID`.
    pub id: u64,
    /// Name.
    pub name: String,
    /// Plan.
    pub plan: SeedPlan,
    /// Number of active scenarios; with any, deleting it requires `confirmed=true`.
    pub active_scenarios: u64,
    /// Its own quota and `license.apiLimit`; `None`: `api_limit` from the settings.
    pub api_limit: Option<u32>,
    /// The zone it lives in, if not the sandbox's own (`eu1.make.com`). It then has no `license`, `serviceName` or
    /// `isPaused`, and cannot be deleted here.
    pub other_zone: Option<String>,
}

impl Seed {
    /// An organization on the Teams plan, without active scenarios, in this zone.
    #[must_use]
    pub fn new(id: u64, name: &str) -> Self {
        Self {
            id,
            name: name.to_owned(),
            plan: SeedPlan::Teams,
            active_scenarios: 0,
            api_limit: None,
            other_zone: None,
        }
    }

    /// The demo's five: 11 and 12 plain, 13 with active scenarios, 14 on the free plan, 15 in another zone.
    #[must_use]
    pub fn demo() -> Vec<Self> {
        vec![
            Self::new(11, "Acme Operations"),
            Self { plan: SeedPlan::Pro, ..Self::new(12, "Borealis Finance") },
            Self { plan: SeedPlan::Enterprise, active_scenarios: 3, ..Self::new(13, "Cobalt Logistics") },
            Self { plan: SeedPlan::Free, ..Self::new(14, "Dune Labs") },
            Self { other_zone: Some("us1.make.com".to_owned()), ..Self::new(15, "Ember Retail") },
        ]
    }

    pub(super) fn organization(&self) -> MakeOrganization {
        MakeOrganization {
            zone: self.other_zone.clone().unwrap_or_else(|| ZONE.to_owned()),
            api_limit: self.api_limit,
            active_scenarios: self.active_scenarios,
            scenarios: self.active_scenarios + 2,
            operations: self.id * 1_203,
            subscription: Some(Subscription::new(self.plan)),
            teams: vec![Team { id: self.id * 10, name: "My Team".to_owned() }],
            apps: vec![App::new("custom-app-7xpqrg", 1), App::new("ledger-sync-b3k9wd", 2)],
            ..MakeOrganization::new(self.id, &self.name)
        }
    }
}

/// The feature controls of every organization, from the example in Make's document.
pub(super) fn feature_controls() -> Vec<FeatureControl> {
    vec![
        FeatureControl {
            id: 1,
            name: "Advanced Security",
            label: "Advanced AI Security",
            description: "Enhanced security features for your organization",
            tag: "AI",
            warning: "This feature uses AI.",
            enabled: false,
        },
        FeatureControl {
            id: 2,
            name: "Make AI Tools",
            label: "Make AI Tools",
            description: "Access to Make AI Tools",
            tag: "Beta",
            warning: "This feature is in beta.",
            enabled: true,
        },
    ]
}
