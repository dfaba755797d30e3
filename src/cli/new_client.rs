//! What does a team get that is to call through Flowgate? A fresh pair of keys, and the lines that make Flowgate know it;
//! the lines name the secret's place and never hold it. Nothing is remembered here.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::config;

/// As Alibaba's secrets look: 30 of 62 characters are 178 bits.
const SECRET_LENGTH: usize = 30;
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Makes a pair for the client `id` of this account and returns what is to be printed: the lines for the configuration,
/// and before them the secret, unless it goes into a file.
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
            let variable = variable(id);
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

/// Characters from the operating system, each as likely as every other.
fn secret() -> Result<Zeroizing<String>, String> {
    let mut secret = Zeroizing::new(String::with_capacity(SECRET_LENGTH));
    let mut byte = Zeroizing::new([0]);
    while secret.len() < SECRET_LENGTH {
        getrandom::fill(&mut *byte)
            .map_err(|error| format!("the operating system gives no random bytes: {error}"))?;
        // What is over the last whole multiple of the alphabet would favour its beginning.
        if usize::from(byte[0]) < 256 / ALPHABET.len() * ALPHABET.len() {
            secret.push(char::from(ALPHABET[usize::from(byte[0]) % ALPHABET.len()]));
        }
    }
    Ok(secret)
}

/// The variable that holds the client's secret.
fn variable(id: &str) -> String {
    let plain = |char: char| {
        if char.is_ascii_alphanumeric() {
            char.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    format!(
        "FLOWGATE_CLIENT_{}_SECRET",
        id.chars().map(plain).collect::<String>()
    )
}

/// Writes a new file that only its owner can read, and returns its path as it stands in the configuration.
fn write(path: &Path, secret: &str) -> Result<String, String> {
    let wrong =
        |error: &dyn std::fmt::Display| format!("--secret-file: {}: {error}", path.display());
    let place = std::path::absolute(path).map_err(|error| wrong(&error))?;
    let place = place.to_str().ok_or_else(|| wrong(&"expected UTF-8"))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| wrong(&error))?;
    if let Err(error) = file.write_all(secret.as_bytes()) {
        drop(std::fs::remove_file(path));
        return Err(wrong(&error));
    }
    Ok(toml::Value::from(place).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_as_long_and_plain_as_alibabas_and_never_the_same() {
        let (one, other) = (secret().unwrap(), secret().unwrap());
        assert_ne!(one, other);
        assert!(one.len() == 30 && one.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let bits = SECRET_LENGTH as f64 * (ALPHABET.len() as f64).log2();
        assert!(bits >= 160.0, "{bits}");
    }

    #[test]
    fn every_character_comes_as_often() {
        let mut counts = [0_u32; 128];
        for _ in 0..2000 {
            secret()
                .unwrap()
                .bytes()
                .for_each(|byte| counts[usize::from(byte)] += 1);
        }
        // 968 are expected of each, with a standard deviation of 31: twelve of them leave nothing to chance.
        for byte in ALPHABET {
            assert!(
                (600..1340).contains(&counts[usize::from(*byte)]),
                "{}",
                char::from(*byte)
            );
        }
    }

    #[test]
    fn names_are_checked_as_the_configuration_checks_them() {
        let told = |id, account| new_client(id, account, None).err().unwrap();
        for id in ["", "a b", "unverified", "unknown", "a\"b"] {
            let mistake = told(id, "acme");
            assert_eq!(
                mistake,
                "--id: expected an access key id: 1 to 128 of letters, digits, '.', '_', '-'",
                "{id}"
            );
        }
        assert!(told("team-a", "a b").starts_with("--account: expected a name: "));
    }

    #[test]
    fn a_file_is_never_overwritten_and_read_by_its_owner_alone() {
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
        assert!(again.ends_with("File exists (os error 17)"), "{again}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), secret);
    }
}
