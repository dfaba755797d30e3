//! A secret in memory: shown by no `Debug` or `Display`, compared by nobody, wiped when dropped.

use std::fmt;

use zeroize::{ZeroizeOnDrop, Zeroizing};

/// Does not compile while one of these types can be shown: by `Debug`, `Display` or serde. For whatever holds secrets,
/// signatures or what callers sent.
macro_rules! never_shown {
    ($($type:ty),+ $(,)?) => {
        const _: () = {
            /// Two answers to one question, once a type has one of the traits: that is ambiguous, and an error.
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

/// Secret text such as an access key secret or an STS token.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over; the copy that the caller may still hold is the caller's.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for the one place that computes with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Takes over the text that serde has read; nothing writes one.
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
