//! A button: bouncing contacts → presses.

use std::time::Duration;

use embedded_hal::digital::InputPin;

use super::{ButtonError, Settings};

/// What the owner said with the button.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Press {
    /// That was right. Known when the button is let go.
    Short,
    /// That was wrong. Known while the button is still held, once for each time that it is.
    Long,
}

/// A button on a pin.
///
/// A level counts that stands for the time of debouncing. A button that is down when it is first looked at is ignored until it is let go:
/// something lies on it, or the wiring is not what the settings say.
#[derive(Debug)]
pub struct Button<P> {
    pin: P,
    active_low: bool,
    presses: Presses,
}

impl<P: InputPin> Button<P> {
    /// A button that has not been looked at yet.
    ///
    /// # Errors
    /// See [`Settings::check`].
    pub fn new(pin: P, settings: &Settings) -> Result<Self, ButtonError> {
        settings.check()?;
        let presses = Presses::new(settings.debounce(), settings.long_press());
        Ok(Self { pin, active_low: settings.button_active_low, presses })
    }

    /// Looks at the pin at `now`. Call it every 10 ms or so, or when [`Button::due`] says.
    ///
    /// # Errors
    /// That of the pin; what is known of the button stays, and the next call goes on with it.
    pub fn poll(&mut self, now: Duration) -> Result<Option<Press>, P::Error> {
        let high = self.pin.is_high()?;
        Ok(self.edge(high, now))
    }

    /// Takes in that the pin was at this level from `at` on, from a driver that knows when it changed. Edges come in their order.
    pub fn edge(&mut self, high: bool, at: Duration) -> Option<Press> {
        self.presses.level(high != self.active_low, at)
    }

    /// When to look again although nothing changes: a level will have stood for long enough, or a press becomes a long one.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.presses.due()
    }

    /// The pin.
    pub fn pin(&mut self) -> &mut P {
        &mut self.pin
    }
}

/// The state machine, on levels that are down or up.
#[derive(Debug)]
struct Presses {
    debounce: Duration,
    long: Duration,
    /// The last level, and since when it stands; none: not looked at yet.
    last: Option<(bool, Duration)>,
    /// What counts.
    held: Held,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Up,
    /// Down since then, and a short press when it is let go.
    Since(Duration),
    /// Down, and nothing more comes of it.
    Spent,
}

impl Presses {
    fn new(debounce: Duration, long: Duration) -> Self {
        Self { debounce, long, last: None, held: Held::Up }
    }

    fn level(&mut self, down: bool, at: Duration) -> Option<Press> {
        let Some((last, since)) = self.last else {
            self.last = Some((down, at));
            self.held = if down { Held::Spent } else { Held::Up };
            return None;
        };
        // A clock that went back stands still.
        let at = at.max(since);
        let press = self.settle(last, since, at);
        if last != down {
            self.last = Some((down, at));
        }
        press
    }

    /// What comes of the level `down` having stood from `since` to `at`.
    fn settle(&mut self, down: bool, since: Duration, at: Duration) -> Option<Press> {
        if at - since >= self.debounce {
            match (self.held, down) {
                (Held::Up, true) => self.held = Held::Since(since),
                (Held::Since(_), false) => {
                    self.held = Held::Up;
                    return Some(Press::Short);
                }
                (Held::Spent, false) => self.held = Held::Up,
                _ => {}
            }
        }
        match self.held {
            // Not while it bounces up: that may be the end of a short one.
            Held::Since(begin) if down && at - begin >= self.long => {
                self.held = Held::Spent;
                Some(Press::Long)
            }
            _ => None,
        }
    }

    fn due(&self) -> Option<Duration> {
        let (down, since) = self.last?;
        match (self.held, down) {
            (Held::Since(begin), true) => Some(begin + self.long),
            (Held::Up, true) | (Held::Since(_) | Held::Spent, false) => Some(since + self.debounce),
            (Held::Up, false) | (Held::Spent, true) => None,
        }
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

    fn settings() -> Settings {
        Settings { button_line: Some(1), ..Settings::default() }
    }

    /// A button that is up at 0, and its wire.
    fn button(settings: &Settings) -> (Button<Wire>, Wire) {
        let wire = Wire::default();
        wire.0.borrow_mut().high = settings.button_active_low;
        let mut button = Button::new(wire.clone(), settings).unwrap();
        assert_eq!(button.poll(ms(0)), Ok(None));
        (button, wire)
    }

    /// The presses of a line that is pressed or let go at these times, looked at every `step` ms until `end`.
    fn presses(settings: &Settings, changes: &[u64], step: u64, end: u64) -> Vec<(u64, Press)> {
        let (mut button, wire) = button(settings);
        let mut found = Vec::new();
        for now in (step..=end).step_by(step as usize) {
            let down = changes.iter().filter(|&&at| at <= now).count() % 2 == 1;
            wire.0.borrow_mut().high = down != settings.button_active_low;
            found.extend(button.poll(ms(now)).unwrap().map(|press| (now, press)));
        }
        found
    }

    #[test]
    fn short_and_long_presses_are_told_apart() {
        let short = presses(&settings(), &[100, 300], 1, 5000);
        assert_eq!(short, [(320, Press::Short)]);
        // Known at its moment, while the button is held, and once however long it is.
        let long = presses(&settings(), &[100, 60_000], 1, 70_000);
        assert_eq!(long, [(1100, Press::Long)]);
        let edge = presses(&settings(), &[100, 1099], 1, 5000);
        assert_eq!(edge, [(1119, Press::Short)]);
        let both = presses(&settings(), &[100, 200, 400, 2000, 2500, 2600], 10, 5000);
        assert_eq!(both, [(220, Press::Short), (1400, Press::Long), (2620, Press::Short)]);
    }

    #[test]
    fn the_other_wiring_is_the_mirror() {
        let other = Settings { button_active_low: false, ..settings() };
        let changes = [100, 200, 400, 2000];
        assert_eq!(presses(&other, &changes, 5, 3000), presses(&settings(), &changes, 5, 3000));
    }

    #[test]
    fn bounces_are_not_presses() {
        // Each longest stretch is shorter than the 20 ms that count.
        assert_eq!(presses(&settings(), &[100, 103, 110, 128, 130, 131], 1, 3000), []);
        // Bounces at both ends, and a contact that fails for 10 ms in the middle.
        let bouncing = [100, 101, 103, 104, 107, 500, 510, 800, 802, 805];
        assert_eq!(presses(&settings(), &bouncing[..], 1, 3000), [(825, Press::Short)]);
        // Failing at the very moment at which it becomes long: known once the contact is back.
        assert_eq!(presses(&settings(), &[100, 1095, 1105, 2000], 1, 3000), [(1106, Press::Long)]);
    }

    #[test]
    fn held_at_the_start_is_ignored() {
        let wire = Wire::default();
        let mut button = Button::new(wire.clone(), &settings()).unwrap();
        for now in (0..5000).step_by(10) {
            assert_eq!(button.poll(ms(now)), Ok(None));
        }
        assert_eq!(button.due(), None);
        wire.0.borrow_mut().high = true;
        assert_eq!(button.poll(ms(5000)), Ok(None));
        assert_eq!(button.poll(ms(5020)), Ok(None), "what was ignored is not a press when it is let go");
        wire.0.borrow_mut().high = false;
        assert_eq!(button.poll(ms(6000)), Ok(None));
        wire.0.borrow_mut().high = true;
        assert_eq!(button.poll(ms(6100)), Ok(None));
        assert_eq!(button.poll(ms(6120)), Ok(Some(Press::Short)));
    }

    #[test]
    fn edges_with_their_times_make_up_for_looking_late() {
        // Read in one go three seconds later.
        let (mut button, _) = button(&settings());
        let edges = [(false, 100), (true, 101), (false, 102), (true, 300), (false, 1000), (true, 2500)];
        let found: Vec<Press> = edges.iter().filter_map(|&(high, at)| button.edge(high, ms(at))).collect();
        assert_eq!(found, [Press::Short, Press::Long]);
        assert_eq!(button.poll(ms(5000)), Ok(None));
        assert_eq!(button.due(), None);
    }

    #[test]
    fn due_is_when_something_would_come_of_it() {
        let (mut button, wire) = button(&settings());
        assert_eq!(button.due(), None);
        wire.0.borrow_mut().high = false;
        button.poll(ms(100)).unwrap();
        assert_eq!(button.due(), Some(ms(120)));
        button.poll(ms(120)).unwrap();
        assert_eq!(button.due(), Some(ms(1100)));
        assert_eq!(button.poll(ms(1100)), Ok(Some(Press::Long)));
        assert_eq!(button.due(), None);
        wire.0.borrow_mut().high = true;
        button.poll(ms(1500)).unwrap();
        assert_eq!(button.due(), Some(ms(1520)));
    }

    #[test]
    fn a_pin_that_fails_is_an_error_and_no_press() {
        let (mut button, wire) = button(&settings());
        wire.0.borrow_mut().high = false;
        button.poll(ms(100)).unwrap();
        button.poll(ms(150)).unwrap();
        wire.0.borrow_mut().broken = true;
        assert_eq!(button.poll(ms(200)), Err(Broken));
        wire.0.borrow_mut().broken = false;
        wire.0.borrow_mut().high = true;
        assert_eq!(button.poll(ms(300)), Ok(None));
        assert_eq!(button.poll(ms(320)), Ok(Some(Press::Short)));
    }

    #[test]
    fn a_clock_that_goes_back_stands_still() {
        let (mut button, wire) = button(&settings());
        wire.0.borrow_mut().high = false;
        button.poll(ms(1000)).unwrap();
        assert_eq!(button.poll(ms(10)), Ok(None));
        wire.0.borrow_mut().high = true;
        assert_eq!(button.poll(ms(20)), Ok(None));
        assert_eq!(button.poll(ms(1100)), Ok(None), "no level stood for long enough");
    }
}
