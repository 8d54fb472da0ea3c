//! The daemon inside a program of one's own: a folder of recordings in, events out, a question in between.
//!
//!     cargo run --release --example embed_daemon -- models/kws-commands models/kws-commands/demo/us/test/stop
//!
//! The first argument is a model, the second a folder of .wav or .flac files. What is learnt goes to a folder that is gone at the end.

#![allow(clippy::print_stdout, reason = "an example shows its results")]

#[cfg(unix)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::time::Duration;

    use accentor::serve::protocol::{Reply, Request};
    use accentor::serve::{Config, Daemon, Input, InputKind, Outside, Sign};

    let mut arguments = std::env::args().skip(1);
    let usage = "usage: embed_daemon MODEL FOLDER";
    let (model, clips) = (arguments.next().ok_or(usage)?, arguments.next().ok_or(usage)?);
    let folder = std::env::temp_dir().join(format!("accentor-example-{}", std::process::id()));

    // A file does for most programs (`Config::read`); here everything that it would say stands in the code.
    let mut config: Config = toml::from_str(&format!("model = {model:?}"))?;
    config.state = folder.join("state");
    config.socket = folder.join("control");
    config.exit_when_done = true;
    let recordings = Input::new("recordings", InputKind::Folder);
    config.inputs = vec![Input { path: Some(clips.into()), real_time: false, ..recordings }];

    // Events are lines of JSON on whatever can be written to.
    let daemon = Daemon::open(config, Outside::new(std::io::stdout()))?;
    let handle = daemon.handle();
    let asks = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        // What `accentor ctl` can ask, a thread can too: `Correct`, `Enrol`, `History`, …
        if let Reply::Status(status) = handle.ask(Request::Status {}) {
            println!("{}: {} words so far", status.state, status.streams[0].detections);
        }
    });
    daemon.run(&mut |sign| {
        if let Sign::Status(status) = sign {
            println!("it is {status}");
        }
    })?;
    asks.join().map_err(|_| "the thread that asks ended badly")?;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

#[cfg(not(unix))]
fn main() {
    println!("the daemon runs on Unix systems");
}
