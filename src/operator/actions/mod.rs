//! What operators do through this door.

mod body;
mod purge;
mod reopen;
mod rotate_key;
mod settle;

pub(super) use purge::purge;
pub(super) use reopen::reopen;
pub(super) use rotate_key::rotate_key;
pub(super) use settle::{settle, settle_all};
