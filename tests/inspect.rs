//! What inspect says before training starts, against what training then takes.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod scene;

use scene::{Scene, kws};

/// As the README promises.
const MEMORY: f64 = 0.15;

#[test]
fn arena_and_memory_are_as_predicted() {
    let scene = Scene::new();
    let clips = 100;
    let told = scene.json(&format!("inspect KWS --clips {clips}"));
    let training = &told["training"];
    let timed = scene.json("bench --model KWS --steps 1");
    assert_eq!(training["arena_bytes"], timed["arena_bytes"]);
    // 50 clips of the accent and 50 replayed.
    let demo = kws().join("demo");
    let data = format!("--data {0}/scotland/adapt --replay {0}/us/replay", demo.display());
    let run = scene.json(&format!("adapt --model KWS {data} --epochs 1 --out out"));
    assert_eq!(run["examples"], 50);
    let (predicted, found) = (training["peak_rss_bytes"].as_f64().unwrap(), run["peak_rss_bytes"].as_f64().unwrap());
    assert!((predicted / found - 1.0).abs() <= MEMORY, "predicted {predicted}, found {found}");
    assert_eq!(training["variants"], 8);
    assert!(training["step_ms"].as_f64().unwrap() > 0.0);
    let [forward, back, step] =
        ["suffix_multiply_adds", "backward_multiply_adds", "step_multiply_adds"].map(|f| training[f].as_u64().unwrap());
    assert_eq!(step, 16 * (forward + back));
    assert!(back > forward && back < 3 * forward, "{forward} {back}");
}

#[test]
fn the_cut_is_where_the_prefix_ends() {
    let scene = Scene::new();
    let all = scene.json("inspect KWS");
    assert_eq!(all["training"]["prefix_multiply_adds"], 0);
    assert_eq!(all["recommendation"]["taken"], 6);
    let head = scene.json("inspect KWS --sites none --head");
    let training = &head["training"];
    assert_eq!(training["cut"][0]["name"], "embedding");
    let parts = ["prefix_multiply_adds", "suffix_multiply_adds"].map(|f| training[f].as_u64().unwrap());
    assert_eq!(parts.iter().sum::<u64>(), head["multiply_adds"].as_u64().unwrap());
}

#[test]
fn the_picture_shows_every_site() {
    let scene = Scene::new();
    let picture = |line: &str| {
        scene.json(&format!("inspect KWS --svg net.svg {line}"));
        std::fs::read_to_string(scene.path("net.svg")).unwrap()
    };
    let svg = picture("");
    let boxes = |svg: &str, class: &str| svg.matches(&format!("<rect class=\"{class}\"")).count();
    // One of each is in the legend.
    assert_eq!(boxes(&svg, "site"), 6 + 1);
    assert_eq!(boxes(&svg, "end"), 2);
    assert_eq!(boxes(&svg, "none"), 0);
    assert!(svg.contains("/stem/Conv") && svg.contains("1×96×25×5") && svg.contains("Conv 3×3 depthwise"));
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert_eq!(boxes(&picture("--sites all"), "site"), 10 + 1);
    let head = picture("--sites /head");
    assert_eq!((boxes(&head, "site"), boxes(&head, "suffix")), (2, 0));
    scene.fails(1, "inspect KWS --svg .", &["--svg"]);
}
