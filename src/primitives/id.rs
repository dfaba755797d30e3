//! Who and what, as types: the names that cross module borders, so that no account can stand where a client belongs.

use std::fmt;
use std::sync::Arc;

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Takes the text as it is; whoever reads it from outside has checked it.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The name as text.
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
    /// The Alibaba Cloud account whose quota a call spends: the `id` of an `[[accounts]]` entry, or, for a relayed
    /// key that the configuration does not name, `?` and the key.
    AccountId
);
name!(
    /// Whoever calls Flowgate: the access key id of a `[[clients]]` entry, the masked id of an account's own key, or
    /// `unverified` for all callers of an account whose signature Flowgate cannot check.
    ClientId
);
name!(
    /// A party inside one client's share, by default the CAMS sub-customer (`CustSpaceId`).
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

impl ClientId {
    /// The one client that all callers of an account are together when Flowgate cannot verify them.
    pub fn unverified() -> Self {
        Self::new("unverified")
    }
}

impl AccessKeyId {
    /// First four and last two characters: enough to tell keys apart, too little to look one up.
    pub fn masked(&self) -> String {
        let text = self.as_str();
        match (
            text.get(..4),
            text.len().checked_sub(2).and_then(|from| text.get(from..)),
        ) {
            (Some(head), Some(tail)) if text.len() > 8 => format!("{head}***{tail}"),
            _ => "***".into(),
        }
    }
}
