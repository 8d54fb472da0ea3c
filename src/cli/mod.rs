//! The command line, one file a verb; the only place that prints.

mod adapt;
mod bench;
#[cfg(all(feature = "serve", unix))]
mod ctl;
mod demo;
mod devices;
mod doctor;
mod eval;
mod init;
mod inspect;
mod listen;
mod manual;
mod memory;
mod merge;
mod operators;
mod options;
mod predict;
mod record;
mod report;
#[cfg(all(feature = "serve", unix))]
mod serve;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Teaches a frozen ONNX model the local accent or camera, on the device.
#[derive(Debug, Parser)]
#[command(
    name = "accentor",
    version,
    about,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 4 stopped where the same command goes on (adapt --checkpoint).\n\n\
                  First steps:\n  accentor demo\n  accentor init my-model.onnx\n  \
                  accentor adapt --model model.toml --data my-clips --out my-accent"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

// A negative number after a flag is a wrong value of that flag, and is named so.
#[derive(Debug, Subcommand)]
enum Verb {
    Init(init::Args),
    #[command(allow_negative_numbers = true)]
    Inspect(inspect::Args),
    #[command(allow_negative_numbers = true)]
    Adapt(Box<adapt::Args>),
    Eval(eval::Args),
    Predict(predict::Args),
    Merge(merge::Args),
    #[command(allow_negative_numbers = true)]
    Bench(bench::Args),
    #[command(allow_negative_numbers = true)]
    Demo(demo::Args),
    Operators(operators::Args),
    Doctor(doctor::Args),
    // For those who make packages.
    #[command(hide = true)]
    Manual(manual::Args),
    Devices(devices::Args),
    Record(record::Args),
    #[command(allow_negative_numbers = true)]
    Listen(listen::Args),
    #[cfg(all(feature = "serve", unix))]
    Serve(serve::Args),
    #[cfg(all(feature = "serve", unix))]
    Ctl(ctl::Args),
}

/// Runs the command line of this process and says how it ended.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Clap prints help and version as "errors" of code 0.
            let code = if error.use_stderr() { 2 } else { 0 };
            report::clap(&error);
            return ExitCode::from(code);
        }
    };
    let result = match &cli.verb {
        Verb::Init(args) => init::run(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::Adapt(args) => adapt::run(args),
        Verb::Eval(args) => eval::run(args),
        Verb::Predict(args) => predict::run(args),
        Verb::Merge(args) => merge::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Demo(args) => demo::run(args),
        Verb::Operators(args) => operators::run(args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Manual(args) => manual::run(args, Cli::command()),
        Verb::Devices(args) => devices::run(args),
        Verb::Record(args) => record::run(args),
        Verb::Listen(args) => listen::run(args),
        #[cfg(all(feature = "serve", unix))]
        Verb::Serve(args) => serve::run(args),
        #[cfg(all(feature = "serve", unix))]
        Verb::Ctl(args) => ctl::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<watch::Stopped>() {
            Some(stopped) => {
                report::note(&stopped.to_string());
                ExitCode::from(watch::STOPPED)
            }
            None => {
                report::error(&error);
                ExitCode::from(1)
            }
        },
    }
}
