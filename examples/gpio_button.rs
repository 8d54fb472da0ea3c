//! A button and an LED on a board: says what was pressed, and shows what a device that learns would show.
//!
//!     cargo run --release --features gpio --example gpio_button -- button.toml
//!
//! The file has what `[button]` has in the daemon's configuration, e.g. on a Raspberry Pi, with the button from GPIO 17 to ground and the LED
//! with its resistor from GPIO 27 to ground:
//!
//!     chip = "/dev/gpiochip0"
//!     button_line = 17
//!     led_line = 27
//!
//! A long press is answered by five seconds of fast blinking, a short one by the next of training, on trial, listening. It ends after so many
//! seconds as a second argument says, else never.

#![allow(clippy::print_stdout, reason = "an example shows its results")]

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::time::{Duration, Instant};

    use accentor::button::{Panel, Press, Settings, State};

    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: gpio_button SETTINGS.toml [SECONDS]")?;
    let seconds: Option<f64> = arguments.next().map(|text| text.parse()).transpose()?;
    let settings: Settings = toml::from_str(&std::fs::read_to_string(path)?)?;
    let mut panel = Panel::open(&settings)?;

    let shown = [State::Training, State::OnTrial, State::Listening];
    let mut next = 0;
    let started = Instant::now();
    println!("ready");
    while seconds.is_none_or(|s| started.elapsed().as_secs_f64() < s) {
        match panel.wait(Duration::from_millis(500))? {
            Some(Press::Short) => {
                println!("short: that was right; {:?}", shown[next]);
                panel.show(shown[next]);
                next = (next + 1) % shown.len();
            }
            Some(Press::Long) => {
                println!("long: that was wrong; {:?}", State::RolledBack);
                panel.show(State::RolledBack);
            }
            None => {}
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("GPIO chips are files of Linux only");
}
