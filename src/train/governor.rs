//! Budgets of a run: between two steps the governor says whether to go on, to rest or to stop. Resting changes no result.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::TrainError;
use super::sensors::{Readings, Sensors};
use crate::board::Profile;

/// How often the machine is asked.
const READ_EVERY: Duration = Duration::from_secs(1);
/// How long a rest is before the machine is asked again.
const REST: Duration = Duration::from_secs(5);
/// Rests for the share of time are not shorter: each costs a wake-up.
const SLICE: Duration = Duration::from_millis(50);
/// The kernel's load average decays with this (sched(7): the mean of the last minute).
const LOAD_SECONDS: f64 = 60.0;
/// Without a temperature to go on at, this much below the limit.
const COOLING_C: f32 = 5.0;

/// What a run may take; nothing is limited that is not named.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Wall time in seconds, rests included: it stops then.
    pub seconds: Option<f64>,
    /// Share of the time in which it trains, above 0 and up to 1: it rests in between.
    pub cpu_share: Option<f32>,
    /// Load average of the other programs above which it rests.
    pub load: Option<f64>,
    /// Memory of this process in MiB: it stops above.
    pub memory_mib: Option<f64>,
    /// Temperature of the processor in °C from which it rests.
    pub temperature_c: Option<f32>,
    /// Temperature in °C at which it goes on; 5 below the other where it is not named.
    pub temperature_resume_c: Option<f32>,
    /// What it does on battery.
    pub on_battery: OnBattery,
}

/// What a run does while the machine runs on a battery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnBattery {
    /// Goes on.
    #[default]
    Go,
    /// Rests.
    Pause,
    /// Stops.
    Stop,
    /// Goes on while the battery has this many percent at least, else rests; rests also where it does not say.
    Above(u8),
}

impl From<&Profile> for Limits {
    /// What a board allows a training run: time, memory, temperature.
    fn from(profile: &Profile) -> Self {
        Self {
            seconds: Some(profile.seconds as f64),
            memory_mib: Some(profile.memory_mib as f64),
            temperature_c: Some(profile.temperature_pause_c),
            temperature_resume_c: Some(profile.temperature_resume_c),
            ..Self::default()
        }
    }
}

impl Limits {
    /// # Errors
    /// A limit that makes no sense, with what would do.
    pub fn check(&self) -> Result<(), TrainError> {
        let wrong =
            |what, found: &dyn fmt::Display, cure| Err(TrainError::Setting { what, found: found.to_string(), cure });
        if let Some(s) = self.seconds.filter(|s| !(*s > 0.0 && *s <= u32::MAX as f64)) {
            return wrong("max seconds", &s, "use a number above 0, such as 600");
        }
        if let Some(s) = self.cpu_share.filter(|s| !(*s > 0.0 && *s <= 1.0)) {
            return wrong("cpu share", &s, "use a share above 0 and up to 1, such as 0.5");
        }
        if let Some(l) = self.load.filter(|l| !(*l > 0.0 && l.is_finite())) {
            return wrong("max load", &l, "use a number above 0, such as 1.5");
        }
        if let Some(m) = self.memory_mib.filter(|m| !(*m > 0.0 && m.is_finite())) {
            return wrong("max memory", &m, "use a number of MiB above 0, such as 128");
        }
        if let Some(t) = self.temperature_c.filter(|t| !(*t > 0.0 && t.is_finite())) {
            return wrong("max temperature", &t, "use degrees Celsius above 0, such as 75");
        }
        if let (Some(limit), Some(resume)) = (self.temperature_c, self.temperature_resume_c)
            && resume.partial_cmp(&limit).is_none_or(std::cmp::Ordering::is_gt)
        {
            return wrong("temperature to go on at", &resume, "use one that is not above the limit");
        }
        if let OnBattery::Above(percent) = self.on_battery
            && percent > 100
        {
            return wrong("battery", &percent, "use 0 to 100 percent");
        }
        Ok(())
    }

    fn resume_c(&self) -> f32 {
        self.temperature_resume_c.or(self.temperature_c.map(|t| t - COOLING_C)).unwrap_or(f32::INFINITY)
    }
}

/// Why a run rests or stops.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// The time is over.
    Time {
        /// Seconds that it had.
        limit: f64,
    },
    /// It has had its share of the time.
    Share,
    /// Other programs have work to do.
    Load {
        /// Their load average.
        found: f64,
        /// That from which it rests.
        limit: f64,
    },
    /// It holds too much memory.
    Memory {
        /// MiB that it holds.
        found: f64,
        /// MiB that it may hold.
        limit: f64,
    },
    /// The processor is hot.
    Temperature {
        /// °C now.
        found: f32,
        /// °C at which it goes on.
        resume: f32,
    },
    /// The machine runs on a battery.
    Battery {
        /// Its charge, where it is known.
        percent: Option<u8>,
    },
}

impl Reason {
    /// One word for it, the key in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Time { .. } => "time",
            Self::Share => "cpu_share",
            Self::Load { .. } => "load",
            Self::Memory { .. } => "memory",
            Self::Temperature { .. } => "temperature",
            Self::Battery { .. } => "battery",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time { limit } => write!(f, "the {limit} s that it had are over"),
            Self::Share => write!(f, "it has had its share of the time"),
            Self::Load { found, limit } => write!(f, "other programs have a load of {found:.2}, the limit is {limit}"),
            Self::Memory { found, limit } => write!(f, "it holds {found:.1} MiB, the limit is {limit}"),
            Self::Temperature { found, resume } => write!(f, "the processor has {found:.1} °C, it goes on at {resume}"),
            Self::Battery { percent: Some(percent) } => write!(f, "the machine runs on its battery ({percent}%)"),
            Self::Battery { percent: None } => write!(f, "the machine runs on its battery"),
        }
    }
}

/// What a run is to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Take a step.
    Go,
    /// Rest for so long, then ask again.
    Pause(Reason, Duration),
    /// Stop for good.
    Stop(Reason),
}

/// Holds a run to its [`Limits`].
#[derive(Debug)]
pub struct Governor<S> {
    limits: Limits,
    sensors: S,
    readings: Readings,
    read_at: Option<Duration>,
    /// Load average that this process makes by itself.
    own_load: f64,
    hot: bool,
    /// Rest that the steps so far have cost, and that was not taken.
    debt: Duration,
    asked_at: Option<Duration>,
    resting: Option<Reason>,
    paused: BTreeMap<&'static str, Duration>,
}

impl<S: Sensors> Governor<S> {
    /// # Errors
    /// A limit that makes no sense.
    pub fn new(limits: Limits, sensors: S) -> Result<Self, TrainError> {
        limits.check()?;
        Ok(Self {
            limits,
            sensors,
            readings: Readings::default(),
            read_at: None,
            own_load: 0.0,
            hot: false,
            debt: Duration::ZERO,
            asked_at: None,
            resting: None,
            paused: BTreeMap::new(),
        })
    }

    /// Asked before each step; `now` is the time since the run began. What passes until the next call is work if it may go,
    /// rest if not.
    pub fn check(&mut self, now: Duration) -> Verdict {
        self.account(now);
        let verdict = self.judge(now);
        self.resting = match verdict {
            Verdict::Pause(reason, _) => Some(reason),
            _ => None,
        };
        verdict
    }

    /// Time that it rested, by reason.
    pub fn paused(&self) -> &BTreeMap<&'static str, Duration> {
        &self.paused
    }

    /// Limits that have no effect here, for the machine has no such sensor.
    pub fn blind(&mut self) -> Vec<&'static str> {
        let found = self.sensors.read();
        let blind = [
            ("load", self.limits.load.is_some() && (found.load.is_none() || found.cpu_seconds.is_none())),
            ("memory", self.limits.memory_mib.is_some() && found.resident_mib.is_none()),
            ("temperature", self.limits.temperature_c.is_some() && found.temperature_c.is_none()),
        ];
        blind.into_iter().filter(|b| b.1).map(|b| b.0).collect()
    }

    fn account(&mut self, now: Duration) {
        let passed = self.asked_at.map_or(Duration::ZERO, |at| now.saturating_sub(at));
        self.asked_at = Some(now);
        match (self.resting, self.limits.cpu_share) {
            (Some(reason), _) => {
                *self.paused.entry(reason.name()).or_default() += passed;
                self.debt = self.debt.saturating_sub(passed);
            }
            (None, Some(share)) => self.debt += passed.mul_f64((1.0 / f64::from(share) - 1.0).min(1e6)),
            (None, None) => {}
        }
    }

    fn judge(&mut self, now: Duration) -> Verdict {
        let Limits { seconds, load, memory_mib, temperature_c, on_battery, .. } = self.limits;
        if let Some(limit) = seconds.filter(|s| now.as_secs_f64() >= *s) {
            return Verdict::Stop(Reason::Time { limit });
        }
        let left = seconds.map_or(Duration::MAX, |s| Duration::from_secs_f64(s).saturating_sub(now));
        if self.read_at.is_none_or(|at| now.saturating_sub(at) >= READ_EVERY) {
            self.read(now);
        }
        let found = self.readings;
        if let (Some(found), Some(limit)) = (found.resident_mib, memory_mib)
            && found > limit
        {
            return Verdict::Stop(Reason::Memory { found, limit });
        }
        let rest = |reason| Verdict::Pause(reason, REST.min(left));
        if let Some(battery) = found.battery {
            let reason = Reason::Battery { percent: battery.percent };
            match on_battery {
                OnBattery::Go => {}
                OnBattery::Stop => return Verdict::Stop(reason),
                OnBattery::Above(least) if battery.percent.is_some_and(|p| p >= least) => {}
                OnBattery::Above(_) | OnBattery::Pause => return rest(reason),
            }
        }
        if let (Some(found), Some(limit)) = (found.temperature_c, temperature_c) {
            let resume = self.limits.resume_c();
            self.hot = found >= limit || self.hot && found > resume;
            if self.hot {
                return rest(Reason::Temperature { found, resume });
            }
        }
        if let (Some(all), Some(limit)) = (found.load, load) {
            let found = (all - self.own_load).max(0.0);
            if found > limit {
                return rest(Reason::Load { found, limit });
            }
        }
        if self.debt >= SLICE {
            return Verdict::Pause(Reason::Share, self.debt.min(left));
        }
        Verdict::Go
    }

    /// The load average counts this process too: what it adds is worked out as the kernel does, from its own processor time.
    fn read(&mut self, now: Duration) {
        let before = std::mem::replace(&mut self.readings, self.sensors.read());
        match (self.read_at, before.cpu_seconds, self.readings.cpu_seconds) {
            (Some(at), Some(was), Some(is)) => {
                let passed = now.saturating_sub(at).as_secs_f64().max(f64::MIN_POSITIVE);
                let kept = (-passed / LOAD_SECONDS).exp();
                self.own_load = self.own_load * kept + (is - was) / passed * (1.0 - kept);
            }
            // Before the first reading one thread ran without a break.
            (None, _, Some(is)) => self.own_load = 1.0 - (-is / LOAD_SECONDS).exp(),
            _ => {}
        }
        self.read_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::sensors::Battery;

    /// Says what it was told.
    struct Told(Readings);

    impl Sensors for &mut Told {
        fn read(&mut self) -> Readings {
            self.0
        }
    }

    /// A row of readings, one a call.
    struct Row(Vec<Readings>, usize);

    impl Sensors for Row {
        fn read(&mut self) -> Readings {
            self.1 += 1;
            self.0[(self.1 - 1).min(self.0.len() - 1)]
        }
    }

    fn row(limits: Limits, readings: &[Readings]) -> Governor<Row> {
        Governor::new(limits, Row(readings.to_vec(), 0)).unwrap()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn without_limits_it_goes() {
        let mut told = Told(Readings { load: Some(9.0), temperature_c: Some(120.0), ..Readings::default() });
        let mut governor = Governor::new(Limits::default(), &mut told).unwrap();
        assert!((0..1000).all(|s| governor.check(Duration::from_secs(s)) == Verdict::Go));
        assert!(governor.paused().is_empty() && governor.blind().is_empty());
    }

    #[test]
    fn time_ends_it_and_no_rest_is_longer() {
        let limits = Limits { seconds: Some(3.0), temperature_c: Some(70.0), ..Limits::default() };
        let mut governor = row(limits, &[Readings { temperature_c: Some(80.0), ..Readings::default() }]);
        let Verdict::Pause(reason, wait) = governor.check(ms(1000)) else { panic!() };
        assert_eq!((reason.name(), wait), ("temperature", ms(2000)));
        assert_eq!(governor.check(ms(3000)), Verdict::Stop(Reason::Time { limit: 3.0 }));
        assert_eq!(governor.paused()["temperature"], ms(2000));
    }

    #[test]
    fn heat_pauses_until_it_is_cool() {
        let at = |c: f32| Readings { temperature_c: Some(c), ..Readings::default() };
        let readings = [60.0, 69.9, 70.0, 69.0, 65.1, 65.0, 69.9, 71.0, 64.0].map(at);
        let limits = Limits { temperature_c: Some(70.0), ..Limits::default() };
        let mut governor = row(limits, &readings);
        let goes = [true, true, false, false, false, true, true, false, true];
        for (k, go) in goes.into_iter().enumerate() {
            assert_eq!(governor.check(Duration::from_secs(5 * k as u64)) == Verdict::Go, go, "reading {k}");
        }
        assert_eq!(governor.paused()["temperature"], Duration::from_secs(4 * 5));
        // Between two readings the last one counts.
        let mut governor = row(limits, &[at(70.0), at(20.0)]);
        assert_ne!(governor.check(ms(0)), Verdict::Go);
        assert_ne!(governor.check(ms(999)), Verdict::Go);
        assert_eq!(governor.check(ms(1000)), Verdict::Go);
    }

    #[test]
    fn a_share_of_the_time() {
        for share in [0.1f32, 0.25, 0.5, 0.9, 1.0] {
            let mut governor = row(Limits { cpu_share: Some(share), ..Limits::default() }, &[Readings::default()]);
            let (mut now, mut work) = (Duration::ZERO, Duration::ZERO);
            while now < Duration::from_secs(100) {
                match governor.check(now) {
                    Verdict::Go => {
                        work += ms(7);
                        now += ms(7);
                    }
                    Verdict::Pause(reason, wait) => {
                        assert_eq!(reason, Reason::Share);
                        assert!(wait >= SLICE);
                        // A sleep is always a little longer.
                        now += wait + ms(1);
                    }
                    Verdict::Stop(reason) => panic!("{reason}"),
                }
            }
            let found = work.as_secs_f64() / now.as_secs_f64();
            assert!((found - f64::from(share)).abs() < 0.02, "{share}: {found}");
        }
    }

    #[test]
    fn own_load_is_not_that_of_others() {
        // Two threads of its own and nothing else: the kernel's average goes to 2.
        let own = |s: f64| Readings {
            load: Some(2.0 * (1.0 - (-s / 60.0).exp())),
            cpu_seconds: Some(2.0 * s),
            ..Readings::default()
        };
        let limits = Limits { load: Some(0.3), ..Limits::default() };
        let readings: Vec<Readings> = (0..600).map(|s| own(s as f64)).collect();
        let mut governor = row(limits, &readings);
        assert!((0..600).all(|s| governor.check(Duration::from_secs(s)) == Verdict::Go));
        // Another program with one thread.
        let readings: Vec<Readings> =
            readings.into_iter().map(|r| Readings { load: r.load.map(|l| l + 1.0), ..r }).collect();
        let mut governor = row(limits, &readings);
        assert!(matches!(governor.check(ms(0)), Verdict::Pause(Reason::Load { .. }, REST)));
    }

    #[test]
    fn memory_and_battery() {
        let limits = Limits { memory_mib: Some(64.0), ..Limits::default() };
        let held = |mib| Readings { resident_mib: Some(mib), ..Readings::default() };
        assert_eq!(row(limits, &[held(64.0)]).check(ms(0)), Verdict::Go);
        assert!(matches!(row(limits, &[held(64.1)]).check(ms(0)), Verdict::Stop(Reason::Memory { .. })));

        let on = |on_battery| Limits { on_battery, ..Limits::default() };
        let at = |percent| Readings { battery: Some(Battery { percent }), ..Readings::default() };
        let verdict = |limits, readings| row(limits, &[readings]).check(ms(0));
        let pause = |percent| Verdict::Pause(Reason::Battery { percent }, REST);
        assert_eq!(verdict(on(OnBattery::Go), at(Some(3))), Verdict::Go);
        assert_eq!(verdict(on(OnBattery::Pause), at(Some(99))), pause(Some(99)));
        assert_eq!(verdict(on(OnBattery::Pause), Readings::default()), Verdict::Go);
        assert_eq!(verdict(on(OnBattery::Stop), at(None)), Verdict::Stop(Reason::Battery { percent: None }));
        assert_eq!(verdict(on(OnBattery::Above(40)), at(Some(40))), Verdict::Go);
        assert_eq!(verdict(on(OnBattery::Above(40)), at(Some(39))), pause(Some(39)));
        assert_eq!(verdict(on(OnBattery::Above(40)), at(None)), pause(None));
    }

    #[test]
    fn limits_without_a_sensor_are_named_and_nonsense_is_refused() {
        let all = Limits { load: Some(1.0), memory_mib: Some(1.0), temperature_c: Some(70.0), ..Limits::default() };
        assert_eq!(row(all, &[Readings::default()]).blind(), ["load", "memory", "temperature"]);
        for profile in Profile::built_in().unwrap() {
            Limits::from(&profile).check().unwrap();
        }
        let wrong = [
            Limits { seconds: Some(0.0), ..all },
            Limits { seconds: Some(f64::NAN), ..all },
            Limits { cpu_share: Some(1.5), ..all },
            Limits { load: Some(-1.0), ..all },
            Limits { memory_mib: Some(0.0), ..all },
            Limits { temperature_c: Some(f32::NAN), ..all },
            Limits { temperature_resume_c: Some(70.5), ..all },
            Limits { on_battery: OnBattery::Above(101), ..all },
        ];
        for limits in wrong {
            let error = Governor::new(limits, Row(vec![], 0)).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("use "), "{error}");
        }
    }
}
