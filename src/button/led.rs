//! An LED: what the device is doing → blinks.

use std::time::Duration;

use embedded_hal::digital::{OutputPin, PinState};

/// What the LED shows.
///
/// | state | LED |
/// |---|---|
/// | listening | a flash of 20 ms every 4 s: it is alive |
/// | training | slow: 1 s on, 1 s off |
/// | on trial | two flashes of 100 ms every 2 s |
/// | rolled back | fast, 100 ms on, 100 ms off, for 5 s; then as listening |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing but listening.
    Listening,
    /// An adapter is being trained.
    Training,
    /// A new adapter is live and watched.
    OnTrial,
    /// A new adapter was taken back.
    RolledBack,
}

/// How long it is shown that an adapter was taken back.
const ROLLED_BACK: Duration = Duration::from_secs(5);

impl State {
    /// On and off in turn, in ms, over and over.
    fn pattern(self) -> &'static [u64] {
        match self {
            Self::Listening => &[20, 3980],
            Self::Training => &[1000, 1000],
            Self::OnTrial => &[100, 150, 100, 1650],
            Self::RolledBack => &[100, 100],
        }
    }

    /// Whether the LED is lit at a time from the beginning on, and when that changes.
    fn at(self, time: Duration) -> (bool, Duration) {
        if self == Self::RolledBack && time >= ROLLED_BACK {
            let (lit, until) = Self::Listening.at(time - ROLLED_BACK);
            return (lit, ROLLED_BACK + until);
        }
        let pattern = self.pattern();
        let ms = time.as_millis() as u64;
        let cycle: u64 = pattern.iter().sum();
        let mut end = ms - ms % cycle;
        for (index, length) in pattern.iter().enumerate() {
            end += length;
            if ms < end {
                return (index % 2 == 0, Duration::from_millis(end));
            }
        }
        // Not reached: the lengths sum up to a cycle, and `ms` lies in this one.
        (false, Duration::from_millis(end))
    }
}

/// An LED on a pin.
#[derive(Debug)]
pub struct Led<P> {
    pin: P,
    active_low: bool,
    state: State,
    /// When the state was first shown.
    since: Option<Duration>,
    /// What the pin was set to, and until when; none: not set yet, or that failed.
    set: Option<(bool, Duration)>,
}

impl<P: OutputPin> Led<P> {
    /// An LED that shows [`State::Listening`] from the first [`Led::poll`] on.
    pub fn new(pin: P, active_low: bool) -> Self {
        Self { pin, active_low, state: State::Listening, since: None, set: None }
    }

    /// Shows `state` from the next [`Led::poll`] on, which is due at once. The state that it already has changes nothing.
    pub fn show(&mut self, state: State) {
        if state != self.state {
            self.state = state;
            self.since = None;
        }
    }

    /// Sets the pin as it should be at `now`, where it is not so already.
    ///
    /// # Errors
    /// That of the pin; the next call tries again.
    pub fn poll(&mut self, now: Duration) -> Result<(), P::Error> {
        let since = *self.since.get_or_insert(now);
        let (lit, until) = self.state.at(now.saturating_sub(since));
        if self.set.is_none_or(|(was, _)| was != lit) {
            // Not known until it is done.
            self.set = None;
            self.light(lit)?;
        }
        self.set = Some((lit, since + until));
        Ok(())
    }

    /// When the pin next changes; none: at once.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.since.and(self.set).map(|(_, until)| until)
    }

    /// Puts the LED out, for the end; the next [`Led::poll`] goes on.
    ///
    /// # Errors
    /// That of the pin.
    pub fn off(&mut self) -> Result<(), P::Error> {
        self.set = None;
        self.light(false)
    }

    fn light(&mut self, lit: bool) -> Result<(), P::Error> {
        self.pin.set_state(PinState::from(lit != self.active_low))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::pins::{Broken, Wire};
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// When the LED goes on and off from `from` to `to`, looked at when it is due.
    fn changes(led: &mut Led<Wire>, wire: &Wire, from: u64, to: u64) -> Vec<(u64, bool)> {
        let mut now = ms(from);
        let mut found: Vec<(u64, bool)> = Vec::new();
        while now < ms(to) {
            led.poll(now).unwrap();
            let lit = wire.0.borrow().high;
            if found.last().is_none_or(|last| last.1 != lit) {
                found.push((now.as_millis() as u64, lit));
            }
            now = led.due().unwrap();
        }
        found
    }

    #[test]
    fn each_state_has_its_blinks() {
        let wire = Wire::default();
        let mut led = Led::new(wire.clone(), false);
        assert_eq!(led.due(), None, "at once");
        assert_eq!(changes(&mut led, &wire, 500, 8000), [(500, true), (520, false), (4500, true), (4520, false)]);
        led.show(State::Training);
        assert_eq!(led.due(), None, "at once");
        assert_eq!(changes(&mut led, &wire, 8010, 11_000), [(8010, true), (9010, false), (10_010, true)]);
        led.show(State::OnTrial);
        let twice = [(20_000, true), (20_100, false), (20_250, true), (20_350, false), (22_000, true), (22_100, false)];
        assert_eq!(changes(&mut led, &wire, 20_000, 22_200), twice);
        led.show(State::RolledBack);
        let fast = changes(&mut led, &wire, 30_000, 40_000);
        assert_eq!(fast[..3], [(30_000, true), (30_100, false), (30_200, true)]);
        assert_eq!(fast.iter().filter(|(at, lit)| *lit && *at < 35_000).count(), 25);
        // Then as listening.
        assert_eq!(fast[50..], [(35_000, true), (35_020, false), (39_000, true), (39_020, false)]);
        // Said again it is no news.
        led.show(State::RolledBack);
        assert_eq!(changes(&mut led, &wire, 40_000, 42_000), [(40_000, false)]);
    }

    #[test]
    fn a_pin_is_set_only_when_it_changes() {
        let wire = Wire::default();
        let mut led = Led::new(wire.clone(), false);
        led.show(State::Training);
        for now in 0..10_000 {
            led.poll(ms(now)).unwrap();
        }
        assert_eq!(wire.0.borrow().sets, 10);
    }

    #[test]
    fn the_other_wiring_and_the_end() {
        let wire = Wire::default();
        let mut led = Led::new(wire.clone(), true);
        led.poll(ms(0)).unwrap();
        assert!(!wire.0.borrow().high, "lit");
        led.off().unwrap();
        assert!(wire.0.borrow().high, "out");
        led.poll(ms(10)).unwrap();
        assert!(!wire.0.borrow().high, "lit again");
    }

    #[test]
    fn a_pin_that_fails_is_tried_again() {
        let wire = Wire::default();
        let mut led = Led::new(wire.clone(), false);
        wire.0.borrow_mut().broken = true;
        assert_eq!(led.poll(ms(0)), Err(Broken));
        assert_eq!(led.due(), None, "at once");
        wire.0.borrow_mut().broken = false;
        led.poll(ms(10)).unwrap();
        assert!(wire.0.borrow().high);
    }
}
