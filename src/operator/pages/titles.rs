//! What the codes of refusals stand for.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::gateway::refusal::Refusal;

/// What a refusal's code stands for.
pub(super) fn title_of(code: &str) -> &'static str {
    static TITLES: OnceLock<BTreeMap<&str, &str>> = OnceLock::new();
    let titles = || Refusal::samples().iter().map(Refusal::row).map(|row| (row.code, row.title)).collect();
    TITLES.get_or_init(titles).get(code).copied().unwrap_or_default()
}
