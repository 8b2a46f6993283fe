//! Inviting someone, reading an invitation by its hash, accepting it.

use serde_json::{Value, json};

use super::{MakeError, MakeState, OperationCall, View};
use crate::hash;
use crate::sandbox::state::{Invitation, MakeUser};

/// The user that the sandbox's token belongs to.
pub(super) const OWNER: u64 = 3;

/// `POST /organizations/{organizationId}/invite`. The hash goes out by e-mail, never in the answer.
pub(super) fn invite(state: &mut MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    let teams = state.organization(id, View::Current)?.teams.clone();
    let mut fields = call.fields()?;
    let (role, email, name) = (fields.number("usersRoleId"), fields.text("email"), fields.text("name"));
    fields.optional_text("note");
    let wanted = fields.optional_numbers("teamsId").unwrap_or_default();
    if email.is_some_and(|email| !email.contains('@')) {
        fields.wrong("email", "an e-mail address");
    }
    let ((role, email), name) = fields.all(role.zip(email).zip(name))?;
    let user = MakeUser { id: state.next_id(), name: name.to_owned(), email: email.to_owned() };
    let invitation = Invitation { organization: id, user, role };
    let mut shown = role_of(&invitation, json!("pending"));
    if let Some(shown) = shown.as_object_mut() {
        let joined = teams.iter().filter(|team| wanted.contains(&team.id)).count();
        shown.insert("organizationTeamsCount".to_owned(), json!(teams.len()));
        shown.insert("joinedTeamsCount".to_owned(), json!(joined));
    }
    let answer = json!({ "user": user_of(&invitation), "userOrganizationRole": shown });
    state.invite(hash_of(invitation.user.id), invitation)?;
    Ok(answer)
}

/// `GET /organizations/invitation?hash=…`
pub(super) fn get(state: &MakeState, call: &OperationCall) -> Result<Value, MakeError> {
    let hash = call.query.get("hash").filter(|hash| !hash.is_empty());
    let hash = hash.ok_or_else(|| MakeError::invalid("Missing value of required parameter 'hash'."))?;
    let invitation = state.invitation(hash)?;
    let organization = state.organization(invitation.organization, View::Current)?;
    Ok(json!({
        "organization": { "id": organization.id, "name": organization.name },
        "user": user_of(invitation),
        "userOrganizationRole": role_of(invitation, json!("pending")),
    }))
}

/// `POST /organizations/accept-invitation`
pub(super) fn accept(state: &mut MakeState, call: &OperationCall) -> Result<Value, MakeError> {
    let mut fields = call.fields()?;
    let hash = fields.text("hash");
    let invitation = state.accept(fields.all(hash)?)?;
    Ok(json!({ "user": user_of(&invitation), "userOrganizationRole": role_of(&invitation, Value::Null) }))
}

/// The same hash for the same user in every run, so that golden files stay valid; UUID-shaped like Make's.
fn hash_of(user: u64) -> String {
    let hash = hash::sha256(format!("invitation {user}").as_bytes());
    uuid::Builder::from_random_bytes(hash.first_chunk().copied().unwrap_or_default()).into_uuid().to_string()
}

fn user_of(invitation: &Invitation) -> Value {
    json!({
        "id": invitation.user.id,
        "name": invitation.user.name,
        "email": invitation.user.email,
        "language": "en",
        "timezoneId": 113,
        "localeId": 18,
        "countryId": 1,
        "features": {},
        "avatar": "https://secure.gravatar.com/avatar/6b1a74d20d925c12a73af32bf0dd7164.jpg?d=mm",
    })
}

fn role_of(invitation: &Invitation, state: Value) -> Value {
    json!({
        "userId": invitation.user.id,
        "organizationId": invitation.organization,
        "usersRoleId": invitation.role,
        "invitation": state,
    })
}
