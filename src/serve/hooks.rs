//! Programs that are told of events: no shell, none twice within its time, none for longer than its time.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::config::Hook;
use super::protocol::Event;

/// Programs that run at a time; further events are passed over.
const RUNNING: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Hooks {
    hooks: Vec<(Hook, Option<Instant>)>,
    running: Vec<(Child, Instant)>,
}

impl Hooks {
    pub(super) fn new(hooks: &[Hook]) -> Self {
        let mut new = Self::default();
        new.replace(hooks);
        new
    }

    /// Takes other hooks; programs that run go on.
    pub(super) fn replace(&mut self, hooks: &[Hook]) {
        self.hooks = hooks.iter().map(|hook| (hook.clone(), None)).collect();
    }

    /// Runs the programs of an event. What cannot be run is named.
    pub(super) fn tell(&mut self, event: &Event, now: Instant) -> Vec<String> {
        let mut failed = Vec::new();
        let (label, score, stream) = match event {
            Event::Detected { label, score, stream, .. } => (label.as_str(), *score, stream.as_str()),
            Event::Gap { stream, .. } => ("", 0.0, stream.as_str()),
            _ => ("", 0.0, ""),
        };
        for (hook, last) in &mut self.hooks {
            let fits = hook.event == event.name() && hook.label.as_deref().is_none_or(|l| l == label);
            let early = last.is_some_and(|last| now - last < Duration::from_millis(hook.every_ms.into()));
            if !fits || early || self.running.len() >= RUNNING {
                continue;
            }
            *last = Some(now);
            let fill = |text: &String| {
                text.replace("{label}", label)
                    .replace("{score}", &format!("{score:.3}"))
                    .replace("{stream}", stream)
                    .replace("{event}", event.name())
            };
            let mut words = hook.command.iter();
            let Some(program) = words.next() else { continue };
            let mut command = Command::new(program);
            command.args(words.map(fill)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            match command.spawn() {
                Ok(child) => self.running.push((child, now + Duration::from_secs_f64(hook.seconds))),
                Err(error) => failed.push(format!("hook {program}: {error}")),
            }
        }
        failed
    }

    /// Takes leave of programs that ended, and ends those whose time is over.
    pub(super) fn tend(&mut self, now: Instant) {
        self.running.retain_mut(|(child, until)| {
            if now >= *until {
                // One that ended by itself in this moment cannot be ended.
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
            matches!(child.try_wait(), Ok(None))
        });
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.tend(Instant::now() + Duration::from_secs(86_400));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detected(label: &str) -> Event {
        let (stream, label) = (String::from("hall"), String::from(label));
        Event::Detected { id: 1, stream, label, score: 0.91, at_seconds: 1.0, adapter: None }
    }

    #[test]
    fn programs_get_the_event_and_no_shell_does() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out; touch x");
        let command = ["cp", "/dev/null", &format!("{}-{{label}}-{{score}}-{{stream}}", out.display())];
        let hook = Hook {
            event: "detected".into(),
            label: Some("stop".into()),
            command: command.map(String::from).into(),
            every_ms: 1000,
            seconds: 5.0,
        };
        let missing = Hook { command: vec!["/no/such/program".into()], label: None, ..hook.clone() };
        let mut hooks = Hooks::new(&[hook, missing]);
        let now = Instant::now();
        assert_eq!(hooks.tell(&detected("go"), now).len(), 1);
        assert!(hooks.running.is_empty());
        assert!(hooks.tell(&detected("stop"), now + Duration::from_millis(1)).is_empty());
        assert_eq!(hooks.running.len(), 1);
        // Within its time it is not run again.
        hooks.tell(&detected("stop"), now + Duration::from_millis(900));
        assert_eq!(hooks.running.len(), 1);
        hooks.running[0].0.wait().unwrap();
        hooks.tend(now);
        assert!(hooks.running.is_empty());
        assert!(folder.path().join("out; touch x-stop-0.910-hall").exists());
    }

    #[test]
    fn one_that_does_not_end_is_ended() {
        let hook = Hook {
            event: "gap".into(),
            label: None,
            command: ["sleep", "600"].map(String::from).into(),
            every_ms: 0,
            seconds: 0.5,
        };
        let mut hooks = Hooks::new(&[hook]);
        let now = Instant::now();
        let gap = Event::Gap { stream: "hall".into(), lost_seconds: 0.0, at_seconds: 0.0 };
        for _ in 0..20 {
            assert!(hooks.tell(&gap, now).is_empty());
        }
        assert_eq!(hooks.running.len(), RUNNING);
        hooks.tend(now);
        assert_eq!(hooks.running.len(), RUNNING);
        hooks.tend(now + Duration::from_secs(1));
        assert!(hooks.running.is_empty());
    }
}
