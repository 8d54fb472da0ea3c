//! The daemon's TOML file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ServeError;
use crate::board::Profile;
use crate::button::Settings as Button;
use crate::gate::{GateSettings, TrialSettings};
use crate::graph::Choice;
use crate::listen::ListenSettings;
use crate::source::RATES_HZ;
use crate::store::Retention;
use crate::train::{Limits, OnBattery};

/// What the daemon is told. Every field but `model` has a default; targets/accentor.toml shows them all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model: a folder with a model.toml, that file, or an .onnx file; relative to the config file.
    pub model: PathBuf,
    /// Folder of what is learnt; readable by its owner only.
    #[serde(default = "state")]
    pub state: PathBuf,
    /// The control socket of `accentor ctl`.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// Whether examples are kept with their sound. Without, only features are kept, from which no voice can be played.
    #[serde(default)]
    pub keep_sound: bool,
    /// Whether the daemon ends when all its inputs have.
    #[serde(default)]
    pub exit_when_done: bool,
    /// Where sound comes from; without one, the default microphone.
    #[serde(default, rename = "input")]
    pub inputs: Vec<Input>,
    /// How it is listened to.
    #[serde(default)]
    pub listen: ListenSettings,
    /// What its owner says of it.
    #[serde(default)]
    pub feedback: Feedback,
    /// When and how it trains.
    #[serde(default)]
    pub learn: Learn,
    /// What an update must not break.
    #[serde(default)]
    pub guard: Guard,
    /// When an update is tried.
    #[serde(default)]
    pub gate: GateSettings,
    /// When it has proven itself, or is taken back.
    #[serde(default)]
    pub trial: TrialSettings,
    /// How long things are kept.
    #[serde(default)]
    pub keep: Keep,
    /// A button and an LED, in a build with the feature `gpio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub button: Option<Button>,
    /// Programs that are told of events.
    #[serde(default, rename = "hook")]
    pub hooks: Vec<Hook>,
}

fn state() -> PathBuf {
    "/var/lib/accentor".into()
}

fn socket() -> PathBuf {
    "/run/accentor/control".into()
}

/// A stream of sound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Its name in events.
    pub name: String,
    /// What it is.
    pub kind: InputKind,
    /// microphone: as `accentor devices` names it; without, the default one.
    #[serde(default)]
    pub device: Option<String>,
    /// file, folder: the .wav or .flac file, or a folder of them, played by name; socket: the Unix socket that raw samples come to.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// stdin, socket: rate of the raw samples in Hz (16 bits, little-endian); without, that of the model.
    #[serde(default)]
    pub rate_hz: Option<u32>,
    /// stdin, socket: channels of the raw samples.
    #[serde(default = "one")]
    pub channels: u16,
    /// file, folder: whether it is played as fast as it was recorded, or as fast as it goes.
    #[serde(default = "yes")]
    pub real_time: bool,
    /// folder: silence between two files, in ms.
    #[serde(default = "second")]
    pub pause_ms: u32,
}

fn one() -> u16 {
    1
}

fn second() -> u32 {
    1000
}

fn yes() -> bool {
    true
}

/// Kinds of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputKind {
    /// ALSA, in a build with the feature `mic`.
    Microphone,
    /// A sound file.
    File,
    /// Sound files.
    Folder,
    /// Raw samples on stdin.
    Stdin,
    /// Raw samples on a Unix socket, one sender at a time.
    Socket,
}

/// What the owner says of the daemon, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Feedback {
    /// The last so many seconds of each input stay in memory, never on a disk: what `correct`, `missed` and `enrol` take clips from.
    pub recent_seconds: f64,
    /// How far back `missed` looks for the word, in seconds.
    pub missed_seconds: f64,
    /// How long `enrol` waits for its clips, in seconds.
    pub enrol_seconds: f64,
    /// Whether words that fell short of the threshold by little and were said again at once are kept as if confirmed.
    pub self_label: bool,
}

impl Default for Feedback {
    fn default() -> Self {
        Self { recent_seconds: 20.0, missed_seconds: 4.0, enrol_seconds: 30.0, self_label: false }
    }
}

/// When and how the daemon trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Learn {
    /// Whether it trains by itself; `accentor ctl train` works all the same.
    pub automatic: bool,
    /// New examples after which it does.
    pub examples: usize,
    /// Seconds without feedback that it waits for before, so that it does not begin in the middle of it.
    pub quiet_seconds: f64,
    /// Rank of each low-rank pair.
    pub rank: usize,
    /// Layers to adapt, as `accentor adapt --sites`.
    pub sites: String,
    /// Passes over the examples; without, the recipe of `adapt` for the model.
    pub epochs: Option<usize>,
    /// Peak learning rate; without, the recipe of `adapt` for the model.
    pub rate: Option<f32>,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads to train on; without, those of the target profile, else 1.
    pub threads: Option<usize>,
    /// Budgets of a kind of board: a name such as rpi4, or a .toml file as in targets/.
    pub target_profile: Option<String>,
    /// Share of the time in which it trains, above 0 and up to 1.
    pub cpu_share: f32,
    /// Load average of the other programs above which it rests.
    pub load: Option<f64>,
    /// Memory of the process in MiB above which training is given up; without, the target profile's.
    pub memory_mib: Option<f64>,
    /// Temperature of the processor in °C from which it rests; without, the target profile's.
    pub temperature_c: Option<f32>,
    /// Seconds that one training may take, rests included; without, the target profile's.
    pub seconds: Option<f64>,
    /// Whether it also trains on battery.
    pub on_battery: bool,
    /// Seconds of training after which its state is written down, to go on from there after a restart.
    pub checkpoint_seconds: f64,
}

impl Default for Learn {
    fn default() -> Self {
        Self {
            automatic: true,
            examples: 3,
            quiet_seconds: 60.0,
            rank: 8,
            sites: "auto".into(),
            epochs: None,
            rate: None,
            seed: 0,
            threads: None,
            target_profile: None,
            cpu_share: 0.5,
            load: None,
            memory_mib: None,
            temperature_c: None,
            seconds: None,
            on_battery: false,
            checkpoint_seconds: 30.0,
        }
    }
}

impl Learn {
    /// Threads and budgets of a training run.
    ///
    /// # Errors
    /// A target profile that cannot be read, a budget that makes no sense.
    pub fn limits(&self) -> Result<(usize, Limits), ServeError> {
        let wrong = |what: &'static str, why: String| ServeError::Setting { what, why };
        let profile = self.target_profile.as_deref().map(Profile::load).transpose();
        let profile = profile.map_err(|e| wrong("learn.target_profile", e.to_string()))?;
        let board = profile.as_ref().map(Limits::from).unwrap_or_default();
        let limits = Limits {
            seconds: self.seconds.or(board.seconds),
            cpu_share: Some(self.cpu_share),
            load: self.load,
            memory_mib: self.memory_mib.or(board.memory_mib),
            temperature_c: self.temperature_c.or(board.temperature_c),
            temperature_resume_c: if self.temperature_c.is_some() { None } else { board.temperature_resume_c },
            on_battery: if self.on_battery { OnBattery::Go } else { OnBattery::Pause },
        };
        limits.check().map_err(|e| wrong("learn", e.to_string()))?;
        let threads = self.threads.or(profile.map(|p| p.train_threads)).unwrap_or(1);
        Ok((threads, limits))
    }
}

/// What an update is held against, beside the owner's own words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guard {
    /// Score of the frozen model from which on a word that was heard is kept as a guard: features only.
    pub score: f32,
    /// Guards kept of each word.
    pub of_each: usize,
    /// Of the sound without words, one window in so many seconds is kept: features only; 0: none.
    pub ambient_seconds: f64,
    /// Such windows kept.
    pub ambient: usize,
}

impl Default for Guard {
    fn default() -> Self {
        Self { score: 0.9, of_each: 20, ambient_seconds: 300.0, ambient: 200 }
    }
}

/// How long things are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// Bytes of all examples in MiB; the oldest go first.
    pub mebibytes: u64,
    /// Age of an example in days.
    pub days: u64,
    /// Adapters beside the one in use and the confirmed one below it.
    pub adapters: usize,
}

impl Default for Keep {
    fn default() -> Self {
        Self { mebibytes: 64, days: 365, adapters: 8 }
    }
}

impl From<&Keep> for Retention {
    fn from(keep: &Keep) -> Self {
        Self {
            bytes: Some(keep.mebibytes << 20),
            age_seconds: Some(keep.days.saturating_mul(86_400)),
            adapters: Some(keep.adapters),
        }
    }
}

/// A program that is told of an event. No shell is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// The event: detected, gap, learning, trial, confirmed, rolled_back, refused, trouble.
    pub event: String,
    /// Only for this word.
    #[serde(default)]
    pub label: Option<String>,
    /// Program and arguments; {label}, {score}, {stream} and {event} are filled in.
    pub command: Vec<String>,
    /// It is not run again within so many ms.
    #[serde(default = "second")]
    pub every_ms: u32,
    /// It is ended after so many seconds.
    #[serde(default = "ten")]
    pub seconds: f64,
}

fn ten() -> f64 {
    10.0
}

/// Events that a hook may name.
pub(super) const HOOK_EVENTS: [&str; 8] =
    ["detected", "gap", "learning", "trial", "confirmed", "rolled_back", "refused", "trouble"];

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// A file that cannot be read, is not TOML, has an unknown key, or a value that makes no sense.
    pub fn read(path: &Path) -> Result<Self, ServeError> {
        let io = |source| ServeError::File { action: "read", path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(io)?;
        let parse = |reason: String| ServeError::Config { path: path.to_owned(), reason };
        let mut config: Self = toml::from_str(&text).map_err(|e| parse(e.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let paths = config.inputs.iter_mut().filter_map(|input| input.path.as_mut());
        for relative in paths.chain([&mut config.model, &mut config.state, &mut config.socket]) {
            *relative = folder.join(&*relative);
        }
        config.check().map_err(|e| parse(e.to_string()))?;
        Ok(config)
    }

    /// # Errors
    /// A value that makes no sense, with what would do.
    pub fn check(&self) -> Result<(), ServeError> {
        let wrong = |what, why: &str| Err(ServeError::Setting { what, why: why.to_owned() });
        let mut names: Vec<&str> = self.inputs.iter().map(|i| i.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|two| two[0] == two[1]) {
            return wrong("input.name", "two inputs have the same name");
        }
        if self.inputs.iter().filter(|i| i.kind == InputKind::Stdin).count() > 1 {
            return wrong("input.kind", "there is but one stdin");
        }
        self.inputs.iter().try_for_each(Input::check)?;
        let Feedback { recent_seconds, missed_seconds, enrol_seconds, .. } = self.feedback;
        if !(2.0..=120.0).contains(&recent_seconds) {
            return wrong("feedback.recent_seconds", "expected 2 to 120");
        }
        if !(0.5..=recent_seconds).contains(&missed_seconds) {
            return wrong("feedback.missed_seconds", "expected 0.5 to feedback.recent_seconds");
        }
        if !(1.0..=600.0).contains(&enrol_seconds) {
            return wrong("feedback.enrol_seconds", "expected 1 to 600");
        }
        let learn = &self.learn;
        if learn.examples == 0 {
            return wrong("learn.examples", "expected 1 or more");
        }
        if learn.rank == 0 {
            return wrong("learn.rank", "expected 1 or more (8 is the default)");
        }
        if learn.epochs == Some(0) {
            return wrong("learn.epochs", "expected 1 or more");
        }
        if learn.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
            return wrong("learn.rate", "expected a positive number such as 5e-3");
        }
        if learn.threads == Some(0) {
            return wrong("learn.threads", "expected 1 or more");
        }
        for (what, seconds) in
            [("learn.quiet_seconds", learn.quiet_seconds), ("learn.checkpoint_seconds", learn.checkpoint_seconds)]
        {
            if !(0.0..=1e6).contains(&seconds) {
                return wrong(what, "expected 0 to 1000000");
            }
        }
        if let Err(why) = Choice::parse(&learn.sites) {
            return Err(ServeError::Setting { what: "learn.sites", why });
        }
        learn.limits()?;
        if !(self.guard.score > 0.0 && self.guard.score <= 1.0) {
            return wrong("guard.score", "expected more than 0 and at most 1");
        }
        if !(0.0..=1e6).contains(&self.guard.ambient_seconds) {
            return wrong("guard.ambient_seconds", "expected 0 to 1000000");
        }
        if let Err(e) = self.trial.check().and_then(|()| self.gate.check()) {
            return Err(ServeError::Setting { what: "gate, trial", why: e });
        }
        if let Some(button) = &self.button {
            button.check()?;
        }
        self.hooks.iter().try_for_each(Hook::check)
    }

    /// Whether `other` differs only in what a running daemon takes over.
    pub(super) fn reloads_to(&self, other: &Self) -> bool {
        let fixed = |c: &Self| {
            let Self { model, state, socket, keep_sound, inputs, feedback, button, .. } = c.clone();
            let windows = (c.listen.hop_ms, c.listen.gate_dbfs);
            let averages = (c.listen.detector.smoothing_windows, c.listen.detector.refractory_ms);
            (model, state, socket, keep_sound, inputs, feedback, button, windows, averages)
        };
        fixed(self) == fixed(other)
    }
}

impl Input {
    /// An input with everything else as it is where the file does not say.
    pub fn new(name: &str, kind: InputKind) -> Self {
        Self {
            name: name.into(),
            kind,
            device: None,
            path: None,
            rate_hz: None,
            channels: one(),
            real_time: yes(),
            pause_ms: second(),
        }
    }

    fn check(&self) -> Result<(), ServeError> {
        let wrong = |what, why: &str| Err(ServeError::Setting { what, why: format!("input `{}`: {why}", self.name) });
        use InputKind::{File, Folder, Microphone, Socket, Stdin};
        if self.name.is_empty() {
            return wrong("input.name", "it has no name");
        }
        match (self.kind, &self.path) {
            (File | Folder | Socket, None) => return wrong("input.path", "this kind needs a path"),
            (Microphone | Stdin, Some(_)) => return wrong("input.path", "this kind has no path"),
            _ => {}
        }
        if self.device.is_some() && self.kind != Microphone {
            return wrong("input.device", "only a microphone has a device");
        }
        if self.rate_hz.is_some() && !matches!(self.kind, Stdin | Socket) {
            return wrong("input.rate_hz", "only raw samples (stdin, socket) need a rate");
        }
        if self.rate_hz.is_some_and(|rate| !RATES_HZ.contains(&rate)) {
            return wrong("input.rate_hz", "expected 1000 to 768000");
        }
        if !(1..=64).contains(&self.channels) {
            return wrong("input.channels", "expected 1 to 64");
        }
        Ok(())
    }
}

impl Hook {
    fn check(&self) -> Result<(), ServeError> {
        let wrong = |what, why: String| Err(ServeError::Setting { what, why });
        if !HOOK_EVENTS.contains(&self.event.as_str()) {
            return wrong("hook.event", format!("`{}` is none; there are {}", self.event, HOOK_EVENTS.join(", ")));
        }
        if self.command.first().is_none_or(String::is_empty) {
            return wrong("hook.command", "name a program".into());
        }
        if !(0.1..=3600.0).contains(&self.seconds) {
            return wrong("hook.seconds", "expected 0.1 to 3600".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("accentor.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn the_model_alone_is_enough() {
        let config = parse("model = \"/models/kws\"").unwrap();
        assert_eq!(config.model, Path::new("/models/kws"));
        assert_eq!(config.learn, Learn::default());
        assert!(!config.keep_sound && config.inputs.is_empty());
    }

    #[test]
    fn the_example_shows_every_default() {
        let text = include_str!("../../targets/accentor.toml");
        let config = parse(text).unwrap();
        // What the example says where it is commented out is what holds without it.
        let set: String = text.lines().map(|l| l.strip_prefix("#: ").unwrap_or(l)).collect::<Vec<_>>().join("\n");
        let all = parse(&set).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config, all);
        for key in toml::to_string(&all).unwrap().lines().filter_map(|l| l.split_once(" = ")) {
            assert!(text.contains(key.0), "{} is not in targets/accentor.toml", key.0);
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (text, named) in [
            ("", "model"),
            ("model = \"m\"\nmodle = 1", "modle"),
            ("model = \"m\"\n[learn]\ncpu_share = 1.5", "cpu share"),
            ("model = \"m\"\n[learn]\nsites = \"(\"", "learn.sites"),
            ("model = \"m\"\n[learn]\ntarget_profile = \"rpi9\"", "rpi9"),
            ("model = \"m\"\n[[input]]\nname = \"a\"\nkind = \"file\"", "input.path"),
            ("model = \"m\"\n[[input]]\nname = \"a\"\nkind = \"radio\"", "radio"),
            ("model = \"m\"\n[[input]]\nname = \"a\"\nkind = \"stdin\"\nrate_hz = 3", "1000 to 768000"),
            (
                "model = \"m\"\n[[input]]\nname = \"a\"\nkind = \"stdin\"\n[[input]]\nname = \"a\"\nkind = \"microphone\"",
                "same name",
            ),
            ("model = \"m\"\n[[hook]]\nevent = \"heard\"\ncommand = [\"x\"]", "heard"),
            ("model = \"m\"\n[[hook]]\nevent = \"detected\"\ncommand = []", "hook.command"),
            ("model = \"m\"\n[feedback]\nrecent_seconds = 1e9", "recent_seconds"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn paths_are_those_beside_the_file() {
        let config = parse("model = \"m\"\nstate = \"s\"\nsocket = \"/run/x\"").unwrap();
        assert!(config.model.is_absolute() && config.model.ends_with("m") && config.state.ends_with("s"));
        assert_eq!(config.socket, Path::new("/run/x"));
    }
}
