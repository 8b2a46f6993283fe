//! What makes the log provable: signed heads over its tree.

pub(super) mod note;
