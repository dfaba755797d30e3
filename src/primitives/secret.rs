//! A secret in memory: not shown by `Debug`, without `Display` and comparison, wiped when dropped.

use std::fmt;

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
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of the text. Copies that the caller keeps are not wiped.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
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
        &self.0
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
        is_wiped(&secret.0);
        assert_eq!(
            format!("{secret:?} {:#?}", Some(&secret)),
            "[REDACTED] Some(\n    [REDACTED],\n)"
        );
    }
}
