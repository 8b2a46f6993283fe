//! Counts what answers from the cache saved. This runs on every hit, so each thread counts on its own page, whose
//! lock nobody else takes except briefly once a second.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::BucketId;
use crate::hash::FastHash;

/// Maximum number of lines on one page between two readings; what does not fit is not counted.
const LINES_MAX: usize = 100_000;

/// Counts by bucket and caller. A caller is identified by the address of its name.
type SavingsPage = Mutex<HashMap<(BucketId, usize), (Arc<str>, u64), FastHash>>;

thread_local! {
    /// This thread's page of each `Savings`, by the number of the latter.
    static PAGES: RefCell<Vec<(u64, Arc<SavingsPage>)>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(super) struct Savings {
    number: u64,
    pages: Mutex<Vec<Arc<SavingsPage>>>,
}

impl Savings {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed), pages: Mutex::default() }
    }

    pub(super) fn add(&self, bucket: BucketId, caller: &Arc<str>) {
        PAGES.with_borrow_mut(|pages| {
            let known = pages.iter().position(|(number, _)| *number == self.number);
            let place = known.unwrap_or_else(|| {
                pages.push((self.number, self.open_page()));
                pages.len() - 1
            });
            let Some((_, page)) = pages.get(place) else { return };
            let mut lines = page.lock().unwrap_or_else(PoisonError::into_inner);
            let line = (bucket, caller.as_ptr().addr());
            if let Some((_, count)) = lines.get_mut(&line) {
                *count += 1;
            } else if lines.len() < LINES_MAX {
                lines.insert(line, (caller.clone(), 1));
            }
        });
    }

    fn open_page(&self) -> Arc<SavingsPage> {
        let page = Arc::new(SavingsPage::default());
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).push(page.clone());
        page
    }

    /// Takes everything counted since the last reading. Drops the pages of threads that have ended.
    pub(super) fn take(&self) -> Vec<(BucketId, Arc<str>, u64)> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::new();
        pages.retain(|page| {
            let lines = std::mem::take(&mut *page.lock().unwrap_or_else(PoisonError::into_inner));
            all.extend(lines.into_iter().map(|((bucket, _), (caller, count))| (bucket, caller, count)));
            Arc::strong_count(page) > 1
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_come_together_once() {
        let savings = Savings::new();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    savings.add(BucketId::Account, &a);
                    savings.add(BucketId::Organization(11), &b);
                    savings.add(BucketId::Organization(11), &b);
                });
            }
        });
        let count = |taken: &[(BucketId, Arc<str>, u64)], name: &str| -> u64 {
            taken.iter().filter(|(_, caller, _)| **caller == *name).map(|(_, _, count)| count).sum()
        };
        let taken = savings.take();
        assert_eq!((count(&taken, "a"), count(&taken, "b")), (4, 8));
        assert!(savings.take().is_empty());
    }
}
