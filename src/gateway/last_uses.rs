//! When keys were last used before the process started: the log knows.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::admit::policy::Policy;
use super::state::Gateway;
use crate::audit::{Filter, QueryError, Record};
use crate::callers::LastUsed;
use crate::ids::KeyId;

/// How long to wait before a failed query is repeated. It takes too long only while the index is rebuilt.
const RETRY_PAUSE: Duration = Duration::from_secs(60);
/// How many failed queries to accept.
const FAILURES_MAX: u32 = 60;

/// Looks up the last use of every key that has not been used since the start. Nobody waits for it.
pub async fn recall_last_uses(gateway: Arc<Gateway>) {
    let mut failures = 0;
    for (caller, key, last_used) in unused_keys(&gateway.policy()) {
        while let Err(error) = recall(&gateway, caller.clone(), key, &last_used).await {
            failures += 1;
            if failures > FAILURES_MAX {
                tracing::warn!(%error, "the log cannot be searched for when callers' keys were last used");
                return;
            }
            gateway.clock.sleep_until(gateway.clock.now() + RETRY_PAUSE).await;
        }
    }
}

fn unused_keys(policy: &Policy) -> Vec<(Arc<str>, KeyId, LastUsed)> {
    let of_caller = policy.callers.iter().flat_map(|caller| {
        let keys = caller.config.keys.iter().map(|key| KeyId::of(&key.hash));
        keys.map(|key| (caller.config.name.clone(), key, caller.state.last_used(key)))
    });
    of_caller.filter(|(_, _, last_used)| last_used.load(Ordering::Relaxed) == 0).collect()
}

async fn recall(gateway: &Gateway, caller: Arc<str>, key: KeyId, last_used: &LastUsed) -> Result<(), QueryError> {
    // Refusals of an expired key have no caller: they are no uses.
    let filter = Filter { caller: Some(caller), key: Some(key), limit: 1, ..Filter::default() };
    let page = gateway.log.query(&"".into(), filter).await?;
    let newest = page.records.first().and_then(|line| Record::parse(line.get().as_bytes()).map(|record| record.time));
    if let Some(time) = newest {
        last_used.fetch_max(time.as_millisecond(), Ordering::Relaxed);
    }
    Ok(())
}
