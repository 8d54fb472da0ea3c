//! The daemon's own thread: it alone holds the store, decides what is in use, and answers.

mod feedback;
mod update;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

use self::feedback::{Enrolment, Guarded};
use self::update::{Live, Watched};
use super::config::{Config, Input, InputKind};
use super::control::Control;
use super::ear::{Ear, Line};
use super::hooks::Hooks;
use super::learner::Learner;
use super::panel::{self, Shown};
use super::protocol::{Event, ExampleCount, Generation, Note, Reply, Request, Status, StreamStatus};
use super::recent::Recent;
use super::streams::{self, Pulse};
use super::{Message, ServeError};
use crate::button::State;
use crate::listen::Spotter;
use crate::model::Model;
use crate::session::Session;
use crate::source::Sound;
use crate::store::{Disk, Life, Number, Personal, Retention, StoreError, SystemDisk};

/// The daemon looks around so often.
const TICK: Duration = Duration::from_millis(250);
/// Messages that may wait for it.
const MESSAGES: usize = 4096;
/// How long a stop waits for the training to write down where it is.
const LAST_WORDS: Duration = Duration::from_millis(1500);
/// Old things are erased so often.
const TIDY: Duration = Duration::from_secs(3600);
/// Where the daemon is between a start and a stop, as far as a trial and wake rates go, is written down so often.
const NOTE_DOWN: Duration = Duration::from_secs(60);

/// What a daemon tells whoever started it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It listens, and answers on its socket.
    Ready,
    /// What it does, in a few words.
    Status(String),
    /// It lives, and so do its inputs.
    Alive,
    /// It reads its config again; [`Sign::Ready`] follows.
    Reloading,
    /// It stops.
    Stopping,
}

/// A way to talk to a daemon from any thread of the same process.
#[derive(Clone, Debug)]
pub struct Handle {
    to: SyncSender<Message>,
}

impl Handle {
    /// Asks, as `accentor ctl` does. A daemon that has ended refuses.
    pub fn ask(&self, request: Request) -> Reply {
        let (reply, from) = sync_channel(1);
        let ended = || Reply::Refused("the daemon has ended".into());
        match self.to.send(Message::Ask(request, reply)) {
            Ok(()) => from.recv().unwrap_or_else(|_| ended()),
            Err(_) => ended(),
        }
    }

    /// Tells it to stop.
    pub fn stop(&self) {
        // One that has ended has stopped.
        let _ = self.to.send(Message::Stop);
    }
}

/// What a daemon has of the process that it runs in.
pub struct Outside {
    /// Gets the events, one JSON object a line.
    pub events: Box<dyn Write + Send>,
    /// Raw samples, for an input of the kind `stdin`.
    pub stdin: Option<Box<dyn Read + Send>>,
}

impl Outside {
    /// Events, and no stdin.
    pub fn new(events: impl Write + Send + 'static) -> Self {
        Self { events: Box::new(events), stdin: None }
    }
}

/// An input, from the daemon's side.
#[derive(Debug)]
struct Stream {
    input: Input,
    line: Line,
    pulse: Pulse,
    /// The pulse at the last look.
    felt: u64,
    /// Windows that the trial was told of.
    counted: u64,
    ended: bool,
    /// Words that the events said were lost.
    lost: u64,
}

/// An input that is opened and not yet heard.
struct Waiting {
    sound: Box<dyn Sound + Send>,
    ear: Ear,
    input: Input,
    pulse: Pulse,
}

/// The daemon. One process holds a state folder at a time.
pub struct Daemon<D = SystemDisk> {
    config: Config,
    /// What a reload reads.
    path: Option<std::path::PathBuf>,
    model: Arc<Model>,
    /// The frozen model.
    base: Arc<Session>,
    store: Personal<D>,
    /// Held as long as the daemon lives.
    _lock: std::fs::File,
    live: Live,
    /// The adapter before the one on trial, and what the trial found.
    trial: Option<Watched>,
    streams: Vec<Stream>,
    waiting: Vec<Waiting>,
    to: SyncSender<Message>,
    from: Receiver<Message>,
    stop: Arc<AtomicBool>,
    /// It was told to stop.
    stopping: bool,
    hooks: Hooks,
    listeners: Vec<SyncSender<Arc<str>>>,
    out: Box<dyn Write + Send>,
    learner: Option<Learner>,
    /// Examples that were there when a training failed: it is not tried again with the same ones.
    failed_with: Option<usize>,
    enrolment: Option<Enrolment>,
    guarded: Vec<Guarded>,
    last_feedback: Option<Instant>,
    /// A step of an adapter's life that the disk has not got yet.
    unwritten: BTreeMap<Number, (Life, String)>,
    wrote_late: Option<Instant>,
    trouble: Option<String>,
    started: Instant,
    tidied: Option<Instant>,
    noted: Instant,
    status: String,
    control: Option<Control>,
    shown: Option<Shown>,
    /// What the LED was told last.
    lit: Option<State>,
}

impl<D: std::fmt::Debug> std::fmt::Debug for Daemon<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("config", &self.config).field("live", &self.live).finish_non_exhaustive()
    }
}

impl Daemon {
    /// A daemon on the system's disk.
    ///
    /// # Errors
    /// A model, an input, a socket or a state folder that cannot be opened; another daemon that has them.
    pub fn open(config: Config, outside: Outside) -> Result<Self, ServeError> {
        Self::open_on(SystemDisk, config, outside)
    }
}

impl<D: Disk> Daemon<D> {
    /// [`Daemon::open`] on a disk of the caller's.
    ///
    /// # Errors
    /// As [`Daemon::open`].
    pub fn open_on(disk: D, config: Config, outside: Outside) -> Result<Self, ServeError> {
        config.check()?;
        let model = Arc::new(Model::open(&config.model)?);
        let Some((rate_hz, _)) = model.extractor().sound() else { return Err(ServeError::Deaf(model.front_end())) };
        let mut disk = disk;
        let state = |source| ServeError::File { action: "make the folder", path: config.state.clone(), source };
        disk.make_folder(&config.state).map_err(state)?;
        // Before anything is tidied up: another daemon may be writing there.
        let lock = lock(&config.state)?;
        let store = Personal::open(disk, &config.state, config.keep_sound)?;
        for path in store.set_aside() {
            warn!(path = %path.display(), "a damaged file was set aside");
        }
        let base = Arc::new(model.session(None)?);
        let (to, from) = sync_channel(MESSAGES);
        let live = Live::frozen(base.clone(), config.listen.detector.clone());
        let mut daemon = Self {
            hooks: Hooks::new(&config.hooks),
            config,
            path: None,
            model,
            base,
            store,
            _lock: lock,
            live,
            trial: None,
            streams: Vec::new(),
            waiting: Vec::new(),
            to,
            from,
            stop: Arc::new(AtomicBool::new(false)),
            stopping: false,
            listeners: Vec::new(),
            out: outside.events,
            learner: None,
            failed_with: None,
            enrolment: None,
            guarded: Vec::new(),
            last_feedback: None,
            unwritten: BTreeMap::new(),
            wrote_late: None,
            trouble: None,
            started: Instant::now(),
            tidied: None,
            noted: Instant::now(),
            status: String::new(),
            control: None,
            shown: None,
            lit: None,
        };
        daemon.open_inputs(rate_hz, outside.stdin)?;
        daemon.use_what_is_live();
        if let Some(button) = &daemon.config.button {
            daemon.shown = Some(panel::open(button, daemon.to.clone())?);
        }
        daemon.control = Some(Control::open(&daemon.config.socket, daemon.to.clone())?);
        daemon.go_on_training();
        Ok(daemon)
    }

    /// Has [`Request::Reload`] read this file.
    pub fn set_path(&mut self, path: &Path) {
        self.path = Some(path.to_owned());
    }

    /// A way to talk to it.
    pub fn handle(&self) -> Handle {
        Handle { to: self.to.clone() }
    }

    fn open_inputs(&mut self, rate_hz: u32, mut stdin: Option<Box<dyn Read + Send>>) -> Result<(), ServeError> {
        let mut inputs = self.config.inputs.clone();
        if inputs.is_empty() {
            inputs.push(Input::new("microphone", InputKind::Microphone));
        }
        let ids = Arc::new(AtomicU64::new(0));
        for (index, input) in inputs.into_iter().enumerate() {
            let sound = streams::open(&input, rate_hz, &mut stdin)?;
            let spotter = Spotter::new(&self.model, self.base.clone(), sound.rate_hz(), &self.config.listen)?;
            let recent = Recent::new(
                sound.rate_hz(),
                self.config.feedback.recent_seconds,
                self.config.guard.ambient_seconds,
                self.model.extractor().values(),
                self.config.learn.seed,
            );
            let (ear, line) = Ear::new(index, spotter, recent, self.to.clone(), ids.clone());
            let pulse = Pulse::default();
            self.waiting.push(Waiting { sound, ear, input: input.clone(), pulse: pulse.clone() });
            self.streams.push(Stream { input, line, pulse, felt: 0, counted: 0, ended: false, lost: 0 });
        }
        Ok(())
    }

    /// Runs until it is told to stop, or until its inputs have ended where the config says so.
    ///
    /// # Errors
    /// A system without threads.
    pub fn run(mut self, sign: &mut dyn FnMut(Sign)) -> Result<(), ServeError> {
        for Waiting { sound, ear, input, pulse } in std::mem::take(&mut self.waiting) {
            let stop = self.stop.clone();
            let hear = move || streams::run(sound, ear, &input, &stop, &pulse);
            let thread = std::thread::Builder::new().name("listen".into()).spawn(hear);
            thread.map_err(|source| ServeError::Thread { source })?;
        }
        info!(inputs = self.streams.len(), adapter = self.live.number, "listening");
        sign(Sign::Ready);
        let mut looked = Instant::now();
        loop {
            match self.from.recv_timeout(TICK.saturating_sub(looked.elapsed())) {
                Ok(Message::Ask(Request::Reload {}, reply)) => {
                    sign(Sign::Reloading);
                    let _ = reply.send(self.reload());
                    sign(Sign::Ready);
                }
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.stopping {
                break;
            }
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.look_around(sign);
                if self.config.exit_when_done && self.streams.iter().all(|s| s.ended) && self.learner.is_none() {
                    break;
                }
            }
        }
        sign(Sign::Stopping);
        self.end();
        Ok(())
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Word { stream, id, label, score, at_seconds, tag } => {
                self.heard(stream, id, label, score, at_seconds, tag);
            }
            Message::Gap { stream, lost_seconds, at_seconds } => {
                let stream = self.name(stream);
                self.tell(&Event::Gap { stream, lost_seconds, at_seconds });
            }
            Message::Broken { stream, what } => {
                let what = format!("input `{}`: {what}", self.streams[stream].input.name);
                warn!(what, "an input fails");
                self.tell(&Event::Trouble { what });
            }
            Message::Ended { stream, error } => {
                self.streams[stream].ended = true;
                if let Some(error) = &error {
                    warn!(stream = self.streams[stream].input.name, error, "an input failed");
                }
                let stream = self.name(stream);
                self.tell(&Event::Ended { stream, error });
            }
            Message::Ask(request, reply) => {
                let answer = self.answer(request);
                // Whoever asked may be gone.
                let _ = reply.send(answer);
            }
            Message::Listen(events) => self.listeners.push(events),
            Message::Keep { name, bytes } => {
                let kept = self.store.set_state(&name, &bytes);
                self.stored(kept);
            }
            Message::Learnt(learnt) => {
                let (plan, ended) = *learnt;
                self.learnt(&plan, ended);
            }
            Message::Stop => self.stopping = true,
        }
    }

    fn name(&self, stream: usize) -> String {
        self.streams[stream].input.name.clone()
    }

    fn answer(&mut self, request: Request) -> Reply {
        let result = match request {
            Request::Status {} => return Reply::Status(Box::new(self.status())),
            Request::History {} => return Reply::History(self.history()),
            Request::Examples {} => return Reply::Examples(self.examples()),
            Request::Confirm { event } => self.confirm(event),
            Request::Correct { label, event } => self.correct(&label, event),
            Request::FalseWake { event } => self.false_wake(event),
            Request::Wrong { event } => self.wrong(event, None),
            Request::Missed { label, stream } => self.missed(&label, stream.as_deref()),
            Request::Enrol { label, count, stream } => self.enrol(&label, count, stream),
            Request::Train {} => self.train(),
            Request::Rollback {} => self.roll_back("its owner took it back".into()),
            Request::Accept {} => self.accept(),
            Request::Forget { label, example, all } => self.forget(label.as_deref(), example, all),
            Request::Reload {} | Request::Events {} => Err("not in the middle of other things".into()),
        };
        match result {
            Ok(done) => Reply::Done(done),
            Err(why) => Reply::Refused(why),
        }
    }

    /// Tells everybody.
    fn tell(&mut self, event: &Event) {
        if let Event::RolledBack { .. } = event {
            self.led(State::RolledBack);
        }
        let Ok(mut line) = serde_json::to_string(event) else { return };
        line.push('\n');
        // Whoever read the events may be gone; listening goes on.
        let _ = self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush());
        let line: Arc<str> = line.into();
        self.listeners.retain(|to| !matches!(to.try_send(line.clone()), Err(mpsc::TrySendError::Disconnected(_))));
        for failed in self.hooks.tell(event, Instant::now()) {
            warn!(failed, "a hook could not be run");
        }
    }

    /// Shows a state; that an adapter was taken back is seen before listening is.
    fn led(&mut self, state: State) {
        if let Some(shown) =
            self.shown.as_ref().filter(|_| (state, self.lit) != (State::Listening, Some(State::RolledBack)))
        {
            shown.show(state);
        }
        self.lit = Some(state);
    }

    /// Takes note of how the disk answered.
    fn stored<T>(&mut self, result: Result<T, StoreError>) -> Option<T> {
        match result {
            Ok(value) => {
                if self.trouble.take().is_some() {
                    info!("the disk can be written again");
                }
                Some(value)
            }
            Err(error) => {
                let what = error.to_string();
                if self.trouble.as_ref() != Some(&what) {
                    warn!(error = what, "the store cannot be written; listening goes on");
                    self.trouble = Some(what.clone());
                    self.tell(&Event::Trouble { what });
                }
                None
            }
        }
    }

    fn look_around(&mut self, sign: &mut dyn FnMut(Sign)) {
        let now = Instant::now();
        self.hooks.tend(now);
        for index in 0..self.streams.len() {
            let stream = &mut self.streams[index];
            stream.line.clear();
            let lost = stream.line.recent().lost;
            let count = lost - std::mem::replace(&mut stream.lost, lost);
            if count > 0 {
                let stream = self.name(index);
                warn!(stream, count, "the daemon was too busy for words that were heard");
                self.tell(&Event::Lost { stream, count });
            }
        }
        self.listened();
        self.go_on_enrolling(now);
        self.keep_guards(now);
        self.keep_ambient();
        self.train_if_due(now);
        if self.tidied.is_none_or(|at| now - at >= TIDY) {
            self.tidied = Some(now);
            let gone = self.store.retain(&Retention::from(&self.config.keep), unix_seconds());
            self.stored(gone);
        }
        if now - self.noted >= NOTE_DOWN {
            self.noted = now;
            self.note_down();
        }
        if self.all_alive() {
            sign(Sign::Alive);
        }
        let status = self.state();
        if status != self.status {
            self.status.clone_from(&status);
            self.led(match status.as_str() {
                "learning" => State::Training,
                "trial" => State::OnTrial,
                _ => State::Listening,
            });
            sign(Sign::Status(status));
        }
    }

    /// Whether each input's thread went round since the last look; one that waits for a pipe cannot.
    fn all_alive(&mut self) -> bool {
        let mut alive = true;
        for stream in &mut self.streams {
            let pulse = stream.pulse.load(Ordering::Relaxed);
            let waits = stream.ended || stream.input.kind == InputKind::Stdin;
            alive &= waits || pulse != std::mem::replace(&mut stream.felt, pulse);
        }
        alive
    }

    /// What it does, in a word.
    fn state(&self) -> String {
        let state = match (&self.enrolment, &self.learner, &self.trial) {
            (Some(_), _, _) => "enrolling",
            (_, Some(_), _) => "learning",
            (_, _, Some(_)) => "trial",
            _ => "listening",
        };
        state.into()
    }

    fn status(&self) -> Status {
        let streams = self.streams.iter().map(|stream| {
            let recent = stream.line.recent();
            let heard = recent.heard;
            StreamStatus {
                name: stream.input.name.clone(),
                seconds: recent.end() as f64 / f64::from(recent.rate_hz()),
                windows: heard.windows,
                silent_windows: heard.silent_windows,
                detections: heard.detections,
                gaps: heard.gaps,
                lost_seconds: heard.lost_seconds,
                ended: stream.ended,
                adapter: recent.tag,
            }
        });
        Status {
            state: self.state(),
            adapter: self.live.number,
            life: self.live.number.and_then(|n| Some(self.store.adapters().get(&n)?.life)),
            trial: self.trial.as_ref().map(Watched::explain),
            examples: self.store.examples().count(),
            new_examples: self.new_examples().len(),
            training: self.learner.as_ref().map(Learner::progress),
            trouble: self.trouble.clone(),
            set_aside: self.store.set_aside().len(),
            up_seconds: self.started.elapsed().as_secs_f64(),
            streams: streams.collect(),
        }
    }

    fn history(&self) -> Vec<Generation> {
        let of = |(number, generation): (&Number, &crate::store::Generation)| Generation {
            number: *number,
            life: generation.life,
            at: generation.at,
            examples: generation.examples.len(),
            notes: generation.notes.iter().map(|(at, text)| Note { at: *at, text: text.clone() }).collect(),
        };
        self.store.adapters().iter().map(of).collect()
    }

    fn examples(&self) -> Vec<ExampleCount> {
        let mut found: Vec<ExampleCount> = Vec::new();
        for (number, info) in self.store.examples() {
            match found.iter_mut().find(|c| c.label == info.label && c.origin == info.origin) {
                Some(count) => {
                    count.count += 1;
                    count.numbers.push(number);
                }
                None => found.push(ExampleCount {
                    label: info.label.clone(),
                    origin: info.origin.clone(),
                    count: 1,
                    numbers: vec![number],
                }),
            }
        }
        found
    }

    fn reload(&mut self) -> Reply {
        let refused = |why: &str| {
            warn!("the config was not read again; the old one stays");
            Reply::Refused(format!("{why}; the old config stays"))
        };
        let Some(path) = self.path.clone() else { return refused("there is no config file") };
        let config = match Config::read(&path) {
            Ok(config) => config,
            Err(error) => return refused(&error.to_string()),
        };
        if !self.config.reloads_to(&config) {
            return refused(
                "a change of model, state, socket, keep_sound, input, feedback, button, or of how windows are made and averaged needs a \
                 restart",
            );
        }
        // Else every adapter would be found wanting.
        if let Err(error) = config.listen.detector.of_labels(self.model.labels()) {
            return refused(&error.to_string());
        }
        self.hooks.replace(&config.hooks);
        self.config = config;
        self.use_what_is_live();
        info!("the config was read again");
        Reply::Done(format!("read {}", path.display()))
    }

    /// Writes down where it is; the training too.
    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(learner) = &self.learner {
            learner.stop();
        }
        let until = Instant::now() + LAST_WORDS;
        while self.learner.as_ref().is_some_and(|l| !l.is_finished()) || self.streams.iter().any(|s| !s.ended) {
            let only_pipes = self.streams.iter().all(|s| s.ended || s.input.kind == InputKind::Stdin);
            if Instant::now() >= until || self.learner.as_ref().is_none_or(Learner::is_finished) && only_pipes {
                break;
            }
            if let Ok(message) = self.from.recv_timeout(Duration::from_millis(20)) {
                self.take(message);
            }
        }
        while let Ok(message) = self.from.try_recv() {
            self.take(message);
        }
        self.note_down();
        info!("stopped");
    }
}

/// Holds the state folder.
fn lock(state: &Path) -> Result<std::fs::File, ServeError> {
    let path = state.join("lock");
    let io = |source| ServeError::File { action: "lock", path: path.clone(), source };
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.create(true).truncate(false).write(true).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(ServeError::Running { socket: state.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(io(source)),
    }
}

/// The time, in seconds since 1970.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
