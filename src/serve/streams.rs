//! Inputs: from the config to a thread that hears.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::ServeError;
use super::config::{Input, InputKind};
use super::ear::Ear;
use crate::source::{Audio, ClipSound, Heard, PcmSound, RATES_HZ, Sample, Sound, SourceError};

/// Samples that are asked of an input at once.
const BLOCK: usize = 1024;
/// A wait in which it is looked whether to stop.
const WAIT: Duration = Duration::from_millis(100);
/// A microphone that is gone is looked for so often.
const AGAIN: Duration = Duration::from_secs(2);
/// What a folder that is played may hold.
const EXTENSIONS: [&str; 2] = ["wav", "flac"];

/// Opens what a config names. `rate_hz` is the model's.
///
/// # Errors
/// A file that is no sound, a device that is not there, a socket that cannot be made.
pub(super) fn open(
    input: &Input,
    rate_hz: u32,
    stdin: &mut Option<Box<dyn Read + Send>>,
) -> Result<Box<dyn Sound + Send>, ServeError> {
    let wrap = |source: SourceError| ServeError::Input { name: input.name.clone(), reason: source.to_string() };
    let raw_hz = input.rate_hz.unwrap_or(rate_hz);
    let path = || input.path.clone().unwrap_or_default();
    match input.kind {
        InputKind::File => Ok(Box::new(ClipSound::new(clip(&path(), input)?))),
        InputKind::Folder => Ok(Box::new(Playlist::new(&path(), input)?)),
        InputKind::Stdin => {
            let none = || ServeError::Input { name: input.name.clone(), reason: "there is no stdin here".into() };
            let stdin = stdin.take().ok_or_else(none)?;
            Ok(Box::new(PcmSound::new(stdin, raw_hz, input.channels).map_err(wrap)?))
        }
        InputKind::Socket => Ok(Box::new(Line::new(&path(), raw_hz, input)?)),
        InputKind::Microphone => microphone(input, rate_hz),
    }
}

#[cfg(feature = "mic")]
fn microphone(input: &Input, rate_hz: u32) -> Result<Box<dyn Sound + Send>, ServeError> {
    let found = crate::source::microphone::Microphone::open(input.device.as_deref(), rate_hz, None);
    let wrap = |source: SourceError| ServeError::Input { name: input.name.clone(), reason: source.to_string() };
    Ok(Box::new(found.map_err(wrap)?))
}

#[cfg(not(feature = "mic"))]
fn microphone(input: &Input, _: u32) -> Result<Box<dyn Sound + Send>, ServeError> {
    let reason = "this build has no microphone: build with --features mic, or name another kind of input".into();
    Err(ServeError::Input { name: input.name.clone(), reason })
}

fn clip(path: &Path, input: &Input) -> Result<Audio, ServeError> {
    let wrap = |reason: String| ServeError::Input { name: input.name.clone(), reason };
    match crate::source::read(path).map_err(|e| wrap(e.to_string()))? {
        Sample::Audio(clip) if RATES_HZ.contains(&clip.rate_hz) => Ok(clip),
        other => Err(wrap(format!("{}: expected a sound file (.wav, .flac), found {}", path.display(), other.kind()))),
    }
}

/// Files one behind the other, with silence between; read when their turn comes.
#[derive(Debug)]
struct Playlist {
    files: std::vec::IntoIter<PathBuf>,
    clip: ClipSound,
    rate_hz: u32,
    pause: usize,
    left: usize,
    input: Input,
}

impl Playlist {
    fn new(folder: &Path, input: &Input) -> Result<Self, ServeError> {
        let wrap = |reason: String| ServeError::Input { name: input.name.clone(), reason };
        let read = |e: std::io::Error| wrap(format!("{}: {e}", folder.display()));
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(read)? {
            let path = entry.map_err(read)?.path();
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
            if EXTENSIONS.contains(&extension.as_str()) {
                files.push(path);
            }
        }
        files.sort();
        let mut files = files.into_iter();
        let Some(first) = files.next() else {
            return Err(wrap(format!("{}: no .wav or .flac file in it", folder.display())));
        };
        let clip = clip(&first, input)?;
        let rate_hz = clip.rate_hz;
        let pause = (u64::from(input.pause_ms) * u64::from(rate_hz) / 1000) as usize;
        Ok(Self { files, clip: ClipSound::new(clip), rate_hz, pause, left: pause, input: input.clone() })
    }
}

impl Sound for Playlist {
    fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    fn read(&mut self, block: &mut [f32]) -> Result<Heard, SourceError> {
        match self.clip.read(block)? {
            Heard::End if self.left > 0 => {
                let count = self.left.min(block.len());
                block[..count].fill(0.0);
                self.left -= count;
                Ok(Heard::Samples(count))
            }
            Heard::End => {
                let Some(file) = self.files.next() else { return Ok(Heard::End) };
                // A file that cannot be played is passed over: the others go on.
                if let Ok(next) = clip(&file, &self.input) {
                    let next = crate::source::resample(&next, self.rate_hz)?;
                    (self.clip, self.left) = (ClipSound::new(next), self.pause);
                }
                Ok(Heard::Nothing)
            }
            heard => Ok(heard),
        }
    }
}

/// Raw samples of whoever is connected; between two senders there is a gap.
#[derive(Debug)]
struct Line {
    path: PathBuf,
    listener: UnixListener,
    sender: Option<PcmSound<UnixStream>>,
    rate_hz: u32,
    channels: u16,
    begun: bool,
}

impl Line {
    fn new(path: &Path, rate_hz: u32, input: &Input) -> Result<Self, ServeError> {
        let wrap = |e: std::io::Error| ServeError::Input {
            name: input.name.clone(),
            reason: format!("{}: {e}", path.display()),
        };
        use std::os::unix::fs::{FileTypeExt, PermissionsExt};
        if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
            && UnixStream::connect(path).is_err()
        {
            std::fs::remove_file(path).map_err(wrap)?;
        }
        let listener = UnixListener::bind(path).map_err(wrap)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(wrap)?;
        listener.set_nonblocking(true).map_err(wrap)?;
        let channels = input.channels;
        Ok(Self { path: path.to_owned(), listener, sender: None, rate_hz, channels, begun: false })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Sound for Line {
    fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    fn read(&mut self, block: &mut [f32]) -> Result<Heard, SourceError> {
        if let Some(sender) = &mut self.sender {
            match sender.read(block) {
                Ok(Heard::End) | Err(_) => self.sender = None,
                heard => return heard,
            }
        }
        match self.listener.accept() {
            Ok((stream, _)) => {
                let stream =
                    stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(WAIT))).map(|()| stream);
                let Ok(stream) = stream else { return Ok(Heard::Nothing) };
                self.sender = Some(PcmSound::new(stream, self.rate_hz, self.channels)?);
                // What comes now does not follow what came before.
                let gap = std::mem::replace(&mut self.begun, true);
                Ok(if gap { Heard::Gap { lost_samples: 0 } } else { Heard::Nothing })
            }
            // Nobody there; or too many open files, which others may close.
            Err(_) => {
                std::thread::sleep(WAIT);
                Ok(Heard::Nothing)
            }
        }
    }
}

/// Says that an ear lives: the number goes up.
pub(super) type Pulse = Arc<AtomicU64>;

/// Opens a microphone again when it is there, with the rate that it had; none if it is told to stop before.
fn again(input: &Input, rate_hz: u32, stop: &AtomicBool, pulse: &Pulse) -> Option<Box<dyn Sound + Send>> {
    loop {
        let until = Instant::now() + AGAIN;
        while Instant::now() < until {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            pulse.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(WAIT);
        }
        if let Ok(sound) = open(input, rate_hz, &mut None)
            && sound.rate_hz() == rate_hz
        {
            return Some(sound);
        }
    }
}

/// Hears an input to its end, or until it is told to stop.
pub(super) fn run(mut sound: Box<dyn Sound + Send>, mut ear: Ear, input: &Input, stop: &AtomicBool, pulse: &Pulse) {
    let real_time = input.real_time && matches!(input.kind, InputKind::File | InputKind::Folder);
    let rate_hz = f64::from(sound.rate_hz());
    let (begun, mut samples) = (Instant::now(), 0u64);
    let mut block = [0.0; BLOCK];
    let mut error = None;
    while !stop.load(Ordering::Relaxed) {
        pulse.fetch_add(1, Ordering::Relaxed);
        match sound.read(&mut block) {
            Ok(Heard::Samples(count)) => {
                ear.hear(&block[..count]);
                samples += count as u64;
                if real_time {
                    let due = begun + Duration::from_secs_f64(samples as f64 / rate_hz);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            }
            Ok(Heard::Gap { lost_samples }) => ear.gap(lost_samples),
            Ok(Heard::Nothing) => {}
            Ok(Heard::End) => break,
            // A microphone that was pulled out is plugged in again one day.
            Err(found) if input.kind == InputKind::Microphone => {
                ear.trouble(&format!("{found}; it is looked for every {} s", AGAIN.as_secs()));
                let Some(new) = again(input, sound.rate_hz(), stop, pulse) else { break };
                sound = new;
                ear.gap(0);
            }
            Err(found) => {
                error = Some(found.to_string());
                break;
            }
        }
    }
    // The last word is heard in every place of the window.
    block.fill(0.0);
    let mut left = if stop.load(Ordering::Relaxed) { 0 } else { ear.window_samples() };
    while left > 0 {
        let count = left.min(BLOCK);
        ear.hear(&block[..count]);
        left -= count;
    }
    ear.end(error);
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn input(kind: InputKind, path: &Path) -> Input {
        Input { path: Some(path.to_owned()), real_time: false, pause_ms: 10, ..Input::new("hall", kind) }
    }

    fn write(path: &Path, value: f32, rate_hz: u32) {
        let clip = Audio { samples: vec![value; 100], rate_hz };
        std::fs::write(path, crate::source::wav_bytes(&clip).unwrap()).unwrap();
    }

    #[test]
    fn a_folder_is_played_by_name_with_pauses() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("b.wav"), 0.5, 8000);
        write(&folder.path().join("a.wav"), 0.25, 8000);
        std::fs::write(folder.path().join("aa.wav"), "no sound").unwrap();
        std::fs::write(folder.path().join("notes.txt"), "no sound").unwrap();
        let mut sound = open(&input(InputKind::Folder, folder.path()), 16_000, &mut None).unwrap();
        assert_eq!(sound.rate_hz(), 8000);
        let (mut block, mut found) = ([0.0; 77], Vec::new());
        loop {
            match sound.read(&mut block).unwrap() {
                Heard::Samples(count) => found.extend_from_slice(&block[..count]),
                Heard::End => break,
                _ => {}
            }
        }
        let near = |value: f32, expected: f32| (value - expected).abs() < 1e-3;
        assert_eq!(found.len(), 360);
        assert!(near(found[0], 0.25) && near(found[100], 0.0) && near(found[180], 0.5) && near(found[359], 0.0));
        let empty = tempfile::tempdir().unwrap();
        let error =
            open(&input(InputKind::Folder, empty.path()), 16_000, &mut None).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("hall") && error.contains("no .wav"), "{error}");
    }

    #[test]
    fn between_two_senders_there_is_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sound");
        let mut sound = open(&input(InputKind::Socket, &path), 16_000, &mut None).unwrap();
        let mut block = [0.0; 64];
        assert_eq!(sound.read(&mut block).unwrap(), Heard::Nothing);
        let mut gaps = 0;
        for _ in 0..2 {
            UnixStream::connect(&path).unwrap().write_all(&[0, 64].repeat(50)).unwrap();
            let mut samples = 0;
            while samples < 50 {
                match sound.read(&mut block).unwrap() {
                    Heard::Samples(count) => samples += count,
                    Heard::Gap { .. } => gaps += 1,
                    Heard::Nothing => {}
                    Heard::End => panic!("a socket has no end"),
                }
            }
            assert_eq!(block[0], 0.5);
        }
        assert_eq!(gaps, 1);
        drop(sound);
        assert!(!path.exists());
    }
}
