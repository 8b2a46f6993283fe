//! A platform that issues tokens, and a server for its public keys.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use makegate::tasks::Tasks;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

pub(crate) const ISSUER: &str = "https://issuer.test";
pub(crate) const AUDIENCE: &str = "makegate";
pub(crate) const SUBJECT: &str = "system:serviceaccount:finance:dashboard";
pub(crate) const ALGORITHMS: [&str; 3] = ["RS256", "ES256", "EdDSA"];

/// A platform with a key of each algorithm; the keys' ids end in its name.
pub(crate) struct Platform {
    name: &'static str,
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

impl Platform {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            ed: Ed25519KeyPair::generate().unwrap(),
        }
    }

    pub(crate) fn key_id(&self, algorithm: &str) -> String {
        format!("{algorithm}-{}", self.name)
    }

    /// Its public keys.
    pub(crate) fn jwks(&self) -> String {
        let (n, e) = integers(self.rsa.public_key().as_ref());
        let (x, y) = self.ec.public_key().as_ref()[1..].split_at(32);
        let [rs, es, ed] = ALGORITHMS.map(|algorithm| self.key_id(algorithm));
        json!({"keys": [
            {"kty": "RSA", "kid": rs, "alg": "RS256", "use": "sig", "n": text(n), "e": text(e)},
            {"kty": "EC", "crv": "P-256", "kid": es, "use": "sig", "x": text(x), "y": text(y)},
            {"kty": "OKP", "crv": "Ed25519", "kid": ed, "x": text(self.ed.public_key().as_ref())},
            {"kty": "OKP", "crv": "X448", "kid": "of another kind", "x": "AAAA"},
            {"kty": "RSA", "kid": "for encryption", "use": "enc", "n": text(n), "e": text(e)},
        ]})
        .to_string()
    }

    /// A token with these claims, signed by its key for this algorithm.
    pub(crate) fn token(&self, algorithm: &str, claims: &Value) -> String {
        self.signed(algorithm, &json!({"alg": algorithm, "kid": self.key_id(algorithm), "typ": "JWT"}), claims)
    }

    /// A token with this header and these claims, signed by its key for this algorithm.
    pub(crate) fn signed(&self, algorithm: &str, header: &Value, claims: &Value) -> String {
        self.signed_text(algorithm, &header.to_string(), &claims.to_string())
    }

    /// The same, with header and claims as text.
    pub(crate) fn signed_text(&self, algorithm: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", text(header), text(claims));
        let (message, random) = (signed.as_bytes(), SystemRandom::new());
        let signature = match algorithm {
            "RS256" => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                self.rsa.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            "ES256" => self.ec.sign(&random, message).unwrap().as_ref().to_vec(),
            _ => self.ed.sign(message).as_ref().to_vec(),
        };
        format!("{signed}.{}", text(signature))
    }
}

/// Claims that are good for so many seconds from `now` (Unix time).
pub(crate) fn claims(now: i64, seconds: i64) -> Value {
    json!({"iss": ISSUER, "sub": SUBJECT, "aud": AUDIENCE, "exp": now + seconds, "iat": now})
}

pub(crate) fn text(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The two integers of an RSA public key in DER.
fn integers(der: &[u8]) -> (&[u8], &[u8]) {
    let (_, sequence) = element(der);
    let (rest, n) = element(sequence);
    let (_, e) = element(rest);
    (n.strip_prefix(&[0]).unwrap_or(n), e)
}

/// What follows the first element, and what is in it.
fn element(der: &[u8]) -> (&[u8], &[u8]) {
    let (length, head) = match der[1] {
        short if short < 0x80 => (usize::from(short), 2),
        long => {
            let digits = usize::from(long & 0x7f);
            (der[2..2 + digits].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), 2 + digits)
        }
    };
    (&der[head + length..], &der[head..head + length])
}

/// How the server of the keys answers.
#[derive(Clone)]
pub(crate) enum Answering {
    With(u16, String),
    Never,
}

/// A server for public keys that counts who asks.
#[derive(Clone)]
pub(crate) struct KeyServer {
    pub(crate) address: SocketAddr,
    answering: Arc<Mutex<Answering>>,
    asked: Arc<AtomicUsize>,
}

impl KeyServer {
    pub(crate) async fn start(keys: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answering = Arc::new(Mutex::new(Answering::With(200, keys.to_owned())));
        let server = Self { address: listener.local_addr().unwrap(), answering, asked: Arc::default() };
        let own = server.clone();
        let _runs = Tasks::new().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let own = own.clone();
                let _runs = Tasks::new().spawn(async move {
                    let mut head = [0; 1024];
                    let _asked = stream.read(&mut head).await;
                    own.asked.fetch_add(1, Ordering::SeqCst);
                    let answering = own.answering.lock().unwrap().clone();
                    let Answering::With(status, body) = answering else { return std::future::pending().await };
                    let length = body.len();
                    let text =
                        format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                    let _gone = stream.write_all(text.as_bytes()).await;
                });
            }
        });
        server
    }

    pub(crate) fn answer(&self, answering: Answering) {
        *self.answering.lock().unwrap() = answering;
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}
