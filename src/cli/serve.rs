//! `accentor serve`: the daemon.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::serve::protocol::Request;
use crate::serve::{Config, Daemon, Outside, Sign};

/// Listen all day, learn what its owner says, and take back what was wrong
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  accentor serve --config /etc/accentor/accentor.toml\n\n\
                        Events are lines of JSON on stdout, the log is on stderr. Talk to it with `accentor ctl`.\n\
                        SIGHUP reads the config again, SIGTERM ends it. docs/daemon.md has the rest.")]
pub(super) struct Args {
    /// The config; targets/accentor.toml is one with every key
    #[arg(long, value_name = "FILE", default_value = "/etc/accentor/accentor.toml")]
    config: PathBuf,
    /// Folder of what is learnt [default: that of the config]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The control socket [default: that of the config]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How much of the log
    #[arg(long, value_enum, default_value_t = Level::Info)]
    log: Level,
}

/// `--log`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Level {
    Warn,
    Info,
    Debug,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let level = match args.log {
        Level::Warn => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false);
    // The journal has the time.
    let log = log.without_time().with_target(false);
    if log.try_init().is_err() {
        super::report::note("another log is set up in this process; the daemon's goes there");
    }
    let mut config = Config::read(&args.config)?;
    if let Some(state) = &args.state {
        config.state.clone_from(state);
    }
    if let Some(socket) = &args.socket {
        config.socket.clone_from(socket);
    }
    // Before the model is read: a signal that comes early is not lost.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot listen for signals")?;
    let outside = Outside { events: Box::new(std::io::stdout()), stdin: Some(Box::new(std::io::stdin())) };
    let mut daemon = Daemon::open(config, outside)?;
    daemon.set_path(&args.config);
    let handle = daemon.handle();
    let wait = move || {
        for signal in signals.forever() {
            match signal {
                SIGHUP => drop(handle.ask(Request::Reload {})),
                _ => handle.stop(),
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
    let every = sd_notify::watchdog_enabled().map(|time| time / 2);
    let mut alive: Option<Instant> = None;
    daemon.run(&mut |sign| notify(&sign, every, &mut alive))?;
    Ok(())
}

/// Tells systemd, where it started this process.
fn notify(sign: &Sign, every: Option<Duration>, alive: &mut Option<Instant>) {
    let state = match sign {
        Sign::Ready => vec![NotifyState::Ready],
        Sign::Status(status) => vec![NotifyState::Status(status)],
        Sign::Reloading => match NotifyState::monotonic_usec_now() {
            Ok(now) => vec![NotifyState::Reloading, now],
            Err(_) => vec![NotifyState::Reloading],
        },
        Sign::Stopping => vec![NotifyState::Stopping],
        Sign::Alive => {
            let due = every.is_some_and(|every| alive.is_none_or(|at| at.elapsed() >= every));
            if !due {
                return;
            }
            *alive = Some(Instant::now());
            vec![NotifyState::Watchdog]
        }
    };
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&state);
}
