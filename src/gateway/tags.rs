//! Tags: what a request's answer can be invalidated by, and what its success invalidates.

use serde_json::Value;

use super::recorded::is_hidden;
use crate::catalogue::{MatchedOperation, Operation, PathSegment, TagPart, TagTemplate};

/// A path's parameters as names and values.
pub(crate) type Parameters = Vec<(String, String)>;

#[must_use]
pub(crate) fn parameters(matched: &MatchedOperation<'_, '_>) -> Parameters {
    matched.parameters().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The tags that an answer is stored with.
#[must_use]
pub(crate) fn stored(row: &Operation, parameters: &Parameters) -> Vec<String> {
    row.tags.iter().filter_map(|tag| render(tag, parameters, None)).collect()
}

/// The tags that a write invalidates; empty if everything. If the answer lacks the member that a tag needs, that is everything, too,
/// because the write may have touched anything.
#[must_use]
pub(crate) fn invalidated(row: &Operation, parameters: &Parameters, answer: Option<&[u8]>) -> Vec<String> {
    let answer: Option<Value> = if row.invalidates.iter().any(TagTemplate::needs_answer) {
        answer.and_then(|body| serde_json::from_slice(body).ok())
    } else {
        None
    };
    let known = |tag: &&TagTemplate| answer.is_some() || !tag.needs_answer();
    let tags: Option<Vec<String>> =
        row.invalidates.iter().filter(known).map(|tag| render(tag, parameters, answer.as_ref())).collect();
    tags.unwrap_or_default()
}

/// Like [`invalidated`], for a write of which only the path is known.
#[must_use]
pub(crate) fn of_path(row: &Operation, path: &str) -> Option<Vec<String>> {
    Some(invalidated(row, &parameters_in(row, path)?, None))
}

/// The parameters in a recorded path of this operation; `None` if it does not match, or if the log hides one of them.
#[must_use]
pub(crate) fn parameters_in(row: &Operation, path: &str) -> Option<Parameters> {
    let mut segments = path.strip_prefix('/')?.split('/');
    let mut parameters = Parameters::new();
    for segment in row.path.segments() {
        let text = segments.next()?;
        match segment {
            PathSegment::Literal(literal) if literal != text => return None,
            PathSegment::Literal(_) => {}
            PathSegment::Parameter(_) if is_hidden(text) => return None,
            PathSegment::Parameter(name) => parameters.push((name.clone(), text.to_owned())),
        }
    }
    segments.next().is_none().then_some(parameters)
}

/// Fills the path's parameters into a template.
#[must_use]
pub(crate) fn rendered(template: &TagTemplate, parameters: &Parameters) -> Option<String> {
    render(template, parameters, None)
}

fn render(tag: &TagTemplate, parameters: &Parameters, answer: Option<&Value>) -> Option<String> {
    tag.render(|part| match part {
        TagPart::Literal(text) => Some(text.clone()),
        TagPart::Parameter(name) => parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()),
        TagPart::Answer(pointer) => match answer?.pointer(pointer)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    /// Otherwise a look would ask for another object than the write's, and settle it by that.
    #[test]
    fn a_path_with_a_hidden_part_has_no_parameters() {
        let catalogue = Catalogue::built_in();
        let row = catalogue.row("variables.delete").unwrap();
        let path = |name: &str| format!("/api/v2/organizations/11/variables/{name}");
        let parameters = parameters_in(row, &path("limit")).unwrap();
        assert_eq!(
            parameters,
            [("organizationId", "11"), ("variableName", "limit")].map(|(a, b)| (a.into(), b.into()))
        );
        assert_eq!(parameters_in(row, &path("hidden:0123456789abcdef0123456789abcdef")), None);
    }
}
