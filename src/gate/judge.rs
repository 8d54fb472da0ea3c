//! Figures → whether a candidate may go on trial, check by check, each with a sentence.

use super::examine::{Figures, GateSettings};
use super::paired::{Paired, at_most};

/// Fresh clips below which a sign test has no say: of two that both gain, luck is the reason once in four times.
const FEW: usize = 3;

/// Whether all checks pass, and what each found; those that fail stand first.
pub(super) fn judge(figures: &Figures, settings: &GateSettings) -> (bool, Vec<String>) {
    let checks = [
        likeness(figures, settings),
        labels(figures, settings),
        found(figures, settings),
        gain(figures, settings),
        kept("the earlier clips", &figures.earlier, settings),
        kept("clips of others", &figures.guard, settings),
        ambient(figures, settings),
    ];
    let (passed, failed): (Vec<_>, Vec<_>) = checks.into_iter().partition(|(passes, _)| *passes);
    let admitted = failed.is_empty();
    (admitted, failed.into_iter().chain(passed).map(|(_, reason)| reason).collect())
}

type Check = (bool, String);

fn likeness(figures: &Figures, settings: &GateSettings) -> Check {
    let Some(likeness) = figures.likeness else {
        let what = "not enough earlier clips of the same words to tell whether the fresh ones are of the same voice";
        return (true, what.into());
    };
    let passes = likeness.ratio() <= settings.stranger_share;
    let verdict = if passes {
        "the fresh clips are of the voice of the earlier ones"
    } else {
        "the fresh clips are of another voice, microphone or room than the earlier ones"
    };
    let figures = format!("distance {:.2}, other people's {:.2}", likeness.fresh, likeness.others);
    (passes, format!("{verdict}: {figures}; at most {:.2} of that", settings.stranger_share))
}

fn labels(figures: &Figures, settings: &GateSettings) -> Check {
    let (n, count) = (figures.fresh.clips, figures.contradicted);
    let slips = f64::from(settings.slip_share);
    let chance = if count == 0 { 1.0 } else { 1.0 - at_most(count as u64 - 1, n as u64, slips) };
    let passes = chance >= f64::from(settings.slip_chance);
    let what = format!(
        "{count} of {n} fresh clips firmly sound like another word than their label to candidates that did not learn from them"
    );
    match passes {
        true => (true, what),
        false => {
            (false, format!("{what}: too many for slips (chance {chance:.3}); the labels are wrong, or the clips"))
        }
    }
}

fn found(figures: &Figures, settings: &GateSettings) -> Check {
    let fresh = &figures.fresh;
    let passes = fresh.found_after as f32 >= settings.least_found * fresh.clips as f32;
    let what =
        format!("candidates that did not learn from them find {} of {} fresh clips", fresh.found_after, fresh.clips);
    match passes {
        true => (true, what),
        false => (false, format!("{what}: too few; there may be no words in them")),
    }
}

fn gain(figures: &Figures, settings: &GateSettings) -> Check {
    let fresh = &figures.fresh;
    let passes = fresh.gain_chance <= settings.gain_chance;
    let Paired { clips, found_before, found_after, margin_before, margin_after, gain_chance, .. } = fresh;
    let what = format!(
        "fresh clips found: {found_before} of {clips} now, {found_after} unheard; mean margin {margin_before:+.2} to {margin_after:+.2}, by luck with chance {gain_chance:.3}"
    );
    match passes {
        true => (true, what),
        false if *clips < FEW => {
            (false, format!("not enough evidence from {clips} fresh clips, give {FEW} or more; {what}"))
        }
        false => (false, format!("no gain; {what}")),
    }
}

fn kept(name: &str, paired: &Paired, settings: &GateSettings) -> Check {
    let Paired { clips, found_before, found_after, won, lost, loss_chance, .. } = paired;
    if *clips == 0 {
        return (true, format!("{name}: there are none, so nothing is known of what is forgotten"));
    }
    let net = lost.saturating_sub(*won) as f32;
    let passes = net <= settings.lost_share * *clips as f32 || *loss_chance > settings.lost_chance;
    let what = format!("{name} found: {found_before} of {clips} now, {found_after} with the candidate");
    match passes {
        true => (true, what),
        false => (false, format!("forgets: {what}; {lost} lost, {won} won, by luck with chance {loss_chance:.3}")),
    }
}

fn ambient(figures: &Figures, settings: &GateSettings) -> Check {
    let counts = figures.ambient;
    if counts.windows == 0 {
        return (true, "no windows without a word: nothing is known of false wakes".into());
    }
    let more = counts.taken_after.saturating_sub(counts.taken_before) as f32;
    let passes = more <= settings.false_accept_share * counts.windows as f32;
    let what = format!(
        "windows without a word taken for one: {} of {} now, {} with the candidate at its threshold",
        counts.taken_before, counts.windows, counts.taken_after
    );
    match passes {
        true => (true, what),
        false => (false, format!("wakes for nothing; {what}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Counts, Likeness};
    use super::*;

    fn paired(clips: usize, before: usize, after: usize) -> Paired {
        let margins = |found: usize| (0..clips).map(|i| if i < found { 0.9 } else { -0.5 }).collect::<Vec<f32>>();
        Paired::of(&margins(before), &margins(after), 0.5)
    }

    fn good() -> Figures {
        Figures {
            trainings: 4,
            fresh: paired(30, 18, 26),
            earlier: paired(30, 29, 29),
            guard: paired(100, 99, 98),
            contradicted: 2,
            likeness: Some(Likeness { fresh: 0.3, others: 1.5 }),
            ambient: Counts { windows: 100, taken_before: 4, taken_after: 4 },
        }
    }

    #[test]
    fn an_honest_batch_is_admitted_and_each_check_can_stop_it() {
        let settings = GateSettings::default();
        let (admitted, reasons) = judge(&good(), &settings);
        assert!(admitted, "{reasons:?}");
        let stopped = |change: &dyn Fn(&mut Figures), word: &str| {
            let mut figures = good();
            change(&mut figures);
            let (admitted, reasons) = judge(&figures, &settings);
            assert!(!admitted && reasons[0].contains(word), "{word}: {reasons:?}");
        };
        stopped(&|f| f.contradicted = 6, "labels are wrong");
        stopped(&|f| f.fresh = paired(30, 4, 9), "too few");
        stopped(&|f| f.fresh = paired(30, 26, 26), "no gain");
        stopped(&|f| f.fresh = paired(30, 26, 25), "no gain");
        stopped(&|f| (f.fresh, f.contradicted) = (paired(2, 1, 1), 0), "not enough evidence");
        stopped(&|f| f.earlier = paired(30, 30, 25), "forgets: the earlier clips");
        stopped(&|f| f.guard = paired(100, 99, 91), "forgets: clips of others");
        stopped(&|f| f.likeness = Some(Likeness { fresh: 1.3, others: 1.5 }), "another voice");
        stopped(&|f| f.ambient.taken_after = 9, "wakes for nothing");
    }

    #[test]
    fn what_is_not_there_stops_nothing_and_is_said() {
        let figures = Figures { fresh: paired(3, 0, 3), ..Figures::default() };
        let (admitted, reasons) = judge(&figures, &GateSettings::default());
        assert!(admitted, "{reasons:?}");
        let text = reasons.join("\n");
        for word in ["not enough earlier clips", "there are none", "no windows without a word"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}
