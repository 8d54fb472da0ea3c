//! What the machine says of itself: load, memory, temperature, power.

use std::fs;
use std::path::{Path, PathBuf};

/// Readings of one moment; what the machine does not say is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Readings {
    /// Mean number of threads that ran or waited for a processor in the last minute, this process's own among them.
    pub load: Option<f64>,
    /// Processor time of this process so far, all threads.
    pub cpu_seconds: Option<f64>,
    /// Memory that this process holds.
    pub resident_mib: Option<f64>,
    /// The hottest part of the processor.
    pub temperature_c: Option<f32>,
    /// The battery that the machine is running down now; absent on mains power.
    pub battery: Option<Battery>,
}

/// A battery that is discharging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Battery {
    /// Charge, where it is known.
    pub percent: Option<u8>,
}

/// Where readings come from.
pub trait Sensors {
    /// Reads all.
    fn read(&mut self) -> Readings;
}

/// Linux's own files below `/proc` and `/sys`.
#[derive(Clone, Debug)]
pub struct SystemSensors {
    root: PathBuf,
}

impl Default for SystemSensors {
    fn default() -> Self {
        Self::below("/")
    }
}

/// Ticks of processor time a second, the same on every Linux for programs (proc(5), USER_HZ).
const TICKS_HZ: f64 = 100.0;

impl SystemSensors {
    /// Of the tree below `root`: a recorded one, or `/`.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }

    /// Field 14 and 15 of proc(5)'s stat; the name in field 2 may hold spaces.
    fn cpu_seconds(&self) -> Option<f64> {
        let stat = self.text("proc/self/stat")?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<f64>().ok();
        Some((ticks()? + ticks()?) / TICKS_HZ)
    }

    fn resident_mib(&self) -> Option<f64> {
        let status = self.text("proc/self/status")?;
        let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?.trim();
        Some(kib.parse::<f64>().ok()? / 1024.0)
    }

    /// The fullest of the machine's own batteries, where one is discharging and no mains supply is on.
    fn battery(&self) -> Option<Battery> {
        let supplies = folders(&self.root.join("sys/class/power_supply"));
        let is = |supply: &Path, file: &str, value: &str| word(&supply.join(file)).is_some_and(|v| v == value);
        let (batteries, others): (Vec<_>, Vec<_>) = supplies.into_iter().partition(|s| is(s, "type", "Battery"));
        if others.iter().any(|s| is(s, "online", "1")) {
            return None;
        }
        // A mouse or a headset has its own ("scope" is "Device").
        let own = batteries.iter().filter(|b| !is(b, "scope", "Device") && is(b, "status", "Discharging"));
        own.map(|b| word(&b.join("capacity")).and_then(|c| c.parse().ok()))
            .reduce(Option::max)
            .map(|percent| Battery { percent })
    }
}

impl Sensors for SystemSensors {
    fn read(&mut self) -> Readings {
        Readings {
            load: self.text("proc/loadavg").and_then(|l| l.split_whitespace().next()?.parse().ok()),
            cpu_seconds: self.cpu_seconds(),
            resident_mib: self.resident_mib(),
            temperature_c: crate::board::temperature_c(&self.root),
            battery: self.battery(),
        }
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

fn word(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, SystemSensors) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let sensors = SystemSensors::below(root.path());
        (root, sensors)
    }

    #[test]
    fn a_raspberry_pi() {
        let (_root, mut sensors) = tree(&[
            ("proc/loadavg", "0.61 0.35 0.20 2/153 1021\n"),
            ("proc/self/stat", "77 (a (b) c) R 1 77 77 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 4 0 900 1 1\n"),
            ("proc/self/status", "Name:\taccentor\nVmPeak:\t   90000 kB\nVmRSS:\t   51200 kB\nThreads:\t4\n"),
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("sys/class/thermal/thermal_zone0/temp", "54768\n"),
            ("sys/class/thermal/cooling_device0/type", "gpio-fan\n"),
        ]);
        let expected = Readings {
            load: Some(0.61),
            cpu_seconds: Some(2.0),
            resident_mib: Some(50.0),
            temperature_c: Some(54.768),
            battery: None,
        };
        assert_eq!(sensors.read(), expected);
    }

    #[test]
    fn a_jetson_whose_power_chip_says_100_degrees() {
        let zone = |k: usize, kind: &str, temp: &str| {
            let at = |file| format!("sys/class/thermal/thermal_zone{k}/{file}");
            [(at("type"), format!("{kind}\n")), (at("temp"), format!("{temp}\n"))]
        };
        let files: Vec<_> = [
            zone(0, "AO-therm", "41500"),
            zone(1, "CPU-therm", "33500"),
            zone(2, "GPU-therm", "31000"),
            zone(3, "PMIC-Die", "100000"),
            zone(4, "cv0-thermal", ""),
        ]
        .concat();
        let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
        let (_root, mut sensors) = tree(&files);
        assert_eq!(sensors.read().temperature_c, Some(33.5));
        let (_root, mut sensors) = tree(&files[..2]);
        assert_eq!(sensors.read().temperature_c, Some(41.5), "the one zone that there is");
        let (_root, mut sensors) = tree(&files[6..]);
        assert_eq!(sensors.read().temperature_c, None);
    }

    #[test]
    fn batteries_of_the_machine_and_of_a_mouse() {
        let supply = "sys/class/power_supply";
        let battery = |name: &str, status: &str, capacity: &str| {
            let at = |file: &str| format!("{supply}/{name}/{file}");
            vec![
                (at("type"), "Battery\n".to_owned()),
                (at("status"), format!("{status}\n")),
                (at("capacity"), format!("{capacity}\n")),
            ]
        };
        let mains = |online: &str| {
            vec![
                (format!("{supply}/AC/type"), "Mains\n".to_owned()),
                (format!("{supply}/AC/online"), format!("{online}\n")),
            ]
        };
        let mouse = {
            let mut files = battery("hidpp_battery_0", "Discharging", "90");
            files.push((format!("{supply}/hidpp_battery_0/scope"), "Device\n".to_owned()));
            files
        };
        let read = |files: Vec<(String, String)>| {
            let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
            let (_root, mut sensors) = tree(&files);
            sensors.read().battery
        };
        let percent = |percent| Some(Battery { percent });
        assert_eq!(read(mouse.clone()), None);
        assert_eq!(read([battery("BAT0", "Discharging", "63"), mains("0")].concat()), percent(Some(63)));
        assert_eq!(read([battery("BAT0", "Discharging", "63"), mains("1")].concat()), None);
        assert_eq!(read([battery("BAT0", "Charging", "63"), mouse].concat()), None);
        assert_eq!(read(battery("BAT0", "Discharging", "unknown")), percent(None));
        let two = [battery("BAT0", "Discharging", "5"), battery("BAT1", "Discharging", "80")].concat();
        assert_eq!(read(two), percent(Some(80)));
    }

    #[test]
    fn a_machine_that_says_nothing() {
        let (_root, mut sensors) = tree(&[]);
        assert_eq!(sensors.read(), Readings::default());
        let (_root, mut sensors) = tree(&[("proc/loadavg", ""), ("proc/self/stat", "1 (a"), ("proc/self/status", "x")]);
        assert_eq!(sensors.read(), Readings::default());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine() {
        let readings = SystemSensors::default().read();
        assert!(readings.load.is_some() && readings.cpu_seconds.is_some(), "{readings:?}");
        assert!(readings.resident_mib.is_some_and(|m| m > 0.5), "{readings:?}");
    }
}
