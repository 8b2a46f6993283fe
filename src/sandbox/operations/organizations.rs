//! Organizations: list, create, detail, update, delete, and their apps.

use serde_json::{Map, Value, json};

use super::OperationCall;
use crate::sandbox::answer::MakeError;
use crate::sandbox::fields::BodyFields;
use crate::sandbox::seed::SeedPlan;
use crate::sandbox::state::{MakeOrganization, MakeState, Subscription, Team, View};

/// The columns that the live list shows by default.
const COLUMNS: [&str; 4] = ["id", "name", "timezoneId", "zone"];

const SORTABLE: [&str; 8] = ["id", "name", "countryId", "timezoneId", "zone", "serviceName", "isPaused", "productName"];

/// `GET /organizations`
pub(super) fn list(state: &MakeState, call: &OperationCall<'_>) -> Result<Value, MakeError> {
    let page = call.query.page("name", false, &SORTABLE)?;
    let rows = state.organizations(call.view()).map(|org| Value::Object(row(org, call.api_limit))).collect();
    let rows: Vec<Value> = page.cut(rows).into_iter().map(|row| call.query.project(row, Some(&COLUMNS))).collect();
    Ok(json!({ "organizations": rows, "pg": page.echo() }))
}

/// `POST /organizations`
pub(super) fn create(state: &mut MakeState, call: &OperationCall<'_>) -> Result<Value, MakeError> {
    let object = call.object()?;
    let mut fields = BodyFields::new(&object);
    let (name, region) = (fields.text("name"), fields.number("regionId"));
    let (timezone, country) = (fields.number("timezoneId"), fields.number("countryId"));
    let (Some(name), Some(_), Some(timezone_id), Some(country_id)) = (name, region, timezone, country) else {
        return Err(fields.refused());
    };
    let (id, team) = (state.next_id(), state.next_id());
    let organization = MakeOrganization {
        timezone_id,
        country_id,
        teams: vec![Team { id: team, name: "My Team".to_owned() }],
        subscription: Some(Subscription::new(SeedPlan::Teams)),
        ..MakeOrganization::new(id, name)
    };
    let shown = created(&organization, call.api_limit);
    state.add(organization, call.now)?;
    let role =
        json!({ "userId": super::invitations::OWNER, "organizationId": id, "usersRoleId": 11, "invitation": null });
    Ok(json!({ "organization": shown, "userOrganizationRole": role }))
}

/// `GET /organizations/{organizationId}`
pub(super) fn get(state: &MakeState, call: &OperationCall<'_>, id: u64) -> Result<Value, MakeError> {
    let organization = state.organization(id, call.view())?;
    Ok(json!({ "organization": detail(organization, call.api_limit) }))
}

/// `PATCH /organizations/{organizationId}`: fields missing from the body stay unchanged.
pub(super) fn update(state: &mut MakeState, call: &OperationCall<'_>, id: u64) -> Result<Value, MakeError> {
    state.organization(id, View::Current)?;
    let object = call.object()?;
    let mut fields = BodyFields::new(&object);
    let name = fields.optional_text("name").map(str::to_owned);
    let (timezone, country) = (fields.optional_number("timezoneId"), fields.optional_number("countryId"));
    fields.done()?;
    state.change(id, call.now, |org| {
        org.name = name.unwrap_or_else(|| std::mem::take(&mut org.name));
        org.timezone_id = timezone.unwrap_or(org.timezone_id);
        org.country_id = country.unwrap_or(org.country_id);
        Ok(json!({ "organization": updated(org, call.api_limit) }))
    })
}

/// `DELETE /organizations/{organizationId}`
pub(super) fn delete(state: &mut MakeState, call: &OperationCall<'_>, id: u64) -> Result<Value, MakeError> {
    let organization = state.organization(id, View::Current)?;
    if !organization.is_here() {
        return Err(MakeError::Denied("Only organizations of this zone can be deleted here."));
    }
    if organization.active_scenarios > 0 && !call.query.flag("confirmed") {
        return Err(MakeError::Unconfirmed("The organization has active scenarios."));
    }
    state.remove(id, call.now);
    Ok(json!({ "organization": id }))
}

/// `GET /organizations/{organizationId}/apps`
pub(super) fn apps(state: &MakeState, call: &OperationCall<'_>, id: u64) -> Result<Value, MakeError> {
    let organization = state.organization(id, call.view())?;
    let installed = |app: &crate::sandbox::state::App| {
        json!({
            "appName": app.name,
            "appVersion": app.version,
            "organizationId": id,
            "installedAt": "2021-02-09T16:36:11.322Z",
            "installedBy": super::invitations::OWNER,
        })
    };
    Ok(json!({ "installedApps": organization.apps.iter().map(installed).collect::<Vec<_>>() }))
}

/// Every column of the list. `license`, `serviceName` and `isPaused` exist only in the organization's own zone.
fn row(org: &MakeOrganization, api_limit: u32) -> Map<String, Value> {
    let mut row = Map::new();
    let mut put = |name: &str, value: Value| row.insert(name.to_owned(), value);
    put("id", json!(org.id));
    put("name", json!(org.name));
    put("countryId", json!(org.country_id));
    put("timezoneId", json!(org.timezone_id));
    if org.is_here() {
        put("license", license(org, api_limit));
    }
    put("zone", json!(org.zone));
    if org.is_here() {
        put("serviceName", json!(service_name(org)));
    }
    put("teams", teams(org));
    if org.is_here() {
        put("isPaused", json!(false));
    }
    put("externalId", Value::Null);
    put("productName", json!(org.plan().name()));
    put("tfaEnforced", json!(false));
    put("privateSpaces", json!(false));
    row
}

/// The detail, with its counters as text and its license's numbers beyond 2^31.
pub(super) fn detail(org: &MakeOrganization, api_limit: u32) -> Value {
    let controls: Vec<Value> =
        org.feature_controls.iter().map(|control| json!({ "id": control.id, "enabled": control.enabled })).collect();
    let mut detail = json!({
        "id": org.id,
        "name": org.name,
        "serviceName": service_name(org),
        "nextReset": null,
        "operations": org.operations.to_string(),
        "transfer": (org.operations * 8_192).to_string(),
        "centicreditsConsumed": (org.operations * 100).to_string(),
        "operationsExt": org.operations_extra.to_string(),
        "transferExt": "0",
        "centicreditsExtra": (org.operations_extra * 100).to_string(),
        "unusedOperations": "0",
        "unusedTransfer": "0",
        "unusedCenticredits": "0",
        "isPaused": false,
        "countryId": org.country_id,
        "timezoneId": org.timezone_id,
        "deleted": false,
        "license": license(org, api_limit),
        "features": {},
        "zone": org.zone,
        "teams": teams(org),
        "productName": org.plan().name(),
        "ssoType": null,
        "scenarios": org.scenarios,
        "activeScenarios": org.active_scenarios,
        "featureControls": controls,
    });
    if let Some(fields) = detail.as_object_mut().filter(|_| !org.is_here()) {
        fields.retain(|name, _| !["license", "serviceName", "isPaused"].contains(&name.as_str()));
    }
    detail
}

/// The answer to a create.
fn created(org: &MakeOrganization, api_limit: u32) -> Value {
    json!({
        "id": org.id,
        "name": org.name,
        "timezoneId": org.timezone_id,
        "countryId": org.country_id,
        "license": license(org, api_limit),
        "zone": org.zone,
        "serviceName": service_name(org),
        "teams": teams(org),
        "isPaused": false,
    })
}

/// The answer to an update: `license.apps` is text here and a list everywhere else, as in Make's document.
fn updated(org: &MakeOrganization, api_limit: u32) -> Value {
    let mut license = license(org, api_limit);
    if let Some(apps) = license.get_mut("apps") {
        let names: Vec<&str> = apps.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        *apps = json!(names.join(","));
    }
    let mut row = row(org, api_limit);
    row.retain(|name, _| !["externalId", "tfaEnforced", "privateSpaces", "productName"].contains(&name.as_str()));
    row.entry("license").and_modify(|shown| *shown = license);
    Value::Object(row)
}

fn license(org: &MakeOrganization, api_limit: u32) -> Value {
    json!({
        "apps": ["T2", "T3"],
        "users": 50,
        "dslimit": 40,
        "fslimit": 2_147_483_648_u64,
        "iolimit": 10_000,
        "advsched": true,
        "dsslimit": 524_288_000,
        "fulltext": true,
        "interval": 1,
        "transfer": 1_099_511_627_776_u64,
        "operations": 800_000_000,
        "apiLimit": org.api_limit.unwrap_or(api_limit),
        "customVariables": org.plan().custom_variables(),
    })
}

fn service_name(org: &MakeOrganization) -> String {
    org.plan().name().to_lowercase()
}

fn teams(org: &MakeOrganization) -> Value {
    org.teams.iter().map(|team| json!({ "id": team.id, "name": team.name })).collect()
}
