//! The host that a request is for: of `Host`, of HTTP/2's `:authority`, or of a target in absolute form (RFC 9110
//! section 7.2). A request that names it twice or not at all can be read in two ways, and is for nobody.

use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, Uri, header};

use crate::config::Listen;

/// The host, and the port if there is one, that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestAuthority<'r> {
    /// A name, an IPv4 address, or an IPv6 address in brackets.
    pub host: &'r str,
    /// The port.
    pub port: Option<u16>,
}

/// Why a request has no authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadAuthority {
    /// Neither a `Host` nor an absolute target.
    Missing,
    /// Several `Host` headers, or one that differs from the target's authority.
    Double,
    /// Not a host with an optional port.
    Malformed,
}

impl<'r> RequestAuthority<'r> {
    /// The authority that a request names.
    ///
    /// # Errors
    /// If there is not exactly one.
    pub fn of(uri: &'r Uri, headers: &'r HeaderMap) -> Result<Self, BadAuthority> {
        let mut fields = headers.get_all(header::HOST).iter();
        let field = fields.next().map(|field| field.to_str().map_err(|_| BadAuthority::Malformed)).transpose()?;
        let target = uri.authority().map(http::uri::Authority::as_str);
        let differs = target.zip(field).is_some_and(|(target, field)| !target.eq_ignore_ascii_case(field));
        if differs || fields.next().is_some() {
            return Err(BadAuthority::Double);
        }
        Self::parse(target.or(field).ok_or(BadAuthority::Missing)?).ok_or(BadAuthority::Malformed)
    }

    /// Parses `host` or `host:port`.
    #[must_use]
    pub fn parse(text: &'r str) -> Option<Self> {
        let is_in_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        let end = match text.strip_prefix('[') {
            Some(rest) => {
                let length = rest.find(']')?;
                rest.get(..length)?.parse::<Ipv6Addr>().ok()?;
                length + 2
            }
            None => text.bytes().position(|byte| !is_in_name(byte)).unwrap_or(text.len()),
        };
        let (host, rest) = text.split_at_checked(end).filter(|(host, _)| !host.is_empty())?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port.parse().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()))?),
            None if rest.is_empty() => None,
            None => return None,
        };
        Some(Self { host, port })
    }

    /// Whether a door with these addresses and names is meant. Any port will do: nobody else answers at the door's, and
    /// forwarded ports differ. A door that listens on every address may be addressed by any, because an address,
    /// unlike a name, cannot be made to point elsewhere.
    #[must_use]
    pub fn is_of_door(&self, listen: &[Listen], names: &[String]) -> bool {
        let address = self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(self.host);
        let listens = |ip: IpAddr| {
            listen.iter().any(|listen| match listen {
                Listen::Tcp(own) => own.ip().is_unspecified() || own.ip().to_canonical() == ip.to_canonical(),
                Listen::Unix(_) => false,
            })
        };
        if address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || listens(ip)) {
            return true;
        }
        let is_own = |own: &str| without_final_dot(own).eq_ignore_ascii_case(without_final_dot(self.host));
        is_own("localhost") || names.iter().any(|name| is_own(name))
    }
}

fn without_final_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uri: &str, hosts: &[&str]) -> Result<String, BadAuthority> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().unwrap());
        }
        RequestAuthority::of(&uri.parse().unwrap(), &headers).map(|RequestAuthority { host, port }| {
            port.map_or_else(|| host.to_owned(), |port| format!("{host} {port}"))
        })
    }

    #[test]
    fn there_is_exactly_one() {
        assert_eq!(of("/x", &["localhost"]), Ok("localhost".to_owned()));
        assert_eq!(of("/x", &["127.0.0.1:8080"]), Ok("127.0.0.1 8080".to_owned()));
        assert_eq!(of("/x", &["[::1]:80"]), Ok("[::1] 80".to_owned()));
        assert_eq!(of("http://Gate.example:1/x", &["gate.example:1"]), Ok("Gate.example 1".to_owned()));
        assert_eq!(of("http://gate.example/x", &[]), Ok("gate.example".to_owned()));
        assert_eq!(of("/x", &[]), Err(BadAuthority::Missing));
        assert_eq!(of("/x", &["a", "a"]), Err(BadAuthority::Double));
        assert_eq!(of("http://a/x", &["b"]), Err(BadAuthority::Double));
        assert_eq!(of("http://a:1/x", &["a:2"]), Err(BadAuthority::Double));
        for odd in [
            "", ":80", "a b", "a,b", "a/b", "user@a", "a:", "a:+1", "a:65536", "[::1", "[a]", "::1", "a#", "a%2e",
            "http://a",
        ] {
            assert_eq!(of("/x", &[odd]), Err(BadAuthority::Malformed), "{odd:?}");
        }
    }
}
