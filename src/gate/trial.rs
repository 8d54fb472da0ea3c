//! An adapter in use, watched: Wald's sequential test on the windows where it and the adapter before it hear different words.
//!
//! Where both hear the same, nothing is learnt about which is better. Where they differ, let q be the chance that the one on
//! trial is right, given that one of them is. Tested is q = p against q = 1 - p (p is [`TrialSettings::won_share`]), by the
//! sum of the log likelihood ratios:
//!
//! | the owner | ratio |
//! |---|---|
//! | says that the trial was right | p / (1 - p) |
//! | says what the adapter before had heard | (1 - p) / p |
//! | says a third thing | 1 |
//! | says nothing | (p + (1 - p)(1 - c)) / ((1 - p) + p(1 - c)) |
//!
//! c is the share of mistakes that the owner corrects: silence is weak evidence for the trial, the weaker the fewer mistakes
//! are corrected. Words that only the adapter before would have heard are known only where the owner says that they were
//! missed. The bounds ±ln((1 - e)/e) keep both errors near e (Wald, "Sequential tests of statistical hypotheses", 1945).

use serde::{Deserialize, Serialize};

use super::paired::at_most;

/// When a trial ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrialSettings {
    /// Chance that an adapter which is worse than the one before is confirmed, and that a better one is taken back; more than 0,
    /// below 0.5.
    pub error_rate: f32,
    /// Of the words that one of the two heard rightly and the other not, the share that a better adapter on trial hears; more
    /// than 0.5, below 1. A worse one hears the rest.
    pub won_share: f32,
    /// Share of its mistakes that the owner is assumed to correct, 0 to below 1.
    pub corrected_share: f32,
    /// Utterances (wakes, and words that the owner says were missed) after which the adapter before comes back where there
    /// is little evidence for the trial. Of 50 words that are said, some misses go unsaid: hence less than 50.
    pub utterances: usize,
    /// Utterances after which it is decided: confirmed with half the evidence, else taken back.
    pub last_utterances: usize,
    /// After so long, in seconds, a wake that the owner said nothing to counts as right.
    pub feedback_seconds: f64,
    /// Wakes that are so many times as frequent as before, or so many times rarer, end the trial; more than 1.
    pub rate_factor: f64,
    /// Chance of such a frequency, looked at with each wake, below which it is believed.
    pub rate_chance: f64,
    /// Seconds of sound that each of the two adapters listened to before frequencies are compared: people speak in bursts.
    pub rate_seconds: f64,
}

impl Default for TrialSettings {
    fn default() -> Self {
        Self {
            error_rate: 0.05,
            won_share: 0.75,
            corrected_share: 0.5,
            utterances: 35,
            last_utterances: 200,
            feedback_seconds: 60.0,
            rate_factor: 2.0,
            rate_chance: 1e-3,
            rate_seconds: 3600.0,
        }
    }
}

impl TrialSettings {
    /// # Errors
    /// A setting out of range: which, what it may be, and what it is.
    pub fn check(&self) -> Result<(), String> {
        let s = self;
        let checks = [
            (
                "error_rate",
                s.error_rate > 0.0 && s.error_rate < 0.5,
                "more than 0, below 0.5",
                s.error_rate.to_string(),
            ),
            ("won_share", s.won_share > 0.5 && s.won_share < 1.0, "more than 0.5, below 1", s.won_share.to_string()),
            ("corrected_share", (0.0..1.0).contains(&s.corrected_share), "0 to below 1", s.corrected_share.to_string()),
            (
                "feedback_seconds",
                (0.0..=1e6).contains(&s.feedback_seconds),
                "0 to 1000000",
                s.feedback_seconds.to_string(),
            ),
            ("rate_factor", s.rate_factor > 1.0 && s.rate_factor.is_finite(), "more than 1", s.rate_factor.to_string()),
            ("rate_chance", (0.0..1.0).contains(&s.rate_chance), "0 to below 1", s.rate_chance.to_string()),
            ("rate_seconds", s.rate_seconds >= 0.0, "0 or more", s.rate_seconds.to_string()),
        ];
        match checks.into_iter().find(|check| !check.1) {
            Some((what, _, expected, found)) => Err(format!("`{what}`: expected {expected}, found {found}")),
            None => Ok(()),
        }
    }

    /// Evidence of a word that the two took differently and that the owner said nothing to.
    fn unremarked(&self) -> f64 {
        let (p, c) = (f64::from(self.won_share), f64::from(self.corrected_share));
        ((p + (1.0 - p) * (1.0 - c)) / ((1.0 - p) + p * (1.0 - c))).ln()
    }
}

/// From which score on a word counts as heard.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// With the adapter on trial.
    pub trial: f32,
    /// With the one before it.
    pub before: f32,
}

/// Wakes in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Wakes.
    pub wakes: u64,
    /// Time in which there was sound above the gate, in seconds: a night in which nobody speaks is not a sign of anything.
    pub seconds: f64,
}

/// What happened. Scores are those of one window, in the order of the labels; the adapter before may have fewer labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observation<'a> {
    /// A word was taken: the one with the highest of `trial`.
    Wake {
        /// Scores of the adapter on trial.
        trial: &'a [f32],
        /// Scores of the adapter before it, in its shadow.
        before: &'a [f32],
    },
    /// The owner: the last wake was right.
    Confirmed,
    /// The owner: the last wake was this label.
    Corrected(usize),
    /// The owner: nothing was said at the last wake.
    FalseWake,
    /// The owner: a word was said and not taken.
    Missed {
        /// The word.
        label: usize,
        /// Scores of the adapter on trial where the word was said.
        trial: &'a [f32],
        /// Scores of the adapter before it.
        before: &'a [f32],
    },
    /// There was sound above the gate for so many seconds more.
    Listened(f64),
}

/// How a trial ends; the text explains it with figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It stays.
    Confirm(String),
    /// The adapter before it comes back.
    RollBack(String),
}

/// Counts of a trial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Wakes, and words that the owner says were missed.
    pub utterances: usize,
    /// Both adapters heard the same.
    pub agreed: usize,
    /// They differed, and the owner says that the trial was right.
    pub won: usize,
    /// They differed, and the owner said nothing.
    pub unremarked: usize,
    /// They differed, and the adapter before had been right.
    pub lost: usize,
    /// They differed, and both were wrong.
    pub neither: usize,
    /// Mistakes of the trial that the owner marked, whatever the other adapter heard.
    pub mistakes: usize,
}

/// A wake that the owner may still speak to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Wake {
    trial: usize,
    before: Option<usize>,
    at_seconds: f64,
}

/// What is known of a wake.
#[derive(Clone, Copy)]
enum Truth {
    Label(usize),
    NoWord,
    Unremarked,
}

/// Watches an adapter in use. Serialised, it goes on after a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    settings: TrialSettings,
    thresholds: Thresholds,
    /// Labels that are no words.
    ignored: Vec<usize>,
    rate_before: Rate,
    rate: Rate,
    tally: Tally,
    /// Sum of log likelihood ratios.
    evidence: f64,
    open: Option<Wake>,
    outcome: Option<Outcome>,
}

/// The label with the highest score, if that reaches `threshold` and is a word.
fn heard(scores: &[f32], threshold: f32, ignored: &[usize]) -> Option<usize> {
    let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]))?;
    (scores[best] >= threshold && !ignored.contains(&best)).then_some(best)
}

impl Trial {
    /// Begins. `rate_before` is how often the device woke with the adapter before.
    pub fn new(settings: &TrialSettings, thresholds: Thresholds, rate_before: Rate) -> Self {
        Self {
            settings: settings.clone(),
            thresholds,
            ignored: Vec::new(),
            rate_before,
            rate: Rate::default(),
            tally: Tally::default(),
            evidence: 0.0,
            open: None,
            outcome: None,
        }
    }

    /// Labels that are no words, such as silence: who hears them hears nothing.
    pub fn ignoring(self, labels: Vec<usize>) -> Self {
        Self { ignored: labels, ..self }
    }

    /// Takes what happened; says how the trial ends, once it does. Later observations change nothing.
    pub fn observe(&mut self, observation: Observation) -> Option<Outcome> {
        if self.outcome.is_some() {
            return self.outcome.clone();
        }
        match observation {
            Observation::Wake { trial, before } => {
                self.settle(Truth::Unremarked);
                self.rate.wakes += 1;
                self.tally.utterances += 1;
                let best = heard(trial, 0.0, &[]).unwrap_or_default();
                let before = heard(before, self.thresholds.before, &self.ignored);
                self.open = Some(Wake { trial: best, before, at_seconds: self.rate.seconds });
            }
            Observation::Confirmed => {
                if let Some(wake) = self.open {
                    self.settle(Truth::Label(wake.trial));
                }
            }
            Observation::Corrected(label) => self.settle(Truth::Label(label)),
            Observation::FalseWake => self.settle(Truth::NoWord),
            Observation::Missed { label, trial, before } => {
                self.tally.utterances += 1;
                self.tally.mistakes += 1;
                let trial = heard(trial, self.thresholds.trial, &self.ignored);
                let before = heard(before, self.thresholds.before, &self.ignored);
                self.compare(trial, before, Truth::Label(label));
            }
            Observation::Listened(seconds) => {
                self.rate.seconds += seconds.max(0.0);
                let due = |wake: Wake| self.rate.seconds - wake.at_seconds >= self.settings.feedback_seconds;
                if self.open.is_some_and(due) {
                    self.settle(Truth::Unremarked);
                }
            }
        }
        self.outcome = self.decide();
        self.outcome.clone()
    }

    /// The wake that is open is spoken to, or it is too late for that.
    fn settle(&mut self, truth: Truth) {
        let Some(wake) = self.open.take() else { return };
        let wrong = match truth {
            Truth::Label(label) => label != wake.trial,
            Truth::NoWord => true,
            Truth::Unremarked => false,
        };
        self.tally.mistakes += usize::from(wrong);
        self.compare(Some(wake.trial), wake.before, truth);
    }

    /// Counts a window, and weighs it where the two differ.
    fn compare(&mut self, trial: Option<usize>, before: Option<usize>, truth: Truth) {
        let tally = &mut self.tally;
        if trial == before {
            tally.agreed += 1;
            return;
        }
        let p = f64::from(self.settings.won_share);
        let right = match truth {
            Truth::Label(label) => Some(label),
            Truth::NoWord => None,
            Truth::Unremarked => {
                tally.unremarked += 1;
                self.evidence += self.settings.unremarked();
                return;
            }
        };
        if trial == right {
            tally.won += 1;
            self.evidence += (p / (1.0 - p)).ln();
        } else if before == right {
            tally.lost += 1;
            self.evidence -= (p / (1.0 - p)).ln();
        } else {
            tally.neither += 1;
        }
    }

    fn decide(&self) -> Option<Outcome> {
        let bound = ((1.0 - f64::from(self.settings.error_rate)) / f64::from(self.settings.error_rate)).ln();
        let said = |what: &str| format!("{what}: {}", self.explain());
        if self.evidence >= bound {
            return Some(Outcome::Confirm(said("better than the adapter before")));
        }
        if self.evidence <= -bound {
            return Some(Outcome::RollBack(said("worse than the adapter before")));
        }
        if let Some(reason) = self.other_rate() {
            return Some(Outcome::RollBack(said(&reason)));
        }
        // What the owner may still say to the last wake is waited for.
        let utterances = self.tally.utterances - usize::from(self.open.is_some());
        if utterances >= self.settings.last_utterances {
            return Some(match self.evidence >= bound / 2.0 {
                true => Outcome::Confirm(said("probably better than the adapter before")),
                false => Outcome::RollBack(said("not shown to be better than the adapter before")),
            });
        }
        // One word that it alone heard, and that nobody spoke to, is little; less than that is nothing.
        (utterances >= self.settings.utterances && self.evidence < self.settings.unremarked() / 2.0)
            .then(|| Outcome::RollBack(said("nothing speaks for it")))
    }

    /// Wakes that are far more or far less frequent than before. Given all wakes of both times, those of the trial are
    /// binomial (Przyborowski and Wilenski 1940).
    fn other_rate(&self) -> Option<String> {
        let (now, before, factor) = (self.rate, self.rate_before, self.settings.rate_factor);
        let least = self.settings.rate_seconds.max(f64::MIN_POSITIVE);
        let possible = before.seconds >= least && now.seconds >= least;
        if !possible {
            return None;
        }
        let all = now.wakes + before.wakes;
        let share = |factor: f64| now.seconds * factor / (now.seconds * factor + before.seconds);
        let what = if at_most(all - now.wakes, all, 1.0 - share(factor)) < self.settings.rate_chance {
            format!("wakes more than {factor} times as often")
        } else if at_most(now.wakes, all, share(1.0 / factor)) < self.settings.rate_chance {
            format!("wakes less than 1/{factor} as often")
        } else {
            return None;
        };
        let hourly = |rate: Rate| rate.wakes as f64 * 3600.0 / rate.seconds;
        Some(format!("{what} ({:.1} in an hour of sound, {:.1} before)", hourly(now), hourly(before)))
    }

    /// Its counts.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The evidence for it, as a log likelihood ratio: 0 is none, below 0 speaks against it.
    pub fn evidence(&self) -> f64 {
        self.evidence
    }

    /// How often the device woke since it began.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Where it stands: a sentence with figures.
    pub fn explain(&self) -> String {
        let Tally { utterances, agreed, won, unremarked, lost, neither, mistakes } = self.tally;
        let differed = won + unremarked + lost + neither;
        let bound = ((1.0 - self.settings.error_rate) / self.settings.error_rate).ln();
        format!(
            "{utterances} utterances, {mistakes} marked as mistakes; the two adapters agreed on {agreed} and differed on {differed}: \
             {won} right by your word, {unremarked} without a word from you, {lost} that the one before had right, {neither} \
             that both had wrong; evidence {:+.2} of ±{bound:.2}",
            self.evidence
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YES: [f32; 3] = [0.9, 0.05, 0.05];
    const NO: [f32; 3] = [0.05, 0.9, 0.05];
    const UNSURE: [f32; 3] = [0.4, 0.3, 0.3];

    fn trial() -> Trial {
        Trial::new(&TrialSettings::default(), Thresholds { trial: 0.6, before: 0.6 }, Rate::default())
    }

    /// Wakes with the same feedback until it ends, at most `most`; how many it took.
    fn run(trial: &mut Trial, most: usize, step: impl Fn(&mut Trial) -> Option<Outcome>) -> (usize, Option<Outcome>) {
        for count in 1..=most {
            if let Some(outcome) = step(trial) {
                return (count, Some(outcome));
            }
        }
        (most, None)
    }

    #[test]
    fn three_words_that_only_it_hears_confirm_it_and_three_that_it_loses_end_it() {
        let (count, outcome) = run(&mut trial(), 50, |t| {
            t.observe(Observation::Wake { trial: &YES, before: &UNSURE });
            t.observe(Observation::Confirmed)
        });
        assert!(matches!(outcome, Some(Outcome::Confirm(_))) && count == 3, "{count} {outcome:?}");
        let (count, outcome) = run(&mut trial(), 50, |t| {
            t.observe(Observation::Wake { trial: &YES, before: &NO });
            t.observe(Observation::Corrected(1))
        });
        assert!(matches!(outcome, Some(Outcome::RollBack(_))) && count == 3, "{count} {outcome:?}");
        let (count, _) =
            run(&mut trial(), 50, |t| t.observe(Observation::Missed { label: 1, trial: &UNSURE, before: &NO }));
        assert_eq!(count, 3);
        let (count, _) = run(&mut trial(), 50, |t| {
            t.observe(Observation::Wake { trial: &YES, before: &UNSURE });
            t.observe(Observation::FalseWake)
        });
        assert_eq!(count, 3);
    }

    #[test]
    fn silence_confirms_late_and_agreement_never() {
        let wake = |t: &mut Trial| t.observe(Observation::Wake { trial: &YES, before: &UNSURE });
        let (count, outcome) = run(&mut trial(), 50, wake);
        // Nine silences of ln(.875/.625) reach ln(19); the tenth wake settles the ninth.
        assert!(matches!(outcome, Some(Outcome::Confirm(_))) && count == 10, "{count} {outcome:?}");
        let mut same = trial();
        let (count, outcome) = run(&mut same, 100, |t| t.observe(Observation::Wake { trial: &YES, before: &YES }));
        assert!(
            matches!(&outcome, Some(Outcome::RollBack(why)) if why.contains("nothing speaks for it")),
            "{outcome:?}"
        );
        assert_eq!((count, same.tally().agreed), (36, 35));
        // It is over: nothing changes any more.
        assert_eq!(same.observe(Observation::Confirmed), outcome);
    }

    #[test]
    fn a_wake_waits_for_feedback_as_long_as_it_may_come() {
        let mut one = trial();
        one.observe(Observation::Wake { trial: &YES, before: &UNSURE });
        one.observe(Observation::Listened(59.0));
        assert_eq!(one.tally().unremarked, 0);
        one.observe(Observation::Listened(1.0));
        assert_eq!(one.tally().unremarked, 1);
        one.observe(Observation::Corrected(2));
        assert_eq!((one.tally().unremarked, one.tally().mistakes), (1, 0), "it came too late");
        // A third word: both were wrong.
        one.observe(Observation::Wake { trial: &YES, before: &NO });
        let evidence = one.evidence();
        one.observe(Observation::Corrected(2));
        assert_eq!((one.tally().neither, one.tally().mistakes), (1, 1));
        assert_eq!(one.evidence(), evidence);
    }

    #[test]
    fn wakes_that_become_frequent_or_rare_end_it() {
        let before = Rate { wakes: 40, seconds: 4000.0 };
        let thresholds = Thresholds { trial: 0.6, before: 0.6 };
        let after = |rate_seconds| TrialSettings { rate_seconds, ..TrialSettings::default() };
        let start = || Trial::new(&after(300.0), thresholds, before);
        let each = |t: &mut Trial, seconds: f64| {
            t.observe(Observation::Wake { trial: &YES, before: &YES });
            t.observe(Observation::Listened(seconds))
        };
        let (_, outcome) = run(&mut start(), 34, |t| each(t, 10.0));
        assert!(matches!(&outcome, Some(Outcome::RollBack(why)) if why.contains("more than 2 times")), "{outcome:?}");
        let (_, outcome) = run(&mut start(), 34, |t| each(t, 100.0));
        assert_eq!(outcome, None);
        // A burst in the first hour says nothing.
        let (_, outcome) = run(&mut Trial::new(&after(3600.0), thresholds, before), 34, |t| each(t, 10.0));
        assert_eq!(outcome, None);
        let outcome = start().observe(Observation::Listened(4000.0));
        assert!(matches!(&outcome, Some(Outcome::RollBack(why)) if why.contains("less than 1/2")), "{outcome:?}");
    }

    #[test]
    fn labels_that_are_no_words_are_not_heard() {
        let mut silent = trial().ignoring(vec![1]);
        silent.observe(Observation::Wake { trial: &YES, before: &NO });
        silent.observe(Observation::FalseWake);
        assert_eq!(silent.tally().lost, 1, "the adapter before had heard silence");
        // An adapter with fewer labels cannot hear the new word.
        silent.observe(Observation::Wake { trial: &[0.1, 0.1, 0.8], before: &[0.9, 0.1] });
        silent.observe(Observation::Confirmed);
        assert_eq!(silent.tally().won, 1);
    }

    #[test]
    fn it_goes_on_after_a_restart() {
        let mut one = trial();
        one.observe(Observation::Wake { trial: &YES, before: &NO });
        let text = serde_json::to_string(&one).unwrap();
        let mut again: Trial = serde_json::from_str(&text).unwrap();
        assert_eq!(one, again);
        assert_eq!(one.observe(Observation::Corrected(1)), again.observe(Observation::Corrected(1)));
        assert_eq!(one, again);
    }
}
