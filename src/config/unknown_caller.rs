//! What is said of a caller that no configuration has.

use crate::toml_reader::{nearest, quoted};

/// The most names that are listed when none is near.
const NAMES_MAX: usize = 20;

/// That there is no caller of this name, and which was probably meant.
#[must_use]
pub fn unknown_caller<'n>(given: &str, known: impl IntoIterator<Item = &'n str> + Clone) -> String {
    let help = match nearest(given, known.clone()) {
        Some(near) => format!("did you mean {}?", quoted(near)),
        None => {
            let mut names: Vec<_> = known.into_iter().take(NAMES_MAX + 1).collect();
            let more = if names.len() > NAMES_MAX { ", …" } else { "" };
            names.truncate(NAMES_MAX);
            if names.is_empty() { "there is none".to_owned() } else { format!("there are {}{more}", names.join(", ")) }
        }
    };
    format!("no caller is named {} in the configuration; {help}", quoted(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered_or_all_are() {
        let known = ["dashboard", "billing"];
        let said = unknown_caller("dashbord", known);
        assert_eq!(said, r#"no caller is named "dashbord" in the configuration; did you mean "dashboard"?"#);
        assert!(unknown_caller("x", known).ends_with("; there are dashboard, billing"));
        assert!(unknown_caller("x", []).ends_with("; there is none"));
        let many: Vec<_> = (0..100).map(|n| format!("{n}{n}{n}")).collect();
        assert!(unknown_caller("tool", many.iter().map(|name| &**name)).ends_with("191919, …"));
    }
}
