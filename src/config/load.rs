//! From files and an environment to a checked configuration: the steps in order.

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
    /// The file, or the directory whose `*.toml` are read in order of name, if there is one.
    pub file: Option<PathBuf>,
    /// The environment; none for the process's own.
    pub environment: Option<Vec<(OsString, OsString)>>,
}

/// Reads the file, or all files of the directory, lays the environment over it and checks everything. Reads the environment from nowhere but `env`.
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
    match config {
        None => Err(Mistakes::new(
            names,
            mistakes.into_inner(),
            files.into_inner(),
        )),
        Some(config) => {
            let mut warnings = warnings.into_inner();
            let unknown = environment.unknown().into_iter();
            warnings.extend(
                unknown.map(|name| format!("{}: unknown variable, ignored", name.escape_debug())),
            );
            Ok(Loaded {
                config,
                warnings,
                files: files.into_inner(),
            })
        }
    }
}

/// Where the admin listener is, whatever else the file and the environment say: a process that runs goes on with what was
/// right before, and no secret is read.
fn admin(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Bind, Mistakes> {
    let (reader, root) = layers(file, env)?;
    reader.mistakes.borrow_mut().clear();
    let admin = check::admin(Section::root(&reader, root));
    let Reader {
        names,
        mistakes,
        files,
        ..
    } = reader;
    admin.ok_or_else(|| Mistakes::new(names, mistakes.into_inner(), files.into_inner()))
}

/// The environment over the files, before anybody asks what it means.
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
    let (mistakes, files) = (RefCell::new(mistakes), RefCell::new(stamps));
    let reader = Reader {
        environment,
        names,
        folder,
        mistakes,
        warnings: RefCell::default(),
        files,
    };
    Ok((reader, root))
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
