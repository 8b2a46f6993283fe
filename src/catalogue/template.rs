//! Path and tag templates: text with `{names}`, parsed once when the catalogue is built.

use std::fmt;

use crate::toml_reader::InvalidValue;

/// The name of the path parameter for the organization.
pub(super) const ORGANIZATION: &str = "organizationId";

/// One segment of a path template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathSegment {
    /// Literal text.
    Literal(String),
    /// `{organizationId}` (a plain decimal) or `{name}` (any single segment).
    Parameter(String),
}

/// A path template such as `/api/v2/organizations/{organizationId}/usage`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    text: String,
    segments: Vec<PathSegment>,
}

impl PathTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!("a path must begin with `/`: write \"/{text}\"").into());
        };
        let mut segments: Vec<PathSegment> = Vec::new();
        for part in rest.split('/') {
            let segment = Self::segment(part)?;
            if let PathSegment::Parameter(name) = &segment
                && segments.contains(&segment)
            {
                return Err(format!("{{{name}}} appears in the path twice: rename one of them").into());
            }
            segments.push(segment);
        }
        Ok(Self { text: text.to_owned(), segments })
    }

    fn segment(part: &str) -> Result<PathSegment, InvalidValue> {
        let name_like = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
        if part.is_empty() || part == "." || part == ".." {
            return Err("a path must not have empty, `.` or `..` segments".to_owned().into());
        }
        match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
            Some(name) if name_like(name) => Ok(PathSegment::Parameter(name.to_owned())),
            Some(name) => Err(format!(
                "`{{{name}}}` is not a valid parameter: names consist of letters, digits and `_`, as in {{teamId}}"
            )
            .into()),
            None if part.chars().all(plain) => Ok(PathSegment::Literal(part.to_owned())),
            None => Err(format!("`{part}`: a segment must be either plain text or a single {{name}}").into()),
        }
    }

    /// The template as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The segments in order.
    #[must_use]
    pub fn segments(&self) -> &[PathSegment] {
        &self.segments
    }

    /// The parameter names in order.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            PathSegment::Parameter(name) => Some(name.as_str()),
            PathSegment::Literal(_) => None,
        })
    }

    /// Whether it has this parameter.
    pub(super) fn has(&self, name: &str) -> bool {
        self.parameters().any(|known| known == name)
    }

    /// Whether it contains an organization.
    #[must_use]
    pub fn has_organization(&self) -> bool {
        self.has(ORGANIZATION)
    }

    /// The mistake of each parameter of `tag` that the path lacks.
    pub(super) fn lacking(&self, tag: &TagTemplate) -> impl Iterator<Item = InvalidValue> {
        let known: Vec<String> = self.parameters().map(|name| format!("{{{name}}}")).collect();
        let known = if known.is_empty() { "no parameters".to_owned() } else { known.join(", ") };
        let unknown = tag.parameters().filter(|name| !self.has(name));
        unknown.map(move |name| {
            InvalidValue::new(format!("{{{name}}} is not in the path"), format!("the path has {known}"))
        })
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One part of a tag template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagPart {
    /// Literal text.
    Literal(String),
    /// `{name}`: the path parameter of that name.
    Parameter(String),
    /// `{/a/b}`: the value at this JSON pointer (RFC 6901) in the answer; only in `invalidates`.
    Answer(String),
}

/// A tag template such as `org:{organizationId}/usage`, or `org:{/organization/id}` of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagTemplate {
    text: String,
    parts: Vec<TagPart>,
}

impl TagTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err("a tag must be printable ASCII without spaces, such as \"org:{organizationId}\""
                .to_owned()
                .into());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else {
                return Err(format!("`{{` without `}}` in \"{text}\"").into());
            };
            if !before.is_empty() {
                parts.push(TagPart::Literal(before.to_owned()));
            }
            let pointer = name.starts_with('/');
            parts.push(if pointer { TagPart::Answer(name.to_owned()) } else { TagPart::Parameter(name.to_owned()) });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(TagPart::Literal(rest.to_owned()));
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The template as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The path parameters it uses.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            TagPart::Parameter(name) => Some(name.as_str()),
            TagPart::Literal(_) | TagPart::Answer(_) => None,
        })
    }

    /// Whether it needs a value from the answer.
    #[must_use]
    pub fn needs_answer(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, TagPart::Answer(_)))
    }

    /// Renders the tag with values from `value`; `None` if a value is missing (such as a member that the answer lacks).
    pub fn render(&self, mut value: impl FnMut(&TagPart) -> Option<String>) -> Option<String> {
        let mut tag = String::with_capacity(self.text.len() + 8);
        for part in &self.parts {
            match part {
                TagPart::Literal(text) => tag.push_str(text),
                TagPart::Parameter(_) | TagPart::Answer(_) => tag.push_str(&value(part)?),
            }
        }
        Some(tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_template_is_literals_and_whole_parameters() {
        let path = PathTemplate::parse("/api/v2/organizations/{organizationId}/usage").unwrap();
        assert!(path.has_organization());
        assert_eq!(path.segments().len(), 5);
        for bad in ["api", "/a//b", "/a/../b", "/a/{b", "/a/x{b}", "/{a}/{a}", "/a/{}", "/a b"] {
            assert!(PathTemplate::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tag_is_rendered_from_path_and_answer() {
        let tag = TagTemplate::parse("org:{organizationId}/usage").unwrap();
        assert_eq!(tag.render(|_| Some("11".to_owned())).as_deref(), Some("org:11/usage"));
        let tag = TagTemplate::parse("org:{/organization/id}").unwrap();
        assert!(tag.needs_answer());
        assert_eq!(tag.render(|_| None), None);
        assert!(TagTemplate::parse("org:{x").is_err());
    }
}
