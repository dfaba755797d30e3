//! Shell completions and manual pages, generated from the definition of the command line at run
//! time, so that they always match the program.

use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::Roff;

use super::{Cli, reference};

/// Returns the completion script for a shell.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "flowgate", &mut script);
    script
}

/// Returns the manual page flowgate(1).
pub fn manual() -> io::Result<Vec<u8>> {
    let page = Man::new(Cli::command().disable_help_subcommand(true));
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    page.render_subcommands_section(&mut text)?;
    let mut sections = Roff::new();
    reference::sections(&mut sections);
    sections.to_writer(&mut text)?;
    page.render_version_section(&mut text)?;
    Ok(text)
}

/// Writes flowgate(1) and the page of each command into a directory.
pub fn write_manual(folder: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command(), folder)?;
    std::fs::write(folder.join("flowgate.1"), manual()?)
}
