//! Finds the account by the alias that an access key begins with. The longest prefix decides.

use std::collections::HashMap;

use super::directory::Owner;
use crate::config::Config;
use crate::primitives::id::AccessKeyId;

/// The owners of all prefixes. A look-up costs one hash for each length that a prefix has, however
/// many accounts there are.
pub(super) struct KeyPrefixes {
    owners: HashMap<Box<str>, Owner>,
    /// Each length once, the longest first.
    lengths: Box<[usize]>,
}

// === impl KeyPrefixes ===

impl KeyPrefixes {
    pub(super) fn new(config: &Config) -> Self {
        let owners: HashMap<Box<str>, _> = config
            .accounts
            .iter()
            .flat_map(|account| account.aliases.iter().map(move |alias| (alias, account)))
            .filter_map(|(alias, account)| Some((alias.prefix()?.into(), Owner::alias_of(account))))
            .collect();
        let mut lengths: Vec<_> = owners.keys().map(|prefix| prefix.len()).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        Self {
            owners,
            lengths: lengths.into(),
        }
    }

    /// The owner of the longest prefix of this key.
    pub(super) fn owner(&self, key: &AccessKeyId) -> Option<&Owner> {
        self.lengths
            .iter()
            .filter_map(|length| key.as_str().get(..*length))
            .find_map(|prefix| self.owners.get(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_longest_prefix_decides() {
        let aliases = |account: usize, aliases: &str| {
            [
                (
                    format!("FLOWGATE_ACCOUNTS__{account}__ID").into(),
                    format!("account-{account}").into(),
                ),
                (
                    format!("FLOWGATE_ACCOUNTS__{account}__ALIASES").into(),
                    aliases.into(),
                ),
            ]
        };
        let env = [
            aliases(0, "STS.*,LTAI-0"),
            aliases(1, "STS.NU1*,LTAI*"),
            aliases(2, "STS.NU*"),
        ];
        let found = |env: Vec<_>, key: &str| {
            let config = config::load(None, env).unwrap().config;
            KeyPrefixes::new(&config)
                .owner(&AccessKeyId::new(key))
                .and_then(Owner::known_account)
                .map(|account| account.as_str().to_owned())
        };
        for (key, account) in [
            ("STS.a", Some("account-0")),
            ("STS.", Some("account-0")),
            ("STS.NU2", Some("account-2")),
            ("STS.NU1", Some("account-1")),
            ("STS.NU1x", Some("account-1")),
            ("LTAIx", Some("account-1")),
            ("STS", None),
            ("sts.a", None),
            ("é", None),
            ("", None),
        ] {
            assert_eq!(found(env.concat(), key).as_deref(), account, "{key}");
        }
        let with_all = [env.concat(), aliases(3, "*").to_vec()].concat();
        for (key, account) in [
            ("é", "account-3"),
            ("", "account-3"),
            ("STS.a", "account-0"),
        ] {
            assert_eq!(found(with_all.clone(), key).as_deref(), Some(account));
        }
    }
}
