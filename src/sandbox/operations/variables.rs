//! Organization variables: system variables for every plan, and custom ones with a history if the plan includes them.

use std::collections::VecDeque;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{MakeError, MakeState, OperationCall, View, ok, stamp};
use crate::sandbox::fields::BodyFields;
use crate::sandbox::state::{MakeOrganization, VARIABLES_MAX, Variable};

const AUTHOR: &str = "Jon Doe";

/// `GET /organizations/{organizationId}/variables`: a list, as Make's clients decode it (the document shows one object).
pub(super) fn list(state: &MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    let organization = state.organization(id, call.view())?;
    let mut rows = vec![
        json!({ "name": "organizationId", "typeId": 1, "value": id, "isSystem": true }),
        json!({ "name": "organizationName", "typeId": 2, "value": organization.name, "isSystem": true }),
    ];
    if organization.plan().custom_variables() {
        rows.extend(organization.variables.iter().map(|(name, variable)| shown(name, variable)));
    }
    Ok(json!({ "organizationVariables": rows }))
}

/// `POST /organizations/{organizationId}/variables`
pub(super) fn create(state: &mut MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    state.organization(id, View::Current)?;
    let mut fields = call.fields()?;
    let (name, type_id, value) = (fields.text("name"), read_type(&mut fields), fields.value("value"));
    if name.is_some_and(|name| !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'$' || b == b'_')) {
        fields.wrong("name", "letters, digits, $ and _ only");
    }
    if let (Some(type_id), Some(value)) = (type_id, value) {
        check_type(&mut fields, type_id, value);
    }
    let ((name, type_id), value) = fields.all(name.zip(type_id).zip(value))?;
    let entry = state.next_id();
    state.change(id, call.now, |org| {
        custom(org)?;
        if org.variables.contains_key(name) || ["organizationId", "organizationName"].contains(&name) {
            return Err(MakeError::invalid(format!("The variable '{name}' already exists.")));
        }
        if org.variables.len() >= VARIABLES_MAX {
            return Err(MakeError::Full("variables of one organization"));
        }
        let mut variable = Variable { type_id, value: value.clone(), history: VecDeque::new() };
        let created = json!({ "name": name, "value": value, "typeId": type_id });
        variable.note(change(call, entry, "organization_variable_created", &created));
        let answer = json!({ "organizationVariable": shown(name, &variable) });
        org.variables.insert(name.to_owned(), variable);
        Ok(answer)
    })
}

/// `PATCH /organizations/{organizationId}/variables/{variableName}`. Type and value are compared only when both are given.
pub(super) fn update(state: &mut MakeState, call: &OperationCall, id: u64, name: &str) -> Result<Value, MakeError> {
    find(state, View::Current, id, name)?;
    let mut fields = call.fields()?;
    let type_id = fields.optional_value("typeId").and_then(|_| read_type(&mut fields));
    let value = fields.optional_value("value");
    match (type_id, value) {
        (Some(type_id), Some(value)) => check_type(&mut fields, type_id, value),
        (None, None) => fields.wrong("value", "a new value, a new typeId, or both"),
        (Some(_), None) | (None, Some(_)) => {}
    }
    fields.done()?;
    let entry = state.next_id();
    state.change(id, call.now, |org| {
        let variable = org.variables.get_mut(name).ok_or_else(|| missing(name))?;
        let old = json!({ "value": variable.value, "typeId": variable.type_id });
        variable.type_id = type_id.unwrap_or(variable.type_id);
        variable.value = value.unwrap_or(&variable.value).clone();
        let new = json!({ "value": variable.value, "typeId": variable.type_id });
        variable.note(change(call, entry, "organization_variable_edited", &json!({ "old": old, "new": new })));
        let answer = json!({ "name": name, "typeId": variable.type_id, "value": variable.value });
        Ok(json!({ "organizationVariable": answer }))
    })
}

/// `DELETE /organizations/{organizationId}/variables/{variableName}`: never without `confirmed=true`.
pub(super) fn delete(state: &mut MakeState, call: &OperationCall, id: u64, name: &str) -> Result<Value, MakeError> {
    find(state, View::Current, id, name)?;
    if !call.query.flag("confirmed") {
        return Err(MakeError::Unconfirmed("The variable may be in use."));
    }
    state.change(id, call.now, |org| org.variables.remove(name).map(|_| ok()).ok_or_else(|| missing(name)))
}

/// `GET /organizations/{organizationId}/variables/{variableName}/history`, newest first as the document says.
pub(super) fn history(state: &MakeState, call: &OperationCall, id: u64, name: &str) -> Result<Value, MakeError> {
    let entries: Vec<&Value> = find(state, call.view(), id, name)?.history.iter().map(AsRef::as_ref).collect();
    Ok(json!({ "organizationVariableHistory": entries }))
}

fn find<'a>(state: &'a MakeState, view: View, id: u64, name: &str) -> Result<&'a Variable, MakeError> {
    let organization = state.organization(id, view)?;
    custom(organization)?;
    organization.variables.get(name).ok_or_else(|| missing(name))
}

/// Without the feature, Make answers 404 to any request.
fn custom(organization: &MakeOrganization) -> Result<(), MakeError> {
    let has = organization.plan().custom_variables();
    has.then_some(()).ok_or_else(|| MakeError::not_found("The custom variables feature of this plan"))
}

fn missing(name: &str) -> MakeError {
    MakeError::NotFound(format!("Variable {name}"))
}

fn read_type(fields: &mut BodyFields<'_>) -> Option<u64> {
    let type_id = fields.number("typeId")?;
    if !(1..=4).contains(&type_id) {
        fields.wrong("typeId", "1 (number), 2 (string), 3 (boolean) or 4 (date)");
        return None;
    }
    Some(type_id)
}

fn check_type(fields: &mut BodyFields<'_>, type_id: u64, value: &Value) {
    let (fits, write) = match type_id {
        1 => (value.is_number(), "a number, as typeId 1 requires"),
        2 => (value.is_string(), "text, as typeId 2 requires"),
        3 => (value.is_boolean(), "true or false, as typeId 3 requires"),
        _ => (
            value.as_str().is_some_and(|text| text.parse::<Timestamp>().is_ok()),
            "a date like 1998-03-06T12:31:00.000Z, as typeId 4 requires",
        ),
    };
    if !fits {
        fields.wrong("value", write);
    }
}

fn shown(name: &str, variable: &Variable) -> Value {
    json!({ "name": name, "typeId": variable.type_id, "value": variable.value, "isSystem": false })
}

fn change(call: &OperationCall, entry: u64, action: &str, diff: &Value) -> Value {
    json!({ "id": entry, "diffObject": diff, "changed": stamp(call.wall), "action": action, "author": AUTHOR })
}
