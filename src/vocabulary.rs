//! Closed sets of words that several modules share: in records, metrics, headers and filters each is spelled the same.

/// Defines an enum with a fixed set of words, and the conversions both ways.
macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)* }

        impl $name {
            /// All values, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word used in records and filters.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// Parses a word; returns `None` if it is unknown.
            #[must_use]
            pub fn parse(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == word)
            }
        }
    };
}

pub(crate) use word_enum;

word_enum! {
    /// Where an answer came from.
    Answer {
        /// From the cache, fresh.
        Hit = "hit",
        /// From the cache, past its lifetime.
        Stale = "stale",
        /// From upstream, and stored in the cache.
        Miss = "miss",
        /// From upstream, of a class that is not stored; also every write.
        Forwarded = "forwarded",
        /// The first answer to the same idempotency key.
        Replayed = "replayed",
        /// From the gateway itself.
        Refused = "refused",
    }
}

word_enum! {
    /// How a write ended.
    Outcome {
        /// The upstream carried it out.
        Done = "done",
        /// The upstream refused it.
        Rejected = "rejected",
        /// It never went upstream, or was provably not processed.
        NotSent = "not-sent",
        /// Its effect is unknown.
        InDoubt = "in-doubt",
    }
}

word_enum! {
    /// What a caller was identified by, if not by a key.
    CredentialKind {
        /// A signed token of a platform.
        Token = "token",
        /// A client certificate.
        Certificate = "certificate",
        /// The user id of the process at the other end of a Unix socket.
        Peer = "peer",
    }
}
