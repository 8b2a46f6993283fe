//! `makegate cert new`: a local authority, and a certificate for a gateway on this machine.

#![expect(clippy::disallowed_methods, reason = "a command may block on its files")]

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use super::failure::CommandFailure;
use super::new_file;
use super::output;
use crate::clock::Clock;
use crate::config;

/// How long the certificate is valid: what clients accept at most of a local authority.
const SERVER_DAYS: i32 = 825;
/// How long the authority is valid.
const AUTHORITY_DAYS: i32 = 3650;

/// Makes certificates for the gateway door.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  makegate cert new --dir tls")]
pub(super) enum CertCommand {
    New(NewCertCommand),
}

/// Makes a local authority, and a certificate of it for localhost and 127.0.0.1.
///
/// Some clients of Make insist on https. On one machine no public authority is needed: the gateway shows this
/// certificate, and the clients trust the authority. Whoever has ca.key can impersonate any server to these clients.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate cert new --dir tls
  makegate cert new --dir tls --name gate.internal --name 10.0.0.7")]
pub(super) struct NewCertCommand {
    /// The folder to write to; it is made if it is not there. Existing files are never overwritten.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// A further name or address of the gateway; may be given several times.
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
}

impl CertCommand {
    pub(super) fn run(&self) -> Result<(), CommandFailure> {
        let Self::New(new) = self;
        new.run()
    }
}

impl NewCertCommand {
    fn run(&self) -> Result<(), CommandFailure> {
        make(&self.dir, &self.names)?;
        let dir = fs::canonicalize(&self.dir).unwrap_or_else(|_| self.dir.clone());
        Ok(output::line(&instructions(&dir))?)
    }
}

/// Makes a local authority and a certificate of it for this machine and these `names`, and writes both to the folder.
pub(super) fn make(dir: &Path, names: &[String]) -> Result<(), CommandFailure> {
    for name in names.iter().filter(|name| name.parse::<IpAddr>().is_err()) {
        let host = name.strip_prefix("*.").unwrap_or(name);
        config::host_name(host).map_err(|wrong| CommandFailure::usage(format!("--name: {wrong}, or an IP address")))?;
    }
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into_iter().chain(names.iter().cloned());
    let bad_name = |error| CommandFailure::usage(format!("--name: {error}; write a host name or an IP address"));
    let mut server = CertificateParams::new(names.collect::<Vec<_>>()).map_err(bad_name)?;
    let mut authority = CertificateParams::default();
    describe(&mut authority, "makegate local authority", AUTHORITY_DAYS)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    describe(&mut server, "makegate", SERVER_DAYS)?;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;

    let (authority_key, server_key) = (key()?, key()?);
    let authority_cert = authority.self_signed(&authority_key).map_err(CommandFailure::failed)?;
    let issuer = Issuer::new(authority, &authority_key);
    let server_cert = server.signed_by(&server_key, &issuer).map_err(CommandFailure::failed)?;
    let files = [
        ("ca.pem", 0o644, authority_cert.pem()),
        ("ca.key", 0o600, authority_key.serialize_pem()),
        ("cert.pem", 0o644, server_cert.pem()),
        ("key.pem", 0o600, server_key.serialize_pem()),
    ];
    new_file::write_all(dir, &files.map(|(name, mode, text)| (name.to_owned(), mode, text.into_bytes())), false)
}

fn key() -> Result<KeyPair, CommandFailure> {
    KeyPair::generate().map_err(CommandFailure::failed)
}

/// Sets the name, and the time for which it is valid, from yesterday on: clocks differ.
fn describe(params: &mut CertificateParams, name: &str, days: i32) -> Result<(), CommandFailure> {
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let today = jiff::tz::TimeZone::UTC.to_datetime(Clock::system().wall()).date();
    let day = |days: i32| {
        let date = today.checked_add(jiff::Span::new().days(days)).map_err(CommandFailure::failed)?;
        Ok::<_, CommandFailure>(date_time_ymd(
            date.year().into(),
            date.month().unsigned_abs(),
            date.day().unsigned_abs(),
        ))
    };
    (params.not_before, params.not_after) = (day(-1)?, day(days)?);
    Ok(())
}

fn instructions(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "\
Written to {dir}: cert.pem and key.pem for the gateway, ca.pem for its clients, and ca.key, which nobody needs: delete it,
or keep it as safe as a password.

In the configuration:

  [gateway]
  tls = {{ cert = \"{dir}/cert.pem\", key = \"{dir}/key.pem\" }}

Clients trust it with:

  curl      curl --cacert {dir}/ca.pem https://localhost:8080/api/v2/organizations
  Node      NODE_EXTRA_CA_CERTS={dir}/ca.pem
  Python    REQUESTS_CA_BUNDLE={dir}/ca.pem (requests), SSL_CERT_FILE={dir}/ca.pem (httpx, aiohttp, urllib)
  Go        SSL_CERT_FILE={dir}/ca.pem"
    )
}
