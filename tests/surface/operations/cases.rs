//! Each of the 25 operations once, in an order in which all of them succeed on one and the same sandbox. Grants are
//! those of the design, not of the catalogue: two readings are compared.

/// One operation and a request for it.
pub(super) struct Case {
    pub(super) id: &'static str,
    pub(super) grant: &'static str,
    pub(super) method: &'static str,
    /// Path and query after `/api/v2/organizations`.
    pub(super) rest: &'static str,
    pub(super) body: &'static str,
    /// Query parameters and body fields that its records show, as JSON.
    pub(super) recorded: &'static str,
}

impl Case {
    pub(super) fn target(&self) -> String {
        format!("/api/v2/organizations{}", self.rest)
    }

    pub(super) fn path(&self) -> String {
        self.target().split('?').next().unwrap().to_owned()
    }

    pub(super) fn organization(&self) -> Option<u64> {
        self.rest.strip_prefix('/')?.split(['/', '?']).next()?.parse().ok()
    }

    pub(super) fn is_write(&self) -> bool {
        self.method != "GET"
    }

    /// Is its answer kept in memory by default?
    pub(super) fn is_kept(&self) -> bool {
        ["organizations.list", "organizations.get", "organizations.usage", "feature-controls.list"].contains(&self.id)
    }
}

/// Stands in every value that no record may hold.
pub(super) const SECRET: &str = "s3cret";
/// The invitation that every sandbox starts with: a secret in a URL.
pub(super) const INVITATION: &str = "bf1effe1-bc9d-4ab3-9414-9c3b66175305";

/// Whose address every payment carries.
macro_rules! customer {
    () => {
        r#"{"email": "s3cret@example.com", "name": "s3cret name", "countryId": 1, "city": "s3cret city", "line1": "s3cret street 1"}"#
    };
}

pub(super) const CASES: [Case; 25] = [
    read("organizations.list", "organizations:read", "?cols%5B%5D=id&cols[]=name&pg[sortBy]=id&pg[limit]=3").shows(
        r#"{"query": {"cols[]": ["id", "name"], "pg[sortBy]": "id", "pg[limit]": "3"}}"#,
    ),
    write("organizations.create", "organizations:write", "POST", "")
        .with(r#"{"name": "Fjord", "regionId": 1, "timezoneId": 113, "countryId": 202, "note": "s3cret note"}"#)
        .shows(r#"{"fields": {"name": "Fjord", "regionId": 1, "timezoneId": 113, "countryId": 202}}"#),
    read("invitations.get", "organizations:read", "/invitation?hash=bf1effe1-bc9d-4ab3-9414-9c3b66175305"),
    write("invitations.accept", "members:write", "POST", "/accept-invitation")
        .with(r#"{"hash": "bf1effe1-bc9d-4ab3-9414-9c3b66175305"}"#),
    read("organizations.get", "organizations:read", "/11?wait=true").shows(r#"{"query": {"wait": "true"}}"#),
    write("organizations.update", "organizations:write", "PATCH", "/11")
        .with(r#"{"name": "Acme II", "timezoneId": 24, "note": "s3cret note"}"#)
        .shows(r#"{"fields": {"name": "Acme II", "timezoneId": 24}}"#),
    read("organizations.apps", "organizations:read", "/11/apps"),
    write("organizations.invite", "members:write", "POST", "/11/invite")
        .with(
            r#"{"usersRoleId": 12, "email": "s3cret@example.com", "name": "s3cret name", "note": "s3cret", "teamsId": [110]}"#,
        )
        .shows(r#"{"fields": {"usersRoleId": 12, "teamsId": [110]}}"#),
    read("variables.list", "variables:read", "/11/variables"),
    write("variables.create", "variables:write", "POST", "/11/variables")
        .with(r#"{"name": "limit", "typeId": 2, "value": "s3cret 1"}"#)
        .shows(r#"{"fields": {"name": "limit", "typeId": 2}}"#),
    write("variables.update", "variables:write", "PATCH", "/11/variables/limit")
        .with(r#"{"typeId": 2, "value": "s3cret 2"}"#)
        .shows(r#"{"fields": {"typeId": 2}}"#),
    read("variables.history", "variables:read", "/11/variables/limit/history"),
    write("variables.delete", "variables:write", "DELETE", "/11/variables/limit?confirmed=true")
        .shows(r#"{"query": {"confirmed": "true"}}"#),
    read("payments.list", "billing:read", "/11/payments?pg[limit]=5").shows(r#"{"query": {"pg[limit]": "5"}}"#),
    write("payments.create", "billing:write", "POST", "/11/single-payment-create")
        .with(concat!(r#"{"priceId": 200, "quantity": 2, "couponCode": "s3cret", "doNotCharge": false, "customer": "#, customer!(), "}"))
        .shows(r#"{"fields": {"priceId": 200, "quantity": 2, "doNotCharge": false}}"#),
    read("subscription.get", "billing:read", "/11/subscription"),
    write("subscription.update", "billing:write", "PATCH", "/11/subscription")
        .with(concat!(r#"{"priceId": 5, "customer": "#, customer!(), "}"))
        .shows(r#"{"fields": {"priceId": 5}}"#),
    write("subscription.coupon", "billing:write", "POST", "/11/subscription/coupon-apply?couponCode=s3cret")
        .with(concat!(r#"{"customer": "#, customer!(), "}")),
    write("subscription.delete", "billing:write", "DELETE", "/11/subscription"),
    write("subscription.create", "billing:write", "POST", "/11/subscription")
        .with(concat!(r#"{"priceId": 4, "couponCode": "s3cret", "doNotCharge": true, "customer": "#, customer!(), "}"))
        .shows(r#"{"fields": {"priceId": 4, "doNotCharge": true}}"#),
    write("subscription.free", "billing:write", "POST", "/11/subscription-free?confirmed=true")
        .shows(r#"{"query": {"confirmed": "true"}}"#),
    read("organizations.usage", "usage:read", "/11/usage?organizationTimezone=true")
        .shows(r#"{"query": {"organizationTimezone": "true"}}"#),
    read("feature-controls.list", "feature-controls:read", "/11/feature-controls?featureControlName=Make+AI+Tools")
        .shows(r#"{"query": {"featureControlName": "Make AI Tools"}}"#),
    write("feature-controls.update", "feature-controls:write", "PATCH", "/11/feature-controls")
        .with(r#"{"id": 1, "enabled": true}"#)
        .shows(r#"{"fields": {"id": 1, "enabled": true}}"#),
    write("organizations.delete", "organizations:write", "DELETE", "/11?confirmed=true")
        .shows(r#"{"query": {"confirmed": "true"}}"#),
];

const fn read(id: &'static str, grant: &'static str, rest: &'static str) -> Case {
    write(id, grant, "GET", rest)
}

const fn write(id: &'static str, grant: &'static str, method: &'static str, rest: &'static str) -> Case {
    Case { id, grant, method, rest, body: "", recorded: "{}" }
}

impl Case {
    const fn with(self, body: &'static str) -> Self {
        Self { body, ..self }
    }

    const fn shows(self, recorded: &'static str) -> Self {
        Self { recorded, ..self }
    }
}
