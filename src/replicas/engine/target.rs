//! Where the engine is: the URL, and how its certificate is verified.

use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_tokio_postgres::MakeRustlsConnect;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::{Client, Config, NoTls};

use super::line::BoxedConnection;
use crate::http_client::cause;

/// A connection whose other side is silent for this long is given up.
const SILENT_MAX: Duration = Duration::from_secs(3);

/// Why a URL cannot be used. Says what to write, and nothing of what is secret.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidTarget(String);

/// Where the engine is, and who makegate is there.
#[derive(Clone)]
pub struct EngineTarget {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    address: Arc<str>,
}

impl fmt::Debug for EngineTarget {
    /// Hides the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EngineTarget").field(&self.address).finish()
    }
}

impl EngineTarget {
    /// Reads a `postgresql://` URL. `roots` are the authorities that its certificate is verified with; `replica` is who connects.
    ///
    /// # Errors
    /// It is not such a URL, or asks for what makegate does not do.
    pub fn parse(url: &SecretString, roots: Option<RootCertStore>, replica: &str) -> Result<Self, InvalidTarget> {
        const FORM: &str = "write postgresql://USER:PASSWORD@HOST1,HOST2/DATABASE";
        let wrong = |why: &str| InvalidTarget(format!("{why}: {FORM}"));
        let url = url.expose_secret();
        if !["postgresql://", "postgres://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(wrong("the URL does not begin with postgresql://"));
        }
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut kept) = (None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => mode = Some(value),
                Some(("sslrootcert", _)) => {
                    return Err(InvalidTarget("sslrootcert belongs in replicas.ca_file".to_owned()));
                }
                _ => kept.push(pair),
            }
        }
        let mut config = Config::from_str(&format!("{base}?{}", kept.join("&")))
            .map_err(|error| wrong(&format!("the URL cannot be used ({})", cause(&error))))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(wrong("the URL names no host"));
        }
        if config.get_dbname().is_none() {
            return Err(wrong("the URL names no database"));
        }
        let is_near = config.get_hostaddrs().is_empty() && config.get_hosts().iter().all(is_near);
        // The certificate is verified whatever the mode: one that is not verified protects from nobody.
        let uses_tls = match mode {
            Some("disable") => false,
            Some("require" | "verify-ca" | "verify-full") => true,
            None | Some("prefer") => !is_near,
            Some(other) => {
                return Err(InvalidTarget(format!(
                    "sslmode={other} is not supported: write sslmode=verify-full, or sslmode=disable"
                )));
            }
        };
        config
            .ssl_mode(if uses_tls { SslMode::Require } else { SslMode::Disable })
            .application_name(format!("makegate {replica}"))
            .connect_timeout(SILENT_MAX)
            .tcp_user_timeout(SILENT_MAX)
            .keepalives_idle(SILENT_MAX)
            .keepalives_interval(Duration::from_secs(1))
            .keepalives_retries(3)
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        let tls = if uses_tls { Some(tls(roots)?) } else { None };
        Ok(Self { address: address(&config).into(), config, tls })
    }

    /// Hosts, ports and database.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Connects to the first host that can be written to.
    pub(super) async fn connect_any(&self) -> Result<(Client, BoxedConnection), String> {
        let told = |error: tokio_postgres::Error| cause(&error);
        match &self.tls {
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await.map_err(told)?;
                Ok((client, Box::new(connection)))
            }
            None => {
                let (client, connection) = self.config.connect(NoTls).await.map_err(told)?;
                Ok((client, Box::new(connection)))
            }
        }
    }
}

/// Whether nobody can read or change what is sent to this host.
fn is_near(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        Host::Unix(_) => true,
    }
}

fn address(config: &Config) -> String {
    let names = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    });
    let mut ports = config.get_ports().iter().copied();
    let first = ports.next().unwrap_or(5432);
    let ports = std::iter::once(first).chain(ports.chain(std::iter::repeat(first)));
    let hosts: Vec<_> = names.zip(ports).map(|(name, port)| format!("{name}:{port}")).collect();
    format!("{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default())
}

fn tls(roots: Option<RootCertStore>) -> Result<MakeRustlsConnect, InvalidTarget> {
    let roots = roots.or_else(crate::http_client::system_authorities);
    let roots = roots
        .ok_or_else(|| InvalidTarget("this machine has no certificate authorities: set replicas.ca_file".to_owned()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.map_err(|error| InvalidTarget(error.to_string()))?;
    Ok(MakeRustlsConnect::new(tls.with_root_certificates(roots).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<EngineTarget, String> {
        EngineTarget::parse(&SecretString::from(url), Some(RootCertStore::empty()), "a").map_err(|why| why.to_string())
    }

    #[test]
    fn a_url_says_where_the_engine_is_and_its_secret_is_not_shown() {
        let shown = target("postgresql://me:geheim@db1:6432,db2/makegate?sslmode=verify-full").unwrap();
        assert_eq!(shown.address(), "db1:6432,db2:5432/makegate");
        assert!(shown.tls.is_some() && !format!("{shown:?}").contains("geheim"));
        assert!(target("postgresql://me@db1/makegate").unwrap().tls.is_some(), "TLS unless it is switched off");
        assert!(target("postgresql://me@127.0.0.1/makegate").unwrap().tls.is_none());
        assert!(target("postgresql://me@db1/makegate?sslmode=disable").unwrap().tls.is_none());
        for (url, why) in [
            ("mysql://a/b", "does not begin with postgresql://"),
            ("postgresql://db1", "names no database"),
            ("postgresql:///x", "names no host"),
            ("postgresql://db1/x?sslmode=allow", "sslmode=allow is not supported"),
            ("postgresql://db1/x?sslrootcert=ca.pem", "replicas.ca_file"),
            ("postgresql://db1/x?zzz=1", "cannot be used"),
        ] {
            let told = target(url).unwrap_err();
            assert!(told.contains(why), "{url}: {told}");
        }
    }
}
