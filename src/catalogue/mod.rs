//! The catalogue: every operation that the gateway knows, as data. Routing, policy, cache, retries, `OpenAPI` and
//! explain all read its rows; an operation without a row is refused.

mod effect_check;
pub mod openapi;
mod recorded;
mod route;
pub mod rows;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use http::Method;

use crate::vocabulary::word_enum;

pub use effect_check::{EffectCheck, Proves};
pub use recorded::{RecordedField, RecordedKind};
pub use route::{MatchedOperation, NoMatch, RowConflict};
pub use template::{PathSegment, PathTemplate, TagPart, TagTemplate};

word_enum! {
    /// How a query parameter affects the cache key (`docs/decisions/cache-keys.md`). A parameter that is in no row bypasses
    /// the cache.
    ParameterKind {
        /// May appear several times; order and repetition do not matter (`cols[]`).
        Set = "set",
        /// One value: any text.
        Scalar = "scalar",
        /// One value: a plain decimal.
        Number = "number",
        /// One value: `true` or `false`; the default is `false` unless the row says otherwise.
        Flag = "flag",
        /// One value: `true` or `false`; `true` asks the upstream to be up to date and is never answered from the cache
        /// (`wait`).
        Refresh = "refresh",
    }
}

/// A query parameter that is part of the cache key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Decoded name (`cols[]`).
    pub name: Arc<str>,
    /// How it affects the cache key.
    pub kind: ParameterKind,
    /// The value that means the same as leaving it out, if the upstream documents one.
    pub default: Option<Arc<str>>,
}

word_enum! {
    /// Whether a request may be retried after an attempt whose effect is unknown (`docs/decisions/retries.md`).
    RetryClass {
        /// A read: may always be retried.
        Safe = "safe",
        /// A write whose repetition changes nothing (absolute values, deletions).
        Idempotent = "idempotent",
        /// Retried only if provably not processed.
        Once = "once",
    }
}

word_enum! {
    /// The body that an operation takes.
    BodyKind {
        /// No body; a body that is not empty is refused.
        None = "none",
        /// A JSON object.
        Object = "object",
        /// Any body, or none.
        Any = "any",
    }
}

word_enum! {
    /// Who decides how long an answer is fresh.
    Freshness {
        /// Only the lifetime of the class.
        Configured = "configured",
        /// The smaller of the class's lifetime and what the upstream's headers allow; without such headers the answer is
        /// not cached.
        Upstream = "upstream",
    }
}

word_enum! {
    /// Whose quota an attempt is counted against.
    BucketKind {
        /// The quota of the organization in the path.
        Organization = "organization",
        /// The account's quota, for operations without an organization.
        Account = "account",
    }
}

/// One row: a method, a path template and everything the gateway knows about the operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Name in records, metrics and messages (`organizations.get`).
    pub id: Arc<str>,
    /// Method. HEAD is answered as GET.
    pub method: Method,
    /// Path (`/api/v2/organizations/{organizationId}`).
    pub path: PathTemplate,
    /// The grant that a caller needs (`organizations:read`).
    pub grant: Arc<str>,
    /// Lifetime class of its answers; `None`: not cached.
    pub cache: Option<Arc<str>>,
    /// Whether `[cache.lifetime]` can give it its own lifetime. Not so for writes, or for answers with secrets or
    /// expiring links.
    pub may_cache: bool,
    /// Query parameters that are part of the cache key.
    pub query: Vec<Parameter>,
    /// Tags that invalidate its cached answers.
    pub tags: Vec<TagTemplate>,
    /// Tags that its success (or doubt) invalidates. Empty for a write: everything.
    pub invalidates: Vec<TagTemplate>,
    /// Retry class.
    pub retry: RetryClass,
    /// The body it takes.
    pub body: BodyKind,
    /// Query parameters and body fields that the log may contain.
    pub record: Vec<RecordedField>,
    /// Who decides how long an answer is fresh.
    pub freshness: Freshness,
    /// The quota it spends.
    pub quota: BucketKind,
    /// For a path without an organization: whether callers scoped to some organizations may use it.
    pub scoped: bool,
    /// The array of organizations in its answer that is filtered for scoped callers (`organizations`).
    pub narrow: Option<Arc<str>>,
    /// The array that every 200 of it has. An answer without it is passed on but not cached.
    pub array: Option<Arc<str>>,
    /// The member of its answer (an organization or an array of them) whose `license.apiLimit` tells the quota.
    pub limits: Option<Arc<str>>,
    /// For a write: how to look up whether it took effect.
    pub look: Option<EffectCheck>,
    /// One sentence for the docs table and the `OpenAPI` document.
    pub summary: Arc<str>,
}

impl Operation {
    /// Whether it changes something upstream (every method but GET).
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.method != Method::GET
    }

    /// Whether a read can prove its effect by the fields that its body set.
    #[must_use]
    pub fn is_proved_by_fields(&self) -> bool {
        self.look.as_ref().is_some_and(|look| look.proves == Proves::Fields)
    }

    /// What the log may contain of this query parameter or body field, if it may contain any of it.
    #[must_use]
    pub fn recorded_kind(&self, name: &str) -> Option<RecordedKind> {
        self.record.iter().find(|field| *field.name == *name).map(|field| field.kind)
    }

    /// Whether its path contains an organization.
    #[must_use]
    pub fn has_organization(&self) -> bool {
        self.path.has_organization()
    }
}

/// All rows, and the router built from them. Immutable; a reload builds a new one.
#[derive(Debug, Default)]
pub struct Catalogue {
    rows: Vec<Arc<Operation>>,
    router: route::Router,
}

impl Catalogue {
    /// Builds the catalogue from these rows, in order.
    ///
    /// # Errors
    /// Each row that conflicts with an earlier one, by its index.
    pub fn new(rows: Vec<Operation>) -> Result<Self, Vec<(usize, RowConflict)>> {
        let rows: Vec<_> = rows.into_iter().map(Arc::new).collect();
        let router = route::Router::new(&rows)?;
        Ok(Self { rows, router })
    }

    /// All rows.
    #[must_use]
    pub fn rows(&self) -> &[Arc<Operation>] {
        &self.rows
    }

    /// The row with this id.
    #[must_use]
    pub fn row(&self, id: &str) -> Option<&Arc<Operation>> {
        self.rows.iter().find(|row| &*row.id == id)
    }

    /// Every grant that some row requires, sorted.
    #[must_use]
    pub fn grants(&self) -> BTreeSet<Arc<str>> {
        self.rows.iter().map(|row| row.grant.clone()).collect()
    }

    /// Finds the operation for `method` on this canonical, decoded path (step 4: classify).
    ///
    /// # Errors
    /// [`NoMatch`] if no row has this path, or none with this method.
    pub fn classify<'p>(&self, method: &Method, path: &'p str) -> Result<MatchedOperation<'_, 'p>, NoMatch> {
        self.router.classify(&self.rows, method, path)
    }
}
