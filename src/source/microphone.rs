//! The microphone: the sound system's callback → a ring of fixed size → whoever reads.
//!
//! The callback turns each frame into one number and pushes it: no lock, no allocation. What finds no room is counted, and the place of the gap
//! goes into the ring too, so that the reader learns of it where it is ([`Heard::Gap`]). After a gap sound is taken again when half of the ring
//! is free: a reader that is too slow gets fewer and longer pieces.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cpal::traits::{DeviceTrait, HostTrait, StreamTrait};
use cpal::{
    BufferSize, Data, ErrorKind, FromSample, InputCallbackInfo, SampleFormat, StreamConfig, StreamInstant,
    SupportedBufferSize,
};
use heapless::spsc::{Consumer, Producer, Queue};
use serde::Serialize;

use super::live::{Heard, Sound};
use super::{RATES_HZ, SourceError};

/// Places of the ring: 4 s at 16 kHz, 1.4 s at 48 kHz.
const RING: usize = 1 << 16;

/// How long a read waits for samples.
const WAIT: Duration = Duration::from_millis(100);

/// How often it looks meanwhile: the callback wakes nobody.
const LOOK: Duration = Duration::from_millis(5);

/// After so long without a sample an error of the sound system counts as the end of the stream.
const SILENT: Duration = Duration::from_secs(3);

/// Pieces that the sound system is asked to hand over, at most: 64 ms at 16 kHz. It holds two of them, so long may the machine
/// be busy.
const PIECES_A_SECOND: u32 = 16;

/// Sample formats that are read, the preferred ones first.
const FORMATS: [SampleFormat; 10] = [
    SampleFormat::I16,
    SampleFormat::F32,
    SampleFormat::I32,
    SampleFormat::I24,
    SampleFormat::U16,
    SampleFormat::U24,
    SampleFormat::U32,
    SampleFormat::F64,
    SampleFormat::U8,
    SampleFormat::I8,
];

/// What stands in the ring.
#[derive(Clone, Copy, Debug)]
enum Item {
    Sample(f32),
    Gap(u32),
}

type Ends = (Producer<'static, Item>, Consumer<'static, Item>);

/// Rings that no stream uses: one is made where this is empty and lives as long as the process, so that there are as many as
/// microphones were ever open at once.
static SPARE: Mutex<Vec<Ends>> = Mutex::new(Vec::new());

fn ring() -> Ends {
    let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    spare.unwrap_or_else(|| Box::leak(Box::new(Queue::<Item, RING>::new())).split())
}

/// What callbacks and reader share.
#[derive(Debug, Default)]
struct Counters {
    /// Overruns that the sound system reported.
    overruns: AtomicU64,
    /// The device is gone.
    gone: AtomicBool,
    /// Another error.
    failed: AtomicBool,
}

/// A device that gives sound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// The name to open it by.
    pub name: String,
    /// What the sound system says of it.
    pub description: String,
    /// Whether it is the one that is opened without a name.
    pub default: bool,
    /// What it gives; empty where it cannot be opened now.
    pub formats: Vec<Format>,
    /// Why it cannot be opened now.
    pub problem: Option<String>,
}

/// Formats that a device gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Format {
    /// Channels, from and to.
    pub channels: [u16; 2],
    /// Samples a second, from and to.
    pub rates_hz: [u32; 2],
    /// Kinds of samples, such as `i16`.
    pub samples: Vec<String>,
}

/// Keeps ALSA from writing to stderr on this thread.
#[cfg(target_os = "linux")]
fn hush() {
    // Without a buffer for its errors ALSA goes on printing them.
    let _ = alsa::Output::local_error_handler();
}

#[cfg(not(target_os = "linux"))]
fn hush() {}

fn no_host(error: &cpal::Error) -> SourceError {
    SourceError::Device {
        device: String::from("sound system"),
        problem: error.to_string(),
        cure: "install ALSA's library and its configuration (Debian: libasound2 and libasound2-data)",
    }
}

fn no_device(device: &str, error: &cpal::Error) -> SourceError {
    let cure = match error.kind() {
        ErrorKind::PermissionDenied => "add the user to the group `audio` and log in again",
        ErrorKind::DeviceBusy => "another program has it: stop that, or name a device that is shared",
        _ => "plug a microphone in, and look with `accentor devices` (or `arecord -l`) which are there",
    };
    SourceError::Device { device: device.into(), problem: error.to_string(), cure }
}

fn host() -> Result<cpal::Host, SourceError> {
    hush();
    let host = cpal::available_hosts().into_iter().next();
    let host = host.map_or_else(|| Err(cpal::Error::new(ErrorKind::HostUnavailable)), cpal::host_from_id);
    host.map_err(|error| no_host(&error))
}

/// The name that a device is opened by.
fn name_of(device: &cpal::Device) -> String {
    device.id().map_or_else(|_| device.to_string(), |id| id.id().to_owned())
}

/// The devices that give sound, the default one first.
///
/// # Errors
/// No sound system.
pub fn devices() -> Result<Vec<Device>, SourceError> {
    let host = host()?;
    let default = host.default_input_device().map(|device| name_of(&device));
    let mut found: Vec<Device> = Vec::new();
    let all = host.devices().map_err(|error| no_host(&error))?;
    for device in host.default_input_device().into_iter().chain(all.filter(DeviceTrait::supports_input)) {
        let name = name_of(&device);
        if found.iter().any(|other| other.name == name) {
            continue;
        }
        let default = Some(&name) == default.as_ref();
        let (formats, problem) = match device.supported_input_configs() {
            Ok(configs) => (formats(configs), None),
            // What a plugin offers in both directions and has in none is no news.
            Err(_) if !default => continue,
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let lines: Vec<String> = device
            .description()
            .map_or_else(|_| Vec::new(), |about| about.extended().map(|line| line.trim().to_owned()).collect());
        found.push(Device { name, description: lines.join(", "), default, formats, problem });
    }
    Ok(found)
}

fn formats(configs: impl Iterator<Item = cpal::SupportedStreamConfigRange>) -> Vec<Format> {
    let mut found: Vec<Format> = Vec::new();
    let mut all: Vec<_> = configs.collect();
    all.sort_by_key(|c| (c.sample_format().to_string(), c.min_sample_rate(), c.max_sample_rate(), c.channels()));
    // Channels that follow each other are a range; kinds of samples with the same ranges stand together.
    for config in all {
        let rates_hz = [config.min_sample_rate(), config.max_sample_rate()];
        let (channels, samples) = (config.channels(), config.sample_format().to_string());
        match found.iter_mut().find(|f| {
            f.rates_hz == rates_hz && f.samples == [samples.as_str()] && f.channels[1].checked_add(1) == Some(channels)
        }) {
            Some(format) => format.channels[1] = channels,
            None => found.push(Format { channels: [channels; 2], rates_hz, samples: vec![samples] }),
        }
    }
    let mut merged: Vec<Format> = Vec::new();
    for format in found {
        match merged.iter_mut().find(|m| m.channels == format.channels && m.rates_hz == format.rates_hz) {
            Some(other) => other.samples.extend(format.samples),
            None => merged.push(format),
        }
    }
    merged
}

/// A device by the name that [`devices`] gives it, or by a part of its name or description that no other has.
fn find(host: &cpal::Host, name: &str) -> Result<cpal::Device, SourceError> {
    let all: Vec<_> = host.devices().map_err(|error| no_host(&error))?.collect();
    let default = host.default_input_device().filter(|device| name_of(device) == name);
    if let Some(device) = default.or_else(|| all.iter().find(|device| name_of(device) == name).cloned()) {
        return Ok(device);
    }
    let part = name.to_lowercase();
    let about = |device: &cpal::Device| format!("{} {device}", name_of(device)).to_lowercase();
    let mut near = all.iter().filter(|device| device.supports_input() && about(device).contains(&part));
    let (problem, cure) = match (near.next(), near.next()) {
        (Some(device), None) => return Ok(device.clone()),
        (Some(_), Some(_)) => ("several devices have this in their name", "give the whole name of one"),
        (None, _) => {
            ("there is no such device and no such file", "look with `accentor devices` which microphones are there")
        }
    };
    Err(SourceError::Device { device: name.into(), problem: problem.into(), cure })
}

/// What to ask the device for: the rate nearest to `rate_hz` that is not below it, then few channels, then the preferred format.
fn choose(device: &cpal::Device, rate_hz: u32) -> Result<(StreamConfig, SampleFormat), cpal::Error> {
    let mut best = None;
    for config in device.supported_input_configs()? {
        let Some(format) = FORMATS.iter().position(|format| *format == config.sample_format()) else { continue };
        let (low, high) =
            (config.min_sample_rate().max(*RATES_HZ.start()), config.max_sample_rate().min(*RATES_HZ.end()));
        if low > high {
            continue;
        }
        let rate = rate_hz.clamp(low, high);
        let rank = (rate < rate_hz, rate.abs_diff(rate_hz), config.channels(), format);
        if best.as_ref().is_none_or(|(other, _)| rank < *other) {
            best = Some((rank, config.with_sample_rate(rate)));
        }
    }
    let (_, config) = best.ok_or_else(|| cpal::Error::new(ErrorKind::UnsupportedConfig))?;
    // cpal's own choice is two of the shortest pieces that the device knows.
    let piece = (config.sample_rate() / PIECES_A_SECOND).next_power_of_two();
    let buffer_size = match config.buffer_size() {
        SupportedBufferSize::Range { min, max } if (*min..=*max).contains(&piece) => BufferSize::Fixed(piece),
        _ => BufferSize::Default,
    };
    Ok((StreamConfig { buffer_size, ..config.config() }, config.sample_format()))
}

/// Sound from a device.
pub struct Microphone {
    /// Dropped first: its thread ends then, and the ring's other end comes home.
    stream: Option<cpal::Stream>,
    samples: Option<Consumer<'static, Item>>,
    home: Arc<Mutex<Option<Producer<'static, Item>>>>,
    counters: Arc<Counters>,
    device: String,
    rate_hz: u32,
    heard: Instant,
}

impl std::fmt::Debug for Microphone {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { device, rate_hz, .. } = self;
        formatter.debug_struct("Microphone").field("device", device).field("rate_hz", rate_hz).finish_non_exhaustive()
    }
}

impl Microphone {
    /// Opens a device by the name that [`devices`] gives it, or the default one, at `rate_hz` where it can and else at the
    /// nearest rate above. `ring_samples` is how many samples may wait for the reader; the ring has room for 65,535.
    ///
    /// # Errors
    /// No such device, or one that cannot be opened now.
    pub fn open(device: Option<&str>, rate_hz: u32, ring_samples: Option<usize>) -> Result<Self, SourceError> {
        let host = host()?;
        let found = match device {
            Some(name) => find(&host, name)?,
            None => host
                .default_input_device()
                .ok_or_else(|| no_device("microphone", &cpal::Error::new(ErrorKind::DeviceNotAvailable)))?,
        };
        let name = name_of(&found);
        let wrong = |error: cpal::Error| no_device(&name, &error);
        let (config, format) = choose(&found, rate_hz).map_err(wrong)?;
        let counters = Arc::new(Counters::default());
        let (producer, consumer) = ring();
        let home = Arc::new(Mutex::new(None));
        let mut pushed = Pushed {
            end: Some(producer),
            home: home.clone(),
            counters: counters.clone(),
            limit: ring_samples.unwrap_or(RING).clamp(2, RING - 1),
            channels: config.channels.max(1).into(),
            rate_hz: config.sample_rate,
            overruns: 0,
            next: None,
            gap: false,
            lost: 0,
        };
        let of_errors = counters.clone();
        let on_error = move |error: cpal::Error| match error.kind() {
            ErrorKind::Xrun => {
                of_errors.overruns.fetch_add(1, Ordering::Relaxed);
            }
            ErrorKind::DeviceNotAvailable | ErrorKind::StreamInvalidated => {
                of_errors.gone.store(true, Ordering::Relaxed)
            }
            ErrorKind::RealtimeDenied | ErrorKind::DeviceChanged => {}
            _ => of_errors.failed.store(true, Ordering::Relaxed),
        };
        let on_data = move |data: &Data, info: &InputCallbackInfo| pushed.data(data, info);
        let mut microphone = Self {
            stream: None,
            samples: Some(consumer),
            home,
            counters,
            device: name.clone(),
            rate_hz: config.sample_rate,
            heard: Instant::now(),
        };
        let stream = found.build_input_stream_raw(config, format, on_data, on_error, Some(WAIT)).map_err(wrong)?;
        stream.play().map_err(wrong)?;
        microphone.stream = Some(stream);
        Ok(microphone)
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Overruns that the sound system reported: it had sound that nobody fetched in time. Each is a gap in what is read.
    pub fn overruns(&self) -> u64 {
        self.counters.overruns.load(Ordering::Relaxed)
    }

    /// Forgets what is waiting: what is read next was said after this call.
    pub fn skip(&mut self) {
        let Some(samples) = &mut self.samples else { return };
        for _ in 0..samples.len() {
            samples.dequeue();
        }
    }
}

impl Drop for Microphone {
    fn drop(&mut self) {
        drop(self.stream.take());
        self.skip();
        let producer = self.home.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(producer), Some(consumer)) = (producer, self.samples.take()) {
            SPARE.lock().unwrap_or_else(PoisonError::into_inner).push((producer, consumer));
        }
    }
}

impl Sound for Microphone {
    fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    fn read(&mut self, block: &mut [f32]) -> Result<Heard, SourceError> {
        let Some(samples) = &mut self.samples else { return Ok(Heard::End) };
        let begun = Instant::now();
        loop {
            let mut count = 0;
            while let (Some(to), Some(&item)) = (block.get_mut(count), samples.peek()) {
                match item {
                    Item::Sample(value) => *to = value,
                    // The samples before it first.
                    Item::Gap(_) if count > 0 => break,
                    Item::Gap(lost_samples) => {
                        samples.dequeue();
                        return Ok(Heard::Gap { lost_samples: lost_samples.into() });
                    }
                }
                samples.dequeue();
                count += 1;
            }
            if count > 0 {
                self.heard = Instant::now();
                return Ok(Heard::Samples(count));
            }
            let failed = self.counters.failed.load(Ordering::Relaxed) && self.heard.elapsed() > SILENT;
            if failed || self.counters.gone.load(Ordering::Relaxed) {
                let problem = String::from(if failed { "it gives no more sound" } else { "it is gone" });
                let cure = "plug it in again and start anew";
                return Err(SourceError::Device { device: self.device.clone(), problem, cure });
            }
            if begun.elapsed() > WAIT {
                return Ok(Heard::Nothing);
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// The end of the ring that the callback has.
struct Pushed {
    end: Option<Producer<'static, Item>>,
    home: Arc<Mutex<Option<Producer<'static, Item>>>>,
    counters: Arc<Counters>,
    limit: usize,
    channels: usize,
    rate_hz: u32,
    /// Overruns that are in the ring as gaps already.
    overruns: u64,
    /// When the sample after the last one is due.
    next: Option<StreamInstant>,
    /// Sound was lost since the last sample in the ring.
    gap: bool,
    lost: u32,
}

impl Pushed {
    fn data(&mut self, data: &Data, info: &InputCallbackInfo) {
        let frames = data.len() / self.channels;
        let captured = info.timestamp().capture;
        let overruns = self.counters.overruns.load(Ordering::Relaxed);
        if overruns != self.overruns {
            self.overruns = overruns;
            self.gap = true;
            // The clock says how much is missing.
            let missing = self.next.and_then(|next| captured.checked_duration_since(next)).unwrap_or_default();
            let samples = (missing.as_secs_f64() * f64::from(self.rate_hz)) as u32;
            self.lost = self.lost.saturating_add(samples);
        }
        let seconds = frames as f64 / f64::from(self.rate_hz.max(1));
        self.next = captured.checked_add(Duration::from_secs_f64(seconds));
        match data.sample_format() {
            SampleFormat::I8 => self.frames(data.as_slice::<i8>()),
            SampleFormat::U8 => self.frames(data.as_slice::<u8>()),
            SampleFormat::I16 => self.frames(data.as_slice::<i16>()),
            SampleFormat::U16 => self.frames(data.as_slice::<u16>()),
            SampleFormat::I24 => self.frames(data.as_slice::<cpal::I24>()),
            SampleFormat::U24 => self.frames(data.as_slice::<cpal::U24>()),
            SampleFormat::I32 => self.frames(data.as_slice::<i32>()),
            SampleFormat::U32 => self.frames(data.as_slice::<u32>()),
            SampleFormat::F32 => self.frames(data.as_slice::<f32>()),
            SampleFormat::F64 => self.frames(data.as_slice::<f64>()),
            // None other was asked for.
            _ => {}
        }
    }

    fn frames<T: Copy>(&mut self, samples: Option<&[T]>)
    where
        f32: FromSample<T>,
    {
        let channels = self.channels;
        for frame in samples.unwrap_or_default().chunks_exact(channels) {
            let sum: f32 = frame.iter().map(|&value| f32::from_sample_(value)).sum();
            let mean = sum / channels as f32;
            self.push(if mean.is_finite() { mean } else { 0.0 });
        }
    }

    fn push(&mut self, sample: f32) {
        let Some(end) = &mut self.end else { return };
        if self.gap {
            if end.len() > self.limit / 2 || end.enqueue(Item::Gap(self.lost)).is_err() {
                self.lost = self.lost.saturating_add(1);
                return;
            }
            (self.gap, self.lost) = (false, 0);
        }
        if end.len() >= self.limit || end.enqueue(Item::Sample(sample)).is_err() {
            (self.gap, self.lost) = (true, 1);
        }
    }
}

impl Drop for Pushed {
    fn drop(&mut self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.end.take();
    }
}

/// Plays a tone of 880 Hz for a fifth of a second on the default output.
///
/// # Errors
/// No output, or one that cannot be opened now.
pub fn beep() -> Result<(), SourceError> {
    const LONG: Duration = Duration::from_millis(200);
    let device = host()?.default_output_device();
    let device = device.ok_or_else(|| no_device("output", &cpal::Error::new(ErrorKind::DeviceNotAvailable)))?;
    let wrong = |error: cpal::Error| no_device("output", &error);
    let config = device.default_output_config().map_err(wrong)?;
    let (channels, rate_hz) = (usize::from(config.channels().max(1)), config.sample_rate());
    let config = config.config();
    let last = (LONG.as_secs_f64() * f64::from(rate_hz)) as usize;
    let mut at = 0;
    let mut next = move || {
        let seconds = at as f64 / f64::from(rate_hz);
        // Ends that fade in 10 ms do not click.
        let ends = (at.min(last.saturating_sub(at)) as f64 / f64::from(rate_hz) / 0.01).min(1.0);
        at += 1;
        (0.3 * ends * (std::f64::consts::TAU * 880.0 * seconds).sin()) as f32
    };
    let on_data = move |data: &mut [f32], _: &cpal::OutputCallbackInfo| {
        for frame in data.chunks_exact_mut(channels) {
            frame.fill(next());
        }
    };
    let stream = device.build_output_stream::<f32, _, _>(config, on_data, |_| {}, Some(WAIT)).map_err(wrong)?;
    stream.play().map_err(wrong)?;
    // What is in the buffers is played too.
    std::thread::sleep(LONG + WAIT);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(limit: usize) -> (Pushed, Consumer<'static, Item>) {
        let (producer, consumer) = ring();
        let pushed = Pushed {
            end: Some(producer),
            home: Arc::default(),
            counters: Arc::default(),
            limit,
            channels: 2,
            rate_hz: 16_000,
            overruns: 0,
            next: None,
            gap: false,
            lost: 0,
        };
        (pushed, consumer)
    }

    fn microphone(pushed: &Pushed, consumer: Consumer<'static, Item>) -> Microphone {
        Microphone {
            stream: None,
            samples: Some(consumer),
            home: pushed.home.clone(),
            counters: pushed.counters.clone(),
            device: "test".into(),
            rate_hz: 16_000,
            heard: Instant::now(),
        }
    }

    #[test]
    fn channels_are_averaged_and_nothing_infinite_comes_through() {
        let (mut pushed, consumer) = ends(100);
        pushed.frames(Some(&[i16::MAX, 0, i16::MIN, i16::MIN, 0]));
        pushed.frames(Some(&[f32::NAN, 1.0, f32::INFINITY, 0.0, 0.5, 0.25]));
        pushed.frames(Some(&[0u8, 255, 128, 128]));
        let mut microphone = microphone(&pushed, consumer);
        let mut block = [9.0; 20];
        assert_eq!(microphone.read(&mut block).unwrap(), Heard::Samples(7));
        let expected = [0.5, -1.0, 0.0, 0.0, 0.375, -0.004, 0.0];
        assert!(block.iter().zip(expected).all(|(found, wanted)| (found - wanted).abs() < 1e-4), "{block:?}");
        assert_eq!(microphone.read(&mut block).unwrap(), Heard::Nothing);
        drop(pushed);
        drop(microphone);
    }

    #[test]
    fn what_finds_no_room_is_a_gap_where_it_was() {
        let (mut pushed, consumer) = ends(10);
        let mut microphone = microphone(&pushed, consumer);
        let mut block = [0.0; 6];
        (0..25).for_each(|value| pushed.push(value as f32));
        assert_eq!((microphone.read(&mut block).unwrap(), block[0]), (Heard::Samples(6), 0.0));
        (25..30).for_each(|value| pushed.push(value as f32));
        // Four of the first ten are left, then a gap, then what came when there was room again.
        assert_eq!((microphone.read(&mut block).unwrap(), block[3]), (Heard::Samples(4), 9.0));
        assert_eq!(microphone.read(&mut block).unwrap(), Heard::Gap { lost_samples: 15 });
        assert_eq!((microphone.read(&mut block).unwrap(), block[0]), (Heard::Samples(5), 25.0));
        drop(pushed);
    }

    #[test]
    fn a_device_that_is_gone_is_an_error_after_its_last_samples() {
        let (mut pushed, consumer) = ends(10);
        let mut microphone = microphone(&pushed, consumer);
        pushed.push(1.0);
        pushed.counters.gone.store(true, Ordering::Relaxed);
        let mut block = [0.0; 6];
        assert_eq!(microphone.read(&mut block).unwrap(), Heard::Samples(1));
        assert!(microphone.read(&mut block).unwrap_err().to_string().contains("it is gone"));
    }

    #[test]
    fn formats_of_a_device_are_told_in_few_lines() {
        let range = |channels, low, high, format| {
            cpal::SupportedStreamConfigRange::new(channels, low, high, cpal::SupportedBufferSize::Unknown, format)
        };
        let mut all = Vec::new();
        for format in [SampleFormat::I16, SampleFormat::F32] {
            all.extend((1..=4).map(|channels| range(channels, 8000, 48_000, format)));
        }
        all.push(range(2, 96_000, 96_000, SampleFormat::I32));
        let found = formats(all.into_iter());
        let format = |channels, rates_hz, samples: &[&str]| Format {
            channels,
            rates_hz,
            samples: samples.iter().map(|s| String::from(*s)).collect(),
        };
        assert_eq!(
            found,
            [format([1, 4], [8000, 48_000], &["f32", "i16"]), format([2, 2], [96_000, 96_000], &["i32"])]
        );
    }
}
