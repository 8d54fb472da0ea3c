//! The audio path of one input: sound → words, and the memory that feedback draws on. Nothing is allocated in it, nothing waits on a disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Message;
use super::config::Config;
use super::recent::Recent;
use crate::listen::{DetectorSettings, ListenError, Prepared, Preparer, Spotter};
use crate::model::Model;
use crate::session::Session;

/// How an adapter gets to an ear without a pause: ready in `new`, and the one before it in `old`, to be dropped elsewhere.
#[derive(Debug, Default)]
struct Mail {
    new: Mutex<Option<Box<Prepared>>>,
    old: Mutex<Option<Box<Prepared>>>,
}

/// What the rest of the daemon has of an ear.
#[derive(Clone, Debug)]
pub(super) struct Line {
    mail: Arc<Mail>,
    recent: Arc<Mutex<Recent>>,
    pub(super) preparer: Preparer,
}

/// One input's listener.
#[derive(Debug)]
pub(super) struct Ear {
    stream: usize,
    spotter: Spotter,
    windows: u64,
    mail: Arc<Mail>,
    recent: Arc<Mutex<Recent>>,
    to: SyncSender<Message>,
    ids: Arc<AtomicU64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    /// Has the ear take over `prepared` before its next window.
    pub(super) fn send(&self, prepared: Prepared) {
        *lock(&self.mail.new) = Some(Box::new(prepared));
        self.clear();
    }

    /// Drops what the ear gave back.
    pub(super) fn clear(&self) {
        drop(lock(&self.mail.old).take());
    }

    pub(super) fn recent(&self) -> MutexGuard<'_, Recent> {
        lock(&self.recent)
    }
}

impl Ear {
    /// Listens with `spotter` and tells `to` of what it hears; words are numbered by `ids`.
    pub(super) fn new(
        stream: usize,
        spotter: Spotter,
        recent: Recent,
        to: SyncSender<Message>,
        ids: Arc<AtomicU64>,
    ) -> (Self, Line) {
        let (mail, recent) = (Arc::new(Mail::default()), Arc::new(Mutex::new(recent)));
        let line = Line { mail: mail.clone(), recent: recent.clone(), preparer: spotter.preparer() };
        (Self { stream, spotter, windows: 0, mail, recent, to, ids }, line)
    }

    /// Takes the samples that follow. A window that cannot be scored is passed over.
    pub(super) fn hear(&mut self, mut block: &[f32]) {
        self.take_mail();
        lock(&self.recent).push(block);
        loop {
            match self.spotter.next(&mut block) {
                Ok(Some(found)) => {
                    let (id, tag) = (self.ids.fetch_add(1, Ordering::Relaxed) + 1, self.spotter.tag());
                    lock(&self.recent).word(id, &found, tag, self.spotter.features());
                    let (label, score, at_seconds) = (found.label, found.score, found.at_seconds);
                    self.tell(Message::Word { stream: self.stream, id, label, score, at_seconds, tag });
                }
                Ok(None) => break,
                Err(_) => {}
            }
        }
        let heard = self.spotter.heard();
        let mut recent = lock(&self.recent);
        if heard.windows > self.windows && heard.silent_windows == recent.heard.silent_windows {
            recent.window(self.spotter.features());
            if let Some((label, share)) = self.spotter.detector().closest() {
                recent.closest(label, share);
            }
        }
        self.windows = heard.windows;
        (recent.heard, recent.tag) = (heard, self.spotter.tag());
    }

    /// Sound was lost here, `lost_samples` of it as far as that is known.
    pub(super) fn gap(&mut self, lost_samples: u64) {
        let at_seconds = self.spotter.seconds();
        let mut recent = lock(&self.recent);
        recent.gap(lost_samples);
        let lost_seconds = lost_samples as f64 / f64::from(recent.rate_hz());
        drop(recent);
        self.spotter.gap(lost_samples);
        self.tell(Message::Gap { stream: self.stream, lost_seconds, at_seconds });
    }

    /// Something is wrong with the input, and it goes on.
    pub(super) fn trouble(&mut self, what: &str) {
        // As below.
        let _ = self.to.send(Message::Broken { stream: self.stream, what: what.to_owned() });
    }

    /// There is no more; why, where that is not its end.
    pub(super) fn end(&mut self, error: Option<String>) {
        lock(&self.recent).ended = true;
        // Rarer than the rest, and must arrive.
        let _ = self.to.send(Message::Ended { stream: self.stream, error });
    }

    /// Samples of a window at the input's rate: the silence behind a clip in which its last word is heard.
    pub(super) fn window_samples(&self) -> usize {
        self.spotter.window_source_samples()
    }

    fn tell(&self, message: Message) {
        if self.to.try_send(message).is_err() {
            lock(&self.recent).lost += 1;
        }
    }

    fn take_mail(&mut self) {
        let (Ok(mut new), Ok(mut old)) = (self.mail.new.try_lock(), self.mail.old.try_lock()) else { return };
        if old.is_none()
            && let Some(mut prepared) = new.take()
        {
            self.spotter.adopt(&mut prepared);
            *old = Some(prepared);
        }
    }
}

/// The audio path of one input by itself, as the daemon runs it in a thread of its own: for programs with a loop of theirs.
#[derive(Debug)]
pub struct AudioPath {
    ear: Ear,
    from: Receiver<Message>,
}

/// Gives an [`AudioPath`] another adapter, from any thread.
#[derive(Clone, Debug)]
pub struct Swap {
    line: Line,
    detector: DetectorSettings,
}

impl Swap {
    /// Has the path listen with `session` from its next block on; `tag` is what [`AudioPath::tag`] says then.
    ///
    /// # Errors
    /// A session of another model.
    pub fn to(&self, session: Arc<Session>, tag: u64) -> Result<(), ListenError> {
        self.line.send(self.line.preparer.prepare(session, &self.detector, tag)?);
        Ok(())
    }

    /// Whether the path has taken over what it was given last.
    pub fn is_taken(&self) -> bool {
        lock(&self.line.mail.new).is_none()
    }
}

impl AudioPath {
    /// Listens with `session` to sound of `source_hz`.
    ///
    /// # Errors
    /// As [`Spotter::new`].
    pub fn new(
        model: &Model,
        session: Arc<Session>,
        source_hz: u32,
        config: &Config,
    ) -> Result<(Self, Swap), ListenError> {
        let spotter = Spotter::new(model, session, source_hz, &config.listen)?;
        let values = model.extractor().values();
        let recent = Recent::new(source_hz, config.feedback.recent_seconds, config.guard.ambient_seconds, values, 0);
        let (to, from) = sync_channel(64);
        let (ear, line) = Ear::new(0, spotter, recent, to, Arc::new(AtomicU64::new(0)));
        Ok((Self { ear, from }, Swap { line, detector: config.listen.detector.clone() }))
    }

    /// Takes the samples that follow. Nothing is allocated from the second window on.
    pub fn hear(&mut self, block: &[f32]) {
        self.ear.hear(block);
    }

    /// Sound was lost here, `lost_samples` of it as far as that is known.
    pub fn gap(&mut self, lost_samples: u64) {
        self.ear.gap(lost_samples);
    }

    /// The next word of those that were heard: index of its label, and score.
    pub fn word(&mut self) -> Option<(usize, f32)> {
        loop {
            if let Message::Word { label, score, .. } = self.from.try_recv().ok()? {
                return Some((label, score));
            }
        }
    }

    /// Windows so far.
    pub fn windows(&self) -> u64 {
        self.ear.spotter.heard().windows
    }

    /// The scores of the last window, in the order of the labels.
    pub fn scores(&self) -> &[f32] {
        self.ear.spotter.scores()
    }

    /// Its features.
    pub fn features(&self) -> &[f32] {
        self.ear.spotter.features()
    }

    /// What scored it: the tag of its [`Swap::to`], 0 for the first session.
    pub fn tag(&self) -> u64 {
        self.ear.spotter.tag()
    }
}
