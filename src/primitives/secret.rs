//! A secret in memory: not shown by `Debug`, without `Display` and comparison, wiped when dropped.

use std::fmt;
use std::sync::OnceLock;

use hmac::{EagerHash, Hmac, KeyInit};
use sha1::Sha1;
use sha2::Sha256;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// Fails to compile if one of the types implements `Debug`, `Display` or `Serialize`. For types
/// that hold secrets, signatures or callers' data.
macro_rules! never_shown {
    ($($type:ty),+ $(,)?) => {
        const _: () = {
            /// A type that has one of the traits has two impls, and the ambiguity is a compile
            /// error.
            trait Shown<Way> {
                fn shown() {}
            }
            struct Debugged;
            struct Displayed;
            struct Serialized;
            impl<T: ?Sized> Shown<()> for T {}
            impl<T: ?Sized + std::fmt::Debug> Shown<Debugged> for T {}
            impl<T: ?Sized + std::fmt::Display> Shown<Displayed> for T {}
            impl<T: ?Sized + serde::Serialize> Shown<Serialized> for T {}
            $(let _ = <$type as Shown<_>>::shown;)+
        };
    };
}
pub(crate) use never_shown;

/// The number of characters in a row that a text has in common with a secret if it quotes it.
const PIECE: usize = 12;

/// Secret text such as an access key secret or an STS token.
#[derive(Clone)]
pub struct Secret {
    text: Zeroizing<String>,
    sha1: KeyedHash<Sha1>,
    sha256: KeyedHash<Sha256>,
}

/// An HMAC that has hashed its key, which is two of about five blocks of a signature. Made at the
/// first signature. Its states are wiped when it is dropped (features `zeroize`).
#[derive(Clone)]
struct KeyedHash<D: EagerHash>(OnceLock<Box<Hmac<D>>>);

impl Secret {
    /// Takes ownership of the text. Copies that the caller keeps are not wiped.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: Zeroizing::new(text.into()),
            sha1: KeyedHash(OnceLock::new()),
            sha256: KeyedHash(OnceLock::new()),
        }
    }

    /// HMAC-SHA1 with the text and an ampersand as the key.
    pub(crate) fn hmac_sha1(&self) -> Hmac<Sha1> {
        self.sha1
            .get(|| Zeroizing::new(format!("{}&", self.expose())))
    }

    /// HMAC-SHA256 with the text as the key.
    pub(crate) fn hmac_sha256(&self) -> Hmac<Sha256> {
        self.sha256.get(|| self.text.clone())
    }

    /// Whether the text repeats this secret, or at least [`PIECE`] characters of it, in either case.
    pub(crate) fn is_quoted_by(&self, text: &str) -> bool {
        let (secret, text) = (self.expose().as_bytes(), text.as_bytes());
        let piece = secret.len().min(PIECE);
        piece > 0
            && text.windows(piece).any(|quoted| {
                secret
                    .windows(piece)
                    .any(|part| part.eq_ignore_ascii_case(quoted))
            })
    }

    /// Returns the text, for computing with it.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

// === impl KeyedHash ===

impl<D: EagerHash> KeyedHash<D> {
    fn get(&self, key: impl FnOnce() -> Zeroizing<String>) -> Hmac<D> {
        let keyed = self.0.get_or_init(|| {
            let keyed = Hmac::new_from_slice(key().as_bytes());
            Box::new(keyed.expect("HMAC takes keys of any length"))
        });
        (**keyed).clone()
    }
}

/// Read only: a secret is never serialized.
impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl ZeroizeOnDrop for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_wiped_and_never_shown() {
        fn is_wiped<T: ZeroizeOnDrop>(_: &T) {}
        let secret = Secret::new("hunter2");
        is_wiped(&secret.text);
        is_wiped(&Sha1::default());
        is_wiped(&Sha256::default());
        assert_eq!(
            format!("{secret:?} {:#?}", Some(&secret)),
            "[REDACTED] Some(\n    [REDACTED],\n)"
        );
    }
}
