//! From a file and an environment to a checked configuration: the steps in order.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::check::check;
use super::env::Environment;
use super::file::{self, Item, Node};
use super::mistakes::{Mistake, Mistakes, Origin};
use super::read::{Reader, Section};
use super::{Config, Loaded};

/// Bytes of a configuration file.
const MAX_FILE: u64 = 1 << 20;

/// Does what `config::load` promises.
pub(super) fn load(file: Option<&Path>, environment: Environment) -> Result<Loaded, Mistakes> {
    let name = file.map(|file| file.display().to_string());
    let mut root = match file.map(read) {
        None => Node { origin: Origin::Nowhere, item: Item::Table(BTreeMap::new()) },
        Some(read) => match read.and_then(|text| file::parse(&text)) {
            Ok(root) => root,
            // What follows a slip in the syntax would only repeat it.
            Err(mistakes) => return Err(Mistakes::new(name, mistakes)),
        },
    };
    let overlay = environment.lay_over(&mut root);
    let folder = file.and_then(Path::parent).map_or_else(PathBuf::new, Path::to_owned);
    let files = RefCell::new(file.map(Path::to_owned).into_iter().collect());
    let reader = Reader { environment, folder, mistakes: RefCell::new(overlay), warnings: RefCell::default(), files };
    let config: Option<Config> = check(Section::root(&reader, root));
    let Reader { environment, mistakes, warnings, files, .. } = reader;
    match config {
        None => Err(Mistakes::new(name, mistakes.into_inner())),
        Some(config) => {
            let mut warnings = warnings.into_inner();
            let unknown = environment.unknown().into_iter();
            warnings.extend(unknown.map(|name| format!("{}: unknown variable, ignored", name.escape_debug())));
            Ok(Loaded { config, warnings, files: files.into_inner() })
        }
    }
}

fn read(path: &Path) -> Result<String, Vec<Mistake>> {
    let mistake = |expectation: String| vec![Mistake { origin: Origin::Nowhere, key: String::new(), expectation }];
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|error| mistake(format!("the file cannot be read: {}", error.kind())))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(mistake("expected a file of at most 1MiB".to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| mistake("expected a file in UTF-8".to_owned()))
}
