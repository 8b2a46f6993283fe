//! Learns the quota of organizations from `license.apiLimit` in an answer: each organization by itself, so that an odd one hides no other.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::state::Gateway;
use crate::catalogue::Operation;
use crate::json_members::JsonMembers;
use crate::quota::BucketId;
use crate::upstream::UpstreamAnswer;

#[derive(Deserialize)]
struct OrganizationBody<'a> {
    id: u64,
    #[serde(borrow)]
    license: Option<License<'a>>,
}

#[derive(Deserialize)]
struct License<'a> {
    #[serde(rename = "apiLimit", borrow)]
    api_limit: Option<&'a RawValue>,
}

/// Learns what an answer says of limits.
pub(crate) fn learn(gateway: &Gateway, row: &Operation, bucket: BucketId, answered: &UpstreamAnswer) {
    let Some(member) = row.limits.as_deref().filter(|_| answered.status.is_success()) else { return };
    for (organization, limit) in limits(answered.body.bytes(), member) {
        // An answer about one organization says nothing of others.
        if !matches!(bucket, BucketId::Organization(asked) if asked != organization) {
            gateway.quota.learn_limit(organization, limit);
        }
    }
}

/// Each organization in this member of a body (an organization, or an array of them), with its limit. One that says none that could be a
/// limit is left out.
fn limits(body: &[u8], member: &str) -> Vec<(u64, u64)> {
    if memchr::memmem::find(body, b"apiLimit").is_none() {
        return Vec::new();
    }
    let Ok(answer) = serde_json::from_slice::<JsonMembers<'_>>(body) else { return Vec::new() };
    let Some(found) = answer.get_only(member).map(RawValue::get) else { return Vec::new() };
    let each: Vec<&RawValue> = serde_json::from_str(found).unwrap_or_default();
    let texts = each.iter().map(|one| one.get()).chain(each.is_empty().then_some(found));
    texts.filter_map(limit_of).collect()
}

fn limit_of(organization: &str) -> Option<(u64, u64)> {
    let OrganizationBody { id, license } = serde_json::from_str(organization).ok()?;
    let limit = license?.api_limit?.get();
    let digits = limit.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(limit).trim();
    let is_whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // One that is too large for a number is too large for a limit, too.
    is_whole.then(|| (id, digits.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_organization_tells_its_own_limit_whatever_the_others_say() {
        let list = r#"{"\u00fc":1,"organizations":[
            {"id":1,"license":{"apiLimit":240}}, {"id":2,"license":{"apiLimit":"1000"}}, {"id":3,"license":{"apiLimit":" 60 "}},
            {"id":4,"license":{"apiLimit":240.5}}, {"id":5,"license":{"apiLimit":2e2}}, {"id":6,"license":{"apiLimit":-1}},
            {"id":7,"license":{"apiLimit":"many"}}, {"id":8,"license":{"apiLimit":null}}, {"id":9,"license":{}}, {"id":10,"license":null},
            {"id":11}, {"id":"12","license":{"apiLimit":1}}, null, 7, "x", [], {"license":{"apiLimit":1}}, {"id":13,"license":7},
            {"id":14,"id":15,"license":{"apiLimit":1}}, {"id":16,"license":{"apiLimit":1,"apiLimit":2}}, {"id":17,"license":{"apiLimit":""}},
            {"id":18,"license":{"apiLimit":99999999999999999999}}, {"id":19,"license":{"apiLimit":0,"more":{"a":[1]}}},
            {"id":20,"license":{"apiLimit":30},"name":"last"}]}"#;
        assert_eq!(
            limits(list.as_bytes(), "organizations"),
            [(1, 240), (2, 1000), (3, 60), (18, u64::MAX), (19, 0), (20, 30)]
        );
        assert_eq!(limits(br#"{"organization":{"id":1,"license":{"apiLimit":"7"}}}"#, "organization"), [(1, 7)]);
        for none in [
            r#"{"organizations":{"apiLimit":7}}"#,
            "apiLimit",
            r#"{"organizations":[],"organizations":[{"apiLimit":1}]}"#,
        ] {
            assert_eq!(limits(none.as_bytes(), "organizations"), [], "{none}");
        }
    }
}
