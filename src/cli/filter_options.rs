//! The options that select records. They have the names of `/audit`'s parameters, because both are read from the same table.

use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};

use super::failure::CommandFailure;
use crate::audit::{FIELD_FILTERS, Filter};
use crate::clock::Clock;

/// Filters by name, with their values.
pub(super) type FilterPairs<'a> = Vec<(&'static str, &'a str)>;

/// A filter for each field of a record.
#[derive(Debug, Default)]
pub(super) struct FieldOptions(Vec<(&'static str, String)>);

impl FieldOptions {
    pub(super) fn pairs(&self) -> FilterPairs<'_> {
        self.0.iter().map(|(name, value)| (*name, &**value)).collect()
    }
}

/// The option as options are usually written. As the parameter is written will do, too.
const fn option(name: &'static str) -> &'static str {
    match name.as_bytes() {
        b"filled_by" => "filled-by",
        b"upstream_status" => "upstream-status",
        b"min_duration" => "min-duration",
        b"duration_us" => "duration-us",
        b"quota_wait_us" => "quota-wait-us",
        _ => name,
    }
}

impl Args for FieldOptions {
    fn augment_args(command: Command) -> Command {
        FIELD_FILTERS.iter().fold(command, |command, filter| {
            let arg = Arg::new(filter.name).long(option(filter.name)).alias(filter.name);
            command.arg(arg.value_name(filter.value).help(filter.help))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for FieldOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = |name| matches.get_one::<String>(name).cloned();
        Ok(Self(FIELD_FILTERS.iter().filter_map(|filter| Some((filter.name, given(filter.name)?))).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(super) struct TimeRange {
    /// Only records at or after this time: 2026-07-01T12:00:00Z, 2026-07-01, or how long ago (15m, 1h, 7d).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only records before this time, in the same formats.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

impl TimeRange {
    pub(super) fn pairs(&self) -> FilterPairs<'_> {
        let options = [("since", &self.since), ("until", &self.until)];
        options.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect()
    }
}

pub(super) fn filter(pairs: &FilterPairs<'_>) -> Result<Filter, CommandFailure> {
    let filter = Filter::parse(pairs.iter().copied(), Clock::system().wall());
    filter.map_err(|bad| CommandFailure::usage(format!("--{bad}")))
}
