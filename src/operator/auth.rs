//! Who may come in: requests for a host that is ours, not from another site's page, with the operator key.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, header};
use secrecy::zeroize::Zeroizing;

use super::refusal::OperatorRefusal;
use super::state::OperatorState;
use crate::config::{Listen, OperatorConfig};
use crate::door::PeerConnection;

/// Refuses requests for an unknown host, and those that another site's page sends.
pub(super) async fn check_host_and_origin(
    State(state): State<Arc<OperatorState>>,
    request: Request,
    next: Next,
) -> Result<Response, OperatorRefusal> {
    let authority = host(&request, &state.gateway.policy().config.operator)?;
    check_origin(&request, &authority)?;
    Ok(next.run(request).await)
}

/// Refuses requests without the key. A request with it passes, whatever else came from its address before: nobody can lock operators
/// out by guessing.
pub(super) async fn check_key(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    request: Request,
    next: Next,
) -> Result<Response, OperatorRefusal> {
    let key = key(request.headers())?;
    if state.opens_to(&key) {
        return Ok(next.run(request).await);
    }
    if let Some(retry_after) = state.wrong_keys.blocked(peer.address) {
        return Err(OperatorRefusal::TooManyFailures { retry_after });
    }
    state.wrong_keys.add(peer.address);
    Err(OperatorRefusal::WrongKey)
}

/// The host that the request is for, if it is one of ours. The host of a page that makes a browser send here by DNS rebinding is not.
///
/// # Errors
/// [`OperatorRefusal::UnknownHost`]; also when there is none, or two.
fn host<B>(request: &http::Request<B>, operator: &OperatorConfig) -> Result<Authority, OperatorRefusal> {
    let mut fields = request.headers().get_all(header::HOST).iter();
    let (field, second) = (fields.next(), fields.next());
    let named = request.uri().authority().cloned();
    let authority = named.or_else(|| Authority::try_from(field?.as_bytes()).ok());
    authority.filter(|authority| second.is_none() && is_ours(authority, operator)).ok_or(OperatorRefusal::UnknownHost)
}

/// Any port will do: nobody else answers at ours, and forwarded ports differ.
fn is_ours(authority: &Authority, operator: &OperatorConfig) -> bool {
    let host = authority.host();
    let whole = authority.as_str() == host || authority.port_u16().is_some();
    if !whole || authority.as_str().contains('@') {
        return false;
    }
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match address.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback() || operator.listen.iter().any(|listen| listens(listen, ip)),
        Err(_) => {
            let name = host.strip_suffix('.').unwrap_or(host);
            ["localhost"]
                .into_iter()
                .chain(operator.hosts.iter().map(String::as_str))
                .any(|own| own.eq_ignore_ascii_case(name))
        }
    }
}

/// A door that listens on every address may be addressed by any: an address, unlike a name, cannot be made to point elsewhere.
fn listens(listen: &Listen, ip: IpAddr) -> bool {
    match listen {
        Listen::Tcp(own) => own.ip().is_unspecified() || own.ip().to_canonical() == ip.to_canonical(),
        Listen::Unix(_) => false,
    }
}

fn check_origin<B>(request: &http::Request<B>, authority: &Authority) -> Result<(), OperatorRefusal> {
    let own = |origin: &HeaderValue| origin.to_str().is_ok_and(|origin| is_same(origin, authority));
    let site = request.headers().get("sec-fetch-site").map(HeaderValue::as_bytes);
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let crosses = !reads && site.is_some_and(|site| !matches!(site, b"same-origin" | b"none"));
    let ours = request.headers().get_all(header::ORIGIN).iter().all(own);
    if ours && !crosses { Ok(()) } else { Err(OperatorRefusal::ForeignOrigin) }
}

fn is_same(origin: &str, authority: &Authority) -> bool {
    let (rest, port) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
        (Some(rest), _) => (rest, 80),
        (None, Some(rest)) => (rest, 443),
        (None, None) => return false,
    };
    let Ok(origin) = rest.parse::<Authority>() else { return false };
    let port_of = |authority: &Authority| authority.port_u16().unwrap_or(port);
    origin.host().eq_ignore_ascii_case(authority.host()) && port_of(&origin) == port_of(authority)
}

/// The key of the one `Authorization` header: of `Bearer KEY`, or of `Basic` as the password of any name.
fn key(headers: &HeaderMap) -> Result<Zeroizing<Vec<u8>>, OperatorRefusal> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let field = fields.next().ok_or(OperatorRefusal::NoKey)?;
    if fields.next().is_some() {
        return Err(OperatorRefusal::TwoCredentials);
    }
    key_of(field).ok_or(OperatorRefusal::NoKey)
}

fn key_of(field: &HeaderValue) -> Option<Zeroizing<Vec<u8>>> {
    let (scheme, credential) = field.to_str().ok()?.split_once(' ')?;
    let credential = credential.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Zeroizing::new(credential.as_bytes().to_vec()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = Zeroizing::new(STANDARD.decode(credential).ok()?);
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(Zeroizing::new(decoded.get(colon + 1..)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SecretSource;

    fn operator(listen: &str) -> OperatorConfig {
        let listen = vec![Listen::Tcp(listen.parse().unwrap())];
        OperatorConfig { listen, key: SecretSource::Env("KEY".into()), hosts: vec!["makegate.internal".into()] }
    }

    fn request(method: &str, headers: &[(&str, &str)]) -> http::Request<()> {
        let build = http::Request::builder().method(method).uri("/");
        let build = headers.iter().fold(build, |build, (name, value)| build.header(*name, *value));
        build.body(()).unwrap()
    }

    #[test]
    fn only_hosts_of_its_own_are_answered() {
        let operator = operator("10.1.2.3:8081");
        let known = |host| super::host(&request("GET", &[("host", host)]), &operator).is_ok();
        for host in [
            "localhost",
            "LOCALHOST:9",
            "127.0.0.1:8081",
            "[::1]:8081",
            "10.1.2.3",
            "makegate.internal:80",
            "localhost.",
        ] {
            assert!(known(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "10.1.2.4",
            "x@localhost",
            "",
            "[localhost]",
            "localhost:x",
            "0.0.0.0",
        ] {
            assert!(!known(host), "{host}");
        }
        assert!(super::host(&request("GET", &[]), &operator).is_err());
        assert!(super::host(&request("GET", &[("host", "localhost"), ("host", "localhost")]), &operator).is_err());
    }

    #[test]
    fn a_door_on_every_address_is_addressed_by_any_but_by_no_unknown_name() {
        let operator = operator("0.0.0.0:8081");
        let known = |host| super::host(&request("GET", &[("host", host)]), &operator).is_ok();
        assert!(known("192.168.7.7:8081"));
        assert!(!known("evil.example"));
    }

    #[test]
    fn another_pages_origin_is_foreign() {
        let own = |method, headers: &[(&str, &str)]| {
            check_origin(&request(method, headers), &"localhost:8081".parse().unwrap()).is_ok()
        };
        assert!(own("POST", &[]));
        assert!(own("POST", &[("origin", "http://localhost:8081"), ("sec-fetch-site", "same-origin")]));
        assert!(own("GET", &[("sec-fetch-site", "cross-site")]), "a link from elsewhere");
        for foreign in
            ["http://localhost:3000", "https://localhost", "http://evil.example", "null", "", "localhost:8081"]
        {
            assert!(!own("POST", &[("origin", foreign)]), "{foreign}");
            assert!(!own("GET", &[("origin", foreign)]), "{foreign}");
        }
        assert!(!own("POST", &[("sec-fetch-site", "same-site")]));
        assert!(is_same("https://ops.example", &"ops.example:443".parse().unwrap()));
    }

    #[test]
    fn the_key_is_shown_as_bearer_or_as_the_password() {
        let key = |value| key_of(&HeaderValue::from_static(value)).map(|key| key.to_vec());
        assert_eq!(key("Bearer s:ecret").unwrap(), b"s:ecret");
        assert_eq!(key("bearer secret").unwrap(), b"secret");
        assert_eq!(key("Basic YW55Om15OmtleQ==").unwrap(), b"my:key");
        assert_eq!((key("Basic !!"), key("Token x"), key("secret")), (None, None, None));
    }
}
