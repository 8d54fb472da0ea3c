//! A button and an LED: the owner's yes and no by hand, and what the device is doing, at a glance.
//!
//! ```text
//! pin → debounced → short: that was right, long: that was wrong
//! listening / training / on trial / rolled back → blinks → pin
//! ```
//!
//! [`Button`] and [`Led`] work on any pin that implements the traits of `embedded-hal`, and have no clock: time is an argument, from any
//! moment on that stays the same. On Linux and with the feature `gpio`, `Panel` does both on lines of a GPIO chip.

mod led;
#[cfg(all(feature = "gpio", target_os = "linux"))]
mod panel;
mod press;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use led::{Led, State};
#[cfg(all(feature = "gpio", target_os = "linux"))]
pub use panel::Panel;
pub use press::{Button, Press};

/// Which lines a button and an LED are on, and how they are wired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The GPIO chip: its file, or its label as `accentor doctor` and `gpiodetect` show it. A label stays the same where the number of the
    /// file does not (Raspberry Pi 5: `pinctrl-rp1`; 4: `pinctrl-bcm2711`; 3 and Zero 2 W: `pinctrl-bcm2835`).
    pub chip: PathBuf,
    /// Line of the button; none: there is no button. On a Raspberry Pi the number of the GPIO, not of the pin on the header.
    pub button_line: Option<u32>,
    /// Whether the pressed button pulls its line to ground.
    pub button_active_low: bool,
    /// The chip's own resistor on the button's line.
    pub bias: Bias,
    /// A level counts that stands for so long, in ms.
    pub debounce_ms: u32,
    /// From so long on a press is a long one, in ms.
    pub long_press_ms: u32,
    /// Line of the LED; none: there is no LED.
    pub led_line: Option<u32>,
    /// Whether the LED is lit while its line is at ground.
    pub led_active_low: bool,
}

/// The chip's own resistor on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bias {
    /// To the supply: a button between line and ground needs nothing else.
    PullUp,
    /// To ground: a button between line and supply.
    PullDown,
    /// None is asked for: the circuit has its own, or the chip has none (Linux before 5.5 can not set it).
    None,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            chip: "/dev/gpiochip0".into(),
            button_line: None,
            button_active_low: true,
            bias: Bias::PullUp,
            debounce_ms: 20,
            long_press_ms: 1000,
            led_line: None,
            led_active_low: false,
        }
    }
}

impl Settings {
    /// Whether they can be meant.
    ///
    /// # Errors
    /// No line at all, one line for both, a press that is long before its level counts.
    pub fn check(&self) -> Result<(), ButtonError> {
        if self.button_line.is_none() && self.led_line.is_none() {
            return Err(ButtonError::Setting {
                what: "button_line, led_line",
                expected: "the line of a button, of an LED, or both",
                found: "neither".into(),
            });
        }
        if self.button_line == self.led_line {
            return Err(ButtonError::Setting {
                what: "led_line",
                expected: "another line than the button's",
                found: self.led_line.unwrap_or_default().to_string(),
            });
        }
        if self.debounce_ms >= self.long_press_ms {
            return Err(ButtonError::Setting {
                what: "long_press_ms",
                expected: "more than debounce_ms",
                found: format!("{} with debounce_ms = {}", self.long_press_ms, self.debounce_ms),
            });
        }
        Ok(())
    }

    /// How long a level must stand.
    fn debounce(&self) -> Duration {
        Duration::from_millis(self.debounce_ms.into())
    }

    /// How long a long press takes.
    fn long_press(&self) -> Duration {
        Duration::from_millis(self.long_press_ms.into())
    }
}

/// Why there is no button and no LED.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ButtonError {
    /// A setting out of range.
    #[error("`{what}`: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// No such chip.
    #[error("there is no GPIO chip {}; {}", .chip.display(), there_are(.there))]
    NoChip {
        /// What was named.
        chip: PathBuf,
        /// The chips that are there, with their labels.
        there: Vec<String>,
    },
    /// A file that is no GPIO chip.
    #[error("{} is no GPIO chip; they are /dev/gpiochip0 and so on", .0.display())]
    NotAChip(PathBuf),
    /// The user may not use the chip.
    #[error(
        "no permission to use {}: add the user to the group gpio (`sudo usermod -aG gpio USER`, then log in again); a system without \
         that group needs it (`sudo groupadd --system gpio`) and a udev rule: SUBSYSTEM==\"gpio\", KERNEL==\"gpiochip*\", GROUP=\"gpio\", \
         MODE=\"0660\"",
        .0.display()
    )]
    Permission(PathBuf),
    /// A line that the chip lacks.
    #[error("{} has no line {line}: it has 0 to {}", .chip.display(), .lines.saturating_sub(1))]
    NoLine {
        /// The chip.
        chip: PathBuf,
        /// What was named.
        line: u32,
        /// How many it has.
        lines: u32,
    },
    /// A line that something else has.
    #[error("line {line} of {} is in use by {user}: stop that, or take another line", .chip.display())]
    Busy {
        /// The chip.
        chip: PathBuf,
        /// The line.
        line: u32,
        /// What it says it is used by.
        user: String,
    },
    /// The system refused.
    #[error("{} of {}: {reason}{cure}", .what, .chip.display())]
    Failed {
        /// What was tried.
        what: String,
        /// The chip.
        chip: PathBuf,
        /// What the system said.
        reason: String,
        /// What may help.
        cure: &'static str,
    },
}

/// The chips of a message.
fn there_are(chips: &[String]) -> String {
    match chips {
        [] => "there is none at all: is the system's GPIO driver loaded?".into(),
        chips => format!("there are {}", chips.join(", ")),
    }
}

#[cfg(test)]
mod pins {
    //! Pins that do as they are told, and fail when they are told to.
    use std::cell::RefCell;
    use std::rc::Rc;

    use embedded_hal::digital::{Error, ErrorKind, ErrorType, InputPin, OutputPin};

    /// What a pin says when it fails.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Broken;

    impl Error for Broken {
        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    /// A line with both ends: the test holds one, what is tested the other.
    #[derive(Clone, Debug, Default)]
    pub(super) struct Wire(pub(super) Rc<RefCell<Ends>>);

    #[derive(Debug, Default)]
    pub(super) struct Ends {
        pub(super) high: bool,
        pub(super) broken: bool,
        /// How often it was set.
        pub(super) sets: usize,
    }

    impl ErrorType for Wire {
        type Error = Broken;
    }

    impl InputPin for Wire {
        fn is_high(&mut self) -> Result<bool, Broken> {
            let ends = self.0.borrow();
            if ends.broken { Err(Broken) } else { Ok(ends.high) }
        }

        fn is_low(&mut self) -> Result<bool, Broken> {
            self.is_high().map(|high| !high)
        }
    }

    impl OutputPin for Wire {
        fn set_high(&mut self) -> Result<(), Broken> {
            self.set(true)
        }

        fn set_low(&mut self) -> Result<(), Broken> {
            self.set(false)
        }
    }

    impl Wire {
        fn set(&mut self, high: bool) -> Result<(), Broken> {
            let mut ends = self.0.borrow_mut();
            if ends.broken {
                return Err(Broken);
            }
            ends.high = high;
            ends.sets += 1;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn settings_are_read_and_refused() {
        let read = |text: &str| toml::from_str::<Settings>(text);
        let settings = read("chip = \"pinctrl-rp1\"\nbutton_line = 17\nled_line = 27\nbias = \"none\"").unwrap();
        assert_eq!(settings.bias, Bias::None);
        assert_eq!((settings.debounce_ms, settings.long_press_ms), (20, 1000));
        settings.check().unwrap();
        let message = read("buttonline = 17").unwrap_err().to_string();
        assert!(message.contains("unknown field `buttonline`"), "{message}");
        for (text, part) in [
            ("", "expected the line of a button"),
            ("button_line = 4\nled_line = 4", "another line than the button's, found 4"),
            ("button_line = 4\nlong_press_ms = 20", "more than debounce_ms, found 20 with debounce_ms = 20"),
        ] {
            let message = read(text).unwrap().check().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        let written = toml::to_string(&settings).unwrap();
        assert_eq!(read(&written).unwrap(), settings);
    }
}
