//! Lists the configuration files of a directory: every `*.toml` whose name does not begin with a
//! dot. This skips what editors, package managers and Kubernetes create beside them
//! (`.acme.toml.swp`, `acme.toml~`, `..data`).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Returns the file names, sorted by their bytes. Files are read in this order.
pub(super) fn list(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let bytes = name.as_bytes();
        if bytes.ends_with(b".toml") && !bytes.starts_with(b".") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_toml_files_that_are_not_hidden_are_read_in_order_of_name() {
        let directory = tempfile::tempdir().unwrap();
        let others = [
            ".toml",
            ".acme.toml",
            ".#b.toml",
            "#b.toml#",
            "b.toml~",
            "b.toml.bak",
            "b.TOML",
            "README",
            "toml",
        ];
        for name in others
            .iter()
            .chain(&["b.toml", "10-a.toml", "9-a.toml", "B.toml"])
        {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        std::fs::create_dir(directory.path().join("more")).unwrap();
        std::fs::write(directory.path().join("more/c.toml"), "").unwrap();
        assert_eq!(
            list(directory.path()).unwrap(),
            ["10-a.toml", "9-a.toml", "B.toml", "b.toml"]
        );
    }
}
