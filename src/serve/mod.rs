//! The daemon: it listens, learns from what its owner says, tests every update, and takes it back when it was wrong.
//!
//! ```text
//! inputs → Ear (one a stream, its own thread) ─ words, gaps ─→ Daemon ─→ events, hooks
//!             ↑ adapter, between two windows        ↑ ↓ requests, replies
//!             └──────────────────────────── Daemon ─┤ control socket, button
//!                                                   └→ Learner (a thread) → gate → trial → confirmed | rolled back
//! ```
//!
//! [`Daemon::open`] makes one from a [`Config`], [`Daemon::run`] runs it until its [`Handle`] says stop. docs/daemon.md has the whole of it.

mod clips;
mod config;
mod control;
mod daemon;
mod ear;
mod hooks;
mod learner;
mod panel;
pub mod protocol;
mod recent;
mod streams;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

pub use config::{Config, Feedback, Guard, Hook, Input, InputKind, Keep, Learn};
pub use control::{ask, connect};
pub use daemon::{Daemon, Handle, Outside, Sign};
pub use ear::{AudioPath, Swap};

use crate::listen::ListenError;
use crate::model::ModelError;
use crate::store::StoreError;

/// Why the daemon cannot start, or cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A file or socket.
    #[error("cannot {action} {}: {source}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A config that makes no sense.
    #[error("{}: {reason}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting that makes no sense.
    #[error("`{what}`: {why}")]
    Setting {
        /// Its key.
        what: &'static str,
        /// What it is, and what it may be.
        why: String,
    },
    /// An input that cannot be opened.
    #[error("input `{name}`: {reason}")]
    Input {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// Another daemon has the socket or the state.
    #[error("another daemon is running on {}; stop it, or give this one another `socket` and `state`", .socket.display())]
    Running {
        /// Where.
        socket: PathBuf,
    },
    /// No daemon to ask.
    #[error("no daemon listens on {}; start it with `accentor serve --config FILE`, or name its socket", .socket.display())]
    NotRunning {
        /// Where.
        socket: PathBuf,
    },
    /// A model that hears nothing.
    #[error("the model takes no sound: its front end is `{0}`")]
    Deaf(&'static str),
    /// The system gives no thread.
    #[error("cannot start a thread: {source}")]
    Thread {
        /// The system's word.
        source: io::Error,
    },
    /// The button or the LED.
    #[error(transparent)]
    Button(#[from] crate::button::ButtonError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Listening.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The state folder.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What comes to the daemon's own thread.
#[derive(Debug)]
enum Message {
    /// A word was heard.
    Word { stream: usize, id: u64, label: usize, score: f32, at_seconds: f64, tag: u64 },
    /// Sound was lost.
    Gap { stream: usize, lost_seconds: f64, at_seconds: f64 },
    /// An input ended.
    Ended { stream: usize, error: Option<String> },
    /// An input fails for now.
    Broken { stream: usize, what: String },
    /// Somebody asks.
    Ask(protocol::Request, SyncSender<protocol::Reply>),
    /// Somebody listens to events.
    Listen(SyncSender<Arc<str>>),
    /// A part of a training is to be kept.
    Keep { name: String, bytes: Vec<u8> },
    /// A training ended.
    Learnt(Box<(learner::Plan, learner::Ended)>),
    /// To stop.
    Stop,
}
