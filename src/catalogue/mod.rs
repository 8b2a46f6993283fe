//! The catalogue: every operation that the gateway knows, as data. Routing, policy, cache, retry, `OpenAPI` and explain
//! are all read from its rows; what is in no row is refused.

mod effect_check;
pub mod openapi;
mod route;
pub mod rows;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use http::Method;

pub use effect_check::{EffectCheck, Proves};
pub use route::{MatchedOperation, NoMatch};
pub use template::{PathSegment, PathTemplate, TagPart, TagTemplate};

/// How a query parameter counts towards the cache key (`docs/decisions/cache-keys.md`). A parameter in no row bypasses the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// May be given several times; order and repetition do not matter (`cols[]`).
    Set,
    /// One value, any text.
    Scalar,
    /// One value, a plain decimal.
    Number,
    /// One value, `true` or `false`; `false` is the default unless the row says otherwise.
    Flag,
    /// One value, `true` or `false`; `true` asks the upstream to be up to date and is never answered from memory (`wait`).
    Refresh,
}

/// One query parameter that the key knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name, decoded (`cols[]`).
    pub name: Arc<str>,
    /// How it counts.
    pub kind: ParameterKind,
    /// The value that is the same as leaving it out, if the upstream documents one.
    pub default: Option<Arc<str>>,
}

/// May a write be sent again after an attempt whose effect is unknown? (`docs/decisions/retries.md`)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RetryClass {
    /// A read: may always be sent again.
    Safe,
    /// A write whose repetition changes nothing (absolute values, deletions).
    Idempotent,
    /// Sent again only when provably not processed.
    Once,
}

/// What body an operation takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// None; one that is sent all the same is refused unless empty.
    None,
    /// A JSON object.
    Object,
    /// Anything, or nothing.
    Any,
}

/// Who decides how long an answer is fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// The class's lifetime alone.
    Configured,
    /// The smaller of the class's lifetime and what the upstream's headers say; silence: not stored.
    Upstream,
}

/// Whose quota an attempt is counted against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketKind {
    /// That of the organization in the path.
    Organization,
    /// The account's: operations without an organization.
    Account,
}

/// One row: method and path template, and everything that the gateway knows of the operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its name in grants, records, metrics (`organizations.get`).
    pub id: Arc<str>,
    /// Its method. HEAD is answered as the GET.
    pub method: Method,
    /// Its path (`/api/v2/organizations/{organizationId}`).
    pub path: PathTemplate,
    /// The grant that a caller needs (`organizations:read`).
    pub grant: Arc<str>,
    /// The lifetime class of its answers; `None`: not stored.
    pub cache: Option<Arc<str>>,
    /// Can `[cache.lifetime]` give it a lifetime of its own? (Not writes, nor answers with secrets or links that expire.)
    pub may_cache: bool,
    /// The query parameters that the key knows.
    pub query: Vec<Parameter>,
    /// What its stored answers can be invalidated by.
    pub tags: Vec<TagTemplate>,
    /// What its success (or doubt) invalidates. Empty for a write: everything.
    pub invalidates: Vec<TagTemplate>,
    /// May it be sent again?
    pub retry: RetryClass,
    /// The body that it takes.
    pub body: BodyKind,
    /// The query parameters and body fields that the log may hold.
    pub record: Vec<Arc<str>>,
    /// Who decides how long an answer is fresh.
    pub freshness: Freshness,
    /// Whose quota it spends.
    pub quota: BucketKind,
    /// Without an organization in its path: open to callers that are scoped to some organizations all the same?
    pub scoped: bool,
    /// The array of organizations in its answer that a scoped caller sees narrowed (`organizations`).
    pub narrow: Option<Arc<str>>,
    /// The member of its answer (an organization, or an array of them) whose `license.apiLimit` teaches the quota.
    pub limits: Option<Arc<str>>,
    /// Of a write: where a look tells whether it took effect.
    pub look: Option<EffectCheck>,
    /// One sentence for people: the docs table and the `OpenAPI` document.
    pub summary: Arc<str>,
}

impl Operation {
    /// Does it change something upstream? (Everything but GET.)
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.method != Method::GET
    }

    /// Can a read prove its effect by the fields that its body asked for?
    #[must_use]
    pub fn is_proved_by_fields(&self) -> bool {
        self.look.as_ref().is_some_and(|look| look.proves == Proves::Fields)
    }

    /// Does its path name an organization?
    #[must_use]
    pub fn has_organization(&self) -> bool {
        self.path.has_organization()
    }
}

/// All rows, and the router made from them. Immutable; a reload makes a new one.
#[derive(Debug, Default)]
pub struct Catalogue {
    rows: Vec<Arc<Operation>>,
    router: route::Router,
}

impl Catalogue {
    /// The catalogue of these rows (in their order).
    ///
    /// # Errors
    /// Rows that contradict each other: one sentence a contradiction, with the index of the row that is to blame.
    pub fn new(rows: Vec<Operation>) -> Result<Self, Vec<(usize, String)>> {
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

    /// Every grant that some row asks for, sorted.
    #[must_use]
    pub fn grants(&self) -> BTreeSet<Arc<str>> {
        self.rows.iter().map(|row| row.grant.clone()).collect()
    }

    /// Which operation is `method` on this canonical, decoded path? (step 4: classify)
    ///
    /// # Errors
    /// [`NoMatch`]: no row has this path, or none with this method.
    pub fn classify<'p>(&self, method: &Method, path: &'p str) -> Result<MatchedOperation<'_, 'p>, NoMatch> {
        self.router.classify(&self.rows, method, path)
    }
}
