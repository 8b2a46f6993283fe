//! Faults on request: what goes wrong, for which requests and how often.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Maximum number of armed faults; the oldest are dropped.
const ARMED_MAX: usize = 1_000;
/// The longest time in a fault, in milliseconds.
const MS_MAX: u64 = 600_000;
/// In the body and headers of an [`FaultKind::Answer`]: replaced by the request's `Authorization` value.
pub(super) const ECHO: &str = "{authorization}";

/// One fault and the requests it applies to. As JSON (the control interface): `{"method": "POST",
/// "path": "/api/v2/organizations/*/invite", "times": 1, "kind": {"reset": {"effect": true}}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The method, or `*` (the default) for all.
    #[serde(default = "any")]
    pub method: String,
    /// The path without query; `*` matches one whole segment, `**` at the end matches any rest.
    pub path: String,
    /// How many requests it applies to (default 1); `None` (`null`): all, until cleared.
    #[serde(default = "once")]
    pub times: Option<u32>,
    /// What goes wrong.
    pub kind: FaultKind,
}

fn any() -> String {
    "*".to_owned()
}

#[expect(clippy::unnecessary_wraps, reason = "serde wants the field's own type")]
const fn once() -> Option<u32> {
    Some(1)
}

/// What goes wrong. `effect`: whether to handle the request first, so that a write takes effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultKind {
    /// Waits before handling, at most until faults are cleared; then handles the request normally, even if the client
    /// has gone.
    Latency {
        /// Milliseconds.
        ms: u64,
    },
    /// Sends this answer. `{authorization}` in the body or a header value is replaced by the request's `Authorization`.
    Answer {
        /// 200 to 599.
        status: u16,
        /// The body; default: Make's error shape for the status.
        #[serde(default)]
        body: Option<String>,
        /// Content type; default: JSON.
        #[serde(default)]
        content_type: Option<String>,
        /// Further headers, such as `retry-after` or `location`.
        #[serde(default)]
        headers: BTreeMap<String, String>,
        /// Handles the request first.
        #[serde(default)]
        effect: bool,
    },
    /// Resets the connection (RST) instead of answering.
    Reset {
        /// Handles the request first.
        #[serde(default)]
        effect: bool,
    },
    /// Closes the connection (FIN) before the status line.
    Close {
        /// Handles the request first.
        #[serde(default)]
        effect: bool,
    },
    /// Handles the request, sends the head and this many bytes of the body (always fewer than announced), and closes.
    Cut {
        /// Bytes of the body to send.
        after_bytes: usize,
    },
    /// Handles the request and sends the body slowly, piece by piece.
    Drip {
        /// Bytes per piece.
        bytes: usize,
        /// Milliseconds before each piece.
        every_ms: u64,
    },
    /// Never answers, until the client leaves, faults are cleared, or ten minutes are over.
    Hang {
        /// Handles the request first.
        #[serde(default)]
        effect: bool,
    },
}

impl Fault {
    /// A fault for the next request that matches.
    #[must_use]
    pub fn once(method: &str, path: &str, kind: FaultKind) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), times: Some(1), kind }
    }

    /// A fault for every request that matches, until it is cleared.
    #[must_use]
    pub fn always(method: &str, path: &str, kind: FaultKind) -> Self {
        Self { times: None, ..Self::once(method, path, kind) }
    }

    /// Checks the fault.
    ///
    /// # Errors
    /// One sentence for the first mistake, saying what to write instead.
    pub fn check(&self) -> Result<(), String> {
        if !self.path.starts_with('/') {
            return Err(format!("path {:?} must begin with a slash, like /api/v2/organizations/*/usage", self.path));
        }
        if self.times == Some(0) {
            return Err("times must be 1 or more, or null for all requests until faults are cleared".to_owned());
        }
        self.kind.check()
    }
}

impl FaultKind {
    /// An answer with this status in Make's error shape, without handling the request.
    #[must_use]
    pub const fn status(status: u16) -> Self {
        Self::Answer { status, body: None, content_type: None, headers: BTreeMap::new(), effect: false }
    }

    /// The same answer with a further header; other kinds stay as they are.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.insert(name.to_owned(), value.to_owned());
        }
        self
    }

    /// The same answer with this body; other kinds stay as they are.
    #[must_use]
    pub fn with_body(mut self, text: &str) -> Self {
        if let Self::Answer { body, .. } = &mut self {
            *body = Some(text.to_owned());
        }
        self
    }

    /// The same answer after the request was handled; other kinds stay as they are.
    #[must_use]
    pub fn after_effect(mut self) -> Self {
        match &mut self {
            Self::Answer { effect, .. } | Self::Reset { effect } | Self::Close { effect } | Self::Hang { effect } => {
                *effect = true
            }
            Self::Latency { .. } | Self::Cut { .. } | Self::Drip { .. } => {}
        }
        self
    }

    /// A redirect elsewhere, without handling the request.
    #[must_use]
    pub fn redirect(location: &str) -> Self {
        Self::status(302).with_header("location", location)
    }

    /// An answer that echoes the request's `Authorization` in its body and in a header.
    #[must_use]
    pub fn echo_token(status: u16) -> Self {
        Self::status(status).with_header("x-echo", ECHO).with_body(&format!("{{\"you\":\"{ECHO}\"}}"))
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Latency { ms } | Self::Drip { every_ms: ms, .. } if *ms > MS_MAX => {
                Err(format!("times in faults must be at most {MS_MAX} milliseconds"))
            }
            Self::Drip { bytes: 0, .. } => Err("drip.bytes must be 1 or more".to_owned()),
            Self::Answer { status, .. } if !(200..=599).contains(status) => {
                Err(format!("answer.status {status} must be from 200 to 599"))
            }
            Self::Answer { headers, .. } => headers.iter().try_for_each(check_header),
            Self::Latency { .. }
            | Self::Drip { .. }
            | Self::Reset { .. }
            | Self::Close { .. }
            | Self::Cut { .. }
            | Self::Hang { .. } => Ok(()),
        }
    }
}

fn check_header((name, value): (&String, &String)) -> Result<(), String> {
    let valid =
        http::HeaderName::try_from(name.as_str()).is_ok() && http::HeaderValue::try_from(value.as_str()).is_ok();
    valid
        .then_some(())
        .ok_or_else(|| format!("{name:?}: {value:?} is not a valid header: write a plain name and a single line"))
}

/// A method and a path, each with wildcards.
#[derive(Debug)]
pub(super) struct Pattern<'a> {
    method: &'a str,
    path: &'a str,
}

impl<'a> Pattern<'a> {
    pub(super) const fn new(method: &'a str, path: &'a str) -> Self {
        Self { method, path }
    }

    pub(super) fn matches(&self, method: &str, path: &str) -> bool {
        if self.method != "*" && !self.method.eq_ignore_ascii_case(method) {
            return false;
        }
        let mut given = path.split('/');
        for wanted in self.path.split('/') {
            match (wanted, given.next()) {
                ("**", Some(_)) => return true,
                ("*", Some(segment)) if !segment.is_empty() => {}
                (wanted, Some(segment)) if wanted == segment => {}
                _ => return false,
            }
        }
        given.next().is_none()
    }
}

/// The armed faults; the first that matches applies.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn arm(&mut self, fault: Fault) {
        if self.0.len() >= ARMED_MAX {
            self.0.remove(0);
        }
        self.0.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The armed faults; `times` is how often they still apply.
    pub(super) fn armed(&self) -> &[Fault] {
        &self.0
    }

    /// The fault for this request; counts it down.
    pub(super) fn strike(&mut self, method: &str, path: &str) -> Option<FaultKind> {
        let place = self.0.iter().position(|fault| Pattern::new(&fault.method, &fault.path).matches(method, path))?;
        let fault = self.0.get_mut(place)?;
        let kind = fault.kind.clone();
        fault.times = fault.times.map(|times| times.saturating_sub(1));
        if fault.times == Some(0) {
            self.0.remove(place);
        }
        Some(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_segments() {
        let matches = |pattern: &str, path: &str| Pattern::new("*", pattern).matches("GET", path);
        assert!(matches("/o/*/usage", "/o/11/usage"));
        assert!(!matches("/o/*/usage", "/o/11/usage/x"));
        assert!(!matches("/o/*", "/o"));
        assert!(matches("/**", "/o/11"));
        assert!(!matches("/o/**", "/o"));
        assert!(!Pattern::new("POST", "/**").matches("GET", "/o"));
    }

    #[test]
    fn a_fault_strikes_as_often_as_it_says() {
        let mut faults = Faults::default();
        faults.arm(Fault { times: Some(2), ..Fault::once("GET", "/a", FaultKind::status(500)) });
        faults.arm(Fault::always("*", "/**", FaultKind::Latency { ms: 1 }));
        let struck = [(); 3].map(|()| faults.strike("GET", "/a").unwrap());
        assert_eq!(struck, [FaultKind::status(500), FaultKind::status(500), FaultKind::Latency { ms: 1 }]);
    }

    #[test]
    fn json_has_defaults_and_refuses_what_it_does_not_know() {
        let fault: Fault = serde_json::from_str(r#"{"path": "/a", "kind": {"reset": {"effect": true}}}"#).unwrap();
        assert_eq!(fault, Fault::once("*", "/a", FaultKind::Reset { effect: true }));
        let forever: Fault = serde_json::from_str(r#"{"path": "/a", "times": null, "kind": {"hang": {}}}"#).unwrap();
        assert_eq!(forever.times, None);
        let error = serde_json::from_str::<Fault>(r#"{"path": "/a", "kind": {"explode": {}}}"#).unwrap_err();
        assert!(error.to_string().contains("`latency`"), "{error}");
        assert!(serde_json::from_str::<Fault>(r#"{"path": "/a", "kind": {"reset": {"after": 1}}}"#).is_err());
        assert!(Fault::once("*", "a", FaultKind::status(500)).check().is_err());
        assert!(Fault::once("*", "/a", FaultKind::status(99)).check().is_err());
        assert!(Fault::once("*", "/a", FaultKind::status(302).with_header("a b", "c")).check().is_err());
    }
}
