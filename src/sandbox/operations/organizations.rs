//! Organizations: list, create, detail, update, delete, and their apps.

use serde_json::{Value, json};

use super::{MakeError, MakeState, OperationCall, View};
use crate::sandbox::seed::SeedPlan;
use crate::sandbox::state::{MakeOrganization, Subscription, Team};

/// The columns that the live list shows by default.
const COLUMNS: [&str; 4] = ["id", "name", "timezoneId", "zone"];

const SORTABLE: [&str; 8] = ["id", "name", "countryId", "timezoneId", "zone", "serviceName", "isPaused", "productName"];

/// The apps of every license.
const APPS: [&str; 2] = ["T2", "T3"];

/// `GET /organizations`
pub(super) fn list(state: &MakeState, call: &OperationCall) -> Result<Value, MakeError> {
    let page = call.query.page("name", false, &SORTABLE)?;
    let rows = state.organizations(call.view()).map(|org| row(org, call.api_limit)).collect();
    let rows: Vec<Value> = page.cut(rows).into_iter().map(|row| call.query.project(row, Some(&COLUMNS))).collect();
    Ok(json!({ "organizations": rows, "pg": page.echo() }))
}

/// `POST /organizations`
pub(super) fn create(state: &mut MakeState, call: &OperationCall) -> Result<Value, MakeError> {
    let mut fields = call.fields()?;
    let (name, region) = (fields.text("name"), fields.number("regionId"));
    let (timezone, country) = (fields.number("timezoneId"), fields.number("countryId"));
    let ((name, _), (timezone_id, country_id)) = fields.all(name.zip(region).zip(timezone.zip(country)))?;
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
pub(super) fn get(state: &MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    let organization = state.organization(id, call.view())?;
    Ok(json!({ "organization": detail(organization, call.api_limit) }))
}

/// `PATCH /organizations/{organizationId}`: fields missing from the body stay unchanged.
pub(super) fn update(state: &mut MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    state.organization(id, View::Current)?;
    let mut fields = call.fields()?;
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
pub(super) fn delete(state: &mut MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
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
pub(super) fn apps(state: &MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
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

/// `license`, `serviceName` and `isPaused` exist only in the organization's own zone.
fn as_in_its_zone(org: &MakeOrganization, mut shown: Value) -> Value {
    if !org.is_here() {
        leave_out(&mut shown, &["license", "serviceName", "isPaused"]);
    }
    shown
}

fn leave_out(object: &mut Value, names: &[&str]) {
    if let Some(members) = object.as_object_mut() {
        members.retain(|name, _| !names.contains(&name.as_str()));
    }
}

/// Every column of the list.
fn row(org: &MakeOrganization, api_limit: u32) -> Value {
    let row = json!({
        "id": org.id,
        "name": org.name,
        "countryId": org.country_id,
        "timezoneId": org.timezone_id,
        "license": license(org, api_limit),
        "zone": org.zone,
        "serviceName": service_name(org),
        "teams": teams(org),
        "isPaused": false,
        "externalId": null,
        "productName": org.plan().name(),
        "tfaEnforced": false,
        "privateSpaces": false,
    });
    as_in_its_zone(org, row)
}

/// The detail, with its counters as text and its license's numbers beyond 2^31.
pub(in crate::sandbox) fn detail(org: &MakeOrganization, api_limit: u32) -> Value {
    let controls: Vec<Value> =
        org.feature_controls.iter().map(|control| json!({ "id": control.id, "enabled": control.enabled })).collect();
    let detail = json!({
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
    as_in_its_zone(org, detail)
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
    let mut row = row(org, api_limit);
    leave_out(&mut row, &["externalId", "tfaEnforced", "privateSpaces", "productName"]);
    if let Some(apps) = row.pointer_mut("/license/apps") {
        *apps = json!(APPS.join(","));
    }
    row
}

fn license(org: &MakeOrganization, api_limit: u32) -> Value {
    json!({
        "apps": APPS,
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
