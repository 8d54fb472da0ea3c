//! How hot the processor is.

use std::fs;
use std::path::Path;

/// What a zone of the processor is called, in part.
const PROCESSOR: [&str; 5] = ["cpu", "soc", "tj", "pkg", "core"];

/// Degrees Celsius of the hottest zone of the processor below `root`; of all zones where none has such a name. A power
/// chip's (a Jetson's says 100 °C always) does not count, nor one without a sensor, which says 0 or -256000, or an error.
pub(crate) fn temperature_c(root: &Path) -> Option<f32> {
    let folders = fs::read_dir(root.join("sys/class/thermal")).into_iter().flatten().flatten();
    let zones: Vec<(String, f32)> = folders
        .filter_map(|zone| {
            let word = |file: &str| Some(fs::read_to_string(zone.path().join(file)).ok()?.trim().to_lowercase());
            let millidegrees: f32 = word("temp")?.parse().ok()?;
            Some((word("type").unwrap_or_default(), millidegrees / 1000.0))
        })
        .filter(|(kind, celsius)| *celsius > 0.0 && !kind.contains("pmic"))
        .collect();
    let hottest = |of: fn(&str) -> bool| zones.iter().filter(|z| of(&z.0)).map(|z| z.1).reduce(f32::max);
    hottest(|kind| PROCESSOR.iter().any(|part| kind.contains(part))).or_else(|| hottest(|_| true))
}
