//! What is known of a kind of board: `targets/*.toml`, built in, or a file of the user's own.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The files of targets/, in the order in which they are named to a user.
const BUILT_IN: [&str; 8] = [
    include_str!("../../targets/rpi-zero2w.toml"),
    include_str!("../../targets/rpi3.toml"),
    include_str!("../../targets/rpi4.toml"),
    include_str!("../../targets/rpi5.toml"),
    include_str!("../../targets/jetson-nano.toml"),
    include_str!("../../targets/jetson-orin-nano.toml"),
    include_str!("../../targets/generic-aarch64.toml"),
    include_str!("../../targets/generic-armv7.toml"),
];

/// A kind of board, and how much of it training may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name on the command line, and of the file in `targets/`.
    pub name: String,
    /// The board in words.
    pub board: String,
    /// How the device tree's model begins on such a board; empty: no board is known by it.
    #[serde(default)]
    pub models: Vec<String>,
    /// Target of the Rust compiler.
    pub triple: String,
    /// Core, as the Rust compiler's `target-cpu` names it.
    pub cpu: String,
    /// What the kernels may use, as /proc/cpuinfo names it.
    pub simd: Vec<String>,
    /// Cores, the fewest that such a board has.
    pub cores: usize,
    /// Memory in MiB of the smallest usual board; variants with less are named in the file.
    pub ram_mib: u64,
    /// Oldest glibc that the binary must start with, e.g. 2.31.
    pub glibc_floor: String,
    /// Threads to train on.
    pub train_threads: usize,
    /// Most memory that a training run may take, in MiB.
    pub memory_mib: u64,
    /// Longest training run, in seconds.
    pub seconds: u64,
    /// Temperature at which training pauses, in degrees Celsius.
    pub temperature_pause_c: f32,
    /// Temperature below which it goes on.
    pub temperature_resume_c: f32,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BoardError {
    /// Neither a name nor a file.
    #[error("there is no target profile `{name}`; there are {}, and a path to a .toml file is one too", .names.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        names: Vec<String>,
    },
    /// The file cannot be read.
    #[error("cannot read the target profile {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is no profile.
    #[error("{origin} is no target profile: {source}")]
    Syntax {
        /// The file.
        origin: String,
        /// What is wrong in it.
        source: toml::de::Error,
    },
    /// A value that no board has.
    #[error("{origin}: `{field}` is {found}, expected {expected}")]
    Value {
        /// The file.
        origin: String,
        /// The key.
        field: &'static str,
        /// Its value.
        found: String,
        /// What may stand there.
        expected: String,
    },
}

impl Profile {
    /// Those of `targets/`.
    ///
    /// # Errors
    /// If a built-in file is no profile, which a test rules out.
    pub fn built_in() -> Result<Vec<Self>, BoardError> {
        BUILT_IN.iter().map(|text| Self::parse(text, "a built-in file of targets/")).collect()
    }

    /// The built-in profile of that name, else the file at that path.
    ///
    /// # Errors
    /// If there is neither, or the file is no profile.
    pub fn load(name_or_file: &str) -> Result<Self, BoardError> {
        let profiles = Self::built_in()?;
        let names = profiles.iter().map(|p| p.name.clone()).collect();
        if let Some(profile) = profiles.into_iter().find(|p| p.name == name_or_file) {
            return Ok(profile);
        }
        let path = Path::new(name_or_file);
        if path.extension().is_none_or(|e| e != "toml") && !path.is_file() {
            return Err(BoardError::Unknown { name: name_or_file.to_owned(), names });
        }
        let text =
            std::fs::read_to_string(path).map_err(|source| BoardError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, name_or_file)
    }

    /// A profile from the text of a file that `origin` names.
    ///
    /// # Errors
    /// If it is not TOML, has a key too many or too few, or a value that no board has.
    pub fn parse(text: &str, origin: &str) -> Result<Self, BoardError> {
        let profile: Self =
            toml::from_str(text).map_err(|source| BoardError::Syntax { origin: origin.to_owned(), source })?;
        let wrong = |field, found: &dyn std::fmt::Display, expected: String| {
            Err(BoardError::Value { origin: origin.to_owned(), field, found: found.to_string(), expected })
        };
        if profile.cores == 0 {
            return wrong("cores", &profile.cores, "at least 1".into());
        }
        if profile.train_threads == 0 || profile.train_threads > profile.cores {
            return wrong("train_threads", &profile.train_threads, format!("1 to {}, the cores", profile.cores));
        }
        if profile.memory_mib == 0 || profile.memory_mib > profile.ram_mib {
            return wrong("memory_mib", &profile.memory_mib, format!("1 to {}, the memory", profile.ram_mib));
        }
        if profile.seconds == 0 {
            return wrong("seconds", &profile.seconds, "at least 1".into());
        }
        if !profile.temperature_pause_c.is_finite() {
            return wrong("temperature_pause_c", &profile.temperature_pause_c, "degrees Celsius".into());
        }
        // Not a number is no temperature either.
        let resume = profile.temperature_resume_c.partial_cmp(&profile.temperature_pause_c);
        if resume != Some(std::cmp::Ordering::Less) {
            let expected = format!("less than temperature_pause_c, {}", profile.temperature_pause_c);
            return wrong("temperature_resume_c", &profile.temperature_resume_c, expected);
        }
        if super::version(&profile.glibc_floor).is_none() {
            return wrong("glibc_floor", &profile.glibc_floor, "a version such as 2.31".into());
        }
        Ok(profile)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Name, core, cores and MiB as the makers' product pages state them.
    const FACTS: [(&str, &str, usize, u64); 6] = [
        ("rpi-zero2w", "cortex-a53", 4, 512),
        ("rpi3", "cortex-a53", 4, 1024),
        ("rpi4", "cortex-a72", 4, 1024),
        ("rpi5", "cortex-a76", 4, 1024),
        ("jetson-nano", "cortex-a57", 4, 4096),
        ("jetson-orin-nano", "cortex-a78ae", 6, 8192),
    ];
    /// glibc of the oldest system in use: Ubuntu 18.04 on the Nano and on what is generic, Debian 11 on the Pis.
    const FLOORS: [(&str, (u32, u32)); 4] =
        [("jetson-nano", (2, 27)), ("generic", (2, 27)), ("rpi", (2, 31)), ("jetson-orin", (2, 31))];

    #[test]
    fn every_file_of_targets_is_built_in_under_its_name() {
        let mut files: Vec<String> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("targets"))
            .unwrap()
            .filter_map(|f| f.unwrap().file_name().to_str().unwrap().strip_suffix(".toml").map(str::to_owned))
            // The daemon's configuration.
            .filter(|name| name != "accentor")
            .collect();
        let mut names: Vec<String> = Profile::built_in().unwrap().into_iter().map(|p| p.name).collect();
        names.sort();
        files.sort();
        assert_eq!(names, files);
    }

    #[test]
    fn profiles_agree_with_the_boards() {
        let profiles = Profile::built_in().unwrap();
        for (name, cpu, cores, ram_mib) in FACTS {
            let p = profiles.iter().find(|p| p.name == name).unwrap();
            assert_eq!((p.cpu.as_str(), p.cores, p.ram_mib), (cpu, cores, ram_mib), "{name}");
            assert_eq!(p.triple, "aarch64-unknown-linux-gnu", "{name}");
            // Products of bytes came with ARMv8.2: A76 and A78AE have them.
            assert_eq!(p.simd.iter().any(|s| s == "asimddp"), ["rpi5", "jetson-orin-nano"].contains(&name), "{name}");
            assert!(!p.models.is_empty(), "{name}");
        }
        for p in &profiles {
            let (_, most) = *FLOORS.iter().rev().find(|(start, _)| p.name.starts_with(start)).unwrap();
            assert!(super::super::version(&p.glibc_floor).unwrap() <= most, "{}: {}", p.name, p.glibc_floor);
            assert!(p.memory_mib * 4 <= p.ram_mib, "{}: a run leaves three quarters of the memory", p.name);
        }
    }

    #[test]
    fn names_and_files_are_found_and_all_else_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        let pi = Profile::load("rpi4").unwrap();
        let mine = Profile { name: "mine".into(), train_threads: 1, ..pi.clone() };
        std::fs::write(&file, toml::to_string(&mine).unwrap()).unwrap();
        assert_eq!(Profile::load(file.to_str().unwrap()).unwrap(), mine);

        let error = Profile::load("rpi9").unwrap_err().to_string();
        assert!(error.contains("`rpi9`") && error.contains("rpi4, rpi5"), "{error}");
        let error = Profile::load("absent.toml").unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("absent.toml"), "{error}");
        let text = toml::to_string(&pi).unwrap();
        for (from, to, said) in [
            ("train_threads = 3", "train_threads = 5", "`train_threads` is 5, expected 1 to 4"),
            ("train_threads = 3", "train_treads = 3", "train_treads"),
            ("resume_c = 65.0", "resume_c = 80.0", "less than temperature_pause_c, 75"),
            ("resume_c = 65.0", "resume_c = nan", "less than temperature_pause_c, 75"),
            ("pause_c = 75.0", "pause_c = inf", "`temperature_pause_c` is inf"),
            ("memory_mib = 256", "memory_mib = 0", "`memory_mib` is 0"),
            ("\"2.31\"", "\"new\"", "`glibc_floor` is new"),
        ] {
            assert!(text.contains(from), "{from} in {text}");
            let error = Profile::parse(&text.replace(from, to), "mine.toml").unwrap_err().to_string();
            assert!(error.contains("mine.toml") && error.contains(said), "{error}");
        }
    }
}
