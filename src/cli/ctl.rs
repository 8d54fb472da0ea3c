//! `accentor ctl`: talking to the daemon.

use std::io::BufRead;
use std::path::PathBuf;

use anyhow::{Context, bail};

use super::report;
use crate::serve::protocol::{Event, ExampleCount, Generation, Reply, Request, Status};
use crate::serve::{ask, connect};

/// Tell the daemon what was right and wrong, and ask it how it goes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  accentor ctl correct stop         the word just heard was \"stop\"\n  \
                        accentor ctl missed stop          \"stop\" was said and not heard\n  \
                        accentor ctl enrol stop --count 3 the next three words are clips of \"stop\"\n  \
                        accentor ctl history              what was tried, and why it was taken or not")]
pub(super) struct Args {
    /// The daemon's socket
    #[arg(long, value_name = "PATH", default_value = "/run/accentor/control", global = true)]
    socket: PathBuf,
    /// Answers as the daemon gives them: one JSON object a line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    ask: Ask,
}

#[derive(Debug, clap::Subcommand)]
enum Ask {
    /// How it goes
    Status,
    /// The last word was right
    Confirm {
        /// Another one, by the number of its event
        #[arg(long, value_name = "N")]
        event: Option<u64>,
    },
    /// The last word was another one
    Correct {
        /// What was said
        label: String,
        /// Another word, by the number of its event
        #[arg(long, value_name = "N")]
        event: Option<u64>,
    },
    /// Nothing was said where the last word was heard
    FalseWake {
        /// Another one, by the number of its event
        #[arg(long, value_name = "N")]
        event: Option<u64>,
    },
    /// The last word was wrong, whatever it was
    Wrong {
        /// Another one, by the number of its event
        #[arg(long, value_name = "N")]
        event: Option<u64>,
    },
    /// A word was said just now and not heard
    Missed {
        /// What was said
        label: String,
        /// The input that should have heard it [default: the loudest]
        #[arg(long, value_name = "INPUT")]
        stream: Option<String>,
    },
    /// The next words are clips of a word
    Enrol {
        /// The word
        label: String,
        /// How many
        #[arg(long, value_name = "N", default_value_t = 3)]
        count: usize,
        /// The input to listen to [default: any]
        #[arg(long, value_name = "INPUT")]
        stream: Option<String>,
    },
    /// Train now on what is there
    Train,
    /// Take back the adapter in use
    Rollback,
    /// Take the adapter on trial for proven
    Accept,
    /// What was tried, with which figures, and why it was taken or not
    History,
    /// What is kept of clips
    Examples,
    /// Erase clips and every adapter that learnt from them
    Forget {
        /// Those of a word
        label: Option<String>,
        /// One, by its number in `examples`
        #[arg(long, value_name = "N", conflicts_with = "label")]
        example: Option<u64>,
        /// Everything
        #[arg(long, conflicts_with_all = ["label", "example"])]
        all: bool,
    },
    /// Read the config again
    Reload,
    /// Show events as they happen
    Events,
}

impl Ask {
    fn request(&self) -> Request {
        match self {
            Self::Status => Request::Status {},
            Self::Confirm { event } => Request::Confirm { event: *event },
            Self::Correct { label, event } => Request::Correct { label: label.clone(), event: *event },
            Self::FalseWake { event } => Request::FalseWake { event: *event },
            Self::Wrong { event } => Request::Wrong { event: *event },
            Self::Missed { label, stream } => Request::Missed { label: label.clone(), stream: stream.clone() },
            Self::Enrol { label, count, stream } => {
                Request::Enrol { label: label.clone(), count: *count, stream: stream.clone() }
            }
            Self::Train => Request::Train {},
            Self::Rollback => Request::Rollback {},
            Self::Accept => Request::Accept {},
            Self::History => Request::History {},
            Self::Examples => Request::Examples {},
            Self::Forget { label, example, all } => {
                Request::Forget { label: label.clone(), example: *example, all: *all }
            }
            Self::Reload => Request::Reload {},
            Self::Events => Request::Events {},
        }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let request = args.ask.request();
    match &args.ask {
        Ask::Events => {
            for line in connect(&args.socket, &request)?.lines().skip(1) {
                report::line(&line?)?;
            }
            Ok(())
        }
        Ask::Enrol { .. } => enrol(args, &request),
        _ => show(args.json, &ask(&args.socket, &request)?),
    }
}

/// Follows the clips until all are there.
fn enrol(args: &Args, request: &Request) -> anyhow::Result<()> {
    let mut events = connect(&args.socket, &Request::Events {})?.lines().skip(1);
    show(args.json, &ask(&args.socket, request)?)?;
    loop {
        let line = events.next().context("the daemon has ended")??;
        let Ok(Event::Clip { left, refused, .. }) = serde_json::from_str(&line) else { continue };
        if args.json {
            report::line(&line)?;
        } else {
            match &refused {
                Some(why) => report::note(&format!("again: {why}")),
                None => report::line(&format!("taken; {left} to come"))?,
            }
        }
        match (left, refused) {
            (0, None) => return Ok(()),
            (0, Some(why)) => bail!("{why}"),
            _ => {}
        }
    }
}

fn show(json: bool, reply: &Reply) -> anyhow::Result<()> {
    if let Reply::Refused(why) = reply {
        bail!("{why}");
    }
    if json {
        return report::json(reply);
    }
    match reply {
        Reply::Done(done) => report::line(done),
        Reply::Status(status) => show_status(status),
        Reply::History(generations) => show_history(generations),
        Reply::Examples(counts) => show_examples(counts),
        Reply::Refused(_) => Ok(()),
    }
}

fn show_status(status: &Status) -> anyhow::Result<()> {
    let in_use = match (status.adapter, status.life) {
        (Some(number), Some(life)) => format!("adapter {number}, {life}"),
        _ => "the frozen model".into(),
    };
    report::line(&format!("{}; in use: {in_use}; up {:.0} s", status.state, status.up_seconds))?;
    for text in [&status.training, &status.trial].into_iter().flatten() {
        report::line(text)?;
    }
    report::line(&format!("{} examples, {} of them new", status.examples, status.new_examples))?;
    if let Some(trouble) = &status.trouble {
        report::line(&format!("trouble: {trouble}"))?;
    }
    if status.set_aside > 0 {
        report::line(&format!("{} damaged files were set aside", status.set_aside))?;
    }
    for s in &status.streams {
        let ended = if s.ended { ", ended" } else { "" };
        report::line(&format!(
            "input {}: {:.0} s of sound, {} words, {} gaps ({:.1} s lost){ended}",
            s.name, s.seconds, s.detections, s.gaps, s.lost_seconds
        ))?;
    }
    Ok(())
}

fn show_history(generations: &[Generation]) -> anyhow::Result<()> {
    if generations.is_empty() {
        return report::line("nothing was tried yet");
    }
    for generation in generations {
        report::line(&format!(
            "adapter {}: {}, made with {} examples",
            generation.number, generation.life, generation.examples
        ))?;
        for note in &generation.notes {
            report::line(&format!("  {}  {}", utc(note.at), note.text))?;
        }
    }
    Ok(())
}

fn show_examples(counts: &[ExampleCount]) -> anyhow::Result<()> {
    if counts.is_empty() {
        return report::line("none");
    }
    for count in counts {
        let label = if count.label.is_empty() { "(no word)" } else { &count.label };
        let numbers: Vec<String> = count.numbers.iter().map(ToString::to_string).collect();
        report::line(&format!("{label}: {} {} ({})", count.count, count.origin, numbers.join(" ")))?;
    }
    Ok(())
}

/// Seconds since 1970 as a date and a time of day (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (date, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{date:02} {:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day() {
        assert_eq!(utc(0), "1970-01-01 00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00Z");
        assert_eq!(utc(1_795_622_400), "2026-11-25 16:00:00Z");
    }
}
