//! A daemon in this process, with sound and requests from a test.
#![allow(dead_code, reason = "each test program uses its part")]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use accentor::serve::protocol::{Event, Reply, Request, Status};
use accentor::serve::{Config, Daemon, Handle, Input, InputKind, Outside};
use accentor::source::{Audio, Sample, resample};
use accentor::store::{Disk, SystemDisk};

pub(crate) const RATE_HZ: u32 = 16_000;
/// Nothing here takes longer on a busy machine; elsewhere than on x86-64 that may be an emulated one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(if cfg!(target_arch = "x86_64") { 120 } else { 3600 });

/// A config for a model, with everything else in `folder` and sound from a socket there.
pub(crate) fn config(model: &Path, folder: &Path) -> Config {
    let text =
        format!("model = {:?}\nstate = {:?}\nsocket = {:?}\n", model, folder.join("state"), folder.join("control"));
    let path = folder.join("accentor.toml");
    std::fs::write(&path, text).unwrap();
    let mut config = Config::read(&path).unwrap();
    let socket = Input::new("hall", InputKind::Socket);
    config.inputs = vec![Input { path: Some(folder.join("sound")), rate_hz: Some(RATE_HZ), ..socket }];
    config.learn.automatic = false;
    config.learn.cpu_share = 1.0;
    // In dense speech every other window has a part of a word.
    config.guard.ambient_seconds = 0.0;
    config.listen.detector.threshold = 0.5;
    config
}

/// Events, line by line.
struct Lines(std::sync::mpsc::Sender<Event>, Vec<u8>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.1.extend_from_slice(bytes);
        while let Some(end) = self.1.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.1.drain(..=end).collect();
            let _ = self.0.send(serde_json::from_slice(&line).unwrap());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) struct Running {
    pub(crate) handle: Handle,
    pub(crate) events: Receiver<Event>,
    sound: UnixStream,
    sent: u64,
    rng: fastrand::Rng,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Running {
    pub(crate) fn start(config: Config) -> Self {
        Self::start_on(SystemDisk, config)
    }

    pub(crate) fn start_on(disk: impl Disk + Send + 'static, config: Config) -> Self {
        let (to, events) = channel();
        let socket: PathBuf = config.inputs[0].path.clone().unwrap();
        let daemon = Daemon::open_on(disk, config, Outside::new(Lines(to, Vec::new()))).unwrap();
        let handle = daemon.handle();
        let thread = std::thread::spawn(move || daemon.run(&mut |_| {}).map_err(|e| e.to_string()));
        let sound = UnixStream::connect(socket).unwrap();
        Self { handle, events, sound, sent: 0, rng: fastrand::Rng::with_seed(7), thread: Some(thread) }
    }

    pub(crate) fn status(&self) -> Status {
        match self.handle.ask(Request::Status {}) {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Does what is asked, and says what was done.
    pub(crate) fn done(&self, request: Request) -> String {
        match self.handle.ask(request) {
            Reply::Done(done) => done,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn push(&mut self, samples: &[f32]) {
        let bytes: Vec<u8> = samples.iter().flat_map(|v| ((v * 32767.0) as i16).to_le_bytes()).collect();
        self.sound.write_all(&bytes).unwrap();
        self.sent += samples.len() as u64;
    }

    /// Faint noise.
    pub(crate) fn rest(&mut self, seconds: f64) {
        let count = (seconds * f64::from(RATE_HZ)) as usize;
        let noise: Vec<f32> = (0..count).map(|_| (self.rng.f32() - 0.5) * 2e-3).collect();
        self.push(&noise);
    }

    /// Plays a clip with rests around it, and waits until it was heard to its end: the events since the last time.
    pub(crate) fn play(&mut self, clip: &Audio) -> Vec<Event> {
        self.rest(0.5);
        let clip = resample(clip, RATE_HZ).unwrap();
        self.push(&clip.samples);
        self.rest(1.0);
        self.settle()
    }

    /// Waits until all sound was heard: the events since the last time.
    pub(crate) fn settle(&mut self) -> Vec<Event> {
        let until = Instant::now() + PATIENCE;
        let seconds = self.sent as f64 / f64::from(RATE_HZ);
        while self.status().streams[0].seconds < seconds - 0.01 {
            assert!(Instant::now() < until, "the daemon does not listen");
            std::thread::sleep(Duration::from_millis(1));
        }
        // What is in the last block was scored when the next answer comes.
        let _ = self.status();
        self.events.try_iter().collect()
    }

    /// Waits for an event.
    pub(crate) fn wait(&self, which: impl Fn(&Event) -> bool) -> Event {
        let until = Instant::now() + PATIENCE;
        loop {
            let event = self.events.recv_timeout(until.saturating_duration_since(Instant::now()));
            let event = event.unwrap_or_else(|_| panic!("it does not come; {:?}", self.status()));
            if which(&event) {
                return event;
            }
        }
    }

    pub(crate) fn stop(mut self) {
        self.handle.stop();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

/// Words among events: label and number.
pub(crate) fn words(events: &[Event]) -> Vec<(String, u64)> {
    let word = |event: &Event| match event {
        Event::Detected { label, id, .. } => Some((label.clone(), *id)),
        _ => None,
    };
    events.iter().filter_map(word).collect()
}

/// Plays clips; the share that was heard as what they are, and as nothing else.
pub(crate) fn heard(daemon: &mut Running, clips: &[(Audio, String)]) -> f64 {
    let mut right = 0;
    for (clip, label) in clips {
        let words = words(&daemon.play(clip));
        right += usize::from(!words.is_empty() && words.iter().all(|(word, _)| word == label));
    }
    right as f64 / clips.len() as f64
}

/// Plays clips and says of each what it was: a correction where another word was heard, a miss where none was.
pub(crate) fn teach(daemon: &mut Running, clips: &[(Audio, String)]) -> usize {
    taught(daemon, clips).len()
}

/// The same, with the numbers of the examples that were kept.
pub(crate) fn taught(daemon: &mut Running, clips: &[(Audio, String)]) -> Vec<u64> {
    let mut kept = Vec::new();
    for (clip, label) in clips {
        let words = words(&daemon.play(clip));
        let label = label.clone();
        let request = match words.first() {
            Some((_, id)) => Request::Correct { label, event: Some(*id) },
            None => Request::Missed { label, stream: None },
        };
        if let Reply::Done(done) = daemon.handle.ask(request) {
            kept.push(done.split(' ').nth(1).unwrap().parse().unwrap());
        }
    }
    kept
}

/// The clips of a folder or CSV file.
pub(crate) fn clips(data: &Path) -> Vec<(Audio, String)> {
    let data = accentor::source::dataset(data).unwrap();
    let read = |example: &accentor::source::Example| match accentor::source::read(&example.path).unwrap() {
        Sample::Audio(clip) => (clip, example.label.clone()),
        other => panic!("{other:?}"),
    };
    data.examples.iter().map(read).collect()
}
