//! What `accentor ctl` and the daemon say to each other, and the events: JSON, one object a line.

use serde::{Deserialize, Serialize};

use crate::store::Life;

/// A request, e.g. `{"ask":"correct","label":"stop"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How it goes.
    Status {},
    /// The last word was right; `event`: the word with that number.
    Confirm {
        /// Number of the word's event.
        #[serde(default)]
        event: Option<u64>,
    },
    /// The last word was another one.
    Correct {
        /// What was said.
        label: String,
        /// Number of the word's event.
        #[serde(default)]
        event: Option<u64>,
    },
    /// Nothing was said where the last word was heard.
    FalseWake {
        /// Number of the word's event.
        #[serde(default)]
        event: Option<u64>,
    },
    /// The last word was wrong, whatever it was: what a long press of the button says.
    Wrong {
        /// Number of the word's event.
        #[serde(default)]
        event: Option<u64>,
    },
    /// A word was said just now and not heard.
    Missed {
        /// What was said.
        label: String,
        /// The input that should have heard it; without, the one that was loudest.
        #[serde(default)]
        stream: Option<String>,
    },
    /// The next words are clips of `label`.
    Enrol {
        /// The word.
        label: String,
        /// How many.
        count: usize,
        /// The input to listen to; without, any.
        #[serde(default)]
        stream: Option<String>,
    },
    /// Train now on what is there.
    Train {},
    /// Take back the adapter in use.
    Rollback {},
    /// Take the adapter on trial for confirmed.
    Accept {},
    /// Every adapter with what was tried, and why it was taken or not.
    History {},
    /// What is kept of examples.
    Examples {},
    /// Erase examples and all that learnt from them.
    Forget {
        /// Those of a word.
        #[serde(default)]
        label: Option<String>,
        /// One of them.
        #[serde(default)]
        example: Option<u64>,
        /// Everything.
        #[serde(default)]
        all: bool,
    },
    /// Read the config file again.
    Reload {},
    /// Send events on this connection from now on.
    Events {},
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done; what was done in words.
    Done(String),
    /// Not done; why, and the cure.
    Refused(String),
    /// How it goes.
    Status(Box<Status>),
    /// Adapters, oldest first.
    History(Vec<Generation>),
    /// Examples by word and origin.
    Examples(Vec<ExampleCount>),
}

/// How it goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// listening, enrolling, learning or trial.
    pub state: String,
    /// Number of the adapter in use; none: the frozen model.
    pub adapter: Option<u64>,
    /// Where it is in its life.
    pub life: Option<Life>,
    /// What the trial found so far, in words.
    pub trial: Option<String>,
    /// Examples kept.
    pub examples: usize,
    /// Examples that no training has seen yet.
    pub new_examples: usize,
    /// How far a training is, in words.
    pub training: Option<String>,
    /// What is wrong, if something is: a disk that is full, say.
    pub trouble: Option<String>,
    /// Files that were damaged and set aside.
    pub set_aside: usize,
    /// Seconds since the start.
    pub up_seconds: f64,
    /// Each input.
    pub streams: Vec<StreamStatus>,
}

/// How an input goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Its name.
    pub name: String,
    /// Seconds of sound so far, lost sound included.
    pub seconds: f64,
    /// Windows that were full.
    pub windows: u64,
    /// Of these, those that the gate held back.
    pub silent_windows: u64,
    /// Words.
    pub detections: u64,
    /// Breaks in the sound.
    pub gaps: u64,
    /// Seconds that are known to be lost in them.
    pub lost_seconds: f64,
    /// Whether it has ended.
    pub ended: bool,
    /// Number of the adapter that scored the last window; 0: the frozen model.
    pub adapter: u64,
}

/// An adapter's life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Its number.
    pub number: u64,
    /// Where it is.
    pub life: Life,
    /// When it was trained, in seconds since 1970.
    pub at: u64,
    /// Examples that it learnt from, and those that it was judged by.
    pub examples: usize,
    /// What happened, in the order in which it did.
    pub notes: Vec<Note>,
}

/// A step of an adapter's life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// When, in seconds since 1970.
    pub at: u64,
    /// What and why, with figures.
    pub text: String,
}

/// Examples of a word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExampleCount {
    /// The word; empty for sound without words.
    pub label: String,
    /// How they came.
    pub origin: String,
    /// How many.
    pub count: usize,
    /// Their numbers, for `forget`.
    pub numbers: Vec<u64>,
}

/// What happens, as it does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A word was heard.
    Detected {
        /// Number, for feedback.
        id: u64,
        /// The input.
        stream: String,
        /// The word.
        label: String,
        /// Its averaged score.
        score: f32,
        /// Seconds of the input's sound, lost sound included.
        at_seconds: f64,
        /// The adapter that heard it; none: the frozen model.
        adapter: Option<u64>,
    },
    /// Sound was lost.
    Gap {
        /// The input.
        stream: String,
        /// How much, in seconds, as far as that is known; 0 where it is not.
        lost_seconds: f64,
        /// Where it begins.
        at_seconds: f64,
    },
    /// Words that were heard and not told, for the daemon was too busy.
    Lost {
        /// The input.
        stream: String,
        /// How many.
        count: u64,
    },
    /// An input ended.
    Ended {
        /// The input.
        stream: String,
        /// Why, where that was not its end.
        error: Option<String>,
    },
    /// A clip was taken or not.
    Clip {
        /// The word.
        label: String,
        /// How many are still to come.
        left: usize,
        /// Why it was not taken.
        refused: Option<String>,
    },
    /// Training began.
    Learning {
        /// Examples of the owner.
        examples: usize,
    },
    /// An update did not pass the gate, or could not be made.
    Refused {
        /// Why, with figures.
        why: String,
    },
    /// An update is in use and watched.
    Trial {
        /// Its number.
        adapter: u64,
        /// Why it was taken, with figures.
        why: String,
    },
    /// An update has proven itself.
    Confirmed {
        /// Its number.
        adapter: u64,
        /// Why.
        why: String,
    },
    /// An update was taken back.
    RolledBack {
        /// Its number.
        adapter: u64,
        /// Why.
        why: String,
        /// What is in use now; none: the frozen model.
        now: Option<u64>,
    },
    /// Something is wrong; listening goes on.
    Trouble {
        /// What, and the cure.
        what: String,
    },
}

impl Event {
    /// Its name, as in the JSON and in `hook.event`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Detected { .. } => "detected",
            Self::Gap { .. } => "gap",
            Self::Lost { .. } => "lost",
            Self::Ended { .. } => "ended",
            Self::Clip { .. } => "clip",
            Self::Learning { .. } => "learning",
            Self::Refused { .. } => "refused",
            Self::Trial { .. } => "trial",
            Self::Confirmed { .. } => "confirmed",
            Self::RolledBack { .. } => "rolled_back",
            Self::Trouble { .. } => "trouble",
        }
    }
}

/// A line that does not ask for more than memory has.
pub const MAX_LINE_BYTES: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_scripts_write() {
        let parse = |text: &str| serde_json::from_str::<Request>(text);
        assert_eq!(
            parse(r#"{"ask":"correct","label":"stop"}"#).unwrap(),
            Request::Correct { label: "stop".into(), event: None }
        );
        assert_eq!(parse(r#"{"ask":"status"}"#).unwrap(), Request::Status {});
        assert!(parse(r#"{"ask":"correct"}"#).is_err());
        assert!(parse(r#"{"ask":"forget","everything":true}"#).is_err());
    }

    #[test]
    fn events_have_the_names_that_hooks_use() {
        let event = Event::RolledBack { adapter: 2, why: "x".into(), now: None };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["event"], event.name());
        assert!(super::super::config::HOOK_EVENTS.contains(&event.name()));
    }
}
