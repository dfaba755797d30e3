//! Identifier types, so that an account cannot be passed where a client is expected.

use std::fmt;
use std::sync::{Arc, LazyLock};

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Wraps the text without validation: text from outside is checked where it is read.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// Returns the identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The Alibaba Cloud account whose quota a call uses: the `id` of an `[[accounts]]` entry, or
    /// `?` and the access key id for a relayed key that is not in the configuration.
    AccountId
);
name!(
    /// The caller of Flowgate: the access key id of a `[[clients]]` entry, the masked id of an
    /// account's own key, or `unverified` for all callers of an account whose signatures Flowgate
    /// cannot verify.
    ClientId
);
name!(
    /// A tenant within one client's share, by default the CAMS sub-customer (`CustSpaceId`).
    TenantId
);
name!(
    /// A CAMS action such as `CreateFlow`: 1 to 64 of `[A-Za-z0-9]`, in its exact case.
    ActionName
);
name!(
    /// An access key id. Not secret, but logged only in its masked form.
    AccessKeyId
);
name!(
    /// An access key id, or the first characters of access key ids followed by `*`, which an access
    /// key id cannot contain. `*` alone stands for all access key ids.
    KeyPattern
);

macro_rules! serialized_as_text {
    ($($type:ty),+) => {
        $(impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        })+
    };
}

serialized_as_text!(AccountId, ActionName, ClientId);

/// In its masked form.
impl serde::Serialize for AccessKeyId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.masked())
    }
}

/// Shows a prefix, unless it is long enough to identify a key.
impl serde::Serialize for KeyPattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.prefix() {
            Some(prefix) if prefix.len() <= 8 => serializer.serialize_str(self.as_str()),
            Some(prefix) => {
                let masked = AccessKeyId::new(prefix).masked();
                serializer.serialize_str(&format!("{masked}*"))
            }
            None => AccessKeyId::new(self.as_str()).serialize(serializer),
        }
    }
}

impl KeyPattern {
    /// Returns the first characters of the keys that it stands for, or `None` if it is one key.
    pub fn prefix(&self) -> Option<&str> {
        self.as_str().strip_suffix('*')
    }
}

impl ClientId {
    /// The client that stands for all unverified callers of an account.
    pub fn unverified() -> Self {
        // Made once: most relayed calls have it.
        static UNVERIFIED: LazyLock<ClientId> = LazyLock::new(|| ClientId::new("unverified"));
        UNVERIFIED.clone()
    }

    /// The client of the calls that Flowgate makes itself.
    pub fn own() -> Self {
        Self::new("flowgate")
    }
}

impl TenantId {
    /// The tenant of the calls that name none.
    pub fn none() -> Self {
        // Made once: most calls have it.
        static NONE: LazyLock<TenantId> = LazyLock::new(|| TenantId::new(""));
        NONE.clone()
    }
}

impl AccessKeyId {
    /// Returns the first four and last two characters, or only `***` for a key of up to 8 bytes.
    pub fn masked(&self) -> String {
        let text = self.as_str();
        let head = text.get(..4);
        let tail = text.len().checked_sub(2).and_then(|from| text.get(from..));
        match (head, tail) {
            (Some(head), Some(tail)) if text.len() > 8 => format!("{head}***{tail}"),
            _ => "***".into(),
        }
    }
}
