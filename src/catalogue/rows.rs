//! Reads each `[[operation]]` table into a checked row. The built-in rows are `config/operations.toml`.

use std::sync::Arc;

use http::Method;

use super::{
    BodyKind, BucketKind, Catalogue, Freshness, Operation, Parameter, ParameterKind, PathTemplate, RetryClass,
    TagTemplate, effect_check, recorded,
};
use crate::toml_reader::{
    self, FLAG, InvalidValue, TEXT, Table, TableItem, TextSpan, ValueKind, WithSpan, one_of, quoted, unknown_word,
};

/// The text of the built-in rows.
pub const BUILT_IN: &str = include_str!("../../config/operations.toml");

/// A row and the positions of its parts, for checks that need more than the row.
#[derive(Clone, Debug)]
pub struct ParsedRow {
    /// The row, unless a mistake made it unusable.
    pub operation: Option<Operation>,
    /// The grant, if valid.
    pub grant: Option<Arc<str>>,
    /// The lifetime class it names, if any.
    pub class: Option<Arc<str>>,
    /// Position of the table's heading.
    pub place: TextSpan,
    /// Position of `cache`, or of the heading if it is missing.
    pub cache_place: TextSpan,
    /// Position of `look.read`, or of the heading if it is missing.
    pub look_place: TextSpan,
}

impl Catalogue {
    /// The built-in rows: the 25 operations on organizations.
    #[must_use]
    pub fn built_in() -> Self {
        let (rows, _) = toml_reader::walk(BUILT_IN, read);
        // A test ensures that the built-in rows have no mistakes.
        Self::new(rows.into_iter().filter_map(|row| row.operation).collect()).unwrap_or_default()
    }
}

/// Reads the rows of a document and reports every mistake.
pub fn read(document: &Table<'_>) -> Vec<ParsedRow> {
    document.tables("operation", "id", row)
}

fn row(table: &Table<'_>) -> ParsedRow {
    let grant = table.required("grant", GRANT);
    let cache = table.optional("cache", CLASS);
    ParsedRow {
        operation: operation(table, grant.clone(), cache.clone()),
        grant,
        class: cache.filter(|class| &**class != NEVER),
        place: table.place(),
        cache_place: table.span_at(&["cache"]),
        look_place: table.span_at(&["look", "read"]),
    }
}

fn operation(table: &Table<'_>, grant: Option<Arc<str>>, cache: Option<Arc<str>>) -> Option<Operation> {
    let id = table.required("id", ID);
    let method = table.required("method", METHOD);
    let path = table.required("path", PATH);
    let query: Vec<_> = table.table("query", |query| query.items().iter().filter_map(parameter).collect());
    let tags = table.list("tags", TAG).unwrap_or_default();
    let invalidates = table.list("invalidates", TAG);
    let retry = table.optional("retry", RETRY);
    let body = table.optional("body", BODY);
    let record = recorded::read(table, &query);
    let freshness = table.optional("freshness", FRESHNESS).unwrap_or(Freshness::Configured);
    let quota = table.optional("quota", QUOTA);
    let scoped = table.optional("scoped", FLAG).unwrap_or(false);
    let narrow = table.optional("narrow", MEMBER);
    let array = table.optional("array", MEMBER);
    let limits = table.optional("limits", MEMBER);
    let look = table.optional_table("look", effect_check::read).flatten();
    let summary = table.optional("summary", TEXT);

    let (id, method, path, grant) = (id?, method?, path?, grant?);
    check_method(table, &method, cache.as_ref(), retry, body);
    check_tags(table, &method, &path, &tags, invalidates.as_deref());
    check_organization(table, &method, &path, quota, scoped, narrow.as_ref());
    let body = body.unwrap_or(if takes_body(&method) { BodyKind::Any } else { BodyKind::None });
    if let Some(look) = &look {
        effect_check::check_row(table, look, &method, &path, body);
    }
    Some(Operation {
        cache: cache.clone().filter(|class| &**class != NEVER),
        may_cache: method == Method::GET && cache.as_deref() != Some(NEVER),
        query,
        tags: all_tags(&path, tags),
        invalidates: invalidates.map_or_else(|| default_invalidates(&method, &path), values),
        retry: retry.unwrap_or_else(|| default_retry(&method)),
        body,
        record,
        freshness,
        quota: quota.unwrap_or(if path.has_organization() { BucketKind::Organization } else { BucketKind::Account }),
        scoped,
        array: array.or_else(|| narrow.clone()),
        narrow,
        limits,
        look,
        summary: summary.map_or_else(|| id.clone(), Arc::from),
        id,
        method,
        path,
        grant,
    })
}

fn values<T>(placed: Vec<WithSpan<T>>) -> Vec<T> {
    placed.into_iter().map(|placed| placed.value).collect()
}

fn takes_body(method: &Method) -> bool {
    *method != Method::GET && *method != Method::DELETE
}

fn default_retry(method: &Method) -> RetryClass {
    match method.as_str() {
        "GET" => RetryClass::Safe,
        "POST" => RetryClass::Once,
        _ => RetryClass::Idempotent,
    }
}

/// Answers of an organization are also tagged with the organization.
fn all_tags(path: &PathTemplate, given: Vec<WithSpan<TagTemplate>>) -> Vec<TagTemplate> {
    let organization = path.has_organization().then(|| TagTemplate::parse("org:{organizationId}").ok()).flatten();
    let mut tags: Vec<_> = organization.into_iter().collect();
    for tag in values(given) {
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}

/// The default for a write: its organization and the list. Without an organization: nothing, which means everything.
fn default_invalidates(method: &Method, path: &PathTemplate) -> Vec<TagTemplate> {
    if *method == Method::GET || !path.has_organization() {
        return Vec::new();
    }
    ["org:{organizationId}", "organizations"].into_iter().filter_map(|tag| TagTemplate::parse(tag).ok()).collect()
}

fn check_method(
    table: &Table<'_>,
    method: &Method,
    cache: Option<&Arc<str>>,
    retry: Option<RetryClass>,
    body: Option<BodyKind>,
) {
    let is_read = *method == Method::GET;
    if !is_read && cache.is_some() {
        table.wrong_at(&["cache"], format!("the answer to a {method} is never cached"), "leave cache out");
    }
    if is_read && retry.is_some_and(|retry| retry != RetryClass::Safe) {
        table.wrong_at(&["retry"], "a GET is always safe to send again", "write retry = \"safe\", or leave it out");
    }
    if !is_read && retry == Some(RetryClass::Safe) {
        let help = "write \"idempotent\" if sending it twice has no further effect, otherwise \"once\"";
        table.wrong_at(&["retry"], format!("a {method} is a write, and no write is safe"), help);
    }
    if !is_read && table.has("array") {
        table.wrong_at(&["array"], format!("the answer to a {method} is never cached"), "leave array out");
    }
    if is_read && body.is_some_and(|body| body != BodyKind::None) {
        table.wrong_at(&["body"], "a GET takes no body", "write body = \"none\", or leave it out");
    }
}

fn check_tags(
    table: &Table<'_>,
    method: &Method,
    path: &PathTemplate,
    tags: &[WithSpan<TagTemplate>],
    invalidates: Option<&[WithSpan<TagTemplate>]>,
) {
    let is_read = *method == Method::GET;
    if !is_read && !tags.is_empty() {
        let help = "list the tags that it makes obsolete in invalidates";
        table.wrong_at(&["tags"], format!("the answer to a {method} is never cached"), help);
    }
    if is_read && invalidates.is_some_and(|tags| !tags.is_empty()) {
        table.wrong_at(&["invalidates"], "a GET invalidates nothing", "leave invalidates out");
    }
    if !is_read && invalidates.is_some_and(<[_]>::is_empty) {
        let help = "leave it out to invalidate the organization and the list, or list the tags that it makes obsolete";
        table.warn_at(&["invalidates"], "a write without tags invalidates everything", help);
    }
    for tag in tags.iter().filter(|tag| tag.value.needs_answer()) {
        let help = "values from the answer can be used only in invalidates";
        table.wrong(tag.place.clone(), format!("{} refers to the answer", quoted(tag.value.as_str())), help);
    }
    for tag in tags.iter().chain(invalidates.unwrap_or_default()) {
        path.lacking(&tag.value).for_each(|wrong| table.invalid(tag.place.clone(), wrong));
    }
}

fn check_organization(
    table: &Table<'_>,
    method: &Method,
    path: &PathTemplate,
    quota: Option<BucketKind>,
    scoped: bool,
    narrow: Option<&Arc<str>>,
) {
    if quota == Some(BucketKind::Organization) && !path.has_organization() {
        let help = "write quota = \"account\", or leave it out";
        table.wrong_at(&["quota"], "the path has no {organizationId}", help);
    }
    if scoped && path.has_organization() {
        let help = "leave it out: the caller's scope decides about the organization in the path";
        table.wrong_at(&["scoped"], "scoped is for paths without {organizationId}", help);
    }
    if narrow.is_some() && (*method != Method::GET || path.has_organization() || !scoped) {
        let help = "use it with scoped = true, for a GET without {organizationId} in its path";
        table.wrong_at(&["narrow"], "there is nothing to narrow here", help);
    }
}

fn parameter(item: &TableItem<'_>) -> Option<Parameter> {
    let (kind, default) = if item.is_table() {
        item.table(|table| (table.required("kind", PARAMETER), table.optional("default", DEFAULT)))
    } else {
        (item.scalar(PARAMETER), None)
    };
    let kind = kind?;
    if let Some(default) = &default
        && let Err(wrong) = check_default(kind, default)
    {
        item.invalid(wrong);
    }
    let default = match kind {
        ParameterKind::Flag | ParameterKind::Refresh => Some(default.unwrap_or_else(|| "false".to_owned())),
        ParameterKind::Set | ParameterKind::Scalar | ParameterKind::Number => default,
    };
    Some(Parameter { name: Arc::from(item.key()), kind, default: default.map(Arc::from) })
}

fn check_default(kind: ParameterKind, default: &str) -> Result<(), InvalidValue> {
    let wrong = |message: &str, help: &str| Err(InvalidValue::quoting(default, message, help));
    match kind {
        ParameterKind::Set => Err(InvalidValue::new("a set has no default", "leave default out")),
        ParameterKind::Refresh if default != "false" => {
            let message = format!("a refresh cannot have the default {}", quoted(default));
            Err(InvalidValue::new(message, "leave default out: it is \"false\""))
        }
        ParameterKind::Flag if default != "true" && default != "false" => {
            wrong("is not a flag", "write default = \"true\" or \"false\"")
        }
        ParameterKind::Number if !default.bytes().all(|b| b.is_ascii_digit()) || default.is_empty() => {
            wrong("is not a plain decimal", "write for example default = \"0\"")
        }
        ParameterKind::Scalar | ParameterKind::Number | ParameterKind::Flag | ParameterKind::Refresh => Ok(()),
    }
}

/// Marks a GET whose answers contain secrets or expiring links: no lifetime can be configured for it.
const NEVER: &str = "never";

pub(super) const ID: ValueKind<Arc<str>> = ValueKind::text("an id", "\"users.me\"", |text| {
    let is_id = text.contains('.') && text.split('.').all(is_name);
    let help = "write two or more names of a-z, 0-9 and -, separated by dots: \"users.me\"";
    is_id.then(|| Arc::from(text)).ok_or_else(|| InvalidValue::quoting(text, "is not a valid id", help))
});

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

const METHOD: ValueKind<Method> = ValueKind::text("a method", "\"GET\"", |text| match text {
    "GET" => Ok(Method::GET),
    "POST" => Ok(Method::POST),
    "PUT" => Ok(Method::PUT),
    "PATCH" => Ok(Method::PATCH),
    "DELETE" => Ok(Method::DELETE),
    "HEAD" => Err(InvalidValue::new("HEAD needs no row", "write \"GET\": HEAD is answered as its GET")),
    other => Err(unknown_word(other, "method", &["GET", "POST", "PUT", "PATCH", "DELETE"])),
});

const PATH: ValueKind<PathTemplate> = ValueKind::text("a path", "\"/api/v2/users/me\"", PathTemplate::parse);

const GRANT: ValueKind<Arc<str>> = ValueKind::text("a grant", "\"users:read\"", |text| match text.split_once(':') {
    Some((group, "read" | "write")) if is_name(group) => Ok(Arc::from(text)),
    Some(_) | None => {
        let help = "write a name of a-z, 0-9 and -, then :read or :write: \"users:read\"";
        Err(InvalidValue::quoting(text, "is not a valid grant", help))
    }
});

/// A lifetime class.
const CLASS: ValueKind<Arc<str>> = ValueKind::text("a class", "\"organizations\"", |text| {
    let wrong = || InvalidValue::quoting(text, "is not a valid class", "write a name of a-z, 0-9 and -");
    is_name(text).then(|| Arc::from(text)).ok_or_else(wrong)
});

const TAG: ValueKind<TagTemplate> = ValueKind::text("a tag", "\"org:{organizationId}/usage\"", TagTemplate::parse);

const RETRY: ValueKind<RetryClass> = ValueKind::text("a retry class", "\"once\"", |text| {
    one_of(text, "retry class", RetryClass::ALL, RetryClass::as_str)
});

const BODY: ValueKind<BodyKind> = ValueKind::text("a kind of body", "\"object\"", |text| {
    one_of(text, "kind of body", BodyKind::ALL, BodyKind::as_str)
});

const FRESHNESS: ValueKind<Freshness> = ValueKind::text("\"configured\" or \"upstream\"", "\"configured\"", |text| {
    one_of(text, "freshness", Freshness::ALL, Freshness::as_str)
});

const QUOTA: ValueKind<BucketKind> = ValueKind::text("\"organization\" or \"account\"", "\"account\"", |text| {
    one_of(text, "quota bucket", BucketKind::ALL, BucketKind::as_str)
});

const PARAMETER: ValueKind<ParameterKind> = ValueKind::text("a kind of parameter", "\"scalar\"", |text| {
    one_of(text, "kind of parameter", ParameterKind::ALL, ParameterKind::as_str)
});

/// A default may be empty.
const DEFAULT: ValueKind<String> = ValueKind::text("a string", "\"name\"", |text| Ok(text.to_owned()));

const MEMBER: ValueKind<Arc<str>> =
    ValueKind::text("the name of a member of the answer", "\"organizations\"", |text| match text {
        "" => Err(InvalidValue::new("this must not be empty", "write the member's name, such as \"organizations\"")),
        _ => Ok(Arc::from(text)),
    });
