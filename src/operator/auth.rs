//! Who may come in: requests for a host that is ours, not from another site's page, with an operator's key; and what the operator's
//! role allows.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, header};
use secrecy::zeroize::Zeroizing;

use super::operators::Operator;
use super::refusal::OperatorRefusal;
use super::state::OperatorState;
use crate::audit::{Peer, Record};
use crate::config::{OperatorConfig, Role};
use crate::door::{self, PeerConnection, RequestAuthority};
use crate::gateway::admit::steps;

/// Refuses methods that no path could have, heads that are too large, targets with a `#`, and bodies in a coding that is not undone.
pub(super) async fn check_head(
    State(state): State<Arc<OperatorState>>,
    request: Request,
    next: Next,
) -> Result<Response, OperatorRefusal> {
    let (head, body) = request.into_parts();
    if door::is_head_too_large(&head, state.gateway.policy().limits()) {
        return Err(OperatorRefusal::HeadTooLarge);
    }
    if head.uri.path_and_query().is_some_and(|target| target.as_str().as_bytes().contains(&door::FRAGMENT)) {
        return Err(OperatorRefusal::Fragment);
    }
    if door::has_unknown_transfer_coding(&head.headers) {
        return Err(OperatorRefusal::TransferCoding);
    }
    if !steps::is_implemented(&head.method) {
        return Err(OperatorRefusal::NotImplemented);
    }
    Ok(next.run(Request::from_parts(head, body)).await)
}

/// Refuses what another site's page sends.
pub(super) async fn check_origin(request: Request, next: Next) -> Result<Response, OperatorRefusal> {
    if is_from_another_site(&request) {
        return Err(OperatorRefusal::ForeignOrigin);
    }
    Ok(next.run(request).await)
}

/// Refuses requests for a host that is not ours: that of a page that makes a browser send here by DNS rebinding is not.
pub(super) async fn check_host(
    State(state): State<Arc<OperatorState>>,
    request: Request,
    next: Next,
) -> Result<Response, OperatorRefusal> {
    if !is_for_own_host(&request, &state.gateway.policy().config.operator) {
        return Err(OperatorRefusal::UnknownHost);
    }
    Ok(next.run(request).await)
}

/// Refuses requests without an operator's key, and says whose it is to what follows. A request with one passes, whatever else came from
/// its address before: nobody can lock operators out by guessing.
pub(super) async fn check_key(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    mut request: Request,
    next: Next,
) -> Result<Response, OperatorRefusal> {
    let key = key(request.headers())?;
    if let Some(operator) = state.operators.find(&key) {
        request.extensions_mut().insert(operator);
        return Ok(next.run(request).await);
    }
    let Some(retry_after) = state.wrong_keys.blocked_for(peer.address) else {
        state.wrong_keys.add(peer.address);
        return Err(OperatorRefusal::WrongKey);
    };
    if state.wrong_keys.is_to_be_recorded(peer.address)
        && let Some(room) = state.gateway.log.reserve()
    {
        let detail = "more than 30 wrong operator keys came from this peer within a minute";
        let event = Record::event(state.gateway.clock.wall(), "wrong-keys", detail);
        room.fill(Record { peer: Some(Peer::of(peer.address)), ..event });
    }
    Err(OperatorRefusal::TooManyFailures { retry_after })
}

/// Refuses operators whose role does not allow to act.
pub(super) async fn require_operate(
    Extension(operator): Extension<Arc<Operator>>,
    request: Request,
    next: Next,
) -> Result<Response, OperatorRefusal> {
    require(&operator, Role::Operate)?;
    Ok(next.run(request).await)
}

/// Refuses operators who are not admins.
pub(super) async fn require_admin(
    Extension(operator): Extension<Arc<Operator>>,
    request: Request,
    next: Next,
) -> Result<Response, OperatorRefusal> {
    require(&operator, Role::Admin)?;
    Ok(next.run(request).await)
}

fn require(operator: &Operator, role: Role) -> Result<(), OperatorRefusal> {
    if operator.role() >= role {
        return Ok(());
    }
    Err(OperatorRefusal::RoleInsufficient { name: operator.name().clone(), role: operator.role(), required: role })
}

fn is_for_own_host<B>(request: &http::Request<B>, operator: &OperatorConfig) -> bool {
    RequestAuthority::of(request.uri(), request.headers())
        .is_ok_and(|authority| authority.is_of_door(&operator.listen, &operator.names))
}

fn is_from_another_site<B>(request: &http::Request<B>) -> bool {
    let authority = RequestAuthority::of(request.uri(), request.headers()).ok();
    let is_own = |origin: &HeaderValue| {
        origin.to_str().ok().zip(authority).is_some_and(|(origin, authority)| is_same(origin, authority))
    };
    let site = request.headers().get("sec-fetch-site").map(HeaderValue::as_bytes);
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let crosses = !reads && site.is_some_and(|site| !matches!(site, b"same-origin" | b"none"));
    crosses || !request.headers().get_all(header::ORIGIN).iter().all(is_own)
}

fn is_same(origin: &str, authority: RequestAuthority<'_>) -> bool {
    let (rest, port) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
        (Some(rest), _) => (rest, 80),
        (None, Some(rest)) => (rest, 443),
        (None, None) => return false,
    };
    let Some(origin) = RequestAuthority::parse(rest) else { return false };
    let port_of = |authority: RequestAuthority<'_>| authority.port.unwrap_or(port);
    origin.host.eq_ignore_ascii_case(authority.host) && port_of(origin) == port_of(authority)
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
    use crate::config::{Listen, SecretSource, SocketAccess};

    fn operator(listen: &str) -> OperatorConfig {
        let listen = vec![Listen::Tcp(listen.parse().unwrap())];
        let key = Some(SecretSource::Env("KEY".into()));
        let (keys, names, socket) = (Vec::new(), vec!["makegate.internal".into()], SocketAccess::default());
        OperatorConfig { listen, tls: None, key, keys, names, socket }
    }

    fn request(method: &str, headers: &[(&str, &str)]) -> http::Request<()> {
        let build = http::Request::builder().method(method).uri("/");
        let build = headers.iter().fold(build, |build, (name, value)| build.header(*name, *value));
        build.body(()).unwrap()
    }

    #[test]
    fn only_hosts_of_its_own_are_answered() {
        let operator = operator("10.1.2.3:8081");
        let known = |host| is_for_own_host(&request("GET", &[("host", host)]), &operator);
        for host in [
            "localhost", "LOCALHOST:9", "127.0.0.1:8081", "[::1]:8081", "10.1.2.3", "makegate.internal:80",
            "localhost.",
        ] {
            assert!(known(host), "{host}");
        }
        for host in [
            "evil.example", "localhost.evil.example", "10.1.2.4", "x@localhost", "", "[localhost]", "localhost:x",
            "0.0.0.0",
        ] {
            assert!(!known(host), "{host}");
        }
        assert!(!is_for_own_host(&request("GET", &[]), &operator));
        assert!(!is_for_own_host(&request("GET", &[("host", "localhost"), ("host", "localhost")]), &operator));
    }

    #[test]
    fn a_door_on_every_address_is_addressed_by_any_but_by_no_unknown_name() {
        let operator = operator("0.0.0.0:8081");
        let known = |host| is_for_own_host(&request("GET", &[("host", host)]), &operator);
        assert!(known("192.168.7.7:8081"));
        assert!(!known("evil.example"));
    }

    #[test]
    fn another_pages_origin_is_foreign() {
        let own = |method, headers: &[(&str, &str)]| {
            !is_from_another_site(&request(method, &[headers, &[("host", "localhost:8081")]].concat()))
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
        assert!(is_same("https://ops.example", RequestAuthority::parse("ops.example:443").unwrap()));
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
