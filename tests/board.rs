//! `accentor doctor` on the system that the tests run on and on an empty one; `--target-profile`; what packages are made with.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod scene;

use std::fs;

use scene::Scene;

const SHORT: &str = "adapt --model KWS --data data --out out --epochs 1 --variants 1 --rank 2";

#[test]
fn doctor_reads_this_system_and_an_empty_one() {
    let scene = Scene::new();
    let here = scene.json("doctor");
    assert!(here["cores"].as_u64().unwrap() > 0, "{here}");
    assert!(here["memory_mib"].as_u64() >= here["memory_available_mib"].as_u64(), "{here}");
    assert!(["AVX-512", "AVX2", "NEON", "none"].contains(&here["simd"].as_str().unwrap()), "{here}");

    fs::create_dir(scene.path("empty")).unwrap();
    let output = scene.run("doctor --root empty");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for name in ["board", "cores", "memory", "temperature", "system", "glibc", "sound", "gpio"] {
        assert!(text.lines().any(|l| l.starts_with(name) && l.ends_with("not found")), "{name} in {text}");
    }
    assert!(text.contains("no microphone was found"), "{text}");
}

#[test]
fn doctor_shows_a_recorded_board() {
    let scene = Scene::new();
    scene.write("pi/proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0");
    scene.write("pi/proc/asound/cards", " 2 [Device         ]: USB-Audio - USB PnP Sound Device\n");
    scene.write("pi/proc/asound/pcm", "02-00: USB Audio : USB Audio : capture 1\n");
    scene.write("pi/sys/class/thermal/thermal_zone0/temp", "51900\n");
    scene.write("pi/dev/gpiochip4", "");
    let text = String::from_utf8(scene.run("doctor --root pi").stdout).unwrap();
    for said in [
        "Raspberry Pi 5 Model B Rev 1.0",
        "51.9 °C",
        "hw:2 USB-Audio - USB PnP Sound Device (records)",
        "/dev/gpiochip4",
    ] {
        assert!(text.contains(said), "{said} in {text}");
    }
    // A profile is for what this program can run on.
    assert_eq!(text.contains("rpi5 (Raspberry Pi 5): 3 of 4 threads"), cfg!(target_arch = "aarch64"), "{text}");
}

#[test]
fn a_target_profile_sets_the_threads_and_no_byte() {
    let scene = Scene::new();
    scene.clips(&["go", "stop"], 3);
    let one = scene.json(SHORT);
    let adapter = || fs::read(scene.path("out/adapter_model.safetensors")).unwrap();
    let alone = adapter();
    assert_eq!((one["threads"].as_u64(), one.get("target_profile")), (Some(1), None));

    let pi = scene.json(&format!("{SHORT} --target-profile rpi4"));
    assert_eq!((pi["threads"].as_u64(), pi["target_profile"].as_str()), (Some(3), Some("rpi4")));
    assert_eq!(adapter(), alone);
    let said = scene.run(&format!("{SHORT} --target-profile rpi4 --threads 2"));
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("target profile rpi4: 2 threads"), "{said}");

    let mine = include_str!("../targets/rpi4.toml").replace("train_threads = 3", "train_threads = 4");
    scene.write("mine.toml", mine.replace("\"rpi4\"", "\"mine\""));
    let mine = scene.json(&format!("{SHORT} --target-profile mine.toml"));
    assert_eq!((mine["threads"].as_u64(), mine["target_profile"].as_str()), (Some(4), Some("mine")));
}

#[test]
fn a_profile_that_is_not_there_is_an_error_with_the_names() {
    let scene = Scene::new();
    scene.clips(&["go", "stop"], 2);
    scene.fails(
        1,
        &format!("{SHORT} --target-profile rpi9"),
        &["--target-profile", "`rpi9`", "rpi-zero2w", "jetson-nano"],
    );
    scene.fails(1, &format!("{SHORT} --target-profile mine.toml"), &["--target-profile", "mine.toml"]);
    scene.write("mine.toml", "name = \"mine\"\n");
    scene.fails(
        1,
        &format!("{SHORT} --target-profile mine.toml"),
        &["mine.toml is no target profile", "missing field"],
    );
}

#[test]
fn every_verb_has_a_man_page_and_completions() {
    let scene = Scene::new();
    assert!(scene.run("manual --out pages").status.success());
    let read = |name: &str| fs::read_to_string(scene.path("pages").join(name)).unwrap();
    let help = String::from_utf8(scene.run("--help").stdout).unwrap();
    let verbs = help.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
    let verbs: Vec<&str> = verbs
        .lines()
        .filter_map(|l| l.strip_prefix("  ")?.split_whitespace().next())
        .filter(|v| *v != "help")
        .collect();
    assert!(verbs.contains(&"adapt") && verbs.contains(&"doctor") && !verbs.contains(&"manual"), "{verbs:?}");
    for verb in verbs {
        assert!(read("accentor.1").contains(&format!("accentor\\-{verb}(1)")), "{verb}");
        assert!(read(&format!("accentor-{verb}.1")).starts_with(".ie"), "{verb}");
        for file in ["accentor.bash", "_accentor", "accentor.fish"] {
            assert!(read(file).contains(verb), "{verb} in {file}");
        }
    }
    assert!(!scene.path("pages/accentor-help.1").exists());
    assert!(read("accentor-adapt.1").contains("target\\-profile"));
}
