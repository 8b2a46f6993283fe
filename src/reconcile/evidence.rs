//! What an answer of the upstream proves about a write in doubt.

use http::StatusCode;
use serde_json::Value;

use crate::audit::{AuditLog, FieldHashes, canonical_number};
use crate::catalogue::{EffectCheck, Proves};
use crate::gateway::tags::{self, Parameters};
use crate::ids::Fingerprint;

/// What an answer proves about the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// It took effect; the text says why.
    Done(&'static str),
    /// It did not take effect; the text says why.
    NotDone(&'static str),
    Nothing,
}

/// What to look for in an answer.
pub(super) struct EvidenceQuestion<'a> {
    pub(super) look: &'a EffectCheck,
    /// The parameters of the write's path.
    pub(super) parameters: &'a Parameters,
    pub(super) marks: Option<&'a FieldHashes>,
    /// Did the look begin when the write could no longer take effect?
    pub(super) too_late: bool,
}

impl EvidenceQuestion<'_> {
    /// What this answer proves. `body` is present only if it is JSON: only Make itself is trusted.
    pub(super) fn judge(&self, log: &AuditLog, status: StatusCode, body: Option<&Value>) -> Evidence {
        let Some(body) = body else { return Evidence::Nothing };
        if self.look.proves == Proves::Gone && status == StatusCode::NOT_FOUND && body.is_object() {
            return Evidence::Done("so it is gone");
        }
        let (Some(found), true) = (body.pointer(&self.look.at), status.is_success()) else { return Evidence::Nothing };
        let objects = found.as_array().map_or(std::slice::from_ref(found), Vec::as_slice);
        let Some(wanted) = self.wanted() else { return Evidence::Nothing };
        let mut meant = objects.iter().filter(|object| wanted.iter().all(|(name, value)| has(object, name, value)));
        match self.look.proves {
            // In an array, it must be known which object the write is about.
            Proves::Fields if found.is_array() && self.look.member.is_empty() && self.look.named_by.is_none() => {
                Evidence::Nothing
            }
            Proves::Fields if meant.any(|object| self.has_marks(log, object)) => {
                Evidence::Done("and all that the write asked for is there")
            }
            Proves::Gone if self.too_late && meant.next().is_some() => {
                Evidence::NotDone("after the doubt window, so it was not done")
            }
            // Absence is proved only if every object in the list carries the members that identify it.
            Proves::Absent if found.is_array() && meant.next().is_none() && all_named(objects, &wanted) => {
                Evidence::Done("and it is no longer there")
            }
            Proves::Fields | Proves::Gone | Proves::Absent => Evidence::Nothing,
        }
    }

    fn wanted(&self) -> Option<Vec<(&str, String)>> {
        let member = self.look.member.iter();
        member.map(|(name, value)| Some((&**name, tags::rendered(value, self.parameters)?))).collect()
    }

    fn has_marks(&self, log: &AuditLog, object: &Value) -> bool {
        let equal = |(name, marked): (&str, Fingerprint)| {
            object.get(name).and_then(|value| log.field_hash(name, value)).is_some_and(|found| found == marked)
        };
        let is_named = |marks: &FieldHashes| {
            self.look.named_by.as_ref().is_none_or(|name| marks.iter().any(|(marked, _)| marked == &**name))
        };
        self.marks.is_some_and(|marks| is_named(marks) && marks.iter().all(equal))
    }
}

fn has(object: &Value, name: &str, value: &str) -> bool {
    object.get(name).and_then(text).is_some_and(|found| found == value)
}

fn all_named(objects: &[Value], wanted: &[(&str, String)]) -> bool {
    objects.iter().all(|object| wanted.iter().all(|(name, _)| object.get(name).and_then(text).is_some()))
}

/// A scalar as a path would contain it.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) => Some(value.to_string()),
        Value::Number(number) => Some(canonical_number(number)),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::catalogue::{Catalogue, EffectCheck};
    use crate::clock::Clock;
    use crate::config;

    fn log() -> (Arc<AuditLog>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let text =
            format!("operator.key_env = \"K\"\nupstream.token_env = \"T\"\naudit.dir = {:?}", dir.path().join("audit"));
        let read = config::parse(&text, std::path::Path::new("/etc/makegate.toml")).unwrap();
        (AuditLog::open(&read.config.audit, Clock::system()).unwrap().0, dir)
    }

    /// What this answer proves about a write of a built-in operation, after the doubt window.
    fn judged(operation: &str, path: &str, written: &Value, status: u16, answer: &Value) -> Evidence {
        judged_by(|look| look, operation, path, written, (status, answer))
    }

    /// The same with another look than the operation's own.
    fn judged_by(
        change: impl FnOnce(EffectCheck) -> EffectCheck,
        operation: &str,
        path: &str,
        written: &Value,
        (status, answer): (u16, &Value),
    ) -> Evidence {
        let (log, _dir) = log();
        let catalogue = Catalogue::built_in();
        let row = catalogue.row(operation).unwrap();
        let marks = log.field_hashes(written.to_string().as_bytes());
        let parameters = tags::parameters_in(row, path).unwrap();
        let look = &change(row.look.clone().unwrap());
        let question = EvidenceQuestion { look, parameters: &parameters, marks: marks.as_ref(), too_late: true };
        question.judge(&log, StatusCode::from_u16(status).unwrap(), Some(answer))
    }

    const VARIABLE: &str = "/api/v2/organizations/11/variables/v";

    fn update(written: &Value, variables: &Value) -> bool {
        let answer = json!({ "organizationVariables": variables });
        matches!(judged("variables.update", VARIABLE, written, 200, &answer), Evidence::Done(_))
    }

    #[test]
    fn every_member_that_was_asked_for_must_be_there_and_equal() {
        assert!(update(
            &json!({"value": 1, "typeId": 1}),
            &json!([{"name": "v", "value": 1.0, "typeId": 1, "more": []}])
        ));
        assert!(
            update(&json!({"value": null}), &json!({"name": "v", "value": null})),
            "one object, as Make's document shows"
        );
        for (written, there) in [
            (json!({"value": 1}), json!({"name": "v", "value": "1"})),
            (json!({"value": 1}), json!({"name": "w", "value": 1})),
            (json!({"value": 1}), json!({"value": 1})),
            (json!({"value": 1, "typeId": 1}), json!({"name": "v", "value": 1})),
            (json!({"value": null}), json!({"name": "v"})),
            (json!({"value": [1]}), json!({"name": "v", "value": [1]})),
            (json!({"value": 1.5}), json!({"name": "v", "value": 1})),
            (json!({}), json!({"name": "v", "value": 1})),
        ] {
            assert!(!update(&written, &json!([there])), "{written} is not in {there}");
        }
    }

    #[test]
    fn a_write_whose_path_names_no_object_must_name_it_in_its_body() {
        let answer = json!({"featureControls": [{"id": 1, "enabled": false}, {"id": 2, "enabled": true}]});
        let controls = "/api/v2/organizations/11/feature-controls";
        let judged = |written: Value| judged("feature-controls.update", controls, &written, 200, &answer);
        assert!(matches!(judged(json!({"id": 2, "enabled": true})), Evidence::Done(_)));
        for written in [json!({"id": 1, "enabled": true}), json!({"enabled": true}), json!({"id": 3, "enabled": true})]
        {
            assert_eq!(judged(written.clone()), Evidence::Nothing, "{written}");
        }
    }

    #[test]
    fn in_an_array_it_must_be_known_which_object_is_meant() {
        let of_any = |look| EffectCheck { member: Vec::new(), named_by: None, ..look };
        let (written, object) = (json!({"value": 1}), json!({"name": "another", "value": 1}));
        let judge = |found: Value| {
            let answer = json!({ "organizationVariables": found });
            judged_by(of_any, "variables.update", VARIABLE, &written, (200, &answer))
        };
        assert_eq!(judge(json!([object])), Evidence::Nothing);
        assert!(matches!(judge(object), Evidence::Done(_)), "alone it can be no other");
    }

    #[test]
    fn a_body_with_the_same_member_twice_is_never_known_again() {
        let (log, _dir) = log();
        assert!(log.field_hashes(br#"{"name":"a","value":1}"#).is_some());
        assert!(
            log.field_hashes(br#"{"name":"b","value":1,"name":"a"}"#).is_none(),
            "which one counts is Make's choice"
        );
    }

    #[test]
    fn too_many_members_are_never_known_again() {
        let (log, _dir) = log();
        let catalogue = Catalogue::built_in();
        let of = |operation: &str, count: usize| {
            let body: serde_json::Map<_, _> = (0..count).map(|n| (n.to_string(), json!(n))).collect();
            let body = Value::Object(body).to_string();
            catalogue.row(operation).unwrap().is_proved_by_fields() && log.field_hashes(body.as_bytes()).is_some()
        };
        assert!(of("variables.update", 16) && !of("variables.update", 17) && !of("variables.update", 0));
        assert!(!of("payments.create", 1), "nothing is kept if no look can prove it");
    }

    #[test]
    fn absence_is_proved_only_by_a_list_in_which_each_says_who_it_is() {
        let absent = |status, variables: Value| {
            let answer = json!({ "organizationVariables": variables });
            matches!(judged("variables.delete", VARIABLE, &json!({}), status, &answer), Evidence::Done(_))
        };
        assert!(absent(200, json!([])) && absent(200, json!([{"name": "w"}])));
        assert!(!absent(200, json!([{"name": "v"}])) && !absent(404, json!([])));
        assert!(!absent(200, json!({"name": "w"})), "not a list");
        assert!(!absent(200, json!([{"label": "v"}])) && !absent(200, json!(["v"])), "nothing identifies it");
    }

    #[test]
    fn a_deleted_organization_is_gone_or_plainly_there() {
        let judged = |status, answer: Value| {
            judged("organizations.delete", "/api/v2/organizations/12", &json!({}), status, &answer)
        };
        assert!(matches!(judged(404, json!({})), Evidence::Done(_)));
        assert!(matches!(judged(200, json!({"organization": {"id": 12, "deleted": false}})), Evidence::NotDone(_)));
        for (status, answer) in [
            (200, json!({"organization": {"id": 12, "deleted": true}})),
            (200, json!({"organization": {"id": 13, "deleted": false}})),
            (200, json!({})),
            (403, json!({})),
            (500, json!({})),
        ] {
            assert_eq!(judged(status, answer.clone()), Evidence::Nothing, "{status} {answer}");
        }
    }
}
