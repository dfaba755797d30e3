//! From a file and an environment to a checked configuration: the steps in order.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::check::{self, check};
use super::env::Environment;
use super::file::{self, Item, Node};
use super::mistakes::{Mistake, Mistakes, Origin};
use super::read::{Reader, Section};
use super::secrets::unreadable;
use super::stamps::{Stamps, stamp};
use super::{Bind, Config};

/// A configuration without mistakes.
#[derive(Debug)]
pub struct Loaded {
    /// What holds.
    pub config: Config,
    /// What is no mistake, but worth a line in the log. Shows no value.
    pub warnings: Vec<String>,
    /// Every file that was read, as it was before; when one of them changes, it may all read differently.
    pub(crate) files: Stamps,
}

/// Where a configuration comes from, time and again.
#[derive(Clone)]
pub struct Source {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// The environment; none for the process's own.
    pub environment: Option<Vec<(OsString, OsString)>>,
}

/// Bytes of a configuration file.
const MAX_FILE: u64 = 1 << 20;

/// Reads the file, lays the environment over it and checks everything. Reads the environment from nowhere but `env`.
pub fn load(file: Option<&Path>, env: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Loaded, Mistakes> {
    let (reader, root) = layers(file, env)?;
    let config: Option<Config> = check(Section::root(&reader, root));
    let Reader { environment, mistakes, warnings, files, .. } = reader;
    match config {
        None => Err(Mistakes::new(name(file), mistakes.into_inner(), files.into_inner())),
        Some(config) => {
            let mut warnings = warnings.into_inner();
            let unknown = environment.unknown().into_iter();
            warnings.extend(unknown.map(|name| format!("{}: unknown variable, ignored", name.escape_debug())));
            Ok(Loaded { config, warnings, files: files.into_inner() })
        }
    }
}

/// Where the admin listener is, whatever else the file and the environment say: a process that runs goes on with what was
/// right before, and no secret is read.
fn admin(file: Option<&Path>, env: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Bind, Mistakes> {
    let (reader, root) = layers(file, env)?;
    reader.mistakes.borrow_mut().clear();
    let admin = check::admin(Section::root(&reader, root));
    admin.ok_or_else(|| Mistakes::new(name(file), reader.mistakes.into_inner(), reader.files.into_inner()))
}

/// The environment over the file, before anybody asks what it means.
fn layers(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(Reader, Node), Mistakes> {
    let environment = Environment::new(env);
    let files: Stamps = file.map(|file| (file.to_owned(), stamp(file))).into_iter().collect();
    let mut root = match file.map(read) {
        None => Node { origin: Origin::Nowhere, item: Item::Table(BTreeMap::new()) },
        Some(read) => match read.and_then(|text| file::parse(&text)) {
            Ok(root) => root,
            // What follows a slip in the syntax would only repeat it.
            Err(mistakes) => return Err(Mistakes::new(name(file), mistakes, files)),
        },
    };
    let overlay = environment.lay_over(&mut root);
    let folder = file.and_then(Path::parent).map_or_else(PathBuf::new, Path::to_owned);
    let (mistakes, files) = (RefCell::new(overlay), RefCell::new(files));
    let reader = Reader { environment, folder, mistakes, warnings: RefCell::default(), files };
    Ok((reader, root))
}

fn name(file: Option<&Path>) -> Option<String> {
    file.map(|file| file.display().to_string())
}

fn read(path: &Path) -> Result<String, Vec<Mistake>> {
    let mistake = |expectation: String| vec![Mistake { origin: Origin::Nowhere, key: String::new(), expectation }];
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|error| mistake(format!("{} (--config, FLOWGATE_CONFIG)", unreadable(&error))))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(mistake("expected a file of at most 1MiB".to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| mistake("expected a file in UTF-8".to_owned()))
}

// === impl Source ===

impl Source {
    /// Reads it as it is now.
    pub fn load(&self) -> Result<Loaded, Mistakes> {
        match &self.environment {
            None => load(self.file.as_deref(), std::env::vars_os()),
            Some(environment) => load(self.file.as_deref(), environment.iter().cloned()),
        }
    }

    /// Where the admin listener is, even if something else in it is wrong.
    pub fn admin(&self) -> Result<Bind, Mistakes> {
        match &self.environment {
            None => admin(self.file.as_deref(), std::env::vars_os()),
            Some(environment) => admin(self.file.as_deref(), environment.iter().cloned()),
        }
    }
}
