//! Loads a checked configuration from files and the environment.

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::check::{self, check};
use super::env::Environment;
use super::file::Node;
use super::mistakes::Mistakes;
use super::read::{Reader, Section};
use super::sources::{self, Sources};
use super::stamps::Stamps;
use super::{Bind, Config, suspects};
use crate::primitives::secret::Secret;

/// A configuration without mistakes.
#[derive(Debug)]
pub struct Loaded {
    /// The checked configuration.
    pub config: Config,
    /// Warnings for the log. They contain no values.
    pub warnings: Vec<String>,
    /// The stamps of all files that were read. A change in any of them may change the
    /// configuration.
    pub(crate) files: Stamps,
}

/// Where the configuration is loaded and reloaded from.
#[derive(Clone)]
pub struct Source {
    /// The file, or the directory whose `*.toml` files are read in order of name.
    pub file: Option<PathBuf>,
    /// The environment. `None`: the process's own.
    pub environment: Option<Vec<(OsString, OsString)>>,
}

/// Loads and checks the file, or all files of the directory, with `env` applied over it. `env` is
/// the only environment that is read.
pub fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, Mistakes> {
    let (reader, root) = layers(file, env)?;
    let config: Option<Config> = check(Section::root(&reader, root));
    let Reader {
        environment,
        names,
        mistakes,
        warnings,
        files,
        ..
    } = reader;
    let files = files.into_inner();
    let suspects = suspects::warnings(&environment, file, config.as_ref());
    let Some(config) = config else {
        let mistakes = Mistakes::new(names, mistakes.into_inner(), files);
        return Err(mistakes.with_warnings(suspects));
    };
    let mut warnings = warnings.into_inner();
    for name in environment.ignored() {
        let name = name.escape_debug();
        warnings.push(format!("{name}: set but empty, so it is ignored"));
    }
    warnings.extend(suspects);
    Ok(Loaded {
        config,
        warnings,
        files,
    })
}

/// Reads only what `read` reads. Other mistakes are ignored, because a running process keeps its
/// last valid configuration, and no other secret is read.
fn part<T>(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
    read: impl FnOnce(Section<'_>) -> Option<T>,
) -> Result<T, Mistakes> {
    let (reader, root) = layers(file, env)?;
    reader.mistakes.borrow_mut().clear();
    let part = read(Section::root(&reader, root));
    let Reader {
        names,
        mistakes,
        files,
        ..
    } = reader;
    part.ok_or_else(|| Mistakes::new(names, mistakes.into_inner(), files.into_inner()))
}

/// Reads the files and applies the environment, before any key is checked.
fn layers(
    path: Option<&Path>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(Reader, Node), Mistakes> {
    let environment = Environment::new(env);
    let Sources {
        names,
        folder,
        stamps,
        mut root,
        mut mistakes,
    } = sources::read(path)?;
    mistakes.extend(environment.lay_over(&mut root));
    let reader = Reader {
        environment,
        names,
        folder,
        mistakes: RefCell::new(mistakes),
        warnings: RefCell::default(),
        files: RefCell::new(stamps),
    };
    Ok((reader, root))
}

// === impl Source ===

impl Source {
    /// Loads the configuration as it is now.
    pub fn load(&self) -> Result<Loaded, Mistakes> {
        match &self.environment {
            None => load(self.file.as_deref(), std::env::vars_os()),
            Some(environment) => load(self.file.as_deref(), environment.iter().cloned()),
        }
    }

    /// Reads the address of the admin listener, even if other keys have mistakes.
    pub fn admin(&self) -> Result<Bind, Mistakes> {
        self.part(check::admin)
    }

    /// Reads the token of the admin listener, even if other keys have mistakes.
    pub(crate) fn admin_token(&self) -> Result<Option<Secret>, Mistakes> {
        self.part(check::admin_token)
    }

    fn part<T>(&self, read: impl FnOnce(Section<'_>) -> Option<T>) -> Result<T, Mistakes> {
        match &self.environment {
            None => part(self.file.as_deref(), std::env::vars_os(), read),
            Some(environment) => part(self.file.as_deref(), environment.iter().cloned(), read),
        }
    }
}
