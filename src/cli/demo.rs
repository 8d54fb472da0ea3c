//! `accentor demo`.
/// Teach the built-in keyword model an accent that it never heard
#[derive(Debug, clap::Args)]
pub(super) struct Args {}
pub(super) fn run(_args: &Args) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
