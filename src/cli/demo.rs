//! `makegate demo`: runs the sandbox, the gateway and the operator door in one process, with sample callers.

#![expect(clippy::disallowed_methods, reason = "a command may block on its files")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::cert;
use super::demo_text;
use super::failure::CommandFailure;
use super::key;
use super::output::ServiceOutput;
use super::process::{self, ColorChoice, Signals};
use super::serve;
use crate::clock::Clock;
use crate::config::{self, LoadedConfig};
use crate::sandbox::{Sandbox, SandboxSettings};
use crate::service::Service;

/// Runs everything in one process, to try it out.
///
/// Starts a simulated Make, the gateway and the operator door, with three callers and their keys, and prints commands
/// to try. Needs no configuration; its data lives in a temporary folder that is deleted when the demo ends (Ctrl-C).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate demo
  makegate demo --port 9080
  makegate demo --tls
  makegate demo --json --port 0 | jq .callers")]
pub(super) struct DemoCommand {
    /// Print only one line of JSON, with the addresses, the operator key, and the callers with their keys.
    #[arg(long)]
    json: bool,
    /// First of three consecutive ports: gateway, operator door, simulated Make. 0: any free ports.
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Serve callers over TLS, with a certificate made for the occasion (see `makegate cert new`).
    #[arg(long)]
    tls: bool,
}

#[derive(Serialize)]
pub(super) struct DemoCaller {
    pub(super) name: &'static str,
    pub(super) key: String,
    grants: &'static [&'static str],
    organizations: Option<&'static [u64]>,
    #[serde(skip)]
    rate: &'static str,
    #[serde(skip)]
    burst: u32,
}

impl DemoCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        process::disable_core_dumps()?;
        process::log("warn", color)?;
        let ports = ports(self.port)?;
        process::serve(self.serve(ports))
    }

    async fn serve(&self, ports: [u16; 3]) -> Result<(), CommandFailure> {
        let mut signals = Signals::listen()?;
        let callers = callers()?;
        let operator_key = key::generate()?;
        let private = fs::Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new().prefix("makegate-demo-").permissions(private).tempdir();
        let folder =
            folder.map_err(|error| CommandFailure::failed(format!("cannot create a temporary folder: {error}")))?;
        let [gateway, operator, make] = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let settings = SandboxSettings::default();
        let token = settings.token.clone();
        let sandbox = Sandbox::start(make, settings, Clock::system()).await.map_err(CommandFailure::failed)?;
        let doors = [gateway, operator, sandbox.address()];
        let tls = self.tls.then(|| folder.path().join("tls"));
        tls.as_deref().map_or(Ok(()), |dir| cert::make(dir, &[]))?;
        let read = configure(folder.path(), doors, &callers, (&token, &operator_key), self.tls)?;
        let service = serve::start(read).await?;
        let addresses = DemoAddresses::of(&service, &sandbox, tls.map(|dir| dir.join("ca.pem")))?;
        let stdout = ServiceOutput::begin();
        stdout.line(&match self.json {
            true => addresses.json(&callers, &operator_key),
            false => demo_text::text(&addresses, &callers, &operator_key),
        });
        signals.next().await;
        let ended = serve::end(service, &mut signals).await;
        sandbox.stop().await;
        folder
            .close()
            .map_err(|error| CommandFailure::failed(format!("cannot delete the temporary folder: {error}")))?;
        ended
    }
}

/// Three ports that are free right now; 0 means any.
fn ports(first: u16) -> Result<[u16; 3], CommandFailure> {
    let ports = match (first, first.checked_add(2)) {
        (0, _) => [0; 3],
        (_, Some(last)) => [first, last - 1, last],
        (_, None) => return Err(CommandFailure::usage("--port: the demo needs three ports; use 65533 or less")),
    };
    for port in ports {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
            CommandFailure::failed(format!(
                "cannot listen on port {port} ({error}); choose other ports, for example --port 9080, or --port 0 for any"
            ))
        })?;
    }
    Ok(ports)
}

/// One caller may do everything, one reads two organizations, and one quickly exceeds its rate.
fn callers() -> Result<[DemoCaller; 3], CommandFailure> {
    let (all, reader) = (&["*"], &["organizations:read", "usage:read"]);
    let caller = |name, grants, organizations, rate, burst| {
        key::generate().map(|key| DemoCaller { name, grants, organizations, rate, burst, key })
    };
    Ok([
        caller("provisioning", all, None, "600/min", 60)?,
        caller("dashboard", reader, Some(&[11, 12]), "600/min", 60)?,
        caller("nightly-report", reader, None, "6/min", 2)?,
    ])
}

/// Writes the configuration and its secrets as an operator would, and reads it back.
fn configure(
    folder: &Path,
    [gateway, operator, make]: [SocketAddr; 3],
    callers: &[DemoCaller],
    (token, operator_key): (&str, &str),
    has_tls: bool,
) -> Result<LoadedConfig, CommandFailure> {
    let tls = if has_tls { "gateway.tls = { cert = \"tls/cert.pem\", key = \"tls/key.pem\" }\n" } else { "" };
    let mut text = format!(
        "gateway.listen = \"{gateway}\"\n{tls}operator = {{ listen = \"{operator}\", key_file = \"operator.key\" }}\n\
         upstream = {{ url = \"http://{make}\", token_file = \"make.token\" }}\nlimits.drain = \"2s\"\n"
    );
    for DemoCaller { name, grants, organizations, rate, burst, key } in callers {
        let entry = key::entry(key);
        let organizations = organizations.map_or_else(String::new, |ids| format!("organizations = {ids:?}\n"));
        text += &format!(
            "[[caller]]\nname = \"{name}\"\nkeys = [\"{entry}\"]\ngrants = {grants:?}\n{organizations}\
             rate = \"{rate}\"\nburst = {burst}\n"
        );
    }
    let file = folder.join("makegate.toml");
    for (path, text) in [("operator.key", operator_key), ("make.token", token), ("makegate.toml", &text)] {
        fs::write(folder.join(path), text).map_err(|error| CommandFailure::failed(format!("{path}: {error}")))?;
    }
    config::read(&file).map_err(CommandFailure::failed)
}

pub(super) struct DemoAddresses {
    pub(super) gateway: String,
    pub(super) operator: String,
    pub(super) sandbox: String,
    /// The authority that callers have to trust, if the gateway speaks TLS.
    pub(super) ca_file: Option<PathBuf>,
}

impl DemoAddresses {
    fn of(service: &Service, sandbox: &Sandbox, ca_file: Option<PathBuf>) -> Result<Self, CommandFailure> {
        let first = |scheme: &str, addresses: &[SocketAddr]| {
            addresses
                .first()
                .map(|address| format!("{scheme}://{address}"))
                .ok_or_else(|| CommandFailure::failed("the service listens on no TCP port"))
        };
        let gateway = first(if ca_file.is_some() { "https" } else { "http" }, service.gateway_addresses())?;
        let operator = first("http", service.operator_addresses())?;
        Ok(Self { gateway, operator, sandbox: format!("http://{}", sandbox.address()), ca_file })
    }

    fn json(&self, callers: &[DemoCaller], operator_key: &str) -> String {
        json!({
            "gateway": self.gateway,
            "operator": self.operator,
            "sandbox": self.sandbox,
            "operator_key": operator_key,
            "callers": callers,
            "ca_file": self.ca_file,
        })
        .to_string()
    }
}
