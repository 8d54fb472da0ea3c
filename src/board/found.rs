//! What a running system says of itself, in /proc, /sys, /dev, /etc and its C library.
//!
//! Everything is read below a root folder, so that a recorded tree of a board is as good as the board. What is not there is
//! not known; nothing here fails.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{BoardError, Profile, temperature_c, version};

/// A sound card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SoundCard {
    /// Number, as in `hw:2`.
    pub index: usize,
    /// What ALSA calls it for short.
    pub id: String,
    /// What it is.
    pub name: String,
    /// Whether it has a microphone or a line in.
    pub captures: bool,
}

/// Whether this user may use a kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// The user is root, or in the group.
    Granted,
    /// The group is there and the user is not in it.
    Missing,
    /// There is no such group.
    NoGroup,
}

/// What a system says of itself; what is `None` or empty was not found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// Architecture of the program, as the Rust compiler names it.
    pub arch: String,
    /// The board, from the device tree.
    pub model: Option<String>,
    /// The cores' name.
    pub cpu: Option<String>,
    /// Cores that are on.
    pub cores: usize,
    /// What the cores can do, as /proc/cpuinfo names it.
    pub cpu_features: Vec<String>,
    /// How the clock is governed.
    pub governor: Option<String>,
    /// Highest clock in MHz.
    pub clock_mhz: Option<u64>,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
    /// Memory that a program can still have, in MiB.
    pub memory_available_mib: Option<u64>,
    /// The hottest part of the processor, in degrees Celsius.
    pub temperature_c: Option<f32>,
    /// What the firmware of a Raspberry Pi has seen of low voltage and heat since it started.
    pub throttled: Option<u32>,
    /// The system's name.
    pub system: Option<String>,
    /// Version of the C library.
    pub glibc: Option<String>,
    /// Sound cards.
    pub sound_cards: Vec<SoundCard>,
    /// Whether this user may use them.
    pub audio: Access,
    /// GPIO chips.
    pub gpio_chips: Vec<PathBuf>,
    /// Whether this user may use them.
    pub gpio: Access,
}

/// Names of ARM's cores by part number, where the implementer is ARM (0x41).
const ARM_CORES: [(u32, &str); 14] = [
    (0xc07, "Cortex-A7"),
    (0xc08, "Cortex-A8"),
    (0xc09, "Cortex-A9"),
    (0xc0f, "Cortex-A15"),
    (0xd03, "Cortex-A53"),
    (0xd04, "Cortex-A35"),
    (0xd05, "Cortex-A55"),
    (0xd07, "Cortex-A57"),
    (0xd08, "Cortex-A72"),
    (0xd09, "Cortex-A73"),
    (0xd0a, "Cortex-A75"),
    (0xd0b, "Cortex-A76"),
    (0xd41, "Cortex-A78"),
    (0xd42, "Cortex-A78AE"),
];

/// Bits of what the firmware of a Raspberry Pi says: now, and since it started.
const UNDER_VOLTAGE: u32 = 1 | 1 << 16;

/// Where the C library stands, by architecture of the program.
fn libraries(arch: &str) -> [PathBuf; 4] {
    let name = match arch {
        "arm" => "arm-linux-gnueabihf".to_owned(),
        other => format!("{other}-linux-gnu"),
    };
    [format!("lib/{name}"), format!("usr/lib/{name}"), "lib64".into(), "lib".into()].map(PathBuf::from)
}

impl Found {
    /// Reads what stands below `root` (`/` for the running system), for a program of the architecture `arch`.
    #[must_use]
    pub fn read(root: &Path, arch: &str) -> Self {
        let text = |path: &str| read(root, path);
        let number = |path: &str| text(path)?.parse::<u64>().ok();
        let cpuinfo = text("proc/cpuinfo").unwrap_or_default();
        let meminfo = text("proc/meminfo").unwrap_or_default();
        let memory = |name: &str| {
            let kib = field(&meminfo, name)?.split_whitespace().next()?.parse::<u64>().ok()?;
            Some(kib / 1024)
        };
        let features = field(&cpuinfo, "Features").or_else(|| field(&cpuinfo, "flags")).unwrap_or_default();
        let clock = "sys/devices/system/cpu/cpu0/cpufreq";
        let system = text("etc/os-release").and_then(|t| {
            let name = t.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="))?;
            Some(name.trim_matches('"').to_owned())
        });
        Self {
            arch: arch.to_owned(),
            model: text("proc/device-tree/model"),
            cpu: core_name(&cpuinfo),
            cores: cpuinfo.lines().filter(|l| l.starts_with("processor")).count(),
            cpu_features: features.split_whitespace().map(str::to_owned).collect(),
            governor: text(&format!("{clock}/scaling_governor")),
            clock_mhz: number(&format!("{clock}/cpuinfo_max_freq")).map(|khz| khz / 1000),
            memory_mib: memory("MemTotal"),
            memory_available_mib: memory("MemAvailable"),
            temperature_c: temperature_c(root),
            throttled: text("sys/devices/platform/soc/soc:firmware/get_throttled")
                .and_then(|t| u32::from_str_radix(t.trim_start_matches("0x"), 16).ok()),
            system,
            glibc: libraries(arch).iter().find_map(|folder| glibc(&root.join(folder).join("libc.so.6"))),
            sound_cards: sound_cards(
                &text("proc/asound/cards").unwrap_or_default(),
                &text("proc/asound/pcm").unwrap_or_default(),
            ),
            audio: access(root, "audio"),
            gpio_chips: entries(root, "dev", "gpiochip").into_iter().map(|n| Path::new("/dev").join(n)).collect(),
            gpio: access(root, "gpio"),
        }
    }

    /// The built-in profile for it: by the device tree's model, else the generic one of its architecture.
    ///
    /// `None` where there is none, as on x86-64.
    ///
    /// # Errors
    /// As [`Profile::built_in`].
    pub fn profile(&self) -> Result<Option<Profile>, BoardError> {
        let ours: Vec<Profile> = Profile::built_in()?.into_iter().filter(|p| runs(p, &self.arch)).collect();
        let named = ours.iter().find(|p| self.is(p)).cloned();
        Ok(named.or_else(|| ours.into_iter().find(|p| p.models.is_empty())))
    }

    fn is(&self, profile: &Profile) -> bool {
        let model = self.model.as_deref().unwrap_or_default();
        profile.models.iter().any(|start| model.starts_with(start))
    }

    /// What to change so that training on it goes well, most urgent first; empty where nothing is to be said.
    ///
    /// `simd` is what the kernels use ([`simd`](super::simd)).
    ///
    /// # Errors
    /// As [`Profile::built_in`].
    pub fn advice(&self, profile: Option<&Profile>, simd: &str) -> Result<Vec<String>, BoardError> {
        let mut said = Vec::new();
        self.advise_system(profile, simd, &mut said)?;
        if let Some(profile) = profile {
            self.advise_budgets(profile, &mut said);
        }
        if self.throttled.is_some_and(|bits| bits & UNDER_VOLTAGE != 0) {
            said.push("the supply's voltage was too low since the start: use the board's own power supply".into());
        }
        if self.governor.as_deref() == Some("powersave") {
            said.push(
                "the clock stands at its lowest (governor powersave): \
                 echo schedutil | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
                    .into(),
            );
        }
        if !self.sound_cards.iter().any(|c| c.captures) {
            said.push("no microphone was found: plug in one (USB), then `accentor doctor` again".into());
        } else if self.audio == Access::Missing {
            said.push(
                "this user may not use the microphone: sudo usermod -aG audio \"$USER\", and log in again".into(),
            );
        }
        if !self.gpio_chips.is_empty() && self.gpio == Access::Missing {
            said.push("this user may not use the GPIO lines: sudo usermod -aG gpio \"$USER\", and log in again".into());
        }
        Ok(said)
    }

    fn advise_system(&self, profile: Option<&Profile>, simd: &str, said: &mut Vec<String>) -> Result<(), BoardError> {
        if let (Some(profile), Some(glibc)) = (profile, &self.glibc)
            && version(glibc) < version(&profile.glibc_floor)
        {
            said.push(format!(
                "glibc is {glibc}, older than {}, which packages for {} are built for: build with targets/build.sh {} for it",
                profile.glibc_floor, profile.board, profile.name
            ));
        }
        if self.arch == "arm"
            && let Some(board) = Profile::built_in()?.iter().find(|p| runs(p, "aarch64") && self.is(p))
        {
            said.push(format!("{} can run a 64-bit system, where the kernels use NEON: install one", board.board));
        } else if simd == "none" {
            said.push("the kernels run without vector instructions: training will be several times slower".into());
        }
        Ok(())
    }

    fn advise_budgets(&self, profile: &Profile, said: &mut Vec<String>) {
        if let Some(mib) = self.memory_available_mib.filter(|mib| *mib < profile.memory_mib) {
            said.push(format!(
                "{mib} MiB of memory are left, less than the {} of the profile: stop other programs, or give adapt \
                 --batch 8 or --cache f16",
                profile.memory_mib
            ));
        }
        if let Some(c) = self.temperature_c.filter(|c| *c >= profile.temperature_pause_c) {
            said.push(format!(
                "the board is at {c:.0} °C, the profile's limit is {} °C: let it cool, add a heat sink or a fan",
                profile.temperature_pause_c
            ));
        }
        if self.cores > 0 && self.cores < profile.train_threads {
            said.push(format!(
                "{} cores are on, the profile trains on {}: give adapt --threads {}",
                self.cores, profile.train_threads, self.cores
            ));
        }
    }
}

/// Whether a program of the architecture is what the profile is about.
fn runs(profile: &Profile, arch: &str) -> bool {
    profile.triple.starts_with(arch) && profile.triple.contains("linux")
}

/// A small file without the white space and zero bytes at its ends.
fn read(root: &Path, path: &str) -> Option<String> {
    let bytes = fs::read(root.join(path)).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// Names in a folder that start so, in order.
fn entries(root: &Path, folder: &str, start: &str) -> Vec<String> {
    let found = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        found.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with(start)).collect();
    names.sort();
    names
}

/// What stands behind `name:`, or `name  :`, in the first line that has it.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut values = text.lines().filter_map(|l| l.split_once(':'));
    values.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

fn core_name(cpuinfo: &str) -> Option<String> {
    if let Some(name) = field(cpuinfo, "model name")
        && field(cpuinfo, "CPU part").is_none()
    {
        return Some(name.to_owned());
    }
    let hex = |name| u32::from_str_radix(field(cpuinfo, name)?.trim_start_matches("0x"), 16).ok();
    let (maker, part) = (hex("CPU implementer")?, hex("CPU part")?);
    let known = ARM_CORES.iter().find(|(number, _)| maker == 0x41 && *number == part);
    Some(known.map_or_else(|| format!("implementer {maker:#x}, part {part:#x}"), |(_, name)| (*name).to_owned()))
}

/// The version that a C library names in its own text.
fn glibc(library: &Path) -> Option<String> {
    let bytes = fs::read(library).ok()?;
    let mark = b"GNU C Library ";
    let start = bytes.windows(mark.len()).position(|w| w == mark)?;
    let said = String::from_utf8_lossy(&bytes[start..bytes.len().min(start + 128)]).into_owned();
    let number = said.split("release version ").nth(1)?;
    let number: String = number.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let number = number.trim_end_matches('.');
    version(number).map(|_| number.to_owned())
}

fn sound_cards(cards: &str, pcm: &str) -> Vec<SoundCard> {
    let card = |line: &str| {
        let (index, rest) = line.trim().split_once('[')?;
        let (id, name) = rest.split_once("]:")?;
        let index: usize = index.trim().parse().ok()?;
        let own = format!("{index:02}-");
        let captures = pcm.lines().any(|l| l.starts_with(&own) && l.contains(": capture "));
        Some(SoundCard { index, id: id.trim().to_owned(), name: name.trim().to_owned(), captures })
    };
    cards.lines().filter_map(card).collect()
}

fn access(root: &Path, group: &str) -> Access {
    let groups = read(root, "etc/group").unwrap_or_default();
    let Some(gid) = groups.lines().find_map(|l| l.strip_prefix(group)?.strip_prefix(':')?.split(':').nth(1)) else {
        return Access::NoGroup;
    };
    let status = read(root, "proc/self/status").unwrap_or_default();
    let ids = |name| field(&status, name).unwrap_or_default().split_whitespace();
    // Uid and Gid: real, effective, saved, of the file system.
    let root_user = ids("Uid").nth(1) == Some("0");
    if root_user || ids("Gid").nth(1) == Some(gid) || ids("Groups").any(|g| g == gid) {
        Access::Granted
    } else {
        Access::Missing
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A Raspberry Pi 4 with 2 GB, a USB microphone, Raspberry Pi OS bookworm and a user without groups.
    const PI: [(&str, &str); 15] = [
        ("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.2\0"),
        (
            "proc/cpuinfo",
            "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n\
             CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n\
             processor\t: 1\nFeatures\t: fp asimd\n\nprocessor\t: 2\n\nprocessor\t: 3\n\n\
             Revision\t: b03112\nModel\t\t: Raspberry Pi 4 Model B Rev 1.2\n",
        ),
        ("proc/meminfo", "MemTotal:        1893572 kB\nMemFree:          902140 kB\nMemAvailable:    1444120 kB\n"),
        (
            "proc/self/status",
            "Name:\taccentor\nUid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\nGroups:\t1000 \n",
        ),
        (
            "proc/asound/cards",
            " 0 [Headphones     ]: bcm2835_headpho - bcm2835 Headphones\n                      bcm2835 Headphones\n 1 [Device         ]: USB-Audio - USB PnP Sound Device\n                      C-Media Electronics Inc. USB PnP Sound Device at usb-0000:01:00.0-1.1, full speed\n",
        ),
        (
            "proc/asound/pcm",
            "00-00: bcm2835 Headphones : bcm2835 Headphones : playback 8\n01-00: USB Audio : USB Audio : capture 1\n",
        ),
        ("sys/class/thermal/thermal_zone0/temp", "48199\n"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand\n"),
        ("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "1500000\n"),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "0\n"),
        ("etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\n"),
        ("etc/group", "root:x:0:\naudio:x:29:pulse\ngpio:x:997:pi\n"),
        ("dev/gpiochip0", ""),
        ("dev/gpiochip1", ""),
        (
            "lib/aarch64-linux-gnu/libc.so.6",
            "\x7fELF\0GNU C Library (Debian GLIBC 2.36-9+rpt2+deb12u4) stable release version 2.36.\nCopyright\0",
        ),
    ];

    fn tree(changes: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in PI.iter().chain(changes) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn advice(arch: &str, simd: &str, changes: &[(&str, &str)]) -> Vec<String> {
        let found = Found::read(tree(changes).path(), arch);
        found.advice(found.profile().unwrap().as_ref(), simd).unwrap()
    }

    #[test]
    fn a_recorded_pi_is_read() {
        let found = Found::read(tree(&[]).path(), "aarch64");
        let card =
            |index, id: &str, name: &str, captures| SoundCard { index, id: id.into(), name: name.into(), captures };
        let expected = Found {
            arch: "aarch64".into(),
            model: Some("Raspberry Pi 4 Model B Rev 1.2".into()),
            cpu: Some("Cortex-A72".into()),
            cores: 4,
            cpu_features: ["fp", "asimd", "evtstrm", "crc32", "cpuid"].map(str::to_owned).to_vec(),
            governor: Some("ondemand".into()),
            clock_mhz: Some(1500),
            memory_mib: Some(1849),
            memory_available_mib: Some(1410),
            temperature_c: Some(48.199),
            throttled: Some(0),
            system: Some("Debian GNU/Linux 12 (bookworm)".into()),
            glibc: Some("2.36".into()),
            sound_cards: vec![
                card(0, "Headphones", "bcm2835_headpho - bcm2835 Headphones", false),
                card(1, "Device", "USB-Audio - USB PnP Sound Device", true),
            ],
            audio: Access::Missing,
            gpio_chips: ["/dev/gpiochip0", "/dev/gpiochip1"].map(PathBuf::from).to_vec(),
            gpio: Access::Missing,
        };
        assert_eq!(found, expected);
        assert_eq!(found.profile().unwrap().unwrap().name, "rpi4");
    }

    #[test]
    fn nothing_is_found_in_an_empty_folder() {
        let root = tempfile::tempdir().unwrap();
        let found = Found::read(root.path(), "aarch64");
        assert_eq!((&found.model, found.cores, found.temperature_c, &found.glibc), (&None, 0, None, &None));
        assert_eq!(found.audio, Access::NoGroup);
        assert_eq!(found.profile().unwrap().unwrap().name, "generic-aarch64");
        assert_eq!(Found::read(root.path(), "arm").profile().unwrap().unwrap().name, "generic-armv7");
        assert_eq!(Found::read(root.path(), "x86_64").profile().unwrap(), None);
    }

    #[test]
    fn each_board_is_known_by_its_model() {
        for (model, name) in [
            ("Raspberry Pi Zero 2 W Rev 1.0", "rpi-zero2w"),
            ("Raspberry Pi 3 Model B Plus Rev 1.3", "rpi3"),
            ("Raspberry Pi 400 Rev 1.0", "rpi4"),
            ("Raspberry Pi Compute Module 4 Rev 1.1", "rpi4"),
            ("Raspberry Pi 5 Model B Rev 1.0", "rpi5"),
            ("NVIDIA Jetson Nano Developer Kit", "jetson-nano"),
            ("NVIDIA Jetson Orin Nano Developer Kit", "jetson-orin-nano"),
            ("NVIDIA Orin Nano Developer Kit", "jetson-orin-nano"),
            ("Radxa ROCK 5B", "generic-aarch64"),
        ] {
            let found = Found::read(tree(&[("proc/device-tree/model", model)]).path(), "aarch64");
            assert_eq!(found.profile().unwrap().unwrap().name, name, "{model}");
        }
    }

    #[test]
    fn advice_names_what_to_change() {
        let groups = |ids: &'static str| ("proc/self/status", ids);
        let said = advice("aarch64", "NEON", &[groups("Uid:\t1000\t1000\nGid:\t1000\t1000\nGroups:\t29 997 \n")]);
        assert_eq!(said, Vec::<String>::new());
        assert_eq!(advice("aarch64", "NEON", &[groups("Uid:\t0\t0\nGroups:\t\n")]), Vec::<String>::new());

        let cases: [(&str, &str, &str); 8] = [
            ("etc/os-release", "", "usermod -aG audio"),
            ("etc/os-release", "", "usermod -aG gpio"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave", "governor powersave"),
            ("proc/meminfo", "MemAvailable: 81920 kB\n", "80 MiB of memory are left, less than the 256"),
            ("sys/class/thermal/thermal_zone1/temp", "81000", "at 81 °C, the profile's limit is 75 °C"),
            (
                "lib/aarch64-linux-gnu/libc.so.6",
                "GNU C Library (x) stable release version 2.28.\n",
                "glibc is 2.28, older than 2.31",
            ),
            ("proc/asound/pcm", "", "no microphone"),
            ("sys/devices/platform/soc/soc:firmware/get_throttled", "50005", "power supply"),
        ];
        for (path, text, expected) in cases {
            let said = advice("aarch64", "NEON", &[(path, text)]);
            assert!(said.iter().any(|s| s.contains(expected)), "{path}: {said:?}");
        }
        let said = advice("arm", "none", &[]);
        assert!(said[0].contains("Raspberry Pi 4 can run a 64-bit system"), "{said:?}");
        let said = advice("arm", "none", &[("proc/device-tree/model", "BeagleBone Black")]);
        assert!(said[0].contains("without vector instructions"), "{said:?}");
    }
}
