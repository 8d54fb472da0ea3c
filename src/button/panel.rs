//! Button and LED on the lines of a Linux GPIO chip, through its character device.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use embedded_hal::digital::{self, ErrorKind, ErrorType, InputPin, OutputPin};
use gpiocdev::line::{self, EdgeDetection, EdgeKind, Value};
use gpiocdev::request::Builder;
use gpiocdev::{Chip, Request};
use rustix::time::{ClockId, clock_gettime};

use super::{Bias, Button, ButtonError, Led, Press, Settings, State};

/// What the lines are held as, for `gpioinfo`.
const CONSUMER: &str = "accentor";

/// The button and the LED of a board, ready to be waited for.
///
/// Edges come from the kernel with the times at which they were, so that a press is measured right on a busy board, and nothing runs
/// between them.
#[derive(Debug)]
pub struct Panel {
    chip: PathBuf,
    button: Option<Button<Line>>,
    led: Option<Led<Line>>,
}

impl Panel {
    /// Takes the lines that `settings` name.
    ///
    /// # Errors
    /// See [`Settings::check`]; no such chip or line, no permission, a line that something else has.
    pub fn open(settings: &Settings) -> Result<Self, ButtonError> {
        settings.check()?;
        let chip = find(&settings.chip)?;
        let lines = chip.info().map_err(|e| refused("information", chip.path(), &e))?.num_lines;
        let take = |line: u32, configure: &dyn Fn(&mut Builder)| {
            if line >= lines {
                return Err(ButtonError::NoLine { chip: chip.path().into(), line, lines });
            }
            take(&chip, line, configure)
        };
        let bias = match settings.bias {
            Bias::PullUp => Some(line::Bias::PullUp),
            Bias::PullDown => Some(line::Bias::PullDown),
            Bias::None => None,
        };
        let button = settings.button_line.map(|line| {
            let line = take(line, &|request| {
                request.as_input().with_bias(bias).with_edge_detection(EdgeDetection::BothEdges);
            })?;
            Button::new(line, settings)
        });
        // Out until it is polled.
        let out = Value::from(settings.led_active_low);
        let led = settings.led_line.map(|line| {
            let line = take(line, &|request| {
                request.as_output(out);
            })?;
            Ok(Led::new(line, settings.led_active_low))
        });
        Ok(Self { chip: chip.path().into(), button: button.transpose()?, led: led.transpose()? })
    }

    /// Shows `state` on the LED from the next [`Panel::wait`] on.
    pub fn show(&mut self, state: State) {
        if let Some(led) = &mut self.led {
            led.show(state);
        }
    }

    /// Waits for a press, for `most` at the longest, and keeps the LED going meanwhile.
    ///
    /// # Errors
    /// A chip that fails, one that was pulled out for instance.
    pub fn wait(&mut self, most: Duration) -> Result<Option<Press>, ButtonError> {
        let end = now() + most;
        loop {
            let moment = now();
            let mut wake = end;
            if let Some(led) = &mut self.led {
                led.poll(moment).map_err(|e| refused("setting the LED", &self.chip, &e.0))?;
                wake = led.due().map_or(wake, |due| due.min(wake));
            }
            if let Some(button) = &mut self.button {
                if let Some(press) = look(button).map_err(|e| refused("reading the button", &self.chip, &e.0))? {
                    return Ok(Some(press));
                }
                wake = button.due().map_or(wake, |due| due.min(wake));
            }
            let moment = now();
            if moment >= end {
                return Ok(None);
            }
            let pause = wake.saturating_sub(moment);
            match &mut self.button {
                Some(button) => match button.pin().0.wait_edge_event(pause) {
                    Err(error) if system(&error).kind() != io::ErrorKind::Interrupted => {
                        return Err(refused("waiting for the button", &self.chip, &error));
                    }
                    _ => {}
                },
                None => thread::sleep(pause),
            }
        }
    }
}

impl Drop for Panel {
    fn drop(&mut self) {
        if let Some(led) = &mut self.led {
            // A chip that is gone has no LED to put out.
            let _ = led.off();
        }
    }
}

/// What came of the button by now. Edges behind a press stay in the kernel for the next look.
fn look(button: &mut Button<Line>) -> Result<Option<Press>, Failed> {
    while button.pin().0.has_edge_event().map_err(Failed)? {
        let edge = button.pin().0.read_edge_event().map_err(Failed)?;
        // Linux before 5.7 dates edges by the wall clock, which is ahead of this one.
        let at = Duration::from_nanos(edge.timestamp_ns).min(now());
        if let Some(press) = button.edge(edge.kind == EdgeKind::Rising, at) {
            return Ok(Some(press));
        }
    }
    // The level itself, for edges that the kernel had no room for.
    button.poll(now())
}

/// The time by the clock that edges are dated by.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// One line of a chip, as a pin.
#[derive(Debug)]
struct Line(Request);

/// Why a line could not be read or set.
#[derive(Debug)]
struct Failed(gpiocdev::Error);

impl digital::Error for Failed {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

impl ErrorType for Line {
    type Error = Failed;
}

impl InputPin for Line {
    fn is_high(&mut self) -> Result<bool, Failed> {
        self.0.lone_value().map(bool::from).map_err(Failed)
    }

    fn is_low(&mut self) -> Result<bool, Failed> {
        self.is_high().map(|high| !high)
    }
}

impl OutputPin for Line {
    fn set_high(&mut self) -> Result<(), Failed> {
        self.0.set_lone_value(Value::Active).map_err(Failed)
    }

    fn set_low(&mut self) -> Result<(), Failed> {
        self.0.set_lone_value(Value::Inactive).map_err(Failed)
    }
}

/// The chip at a path, or the first with a label.
fn find(name: &Path) -> Result<Chip, ButtonError> {
    let refusal = |error: gpiocdev::Error| match error {
        gpiocdev::Error::GpioChip(..) => ButtonError::NotAChip(name.into()),
        _ if system(&error).kind() == io::ErrorKind::NotFound => {
            ButtonError::NoChip { chip: name.into(), there: there() }
        }
        error => refused("opening", name, &error),
    };
    if name.is_absolute() {
        return Chip::from_path(name).map_err(refusal);
    }
    let mut closed = None;
    for path in gpiocdev::chip::chips().unwrap_or_default() {
        match Chip::from_path(path) {
            Ok(chip) if chip.info().is_ok_and(|info| Path::new(&info.label) == name) => return Ok(chip),
            Ok(_) => {}
            // It may be the one.
            Err(error) => closed = Some(refusal(error)),
        }
    }
    Err(closed.unwrap_or_else(|| ButtonError::NoChip { chip: name.into(), there: there() }))
}

/// The chips of this system with their labels.
fn there() -> Vec<String> {
    let chips = gpiocdev::chip::chips().unwrap_or_default();
    let label = |path: &PathBuf| match Chip::from_path(path).and_then(|chip| chip.info()) {
        Ok(info) => format!("{} ({})", path.display(), info.label),
        Err(_) => path.display().to_string(),
    };
    chips.iter().map(label).collect()
}

/// One line of a chip.
fn take(chip: &Chip, line: u32, configure: &dyn Fn(&mut Builder)) -> Result<Line, ButtonError> {
    let mut request = Request::builder();
    request.on_chip(chip.path()).with_consumer(CONSUMER).with_line(line);
    configure(&mut request);
    request.request().map(Line).map_err(|error| {
        if system(&error).kind() == io::ErrorKind::ResourceBusy {
            let user = chip.line_info(line).map(|info| info.consumer).unwrap_or_default();
            let user = if user.is_empty() { "something that gives no name".into() } else { format!("`{user}`") };
            return ButtonError::Busy { chip: chip.path().into(), line, user };
        }
        refused(&format!("taking line {line}"), chip.path(), &error)
    })
}

/// What the system said.
fn system(error: &gpiocdev::Error) -> io::Error {
    use gpiocdev::Error;
    match error {
        Error::Os(errno) | Error::Uapi(_, gpiocdev_uapi::Error::Os(errno)) => io::Error::from_raw_os_error(errno.0),
        other => io::Error::other(other.to_string()),
    }
}

fn refused(what: &str, chip: &Path, error: &gpiocdev::Error) -> ButtonError {
    let reason = system(error);
    match reason.kind() {
        io::ErrorKind::PermissionDenied => ButtonError::Permission(chip.into()),
        kind => ButtonError::Failed {
            what: what.into(),
            chip: chip.into(),
            cure: match kind {
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => {
                    "; where the chip or the kernel (before 5.5) has no resistors: bias = \"none\", and one in the circuit"
                }
                _ => "",
            },
            reason: reason.to_string(),
        },
    }
}
