//! A run that was stopped and went on ends with the bytes of one that was not: in one process, and through the binary.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod emulation;
mod scene;

use std::path::Path;

use accentor::graph::Choice;
use accentor::train::{Checkpoint, CheckpointError, FitReport, OptimiserKind, RateTrial, Run};
use accentor::{
    Adapter, AdapterSpec, CacheFormat, CacheOptions, Cached, Examples, Model, Splits, TrainConfig, Trainer,
};
use scene::{Scene, kws};

/// A recipe and what it learns from.
struct Case {
    name: &'static str,
    sites: &'static str,
    head: bool,
    automatic: bool,
    threads: usize,
    replay: bool,
    valid: bool,
    cache: CacheFormat,
    config: TrainConfig,
}

/// Bits of an adapter's tensors, and all that is reported.
type Ended = (Adapter, Vec<Vec<u32>>, FitReport, Vec<RateTrial>);

struct Clips {
    model: Model,
    train: Examples,
    replay: Examples,
    valid: Examples,
}

impl Clips {
    fn new() -> Self {
        let model = Model::open(kws()).unwrap();
        let augment = accentor::Augment { shift_ms: 60.0, ..accentor::Augment::default() };
        let read = |part: &str, variants: usize, every: usize| {
            let mut data = accentor::source::dataset(&kws().join("demo").join(part)).unwrap();
            data.examples = data.examples.into_iter().step_by(every).collect();
            model.examples(&data, &augment, variants, 0).unwrap()
        };
        Self {
            train: read("scotland/adapt", 3, 2),
            replay: read("us/replay", 2, 3),
            valid: read("scotland/test", 1, 20),
            model,
        }
    }
}

/// A process that was started: the trainer with its caches.
struct Process<'a> {
    case: &'a Case,
    trainer: Trainer,
    train: Cached,
    replay: Option<Cached>,
    valid: Option<Cached>,
}

impl<'a> Process<'a> {
    fn start(case: &'a Case, clips: &Clips) -> Self {
        let sites = Choice::parse(case.sites).unwrap();
        let spec = AdapterSpec { rank: 4, alpha: 8.0, sites, head: case.head };
        let adapter = clips.model.new_adapter(&spec, 3).unwrap();
        let mut trainer = clips.model.trainer(adapter, case.threads).unwrap();
        let options = CacheOptions { format: case.cache, folder: None };
        let mut cache = |examples: &Examples| trainer.cache_as(examples, &options).unwrap();
        let train = cache(&clips.train);
        let replay = case.replay.then(|| cache(&clips.replay));
        let valid = case.valid.then(|| cache(&clips.valid));
        Self { case, trainer, train, replay, valid }
    }

    /// Goes on from the file if it is there, takes `steps` steps at most, and writes the file if that was not the end.
    fn run(&mut self, file: &Path, steps: usize) -> Option<(usize, Ended)> {
        let Self { case, trainer, train, replay, valid } = self;
        let splits = Splits { train, replay: replay.as_ref(), valid: valid.as_ref() };
        let mut run = Run::new(trainer, &case.config, case.automatic, splits).unwrap();
        let fingerprint = run.fingerprint(trainer).unwrap();
        if let Some(checkpoint) = Checkpoint::read(file).unwrap() {
            run.resume(trainer, &checkpoint, &fingerprint).unwrap();
        }
        for taken in 0.. {
            if taken == steps {
                run.checkpoint(trainer, &fingerprint).write(file).unwrap();
                return None;
            }
            if !run.step(trainer).unwrap() {
                let adapter = trainer.adapter();
                let bits = adapter.sites.iter().flat_map(|s| s.delta.tensors());
                let bits = bits.map(|t| t.iter().map(|v| v.to_bits()).collect()).collect();
                return Some((taken, (adapter, bits, run.report().clone(), run.trials().to_vec())));
            }
        }
        None
    }
}

fn cases() -> Vec<Case> {
    let config = TrainConfig { epochs: 3, batch: 6, rate: 1e-2, smoothing: 0.1, seed: 5, ..TrainConfig::default() };
    let sgd = OptimiserKind::Sgd { momentum: 0.9, weight_decay: 0.01 };
    let plain = |name, config| Case {
        name,
        sites: "blocks.3|head",
        head: false,
        automatic: false,
        threads: 1,
        replay: false,
        valid: false,
        cache: CacheFormat::F32,
        config,
    };
    vec![
        Case { threads: 2, replay: true, sites: "auto", ..plain("all layers, replay, two threads", config.clone()) },
        Case {
            head: true,
            valid: true,
            ..plain("head, early stop", TrainConfig { epochs: 12, patience: Some(2), rate: 4e-2, ..config.clone() })
        },
        Case { automatic: true, replay: true, ..plain("rate by folds", config.clone()) },
        Case { automatic: true, valid: true, threads: 3, ..plain("rate by validation data", config.clone()) },
        Case {
            cache: CacheFormat::Int8,
            ..plain("sgd, largest norm, int8", TrainConfig { optimiser: sgd, clip_norm: Some(0.5), ..config })
        },
    ]
}

#[test]
fn stopped_anywhere_it_ends_with_the_same_bytes() {
    let (clips, cases) = (Clips::new(), cases());
    let scene = Scene::new();
    let mut rng = fastrand::Rng::with_seed(11);
    for (number, case) in cases.iter().enumerate() {
        let never = scene.path(&format!("{number}-never"));
        let (steps, whole) = Process::start(case, &clips).run(&never, usize::MAX).unwrap();
        assert!(steps >= 9, "{}: {steps} steps are too few to stop in", case.name);
        assert_eq!(case.automatic, !whole.3.is_empty());
        // Before the first step and behind the last one, five times in between, and one run that is stopped again and again.
        let mut stops: Vec<Vec<usize>> = (0..5).map(|_| vec![rng.usize(1..steps)]).collect();
        stops.extend([vec![0], vec![steps], vec![steps - 1], (0..steps / 4).map(|_| 4).collect()]);
        for (k, stops) in stops.iter().enumerate() {
            let file = scene.path(&format!("{number}-{k}"));
            for taken in stops {
                // Another process: nothing is left of the one before but the file.
                assert!(Process::start(case, &clips).run(&file, *taken).is_none(), "{}: {stops:?}", case.name);
            }
            let (rest, ended) = Process::start(case, &clips).run(&file, usize::MAX).unwrap();
            assert_eq!(rest, steps - stops.iter().sum::<usize>(), "{}: {stops:?}", case.name);
            assert!(ended == whole, "{}: stopped after {stops:?} it ended otherwise", case.name);
        }
    }
}

#[test]
fn another_run_does_not_go_on() {
    let (clips, scene) = (Clips::new(), Scene::new());
    let file = scene.path("checkpoint");
    let case = || cases().swap_remove(1);
    assert!(Process::start(&case(), &clips).run(&file, 5).is_none());
    let refused = |what: &str, case: Case, clips: &Clips| {
        let mut process = Process::start(&case, clips);
        let Process { trainer, train, valid, .. } = &mut process;
        let splits = Splits { train, replay: None, valid: valid.as_ref() };
        let mut run = Run::new(trainer, &case.config, case.automatic, splits).unwrap();
        let fingerprint = run.fingerprint(trainer).unwrap();
        let error = run.resume(trainer, &Checkpoint::read(&file).unwrap().unwrap(), &fingerprint).unwrap_err();
        assert!(matches!(error, CheckpointError::Other { .. }), "{what}: {error}");
        let text = error.to_string();
        assert!(text.contains(what) && text.contains("remove it"), "{what}: {text}");
    };
    let with = |change: &dyn Fn(&mut Case)| {
        let mut case = case();
        change(&mut case);
        case
    };
    refused("the number of epochs was 12, is 13", with(&|c| c.config.epochs = 13), &clips);
    refused("the rate was 0.04, is 0.01", with(&|c| c.config.rate = 1e-2), &clips);
    refused("the seed was 5, is 6", with(&|c| c.config.seed = 6), &clips);
    refused("the search for a rate was false, is true", with(&|c| c.automatic = true), &clips);
    refused("the list of adapted layers", with(&|c| c.sites = "head"), &clips);
    refused("the validation data", with(&|c| c.valid = false), &clips);
    refused("the training data", with(&|c| c.cache = CacheFormat::F16), &clips);
    let fewer = Clips { train: clips.valid.clone(), ..Clips::new() };
    refused("the training data", case(), &fewer);
}

#[cfg(unix)]
mod binary {
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use serde_json::Value;

    use super::*;

    const WORDS: [&str; 4] = ["go", "no", "stop", "yes"];
    /// All that is random and all that is chosen.
    const LINE: &str =
        "adapt --model KWS --data data --valid valid --replay replay --epochs 4 --variants 3 --rank 4 --lr auto";
    /// Exit code of a run that stopped and can go on.
    const STOPPED: i32 = 4;

    fn scene() -> Scene {
        let scene = Scene::new();
        scene.clips(&WORDS, 5);
        for word in WORDS {
            scene::clips_into(&scene.path("valid"), word, 2);
            scene::clips_into(&scene.path("replay"), word, 3);
        }
        scene
    }

    /// What a report says beside times and memory.
    fn told(report: &[u8]) -> Value {
        let mut report: Value = serde_json::from_slice(report).unwrap();
        let fields = report.as_object_mut().unwrap();
        for of_the_process in ["seconds", "peak_rss_bytes", "paused_seconds", "pauses", "resumed_at_step", "out"] {
            fields.remove(of_the_process);
        }
        report
    }

    fn files(scene: &Scene, folder: &str) -> [Vec<u8>; 2] {
        ["adapter_config.json", "adapter_model.safetensors"]
            .map(|name| std::fs::read(scene.path(folder).join(name)).unwrap())
    }

    fn signal(child: &Child, name: &str) {
        assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
    }

    /// Waits until the run has written a checkpoint of its own, or has ended: it listens for signals then.
    fn new_checkpoint(scene: &Scene, child: &mut Child, before: Option<&[u8]>) {
        let started = Instant::now();
        let path = scene.path("run/adapt.checkpoint");
        while std::fs::read(&path).ok().as_deref() == before && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < scene::PATIENCE, "no checkpoint");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn killed_and_told_to_stop_it_goes_on() {
        let scene = scene();
        let whole = scene.run(&format!("{LINE} --out whole --json"));
        assert_eq!(whole.status.code(), Some(0), "{}", String::from_utf8_lossy(&whole.stderr));
        let mut rng = fastrand::Rng::with_seed(2);
        for signals in [["-TERM"; 5], ["-KILL"; 5], ["-INT", "-KILL", "-TERM", "-KILL", "-INT"]] {
            let mut resumed = 0;
            for name in signals {
                // Slow enough for a signal to come in between.
                let line = format!("{LINE} --out out --checkpoint run --checkpoint-every 3 --cpu-share 0.3 --json");
                let before = std::fs::read(scene.path("run/adapt.checkpoint")).ok();
                let written = scene.path("out").exists();
                let mut child = scene.start(&line);
                // A kill may come before the run goes on.
                if name != "-KILL" || before.is_none() {
                    new_checkpoint(&scene, &mut child, before.as_deref());
                }
                std::thread::sleep(Duration::from_millis(rng.u64(0..400)));
                if child.try_wait().unwrap().is_none() {
                    signal(&child, name);
                }
                let output = scene::ended(child, &line);
                let said = String::from_utf8_lossy(&output.stderr);
                resumed += usize::from(said.contains("going on at step"));
                match (output.status.code(), name) {
                    // It was at its end already.
                    (Some(0), _) => break,
                    (None, "-KILL") => {}
                    // Training was over: it goes on before its last steps.
                    (Some(130), "-TERM" | "-INT") => assert!(scene.path("run/adapt.checkpoint").exists(), "{said}"),
                    (code, _) => {
                        assert_eq!(code, Some(STOPPED), "{name}: {said}");
                        assert!(said.contains("the same command goes on"), "{said}");
                        assert!(output.stdout.is_empty() && scene.path("out").exists() == written);
                    }
                }
            }
            // As a kill in the middle of a write leaves it.
            if scene.path("run").exists() {
                std::fs::write(scene.path("run/.adapt.checkpoint.begun"), "half").unwrap();
            }
            let last = scene.run(&format!("{LINE} --out out --checkpoint run --json"));
            assert_eq!(last.status.code(), Some(0), "{}", String::from_utf8_lossy(&last.stderr));
            resumed += usize::from(String::from_utf8_lossy(&last.stderr).contains("going on at step"));
            assert!(resumed > 0, "{signals:?}: it never went on");
            assert!(files(&scene, "out") == files(&scene, "whole"), "{signals:?}: other bytes");
            assert_eq!(told(&last.stdout), told(&whole.stdout), "{signals:?}");
            assert!(!scene.path("run").exists(), "the checkpoint of a finished run stayed");
            std::fs::remove_dir_all(scene.path("out")).unwrap();
        }
    }

    #[test]
    fn budgets_change_no_byte_and_are_reported() {
        let scene = scene();
        let line = LINE.replace(" --lr auto", "");
        scene.json(&format!("{line} --out whole"));
        let slow = scene.json(&format!("{line} --out slow --cpu-share 0.1 --max-memory-mib 4096 --on-battery 1"));
        assert!(files(&scene, "slow") == files(&scene, "whole"));
        let paused = slow["paused_seconds"].as_f64().unwrap();
        assert!(paused > 0.0 && slow["pauses"]["cpu_share"].as_f64() == Some(paused), "{slow}");
        assert_eq!(slow.get("ended_by"), None);

        let endless = line.replace("--epochs 4", "--epochs 1000000 --patience 1000000");
        // Reading the model takes seconds under emulation.
        let probe = scene.start("--version");
        let seconds = if emulation::emulated(&probe) { 60 } else { 2 };
        scene::ended(probe, "--version");
        let short = scene.json(&format!("{endless} --out short --max-seconds {seconds}"));
        assert_eq!((&short["ended_by"], &short["cancelled"]), (&"time".into(), &true.into()));
        assert!(short["steps"].as_u64() > Some(0));
        let small = scene.json(&format!("{line} --out small --max-memory-mib 1"));
        assert_eq!((&small["ended_by"], &small["steps"]), (&"memory".into(), &0.into()));

        // With a checkpoint the time is over but not the run.
        let timed = format!("{line} --out out --checkpoint run --cpu-share 0.05 --json");
        let output = scene.run(&format!("{timed} --max-seconds 0.5"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(STOPPED), "{said}");
        assert!(said.contains("0.5 s") && said.contains("the same command goes on"), "{said}");
        let other = scene.run(&format!("{timed} --batch 8"));
        scene::says(&other, 1, &timed, &["adapt.checkpoint", "the batch was 16, is 8", "remove it"]);
        std::fs::write(scene.path("run/adapt.checkpoint"), "nonsense").unwrap();
        scene::says(&scene.run(&timed), 1, &timed, &["adapt.checkpoint", "no whole checkpoint", "remove it"]);
        std::fs::remove_file(scene.path("run/adapt.checkpoint")).unwrap();
        assert_eq!(scene.run(&timed).status.code(), Some(0));
        assert!(files(&scene, "out") == files(&scene, "whole"));
    }

    #[test]
    fn wrong_budgets_are_refused() {
        let scene = scene();
        let line = "adapt --model KWS --data data --out out";
        for (flags, code, words) in [
            ("--cpu-share 0", 1, ["cpu share", "up to 1"]),
            ("--max-seconds -1", 1, ["max seconds", "above 0"]),
            ("--max-memory-mib 0", 1, ["max memory", "MiB"]),
            ("--on-battery sometimes", 2, ["--on-battery", "percent"]),
            ("--on-battery 101", 2, ["--on-battery", "percent"]),
            ("--checkpoint run --checkpoint-every 0", 2, ["--checkpoint-every", "60s"]),
            ("--checkpoint run --checkpoint-every 5m", 2, ["--checkpoint-every", "60s"]),
            ("--checkpoint-every 5s", 2, ["--checkpoint", "required"]),
            ("--checkpoint out/run", 1, ["out/run", "choose another"]),
        ] {
            scene.fails(code, &format!("{line} {flags}"), &words);
        }
    }
}
