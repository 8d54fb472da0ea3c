//! `accentor manual`: man pages and shell completions, which packages are made with.

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use clap_complete::Shell;

use super::report;

/// Write man pages and the completions of bash, zsh and fish, as packages have them
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  accentor manual --out pages && man pages/accentor.1")]
pub(super) struct Args {
    /// Folder to write into; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// The shells that have a place for completions of packages.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

pub(super) fn run(args: &Args, mut command: clap::Command) -> anyhow::Result<()> {
    let folder = &args.out;
    let cannot = || format!("cannot write into {}", folder.display());
    std::fs::create_dir_all(folder).with_context(cannot)?;
    let name = command.get_name().to_owned();
    // Completions add the verb `help`, which wants no pages.
    let pages = command.clone();
    for shell in SHELLS {
        let path = clap_complete::generate_to(shell, &mut command, &name, folder).with_context(cannot)?;
        report::line(&format!("{} completions: {}", shell_name(shell), path.display()))?;
    }
    clap_mangen::generate_to(pages, folder).with_context(cannot)?;
    report::line(&format!("man pages: {}", folder.join(format!("{name}.1")).display()))
}

fn shell_name(shell: Shell) -> String {
    shell.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
}
