//! Whose records a page shows: with several replicas those of all, unless `replica` names one.

use std::sync::Arc;

use maud::{Markup, html};

use super::super::query::PageQuery;
use super::super::refusal::OperatorRefusal;
use super::super::state::OperatorState;
use crate::audit::{QueryError, ReplicaBehind, replica_named};
use crate::config::ShippedRecords;
use crate::replicas::Replicas;

/// The parameter that names a replica.
pub(super) const REPLICA: &str = "replica";

/// Whose records are asked for.
#[derive(Clone, Debug)]
pub(super) enum AskedReplica {
    /// There is this one alone.
    Only,
    /// This one of several: its own log has more of it than the database, and sooner.
    Own(Arc<Replicas>),
    /// All, but none ships its records: there are this one's.
    OwnForAll(Arc<Replicas>),
    /// All, or another.
    Shared(Arc<Replicas>, Option<Arc<str>>),
}

impl AskedReplica {
    /// Reads the parameter.
    ///
    /// # Errors
    /// [`OperatorRefusal::BadParameter`]: it is no name, or there are no replicas.
    pub(super) fn of(state: &OperatorState, query: &PageQuery) -> Result<Self, OperatorRefusal> {
        let named = query.get(REPLICA).map(replica_named).transpose()?;
        let Some(replicas) = &state.gateway.replicas else {
            return match named {
                None => Ok(Self::Only),
                Some(_) => {
                    let why = "replica: the configuration has no [replicas]; leave it out".to_owned();
                    Err(OperatorRefusal::BadParameter { why })
                }
            };
        };
        let replicas = replicas.clone();
        Ok(match named {
            Some(name) if name == *replicas.name() => Self::Own(replicas),
            named => Self::Shared(replicas, named),
        })
    }

    /// The same for records: if none are shipped, those of this replica are all that can be had.
    ///
    /// # Errors
    /// As [`AskedReplica::of`].
    pub(super) fn of_records(state: &OperatorState, query: &PageQuery) -> Result<Self, OperatorRefusal> {
        Ok(match Self::of(state, query)? {
            Self::Shared(replicas, None) if replicas.config().records == ShippedRecords::None => {
                Self::OwnForAll(replicas)
            }
            asked @ (Self::Only | Self::Own(_) | Self::OwnForAll(_) | Self::Shared(..)) => asked,
        })
    }

    /// The note on a page that shows this replica's records in place of all, because none are shipped.
    pub(super) fn note(&self) -> Option<String> {
        let Self::OwnForAll(replicas) = self else { return None };
        Some(format!("These are the records of {} alone, because replicas.records is \"none\".", replicas.name()))
    }

    /// The name that this replica's own records are shown with.
    pub(super) fn own_name(&self) -> Option<Arc<str>> {
        match self {
            Self::Only => None,
            Self::Own(replicas) | Self::OwnForAll(replicas) | Self::Shared(replicas, _) => {
                Some(replicas.name().clone())
            }
        }
    }

    /// The note on a page that shows this replica's records in place of all, because the database does not answer.
    ///
    /// # Errors
    /// The error: another replica was asked for, or it has another reason.
    pub(super) fn note_on_own(&self, error: QueryError) -> Result<String, OperatorRefusal> {
        match (self, error) {
            (Self::Shared(replicas, None), QueryError::Database(why)) => {
                Ok(format!("These are the records of {} alone, because {why}.", replicas.name()))
            }
            (_, error) => Err(error.into()),
        }
    }
}

/// Above the records: how far each replica is behind, and why some are missing.
pub(super) fn remarks(behind: Option<&[ReplicaBehind]>, note: Option<&str>) -> Markup {
    let late = |behind: &[ReplicaBehind]| {
        let late = behind.iter().filter(|one| one.records > 0);
        let late: Vec<_> = late.map(|one| format!("{} by {} records", one.replica, one.records)).collect();
        if late.is_empty() {
            "No replica is behind with its records.".to_owned()
        } else {
            format!("Behind: {}.", late.join(", "))
        }
    };
    html! {
        @if let Some(note) = note { p.notice { (note) } }
        @if let Some(behind) = behind { p.quiet { (late(behind)) " What a replica recorded in the last second may still be missing." } }
    }
}
