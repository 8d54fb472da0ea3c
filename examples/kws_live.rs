//! Live words with scores: what `accentor listen` does, from a program of one's own.
//!
//!     cargo run --release --example kws_live -- models/kws-commands - recording.wav
//!     cargo run --release --features mic --example kws_live -- models/kws-commands my-accent
//!
//! MODEL, then an adapter folder (`-` for none), then a sound file; without a file, and built with `mic`, the microphone.

#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::path::Path;
use std::sync::Arc;

use accentor::Model;
use accentor::listen::{Event, ListenSettings, Spotter, listen};
use accentor::source::{ClipSound, Sample, Sound};

/// Any type that implements `Sound` will do: a socket, an I2S driver, a test.
fn open(file: Option<&str>, rate_hz: u32) -> Result<Box<dyn Sound>, Box<dyn std::error::Error>> {
    match file {
        Some(path) => match accentor::source::read(Path::new(path))? {
            Sample::Audio(clip) => Ok(Box::new(ClipSound::new(clip))),
            other => Err(format!("{path} is {}, not sound", other.kind()).into()),
        },
        #[cfg(feature = "mic")]
        None => Ok(Box::new(accentor::source::microphone::Microphone::open(None, rate_hz, None)?)),
        #[cfg(not(feature = "mic"))]
        None => {
            Err(format!("name a sound file of any rate ({rate_hz} Hz is best), or build with --features mic").into())
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or("usage: kws_live MODEL [ADAPTER|-] [FILE.wav]")?;
    let model = Model::open(path)?;
    let adapter = arguments.get(1).filter(|folder| *folder != "-");
    let adapter = adapter.map(|folder| model.read_adapter(Path::new(folder))).transpose()?;
    // An adapter may bring words that the file lacks.
    let model = match &adapter {
        Some(adapter) => model.for_adapter(adapter)?.into_owned(),
        None => model,
    };
    let (rate_hz, _) = model.extractor().sound().ok_or("this model takes no sound")?;
    let mut sound = open(arguments.get(2).map(String::as_str), rate_hz)?;

    // The session may be shared: another thread could swap a better adapter in meanwhile (`Session::swap`).
    let session = Arc::new(model.session(adapter.as_ref())?);
    let mut settings = ListenSettings::default();
    settings.detector.threshold = 0.85;
    let mut spotter = Spotter::new(&model, session, sound.rate_hz(), &settings)?;
    listen(sound.as_mut(), &mut spotter, &mut |event, seconds| {
        match event {
            Event::Detected(word) => {
                println!("{:8.2} s  {:8} {:.3}", word.at_seconds, model.labels()[word.label], word.score)
            }
            // Never silent: what was said here is not known.
            Event::Gap { lost_seconds, at_seconds } => {
                println!("{at_seconds:8.2} s  {lost_seconds:.3} s of sound lost")
            }
            Event::Idle => {}
        }
        // A button or a signal handler would end it.
        seconds < 3600.0
    })?;
    let heard = spotter.heard();
    println!(
        "{} words, {} windows, {} of them silent, {} gaps",
        heard.detections, heard.windows, heard.silent_windows, heard.gaps
    );
    Ok(())
}
