//! `flowgate client new`: generates a secret for a client, and the configuration lines for it. The
//! lines refer to the secret and do not contain it. Nothing is stored, except in `--secret-file`.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::config::{self, AccountCredentials, Config};
use crate::primitives::id::KeyPattern;

/// Same length and alphabet as Alibaba's secrets: 30 of 62 characters are 178 bits.
const SECRET_LENGTH: usize = 30;
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Generates a secret for the client `id` of this account. Returns the text to print: the secret,
/// unless it is written to a file, and the configuration lines.
pub fn new_client(
    id: &str,
    account: &str,
    secret_file: Option<&Path>,
) -> Result<Zeroizing<String>, String> {
    config::check_client_id(id).map_err(|expectation| format!("--id: {expectation}"))?;
    config::check_account_id(account).map_err(|expectation| format!("--account: {expectation}"))?;
    let secret = secret()?;
    let (shown, place) = match secret_file {
        None => {
            let variable = variable("CLIENT", id);
            (
                Zeroizing::new(format!("secret: {}\n\n", *secret)),
                format!("env = \"{variable}\""),
            )
        }
        Some(path) => (
            Zeroizing::default(),
            format!("file = {}", write(path, &secret)?),
        ),
    };
    Ok(Zeroizing::new(format!(
        "{}[[clients]]\n\
         access_key_id = \"{id}\"\n\
         access_key_secret = {{ {place} }}\n\
         account = \"{account}\"\n\
         actions = [\"CreateFlow\"]   # what it may call; [\"*\"] for all\n",
        *shown
    )))
}

/// Checks that a client with this id and account could be added to the configuration.
pub fn fits(config: &Config, id: &str, account: &str) -> Result<(), String> {
    let is_taken = config.clients.iter().any(|client| client.id.as_str() == id)
        || config.accounts.iter().any(|account| {
            let own = account
                .credentials
                .iter()
                .filter_map(AccountCredentials::loaded);
            own.map(|own| own.access_key_id.as_str())
                .chain(account.aliases.iter().map(KeyPattern::as_str))
                .any(|key| key == id)
        });
    if is_taken {
        return Err("--id: the configuration has this access key id already".to_owned());
    }
    let found = config
        .accounts
        .iter()
        .find(|known| known.id.as_str() == account);
    match found {
        // The variables that define it may be set only where Flowgate runs.
        None if account == config::DEFAULT_ACCOUNT && config.accounts.is_empty() => Ok(()),
        None => Err("--account: no account of the configuration has this id".to_owned()),
        Some(found) if found.credentials.is_none() => Err(
            "--account: this account has no secret in the configuration, so it cannot have clients"
                .to_owned(),
        ),
        Some(_) => Ok(()),
    }
}

/// Generates a secret from the operating system's random source, with uniform characters.
fn secret() -> Result<Zeroizing<String>, String> {
    let mut secret = Zeroizing::new(String::with_capacity(SECRET_LENGTH));
    let mut byte = Zeroizing::new([0]);
    while secret.len() < SECRET_LENGTH {
        getrandom::fill(&mut *byte)
            .map_err(|error| format!("the operating system gives no random bytes: {error}"))?;
        // Bytes above the last multiple of the alphabet's length would bias its first characters.
        if usize::from(byte[0]) < 256 / ALPHABET.len() * ALPHABET.len() {
            secret.push(char::from(ALPHABET[usize::from(byte[0]) % ALPHABET.len()]));
        }
    }
    Ok(secret)
}

/// Returns the name of the variable that holds the secret of a client or an account.
pub(super) fn variable(owner: &str, id: &str) -> String {
    let mut name = format!("FLOWGATE_{owner}_");
    for char in id.chars() {
        name.push(match char {
            'a'..='z' | 'A'..='Z' | '0'..='9' => char.to_ascii_uppercase(),
            _ => '_',
        });
    }
    name.push_str("_SECRET");
    name
}

/// Writes a new file that only its owner can read. Returns its path as a TOML string.
fn write(path: &Path, secret: &str) -> Result<String, String> {
    let absolute = std::path::absolute(path).map_err(|error| not_written(path, &error))?;
    let text = absolute
        .to_str()
        .ok_or_else(|| not_written(path, &"expected a path in UTF-8"))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| match error.kind() {
            // The error of a new file's folder.
            ErrorKind::NotFound => not_written(path, &"the folder does not exist"),
            ErrorKind::AlreadyExists => {
                not_written(path, &"the file exists: name another one, or remove it")
            }
            _ => not_written(path, &error),
        })?;
    if let Err(error) = file.write_all(secret.as_bytes()) {
        drop(std::fs::remove_file(path));
        return Err(not_written(path, &error));
    }
    Ok(toml::Value::from(text).to_string())
}

fn not_written(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("--secret-file: {}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_the_form_of_alibabas_and_is_new_each_time() {
        let one = secret().unwrap();
        let other = secret().unwrap();
        assert_ne!(one, other);
        assert!(one.len() == 30 && one.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let bits = SECRET_LENGTH as f64 * (ALPHABET.len() as f64).log2();
        assert!(bits >= 160.0, "{bits}");
    }

    #[test]
    fn all_characters_are_equally_likely() {
        let mut counts = [0_u32; 128];
        for _ in 0..2000 {
            secret()
                .unwrap()
                .bytes()
                .for_each(|byte| counts[usize::from(byte)] += 1);
        }
        // The expected count is 968 with a standard deviation of 31. The bounds are 12 deviations.
        for byte in ALPHABET {
            assert!(
                (600..1340).contains(&counts[usize::from(*byte)]),
                "{}",
                char::from(*byte)
            );
        }
    }

    #[test]
    fn invalid_and_reserved_names_are_refused_with_the_configurations_message() {
        let mistake_of = |id, account| new_client(id, account, None).err().unwrap();
        for id in ["", "a b", "unverified", "unknown", "a\"b"] {
            let mistake = mistake_of(id, "acme");
            assert_eq!(
                mistake,
                "--id: expected an access key id: 1 to 128 letters, digits, '.', '_' or '-', \
                 and not \"unknown\" or \"unverified\"",
                "{id}"
            );
        }
        assert!(mistake_of("team-a", "a b").starts_with("--account: expected a name: "));
    }

    #[test]
    fn a_secret_file_is_private_and_never_overwritten() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret \"1\"");
        let printed = new_client("team-a", "acme", Some(&path)).unwrap();
        let secret = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            (
                secret.len(),
                std::fs::metadata(&path).unwrap().mode() & 0o777
            ),
            (30, 0o600)
        );
        assert!(!printed.contains(&secret));
        let lines: toml::Table = printed.parse().unwrap();
        assert_eq!(
            lines["clients"][0]["access_key_secret"]["file"].as_str(),
            path.to_str()
        );
        let again = new_client("team-a", "acme", Some(&path)).err().unwrap();
        assert!(
            again.ends_with("the file exists: name another one, or remove it"),
            "{again}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), secret);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets/team-a");
        let mistake = new_client("team-a", "acme", Some(&path)).err().unwrap();
        let expected = format!(
            "--secret-file: {}: the folder does not exist",
            path.display()
        );
        assert_eq!(mistake, expected);
    }
}
