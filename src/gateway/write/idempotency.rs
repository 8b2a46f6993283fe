//! Step 8 of writes, check for an earlier one: a write sent before with this `Idempotency-Key`, or an identical one in doubt
//! (draft-ietf-httpapi-idempotency-key-header).

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::gateway::refusal::Refusal;
use crate::gateway::request::AuthorizedRequest;
use crate::gateway::response::{ForwardFacts, PassedAnswer, Reply, ReplyBody};
use crate::gateway::state::Gateway;
use crate::idempotency::{ClaimRefused, EarlierUse, FirstAnswer, KeyClaim, KeyStatus, KeyedWrite, WriteEnd};
use crate::ids::{Fingerprint, RequestId};
use crate::upstream::is_from_make;
use crate::vocabulary::{Answer, Outcome};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Maximum length of a key.
const KEY_MAX: usize = 255;

/// How a write relates to earlier ones.
pub(crate) enum EarlierWrite {
    /// It is new and may proceed.
    New(WriteIdentity),
    /// It ended before: its outcome, and its answer again.
    Replayed(Outcome, Reply),
}

/// Identifies a write among later ones.
#[derive(Debug)]
pub(crate) struct WriteIdentity {
    /// Equal for identical writes.
    pub(crate) write: Fingerprint,
    /// The claim to its idempotency key, if it has one.
    pub(crate) claim: Option<KeyClaim>,
}

impl WriteIdentity {
    /// Refuses the write if an identical one of the same caller is in doubt, unless its idempotency key marks it as a different one.
    ///
    /// # Errors
    /// If it is refused.
    pub(crate) fn refuse_if_in_doubt(&self, gateway: &Gateway, request: &AuthorizedRequest) -> Result<(), Refusal> {
        let equal = || gateway.log.doubts().find_equal(&request.caller.config.name, self.write);
        match self.claim.is_none().then(equal).flatten() {
            Some(first) => Err(Refusal::HeldInDoubt { first }),
            None => Ok(()),
        }
    }
}

/// Checks for an earlier write.
///
/// # Errors
/// If the key is invalid, in use by another request, under way or in doubt, or if an identical write is in doubt.
pub(crate) async fn find_earlier_write(
    gateway: &Gateway,
    request: &AuthorizedRequest,
    headers: &HeaderMap,
) -> Result<EarlierWrite, Refusal> {
    let caller = request.caller.config.name.as_bytes();
    let parts: [&[u8]; 4] =
        [caller, request.row.id.as_bytes(), request.outgoing.target.as_bytes(), &request.outgoing.body];
    let write = gateway.log.fingerprint(&parts);
    let Some(key) = key(headers)? else {
        let identity = WriteIdentity { write, claim: None };
        return identity.refuse_if_in_doubt(gateway, request).map(|()| EarlierWrite::New(identity));
    };
    let key = gateway.log.fingerprint(&[b"idempotency", caller, key]);
    let in_doubt = || match gateway.log.doubts().find_by_key(key) {
        Some(first) => Err(Refusal::KeyInDoubt { first }),
        None => Ok(()),
    };
    // A doubt takes precedence over a stored answer: an answer whose outcome is not on disk counts less than an operator's or a look's
    // verdict. Check before the claim, so that the claim sees a doubt settled as done in between, and again afterwards, for a write that
    // became doubtful in between.
    in_doubt()?;
    let keyed = KeyedWrite { key, write, request: request.id, caller: request.caller.config.name.clone() };
    let known =
        gateway.idempotency.claim(keyed, request.policy.config.callers.len()).await.map_err(
            |refused| match refused {
                ClaimRefused::NoRoom => Refusal::NoRoomForKey,
                ClaimRefused::Unavailable => Refusal::AnswersUnavailable,
            },
        )?;
    in_doubt()?;
    match known {
        KeyStatus::New(claim) => Ok(EarlierWrite::New(WriteIdentity { write, claim: Some(claim) })),
        KeyStatus::Before(EarlierUse::Running { first }) => Err(Refusal::KeyRunning { first }),
        KeyStatus::Before(EarlierUse::Other { first }) => Err(Refusal::KeyReused { first }),
        KeyStatus::Before(EarlierUse::Ended { first, ended }) => replay(first, ended),
    }
}

/// The key, whether sent as a structured-field string (RFC 9651, section 3.3.3) or bare, as most clients send it.
fn key(headers: &HeaderMap) -> Result<Option<&[u8]>, Refusal> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(Refusal::BadKey);
    }
    let value = value.as_bytes().trim_ascii();
    let (inner, spaces) = match value {
        [b'"', inner @ .., b'"'] => (inner, true),
        bare => (bare, false),
    };
    let plain = |byte: &u8| match byte {
        b'"' | b'\\' => false,
        b' ' => spaces,
        other => other.is_ascii_graphic(),
    };
    let good = (1..=KEY_MAX).contains(&inner.len()) && inner.iter().all(plain);
    if good { Ok(Some(inner)) } else { Err(Refusal::BadKey) }
}

/// Replays the first answer.
pub(super) fn replay(first: RequestId, ended: WriteEnd) -> Result<EarlierWrite, Refusal> {
    let outcome = if ended.done { Outcome::Done } else { Outcome::Rejected };
    let FirstAnswer { status, mut headers, body } = ended.answer.ok_or(Refusal::AnswerNotKept { first })?;
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    let reply = Reply {
        body: ReplyBody::Passed(Arc::new(PassedAnswer { status, headers, body, etag: None, is_counted: false })),
        cache: None,
        answer: Answer::Replayed,
        filled_by: Some(first),
        facts: ForwardFacts::default(),
        may_be_not_modified: false,
    };
    Ok(EarlierWrite::Replayed(outcome, reply))
}

/// What to keep of a write that ended; `None` frees its key. A rejection is kept only if it is Make's own word on this write: not one for
/// now (429), not one of the gateway's token (401), and not one of something in front of Make, which has not seen the write.
pub(crate) fn result_to_keep(
    outcome: Outcome,
    reply: &Result<Reply, Refusal>,
    facts: &ForwardFacts,
) -> Option<WriteEnd> {
    let for_now = facts.upstream_status.is_some_and(|status| matches!(status.as_u16(), 401 | 429));
    let answer = reply.as_ref().ok().map(|reply| {
        let (status, headers, body) = reply.body.parts();
        FirstAnswer { status, headers: headers.clone(), body: body.clone() }
    });
    match (outcome, answer) {
        (Outcome::Done, answer) => Some(WriteEnd { done: true, answer }),
        (Outcome::Rejected, Some(answer)) if !for_now && is_from_make(answer.status, &answer.headers, &answer.body) => {
            Some(WriteEnd { done: false, answer: Some(answer) })
        }
        (Outcome::Rejected | Outcome::NotSent | Outcome::InDoubt, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(values: &[&str]) -> Result<Option<String>, ()> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IDEMPOTENCY_KEY, HeaderValue::from_str(value).unwrap());
        }
        key(&headers).map(|key| key.map(|key| String::from_utf8(key.to_vec()).unwrap())).map_err(drop)
    }

    #[test]
    fn a_key_is_the_same_quoted_or_bare() {
        assert_eq!(key_of(&[]), Ok(None));
        assert_eq!(key_of(&["8e03978e"]), key_of(&["\"8e03978e\""]));
        assert_eq!(key_of(&["\"a b\""]), Ok(Some("a b".to_owned())));
        assert_eq!(key_of(&[&"k".repeat(255)]), Ok(Some("k".repeat(255))));
        for bad in ["", "\"\"", "a b", "\"a", "a\"", "\"", "\"a\\\"b\"", "\"a\";p=1", "a,\tb", &"k".repeat(256)] {
            assert_eq!(key_of(&[bad]), Err(()), "{bad:?}");
        }
        assert_eq!(key_of(&["a", "a"]), Err(()), "twice");
    }
}
