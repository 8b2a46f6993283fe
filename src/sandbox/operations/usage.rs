//! Usage of the last 30 days, and feature controls.

use jiff::ToSpan as _;
use jiff::tz::Offset;
use serde_json::{Value, json};

use super::{MakeError, MakeState, OperationCall, View};
use crate::hash;
use crate::sandbox::state::FeatureControl;

const DAYS: i64 = 30;
/// The timezone of the user that the sandbox's token belongs to: Make's example, Prague.
const OWNER_TIMEZONE: u64 = 113;

/// `GET /organizations/{organizationId}/usage`: oldest day first, today last.
pub(super) fn days(state: &MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    let organization = state.organization(id, call.view())?;
    let own = call.query.flag("organizationTimezone");
    let hours = offset_hours(if own { organization.timezone_id } else { OWNER_TIMEZONE });
    let offset = Offset::from_hours(hours).unwrap_or(Offset::UTC);
    let today = offset.to_datetime(call.wall).date();
    let day = |back: i64| {
        let date = today.saturating_sub(back.days()).to_string();
        let operations = operations_of(id, &date, hours);
        json!({
            "date": date,
            "operations": operations,
            "dataTransfer": operations * 15,
            "centicredits": operations * 100,
        })
    };
    Ok(json!({ "data": (0..DAYS).rev().map(day).collect::<Vec<_>>() }))
}

/// `GET /organizations/{organizationId}/feature-controls`, by descending id.
pub(super) fn feature_controls(state: &MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    let organization = state.organization(id, call.view())?;
    let wanted = call.query.get("featureControlName");
    let controls: Vec<Value> = organization
        .feature_controls
        .iter()
        .rev()
        .filter(|control| wanted.is_none_or(|name| control.name == name))
        .map(|control| call.query.project(shown(control), None))
        .collect();
    Ok(json!({ "enableAllControlFeatures": false, "featureControls": controls }))
}

/// `PATCH /organizations/{organizationId}/feature-controls`
pub(super) fn switch(state: &mut MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    state.organization(id, View::Current)?;
    let mut fields = call.fields()?;
    let (control_id, enabled) = (fields.number("id"), fields.flag("enabled"));
    let (control_id, enabled) = fields.all(control_id.zip(enabled))?;
    state.change(id, call.now, |org| {
        let control = org.feature_controls.iter_mut().find(|control| control.id == control_id);
        control.ok_or_else(|| MakeError::NotFound(format!("Feature control {control_id}")))?.enabled = enabled;
        Ok(json!({ "featureControl": { "id": control_id, "enabled": enabled } }))
    })
}

fn shown(control: &FeatureControl) -> Value {
    json!({
        "id": control.id,
        "name": control.name,
        "label": { "en": control.label },
        "description": { "en": control.description },
        "tags": [control.tag],
        "warning_message": { "en": control.warning },
        "enabled": control.enabled,
    })
}

/// Make's document gives ids of timezones without their offsets; the sandbox spreads the ids over -12 to +12 hours so
/// that 113, the document's example, is Prague's +1.
fn offset_hours(timezone_id: u64) -> i8 {
    i8::try_from(timezone_id % 25).unwrap_or(12) - 12
}

/// The same number for the same day in every run; days in another timezone add up differently.
fn operations_of(id: u64, date: &str, hours: i8) -> u64 {
    let [a, b, ..] = hash::sha256(format!("{id} {date} {hours}").as_bytes());
    u64::from(u16::from_be_bytes([a, b]) % 900) + 9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timezones_are_spread_around_prague() {
        assert_eq!(offset_hours(113), 1);
        assert_eq!((offset_hours(0), offset_hours(24)), (-12, 12));
    }
}
