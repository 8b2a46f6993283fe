//! What is sent where: `[otel]` first, then OpenTelemetry's standard variables. A mistake in the file is an error; one in a variable, which a
//! platform may have set for all its programs, is a warning, and the variable counts as unset.

use std::fmt::{self, Display};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Uri, header};
use http_body_util::Full;
use percent_encoding::percent_decode_str;
use rustls::RootCertStore;
use secrecy::ExposeSecret as _;

use super::Sampler;
use crate::config::secret::secret_in;
use crate::config::{OtelConfig, OtlpEndpoint, SampledShare};
use crate::http_client::{self, HttpClient, http_client};
use crate::watched_files::Snapshot;

/// Headers that say how a request is framed or what it is, which makegate says itself.
const OWN_HEADERS: [HeaderName; 5] =
    [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::HOST];

/// Most attributes that the environment may add to the resource, and the size limit of each value.
const ATTRIBUTES_MAX: usize = 64;
const ATTRIBUTE_BYTES_MAX: usize = 1024;

/// Why telemetry cannot be sent as the configuration says.
#[derive(Debug, thiserror::Error)]
#[error("otel: {0}")]
pub struct OtelError(String);

impl OtelError {
    fn new(why: impl Display) -> Self {
        Self(why.to_string())
    }
}

/// What is sent where. None of it is shown: it contains secrets.
pub struct OtelSettings {
    /// Where traces go, if anywhere.
    pub(super) traces: Option<Uri>,
    /// Where metrics go, if anywhere.
    pub(super) metrics: Option<Uri>,
    /// What proves who makegate is.
    pub(super) headers: HeaderMap,
    pub(super) client: HttpClient<Full<Bytes>>,
    pub(super) sampler: Sampler,
    /// What describes makegate as the source of telemetry, apart from its version.
    pub(super) resource: Vec<(String, String)>,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    pub(super) queue: usize,
}

impl fmt::Debug for OtelSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtelSettings")
            .field("traces", &self.traces)
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}

/// The settings, or `None` if nothing is to be sent, and what is wrong with the environment.
#[derive(Debug, Default)]
pub struct ReadSettings {
    /// The settings.
    pub settings: Option<OtelSettings>,
    /// Variables that count as unset, and why.
    pub warnings: Vec<String>,
}

impl OtelSettings {
    /// Reads what the configuration says, and the environment where it says nothing.
    ///
    /// # Errors
    /// What the configuration says cannot be done.
    pub fn read(config: &OtelConfig, files: &Snapshot) -> Result<ReadSettings, OtelError> {
        Self::read_with(config, files, |name| std::env::var(name).ok())
    }

    fn read_with(
        config: &OtelConfig,
        files: &Snapshot,
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> Result<ReadSettings, OtelError> {
        let mut environment = Environment { variable, warnings: Vec::new() };
        let settings = environment.settings(config, files)?;
        Ok(ReadSettings { settings, warnings: environment.warnings })
    }
}

struct Environment<V> {
    variable: V,
    warnings: Vec<String>,
}

impl<V: Fn(&'static str) -> Option<String>> Environment<V> {
    fn settings(&mut self, config: &OtelConfig, files: &Snapshot) -> Result<Option<OtelSettings>, OtelError> {
        if self.read("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let common = config.endpoint.clone().or_else(|| self.common_endpoint());
        let traces = config.traces.then(|| self.signal("traces", TRACES, config, common.as_ref())).flatten();
        let metrics = config.metrics.then(|| self.signal("metrics", METRICS, config, common.as_ref())).flatten();
        if traces.is_none() && metrics.is_none() {
            return Ok(None);
        }
        let is_tls = [&traces, &metrics].into_iter().flatten().any(|url| url.scheme_str() == Some("https"));
        let client = http_client(authorities(config, files, is_tls)?).map_err(OtelError::new)?;
        let headers = self.headers(config, files)?;
        let (sampler, resource) = (self.sampler(config), self.resource(config));
        let &OtelConfig { interval, timeout, queue, .. } = config;
        Ok(Some(OtelSettings { traces, metrics, headers, client, sampler, resource, interval, timeout, queue }))
    }

    /// A variable; one that is empty counts as unset.
    fn read(&self, name: &'static str) -> Option<String> {
        (self.variable)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn warn(&mut self, name: &str, why: impl Display) {
        self.warnings.push(format!("{name} is ignored: {why}"));
    }

    fn common_endpoint(&mut self) -> Option<OtlpEndpoint> {
        let (name, protocol) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL");
        let endpoint = self.read(name)?;
        if let Some(other) = self.read(protocol).filter(|protocol| protocol != "http/protobuf") {
            let shown: String = other.chars().take(32).collect();
            self.warn(name, format_args!("{protocol} is {shown:?}, and makegate speaks http/protobuf alone"));
            return None;
        }
        OtlpEndpoint::parse(&endpoint).map_err(|why| self.warn(name, why)).ok()
    }

    /// Where one signal goes, if anywhere.
    fn signal(
        &mut self,
        signal: &str,
        [exporter, endpoint]: [&'static str; 2],
        config: &OtelConfig,
        common: Option<&OtlpEndpoint>,
    ) -> Option<Uri> {
        if config.endpoint.is_none() {
            match self.read(exporter).as_deref() {
                Some("none") => return None,
                None | Some("otlp") => {}
                Some(_) => self.warn(exporter, "makegate has otlp and none"),
            }
            if let Some(own) = self.read(endpoint) {
                let url = own.parse::<Uri>().ok().filter(|_| !own.contains(['@', '?', '#']));
                match url.filter(|url| matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some()) {
                    Some(url) => return Some(url),
                    None => self.warn(endpoint, "it is not a URL of a receiver"),
                }
            }
        }
        common.and_then(|common| common.of_signal(signal).ok())
    }

    fn headers(&mut self, config: &OtelConfig, files: &Snapshot) -> Result<HeaderMap, OtelError> {
        if let Some(source) = &config.headers {
            let text = secret_in(files, source).map_err(OtelError::new)?;
            return headers(text.expose_secret()).map_err(|why| OtelError(format!("{source}: {why}")));
        }
        let name = "OTEL_EXPORTER_OTLP_HEADERS";
        let Some(text) = self.read(name) else { return Ok(HeaderMap::new()) };
        Ok(headers(&text).map_err(|why| self.warn(name, why)).unwrap_or_default())
    }

    fn sampler(&mut self, config: &OtelConfig) -> Sampler {
        if let Some(share) = config.sample {
            return Sampler { share, follows_parent: true };
        }
        let all = Sampler { share: SampledShare::ALL, follows_parent: true };
        let (name, argument) = ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG");
        let Some(sampler) = self.read(name) else { return all };
        let (kind, follows_parent) = match sampler.strip_prefix("parentbased_") {
            Some(kind) => (kind, true),
            None => (&*sampler, false),
        };
        let share = match kind {
            "always_on" => SampledShare::ALL,
            "always_off" => SampledShare::NONE,
            "traceidratio" => match self.read(argument).map(|ratio| ratio.parse().ok()) {
                None => SampledShare::ALL,
                Some(ratio) => ratio.and_then(SampledShare::of_fraction).unwrap_or_else(|| {
                    self.warn(argument, "it is not a number from 0 to 1");
                    SampledShare::ALL
                }),
            },
            _ => {
                self.warn(name, "makegate does not have this sampler");
                return all;
            }
        };
        Sampler { share, follows_parent }
    }

    /// The attributes of the resource: those of the environment, and the service's name.
    fn resource(&mut self, config: &OtelConfig) -> Vec<(String, String)> {
        let name = "OTEL_RESOURCE_ATTRIBUTES";
        let listed = self.read(name).map(|text| members(&text)).transpose();
        let mut resource = listed.map_err(|why| self.warn(name, why)).ok().flatten().unwrap_or_default();
        if resource.len() > ATTRIBUTES_MAX || resource.iter().any(|(_, value)| value.len() > ATTRIBUTE_BYTES_MAX) {
            self.warn(name, format_args!("it has more than {ATTRIBUTES_MAX} attributes, or one that is too long"));
            resource.clear();
        }
        let service = config.service.as_deref().map(str::to_owned).or_else(|| self.read("OTEL_SERVICE_NAME"));
        let has_one = resource.iter().any(|(key, _)| key == "service.name");
        if let Some(service) = service.or_else(|| (!has_one).then(|| "makegate".to_owned())) {
            resource.retain(|(key, _)| key != "service.name");
            resource.push(("service.name".to_owned(), service));
        }
        resource
    }
}

/// The variables of one signal: what exports it, and where to.
const TRACES: [&str; 2] = ["OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
const METRICS: [&str; 2] = ["OTEL_METRICS_EXPORTER", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"];

fn authorities(config: &OtelConfig, files: &Snapshot, is_tls: bool) -> Result<RootCertStore, OtelError> {
    match &config.ca_file {
        Some(path) => http_client::authorities(path, files).map_err(|why| OtelError(format!("ca_file {why}"))),
        None if is_tls => http_client::system_authorities().ok_or_else(|| {
            let why = "the system has no certificate authorities to verify the receiver with; install the package ca-certificates, \
                       or set ca_file to a PEM file";
            OtelError::new(why)
        }),
        None => Ok(RootCertStore::empty()),
    }
}

/// Reads `NAME=VALUE,NAME=VALUE`, with values percent-encoded. The reason why it cannot has no part of a value.
fn members(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let listed = text.split(',').map(str::trim).filter(|member| !member.is_empty());
    let member = |member: &str| {
        let (name, value) = member.split_once('=').ok_or("it is not a list of NAME=VALUE, separated by commas")?;
        let value = percent_decode_str(value.trim()).decode_utf8().map_err(|_| "a value in it is not UTF-8")?;
        Ok((name.trim().to_owned(), value.into_owned()))
    };
    listed.map(member).collect()
}

fn headers(text: &str) -> Result<HeaderMap, &'static str> {
    let mut headers = HeaderMap::new();
    for (name, value) in members(text)? {
        let name: HeaderName = name.parse().map_err(|_| "a name in it is not that of a header")?;
        if OWN_HEADERS.contains(&name) {
            return Err("it has a header that makegate sets itself");
        }
        let mut value = HeaderValue::try_from(value).map_err(|_| "a value in it cannot be that of a header")?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    fn read(otel: &str, variables: &[(&str, &str)]) -> ReadSettings {
        let text = format!("operator.key_env = \"K\"\nupstream.token_env = \"T\"\n[otel]\n{otel}");
        let config = config::parse(&text, Path::new("m.toml")).unwrap().config.otel;
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        OtelSettings::read_with(&config, &Snapshot::new(), variable).unwrap()
    }

    fn good(otel: &str, variables: &[(&str, &str)]) -> OtelSettings {
        let ReadSettings { settings, warnings } = read(otel, variables);
        assert_eq!(warnings, [""; 0]);
        settings.unwrap()
    }

    fn urls(settings: &OtelSettings) -> [String; 2] {
        [&settings.traces, &settings.metrics].map(|url| url.as_ref().map(ToString::to_string).unwrap_or_default())
    }

    fn service(settings: &OtelSettings) -> &str {
        settings.resource.iter().find(|(key, _)| key == "service.name").map_or("", |(_, name)| name)
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");

    #[test]
    fn nothing_is_sent_unless_somebody_says_where() {
        assert!(read("", &[]).settings.is_none());
        assert!(read("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).settings.is_none());
        assert!(read("endpoint = \"http://127.0.0.1:1\"", &[("OTEL_SDK_DISABLED", "TRUE")]).settings.is_none());
        assert!(read("traces = false\nmetrics = false", &[ENDPOINT]).settings.is_none());
        let from_variable = good("", &[ENDPOINT]);
        assert_eq!(urls(&from_variable), ["http://collector:4318/v1/traces", "http://collector:4318/v1/metrics"]);
        let from_file = good("endpoint = \"http://127.0.0.1:1/x\"", &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]);
        assert_eq!(urls(&from_file), ["http://127.0.0.1:1/x/v1/traces", "http://127.0.0.1:1/x/v1/metrics"]);
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:1/own");
        assert_eq!(urls(&good("", &[own])), ["http://t:1/own", ""]);
        let off = ("OTEL_METRICS_EXPORTER", "none");
        assert_eq!(urls(&good("", &[ENDPOINT, off])), ["http://collector:4318/v1/traces", ""]);
    }

    #[test]
    fn a_wrong_variable_is_told_and_counts_as_unset() {
        let told = |variables: &[(&str, &str)]| read("", variables).warnings.join("\n");
        assert!(
            told(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector")]).starts_with("OTEL_EXPORTER_OTLP_ENDPOINT is ignored")
        );
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        assert!(told(&[ENDPOINT, grpc]).contains("http/protobuf alone"));
        assert!(read("", &[ENDPOINT, grpc]).settings.is_none());
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_HEADERS", "s3cret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=s3cret%0a"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "content-length=1"),
            ("OTEL_RESOURCE_ATTRIBUTES", "s3cret"),
            ("OTEL_TRACES_SAMPLER", "s3cret"),
        ] {
            let told = told(&[ENDPOINT, (name, value)]);
            assert!(told.starts_with(name) && !told.contains("s3cret"), "{told}");
            assert!(read("", &[ENDPOINT, (name, value)]).settings.is_some());
        }
    }

    #[test]
    fn samplers_have_their_standard_names() {
        let sampler = |name: &str, argument: &str| {
            good("", &[ENDPOINT, ("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)]).sampler
        };
        let half = SampledShare::of_fraction(0.5).unwrap();
        let of = |share, follows_parent| Sampler { share, follows_parent };
        assert_eq!(sampler("", ""), of(SampledShare::ALL, true));
        assert_eq!(sampler("always_on", ""), of(SampledShare::ALL, false));
        assert_eq!(sampler("always_off", ""), of(SampledShare::NONE, false));
        assert_eq!(sampler("traceidratio", "0.5"), of(half, false));
        assert_eq!(sampler("parentbased_traceidratio", "0.5"), of(half, true));
        assert_eq!(sampler("parentbased_always_off", ""), of(SampledShare::NONE, true));
        let of_file = good("sample = \"50%\"", &[ENDPOINT, ("OTEL_TRACES_SAMPLER", "always_off")]);
        assert_eq!(of_file.sampler, of(half, true));
        assert_eq!(
            read("", &[ENDPOINT, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")])
                .warnings
                .len(),
            1
        );
    }

    #[test]
    fn the_service_has_a_name_whoever_gives_it() {
        let listed = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a%20b, deployment.environment.name=prod");
        assert_eq!(service(&good("", &[ENDPOINT])), "makegate");
        assert_eq!(service(&good("", &[ENDPOINT, listed])), "a b");
        assert_eq!(service(&good("", &[ENDPOINT, listed, ("OTEL_SERVICE_NAME", "c")])), "c");
        let of_file = good("service = \"d\"", &[ENDPOINT, listed, ("OTEL_SERVICE_NAME", "c")]);
        assert_eq!(service(&of_file), "d");
        assert!(of_file.resource.contains(&("deployment.environment.name".to_owned(), "prod".to_owned())));
    }

    #[test]
    fn headers_are_decoded_and_hidden() {
        let settings =
            good("", &[ENDPOINT, ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20s3cret,x-tenant=7")]);
        assert_eq!(settings.headers.get("authorization").unwrap(), "Bearer s3cret");
        assert_eq!(settings.headers.get("x-tenant").unwrap(), "7");
        assert!(!format!("{settings:?} {:?}", settings.headers).contains("s3cret"));
    }
}
