//! Tests the built-in rows against the design, spelled out.

use http::Method;

use super::{BodyKind, BucketKind, Catalogue, NoMatch, ParameterKind, Proves, RetryClass, rows};
use crate::toml_reader;

/// Id, method, path below `/api/v2/organizations`, grant, class, retry class, and what a write invalidates.
type Row =
    (&'static str, &'static str, &'static str, &'static str, Option<&'static str>, RetryClass, &'static [&'static str]);

const ALL: &[&str] = &["org:{organizationId}", "organizations"];

#[rustfmt::skip]
const DESIGN: [Row; 25] = [
    ("organizations.list", "GET", "", "organizations:read", Some("organizations"), RetryClass::Safe, &[]),
    ("organizations.create", "POST", "", "organizations:write", None, RetryClass::Once, &["organizations", "org:{/organization/id}"]),
    ("invitations.get", "GET", "/invitation", "organizations:read", None, RetryClass::Safe, &[]),
    ("invitations.accept", "POST", "/accept-invitation", "members:write", None, RetryClass::Once, &["organizations", "org:{/userOrganizationRole/organizationId}"]),
    ("organizations.get", "GET", "/{organizationId}", "organizations:read", Some("organizations"), RetryClass::Safe, &[]),
    ("organizations.delete", "DELETE", "/{organizationId}", "organizations:write", None, RetryClass::Idempotent, ALL),
    ("organizations.update", "PATCH", "/{organizationId}", "organizations:write", None, RetryClass::Idempotent, ALL),
    ("organizations.apps", "GET", "/{organizationId}/apps", "organizations:read", None, RetryClass::Safe, &[]),
    ("payments.list", "GET", "/{organizationId}/payments", "billing:read", None, RetryClass::Safe, &[]),
    ("payments.create", "POST", "/{organizationId}/single-payment-create", "billing:write", None, RetryClass::Once, ALL),
    ("subscription.get", "GET", "/{organizationId}/subscription", "billing:read", None, RetryClass::Safe, &[]),
    ("subscription.create", "POST", "/{organizationId}/subscription", "billing:write", None, RetryClass::Once, ALL),
    ("subscription.delete", "DELETE", "/{organizationId}/subscription", "billing:write", None, RetryClass::Once, ALL),
    ("subscription.update", "PATCH", "/{organizationId}/subscription", "billing:write", None, RetryClass::Once, ALL),
    ("subscription.free", "POST", "/{organizationId}/subscription-free", "billing:write", None, RetryClass::Once, ALL),
    ("subscription.coupon", "POST", "/{organizationId}/subscription/coupon-apply", "billing:write", None, RetryClass::Once, &["org:{organizationId}/subscription", "org:{organizationId}/detail"]),
    ("organizations.invite", "POST", "/{organizationId}/invite", "members:write", None, RetryClass::Once, &["org:{organizationId}/detail", "org:{organizationId}/users"]),
    ("variables.list", "GET", "/{organizationId}/variables", "variables:read", None, RetryClass::Safe, &[]),
    ("variables.create", "POST", "/{organizationId}/variables", "variables:write", None, RetryClass::Once, &["org:{organizationId}/variables"]),
    ("variables.delete", "DELETE", "/{organizationId}/variables/{variableName}", "variables:write", None, RetryClass::Idempotent, &["org:{organizationId}/variables"]),
    ("variables.update", "PATCH", "/{organizationId}/variables/{variableName}", "variables:write", None, RetryClass::Idempotent, &["org:{organizationId}/variables"]),
    ("variables.history", "GET", "/{organizationId}/variables/{variableName}/history", "variables:read", None, RetryClass::Safe, &[]),
    ("organizations.usage", "GET", "/{organizationId}/usage", "usage:read", Some("usage"), RetryClass::Safe, &[]),
    ("feature-controls.list", "GET", "/{organizationId}/feature-controls", "feature-controls:read", Some("feature-controls"), RetryClass::Safe, &[]),
    ("feature-controls.update", "PATCH", "/{organizationId}/feature-controls", "feature-controls:write", None, RetryClass::Idempotent, &["org:{organizationId}/feature-controls", "org:{organizationId}/detail"]),
];

#[test]
fn the_25_operations_are_what_the_design_says() {
    let catalogue = Catalogue::built_in();
    assert_eq!(catalogue.rows().len(), DESIGN.len());
    for (row, (id, method, path, grant, class, retry, invalidates)) in catalogue.rows().iter().zip(DESIGN) {
        assert_eq!(&*row.id, id);
        assert_eq!(row.method.as_str(), method, "{id}");
        assert_eq!(row.path.as_str(), format!("/api/v2/organizations{path}"), "{id}");
        assert_eq!(&*row.grant, grant, "{id}");
        assert_eq!(row.cache.as_deref(), class, "{id}");
        assert_eq!(row.retry, retry, "{id}");
        assert_eq!(row.invalidates.iter().map(|tag| tag.as_str()).collect::<Vec<_>>(), invalidates, "{id}");
        assert_eq!(row.quota == BucketKind::Organization, path.contains("{organizationId}"), "{id}");
        assert_eq!(row.body == BodyKind::None, matches!(method, "GET" | "DELETE"), "{id}");
        assert_ne!(row.summary, row.id, "{id}");
    }
}

#[test]
fn the_built_in_rows_have_no_mistake() {
    let (_, findings) = toml_reader::walk(rows::BUILT_IN, rows::read);
    assert_eq!(findings.mistakes, []);
}

#[test]
fn answers_are_stored_under_their_organization_and_their_own_tag() {
    let catalogue = Catalogue::built_in();
    let tags = |id: &str| catalogue.row(id).unwrap().tags.iter().map(|tag| tag.as_str().to_owned()).collect::<Vec<_>>();
    assert_eq!(tags("organizations.list"), ["organizations"]);
    let own = [
        ("organizations.get", "detail"),
        ("organizations.apps", "apps"),
        ("subscription.get", "subscription"),
        ("variables.list", "variables"),
        ("variables.history", "variables"),
        ("organizations.usage", "usage"),
        ("feature-controls.list", "feature-controls"),
    ];
    for (id, tag) in own {
        assert_eq!(tags(id), ["org:{organizationId}".to_owned(), format!("org:{{organizationId}}/{tag}")], "{id}");
    }
}

#[test]
fn secrets_and_expiring_links_can_be_neither_stored_nor_recorded() {
    let catalogue = Catalogue::built_in();
    for row in catalogue.rows() {
        let may_cache = row.method == Method::GET && !["invitations.get", "payments.list"].contains(&&*row.id);
        assert_eq!(row.may_cache, may_cache, "{}", row.id);
        for secret in ["hash", "couponCode", "email", "customer", "note", "value"] {
            assert_eq!(row.recorded_kind(secret), None, "{} records {secret}", row.id);
        }
    }
    assert_eq!(catalogue.row("organizations.invite").unwrap().recorded_kind("name"), None);
}

#[test]
fn parameters_have_their_kinds_and_defaults() {
    let catalogue = Catalogue::built_in();
    let parameter = |id: &str, name: &str| {
        let row = catalogue.row(id).unwrap();
        let found = row.query.iter().find(|parameter| &*parameter.name == name).unwrap();
        (found.kind, found.default.as_deref().map(str::to_owned))
    };
    assert_eq!(parameter("organizations.list", "cols[]"), (ParameterKind::Set, None));
    assert_eq!(parameter("organizations.list", "pg[sortBy]"), (ParameterKind::Scalar, Some("name".into())));
    assert_eq!(parameter("organizations.list", "pg[sortDir]"), (ParameterKind::Scalar, Some("asc".into())));
    assert_eq!(parameter("organizations.list", "pg[offset]"), (ParameterKind::Number, Some("0".into())));
    assert_eq!(parameter("organizations.list", "pg[limit]"), (ParameterKind::Number, None));
    assert_eq!(parameter("organizations.get", "wait"), (ParameterKind::Refresh, Some("false".into())));
    assert_eq!(parameter("organizations.usage", "organizationTimezone"), (ParameterKind::Flag, Some("false".into())));
    assert_eq!(parameter("feature-controls.list", "featureControlName"), (ParameterKind::Scalar, None));
    assert_eq!(parameter("subscription.coupon", "couponCode"), (ParameterKind::Scalar, None));
}

#[test]
fn a_request_is_classified_by_path_and_method() {
    let catalogue = Catalogue::built_in();
    let id = |method: Method, path: &str| catalogue.classify(&method, path).map(|found| found.operation.id.to_string());
    assert_eq!(id(Method::GET, "/api/v2/organizations/invitation").unwrap(), "invitations.get");
    assert_eq!(id(Method::GET, "/api/v2/organizations/11").unwrap(), "organizations.get");
    assert_eq!(id(Method::HEAD, "/api/v2/organizations/11/usage").unwrap(), "organizations.usage");
    assert_eq!(id(Method::PATCH, "/api/v2/organizations/11/variables/a").unwrap(), "variables.update");
    for nowhere in
        ["/api/v2/organizations/011", "/api/v2/organizations/x", "/api/v2/organizations/", "/api/v2/teams", "/"]
    {
        assert_eq!(id(Method::GET, nowhere), Err(NoMatch::Path), "{nowhere}");
    }
    let allowed = vec![Method::GET, Method::HEAD, Method::DELETE, Method::PATCH];
    assert_eq!(id(Method::PUT, "/api/v2/organizations/11"), Err(NoMatch::Method(allowed)));
    assert_eq!(
        id(Method::POST, "/api/v2/organizations/invitation"),
        Err(NoMatch::Method(vec![Method::GET, Method::HEAD]))
    );
    let found = catalogue.classify(&Method::GET, "/api/v2/organizations/11/variables/a%2Fb/history").unwrap();
    assert_eq!(found.organization, Some(11));
    let parameters: Vec<_> = found.parameters().collect();
    assert_eq!(parameters, [("organizationId", "11"), ("variableName", "a%2Fb")]);
}

#[test]
fn a_look_tells_of_the_writes_that_make_shows_the_effect_of() {
    let catalogue = Catalogue::built_in();
    let looks: Vec<_> = catalogue.rows().iter().filter_map(|row| Some((&*row.id, row.look.as_ref()?))).collect();
    let told: Vec<_> = looks.iter().map(|(id, look)| (*id, &*look.read, look.proves)).collect();
    let expected = [
        ("organizations.delete", "organizations.get", Proves::Gone),
        ("organizations.update", "organizations.get", Proves::Fields),
        ("variables.delete", "variables.list", Proves::Absent),
        ("variables.update", "variables.list", Proves::Fields),
        ("feature-controls.update", "feature-controls.list", Proves::Fields),
    ];
    assert_eq!(told, expected);
    for (id, look) in looks {
        let write = catalogue.row(id).unwrap();
        assert_eq!(look.check(&write.path, &catalogue), Ok(()), "{id}");
        let read = catalogue.row(&look.read).unwrap();
        assert_eq!(read.quota, write.quota, "{id}: the look spends another quota than the write");
    }
}
