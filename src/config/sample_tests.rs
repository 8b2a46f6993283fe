//! Tests that `config/makegate.toml` is complete and states the defaults, and that no edit of it breaks the reader.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::{Config, Grants, Listen, LoadedConfig, QuotaSetting, Role, Scope, Severity, parse};
use crate::catalogue::rows;

const SAMPLE: &str = include_str!("../../config/makegate.toml");
const FILE: &str = "/etc/makegate/makegate.toml";

/// The shortest valid configuration.
const LEAST: &str =
    "[operator]\nkey_file = \"/run/secrets/operator\"\n[upstream]\ntoken_file = \"/run/secrets/make\"\n";

fn read(text: &str) -> LoadedConfig {
    parse(text, Path::new(FILE)).unwrap_or_else(|failure| panic!("{failure}"))
}

fn rows_of(config: &Config) -> Vec<crate::catalogue::Operation> {
    config.catalogue.rows().iter().map(|row| (**row).clone()).collect()
}

/// The sample with its commented-out keys and tables enabled.
fn uncommented() -> String {
    let real = |line: &str| {
        let rest = line.strip_prefix("# ")?;
        let (key, _) = rest.split_once(" = ").unwrap_or((rest, ""));
        let is_key = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'"' | b'.'));
        (rest.starts_with('[') && rest.ends_with(']') || is_key && rest.contains(" = ")).then(|| rest.to_owned())
    };
    SAMPLE.lines().map(|line| real(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn the_sample_says_the_defaults() {
    let (sample, least) = (read(SAMPLE).config, read(LEAST).config);
    assert_eq!(sample.gateway, least.gateway);
    assert_eq!(sample.operator, least.operator);
    assert_eq!(sample.metrics, least.metrics);
    assert_eq!(sample.upstream, least.upstream);
    assert_eq!(sample.cache, least.cache);
    assert_eq!(sample.audit, least.audit);
    assert_eq!(sample.limits, least.limits);
    assert_eq!((&sample.otel, &sample.replicas, &sample.process), (&least.otel, &least.replicas, &least.process));
    assert_eq!(sample.callers, least.callers);
    assert_eq!(rows_of(&sample), rows_of(&least));
}

#[test]
fn the_sample_leaves_no_key_out() {
    let defaults: Vec<_> = read(SAMPLE).origins.shown().into_iter().filter(|shown| shown.origin == "default").collect();
    assert_eq!(defaults, []);
    for section in [
        "gateway", "operator", "metrics", "upstream", "cache", "audit", "limits", "otel", "replicas", "[caller]",
        "[operation]",
    ] {
        let failure = parse(&format!("[{section}]\nzzzzzzzz = 1\n"), Path::new(FILE)).unwrap_err();
        let help = failure.mistakes.iter().find(|m| m.message.contains("zzzzzzzz")).and_then(|m| m.help.clone());
        let keys = help.unwrap().strip_prefix("valid keys: ").unwrap().to_owned();
        for key in keys.split(", ").filter(|key| !key.ends_with("_env")) {
            let (text, key) = match section {
                "[operation]" => (rows::BUILT_IN, format!("{key} ")),
                _ => (SAMPLE, format!("{key} = ")),
            };
            let written = text.contains(&format!("\n{key}")) || text.contains(&format!("\n# {key}"));
            let tables = format!("[[{section}.{}]]", key.trim_end_matches(" = "));
            let headed = text.contains(&tables)
                || text.contains(&format!("#   {key}"))
                || ["path ", "lifetime = ", "quotas = "].contains(&&*key);
            assert!(written || headed, "[{section}] {key} is not in the sample");
        }
    }
}

#[test]
fn the_sample_is_accepted_with_warnings_about_files_and_callers_alone() {
    for warning in read(SAMPLE).warnings {
        let expected =
            warning.message.ends_with(" is missing") || warning.message.starts_with("no caller is configured");
        assert!(expected, "{warning:?}");
    }
}

#[test]
fn the_samples_comments_are_configuration_too() {
    let read = read(&uncommented());
    let config = &read.config;
    assert!(read.warnings.iter().all(|warning| warning.message.ends_with(" is missing")), "{:?}", read.warnings);
    let caller = config.callers.first().unwrap();
    assert_eq!(&*caller.name, "finance-dashboard");
    assert_eq!(caller.grants, Grants::Some(vec!["organizations:read".into(), "usage:read".into()]));
    assert_eq!(caller.organizations, Scope::Only(vec![11, 12]));
    assert_eq!((caller.rate.requests, caller.burst, caller.may_refresh), (600, 60, true));
    assert_eq!(config.catalogue.row("users.me").unwrap().tags.len(), 1);
    assert_eq!(config.catalogue.row("variables.list").unwrap().cache.as_deref(), Some("variables.list"));
    assert_eq!(config.gateway.tls.as_ref().unwrap().cert, Path::new("/etc/makegate/cert.pem"));
    assert_eq!(config.upstream.quotas, BTreeMap::from([(11, QuotaSetting::PerMinute(240))]));
    assert_eq!(config.operator.names, ["makegate.internal"]);
    assert!(config.operator.tls.as_ref().unwrap().requires_client);
    let anna = config.operator.keys.first().unwrap();
    assert_eq!((&*anna.name, anna.role), ("anna", Role::Read));
    assert_eq!(config.metrics.listen, [Listen::Tcp("127.0.0.1:9464".parse().unwrap())]);
}

#[test]
fn every_setting_tells_where_it_comes_from() {
    let text =
        format!("{LEAST}\n[cache]\ncapacity = \"1GiB\"\n[[caller]]\nname = \"a\"\nkeys = []\ngrants = [\"*\"]\n");
    let shown = read(&text).origins.shown();
    let of = |key: &str| {
        let setting = shown.iter().find(|shown| shown.key == key).unwrap();
        (setting.value.clone(), setting.origin.clone())
    };
    assert_eq!(of("cache.capacity"), ("1GiB".into(), format!("{FILE}:7")));
    assert_eq!(of("cache.lifetime.usage"), ("5m".into(), "default".into()));
    assert_eq!(of("upstream.token_file"), ("/run/secrets/make".into(), format!("{FILE}:4")));
    assert_eq!(of("caller.a.burst"), ("60".into(), "default".into()));
    assert_eq!(of("caller.a.grants"), ("[\"*\"]".into(), format!("{FILE}:11")));
}

/// One edit of a text: position, number of bytes removed, inserted text.
fn change() -> impl Strategy<Value = (prop::sample::Index, usize, String)> {
    const PIECES: &[&str] = &[
        "", "\"", "'", "\"\"\"", "[", "]", "{", "}", "=", "\n", ",", "#", ".", "-1", "0", "\u{0}", "é", "[[caller]]\n",
        "true", "1979-05-27", "key = ", "\\u", "\u{202e}",
    ];
    (any::<prop::sample::Index>(), 0_usize..40, prop::sample::select(PIECES).prop_map(str::to_owned))
}

fn changed(mut text: String, changes: Vec<(prop::sample::Index, usize, String)>) -> String {
    for (at, taken, put) in changes {
        let boundaries: Vec<usize> = text.char_indices().map(|(index, _)| index).chain([text.len()]).collect();
        let start = at.index(boundaries.len());
        let end = (start + taken).min(boundaries.len() - 1);
        text.replace_range(boundaries[start]..boundaries[end], &put);
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn no_text_is_too_broken_to_be_told_so(changes in prop::collection::vec(change(), 1..6)) {
        let text = changed(uncommented(), changes);
        if let Err(failure) = parse(&text, Path::new(FILE)) {
            prop_assert!(failure.mistakes.iter().any(|mistake| mistake.severity == Severity::Error));
            prop_assert_eq!(failure.text.len(), text.len());
            prop_assert_eq!(failure.text.lines().count(), text.lines().count());
            for mistake in &failure.mistakes {
                let rendered = mistake.render(Path::new(FILE), &failure.text, false);
                prop_assert!(rendered.contains(&format!("{}:{}", mistake.line, mistake.column)), "{}", rendered);
            }
        }
    }
}
