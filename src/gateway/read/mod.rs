//! Steps 8 to 12 of a read: answered from the cache, or fetched and stored.

mod answer_form;
pub(crate) mod fetch;
pub(crate) mod list_scope;
pub(crate) mod lookup;
