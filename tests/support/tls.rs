//! Worlds whose gateway door speaks TLS, and clients that speak it to them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use makegate::tasks::Tasks;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    RevokedCertParams, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Plan, Reply, World, exchange, new_dir};

/// Writes a new certificate for `localhost` and its key into these files of the folder; who trusts it.
pub(crate) fn show(dir: &Path, cert: &str, key: &str) -> Arc<RootCertStore> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join(cert), made.cert.pem()).unwrap();
    std::fs::write(dir.join(key), made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    Arc::new(roots)
}

/// A world whose gateway door speaks TLS (`more` of its settings), and who trusts its certificate.
pub(crate) async fn world(plan: Plan, more: &str, files: &[(&str, &str)]) -> (World, Arc<RootCertStore>) {
    let dir = new_dir();
    let roots = show(dir.path(), "cert.pem", "key.pem");
    for (file, text) in files {
        std::fs::write(dir.path().join(file), text).unwrap();
    }
    let plan = plan.set("gateway", &format!("tls = {{ cert = \"cert.pem\", key = \"key.pem\"{more} }}"));
    (plan.start_in(dir).await, roots)
}

/// An authority for certificates of clients.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
pub(crate) type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Each has a name of its own, as real ones do.
        let name = format!("authority {:02x?}", &key.public_key_raw()[..8]);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A client's certificate with this serial number and these names: DNS names, URIs, e-mail addresses.
    pub(crate) fn numbered(&self, serial: u64, names: &[&str]) -> Identity {
        self.certificate(Some(serial), "a tool", names)
    }

    /// A list that revokes the certificate with this serial number.
    pub(crate) fn revoked(&self, serial: u64) -> String {
        let revoked = RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: rcgen::date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2026, 1, 1),
            next_update: rcgen::date_time_ymd(4000, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// A client's certificate with this common name and these names, as above.
    pub(crate) fn identity(&self, common_name: &str, names: &[&str]) -> Identity {
        self.certificate(None, common_name, names)
    }

    /// The same, and its key, in PEM.
    pub(crate) fn pem(&self, common_name: &str, names: &[&str]) -> (String, String) {
        self.made(None, common_name, names)
    }

    fn certificate(&self, serial: Option<u64>, common_name: &str, names: &[&str]) -> Identity {
        let (certificate, key) = self.made(serial, common_name, names);
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        (certificate, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
    }

    fn made(&self, serial: Option<u64>, common_name: &str, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let name = |name: &&str| match (name.contains(':'), name.contains('@')) {
            (true, _) => SanType::URI((*name).try_into().unwrap()),
            (false, true) => SanType::Rfc822Name((*name).try_into().unwrap()),
            (false, false) => SanType::DnsName((*name).try_into().unwrap()),
        };
        params.subject_alt_names = names.iter().map(name).collect();
        params.serial_number = serial.map(Into::into);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, common_name);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A connection, by these protocols, of a client with or without a certificate.
pub(crate) async fn connect(
    world: &World,
    roots: &Arc<RootCertStore>,
    protocols: &[&str],
    identity: Option<&Identity>,
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_to(world.gateway, roots, protocols, identity).await
}

/// The same to a gateway that is a process of its own.
pub(crate) async fn connect_to(
    gateway: SocketAddr,
    roots: &Arc<RootCertStore>,
    protocols: &[&str],
    identity: Option<&Identity>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots.clone());
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => config.with_client_auth_cert(vec![certificate.clone()], key.clone_key()).unwrap(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let socket = TcpStream::connect(gateway).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), socket).await
}

/// An HTTP/2 connection whose client grants each answer so many bytes, and the end of it.
pub(crate) async fn h2(
    world: &World,
    roots: &Arc<RootCertStore>,
    window: u32,
) -> (SendRequest<Empty<Bytes>>, JoinHandle<()>) {
    let stream = connect(world, roots, &["h2"], None).await.unwrap();
    let mut builder = Builder::new(TokioExecutor::new());
    let (sender, connection) =
        builder.initial_stream_window_size(window).handshake(TokioIo::new(stream)).await.unwrap();
    (sender, Tasks::new().spawn(async move { drop(connection.await) }))
}

/// A GET for such a connection.
pub(crate) fn h2_get(key: &str, target: &str) -> Request<Empty<Bytes>> {
    let request = Request::get(format!("https://localhost{target}")).header("authorization", format!("Token {key}"));
    request.body(Empty::new()).unwrap()
}

/// One GET over a connection of its own, with these header lines. `None`: there was no answer, or no handshake.
pub(crate) async fn get(
    world: &World,
    roots: &Arc<RootCertStore>,
    identity: Option<&Identity>,
    target: &str,
    headers: &[&str],
) -> Option<Reply> {
    let stream = connect(world, roots, &[], identity).await.ok()?;
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    exchange(stream, &format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{lines}\r\n")).await
}
