//! What a device has learnt of its owner: examples, and adapters with their life.
//!
//! ```text
//! DIR/examples/NUMBER   features of a clip, and its sound where the owner allows that
//! DIR/adapters/NUMBER   an adapter: its state, the examples that it learnt from, its files
//! DIR/state/NAME        small things: how a trial goes, a training that rests
//! DIR/damaged/          what could not be read
//! ```
//!
//! Each thing is one file that is written whole under another name, flushed and renamed: whenever power is cut, the old content or
//! the new one is there, and no table has to agree with the files. A journal or a data base would save a flush or two an
//! event, of which there are some a day, and could lose more than one thing by one damaged page.
//!
//! A file: magic, length of the header, header (JSON), payload, SHA-256 of all that.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::disk::{Disk, SystemDisk};
use super::{StoreError, io_error};

/// Format 1, the first.
const MAGIC: &[u8; 16] = b"accentor item 1\n";
const DIGEST_BYTES: usize = 32;
/// First letters of a name that is not final.
const NEW: &str = ".new-";
/// First letters of the name of a file that is to be erased.
const FORGOTTEN: &str = ".forgotten-";

/// Number of an example or of an adapter: later ones are higher, and none is given twice.
pub type Number = u64;

/// What is known of an example without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExampleInfo {
    /// The word.
    pub label: String,
    /// How it came here: enrolled, corrected, confirmed, …
    pub origin: String,
    /// When, in seconds since 1970.
    pub at: u64,
    /// Values of the features.
    pub features: usize,
    /// Samples of sound, none where only features are kept.
    pub samples: usize,
    /// Rate of the sound.
    pub rate_hz: u32,
}

/// An example with its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// What it is.
    pub info: ExampleInfo,
    /// The model's input.
    pub features: Vec<f32>,
    /// Its sound; empty where only features are kept.
    pub sound: Vec<i16>,
}

/// Where an adapter is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Life {
    /// Trained, not yet in use.
    Candidate,
    /// In use and watched.
    Trial,
    /// In use, and proven by use.
    Confirmed,
    /// Taken back, or never taken.
    RolledBack,
}

impl Life {
    /// Whether `next` may follow.
    fn leads_to(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Candidate, Self::Trial | Self::RolledBack)
                | (Self::Trial, Self::Confirmed | Self::RolledBack)
                | (Self::Confirmed, Self::RolledBack)
        )
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Candidate => "a candidate",
            Self::Trial => "on trial",
            Self::Confirmed => "confirmed",
            Self::RolledBack => "rolled back",
        })
    }
}

/// An adapter without its files' content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Where it is in its life.
    pub life: Life,
    /// When it was trained, in seconds since 1970.
    pub at: u64,
    /// Why it is where it is: figures and reasons with their time in seconds since 1970, oldest first.
    pub notes: Vec<(u64, String)>,
    /// The examples that it learnt from, itself or by the adapters that it was trained on from.
    pub examples: Vec<Number>,
    /// Names and lengths of its files.
    pub files: Vec<(String, usize)>,
}

/// The header of a small thing says nothing.
#[derive(Debug, Serialize, Deserialize)]
struct StateInfo {}

/// How much is kept; nothing is limited that is not named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Bytes of all examples; the oldest go first.
    pub bytes: Option<u64>,
    /// Age of an example in seconds.
    pub age_seconds: Option<u64>,
    /// Adapters that are not in use, beside the confirmed one below a trial.
    pub adapters: Option<usize>,
}

/// What is to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forget<'a> {
    /// Everything.
    All,
    /// The examples of a word.
    Label(&'a str),
    /// One example.
    Example(Number),
}

/// The store of a folder. One process holds it at a time.
#[derive(Debug)]
pub struct Personal<D = SystemDisk> {
    disk: D,
    root: PathBuf,
    sound_allowed: bool,
    examples: BTreeMap<Number, (ExampleInfo, u64)>,
    adapters: BTreeMap<Number, Generation>,
    set_aside: Vec<PathBuf>,
    last: Number,
}

impl<D: Disk> Personal<D> {
    /// Opens the folder, or makes it. What a crash left half done is finished or removed; files that cannot be read go to
    /// `damaged`, see [`Personal::set_aside`].
    ///
    /// # Errors
    /// A folder that cannot be read or written.
    pub fn open(mut disk: D, root: &Path, sound_allowed: bool) -> Result<Self, StoreError> {
        for folder in ["examples", "adapters", "state", "damaged"] {
            let folder = root.join(folder);
            disk.make_folder(&folder).map_err(io_error("make the folder", &folder))?;
        }
        let mut store = Self {
            disk,
            root: root.to_owned(),
            sound_allowed,
            examples: BTreeMap::new(),
            adapters: BTreeMap::new(),
            set_aside: Vec::new(),
            last: 0,
        };
        store.examples = store.scan("examples", |info: ExampleInfo, bytes| (info, bytes as u64))?;
        store.adapters = store.scan("adapters", |generation, _| generation)?;
        for folder in ["state", "damaged"] {
            for file in store.list(folder)? {
                store.tidy(&file)?;
            }
        }
        Ok(store)
    }

    /// The examples by number.
    pub fn examples(&self) -> impl Iterator<Item = (Number, &ExampleInfo)> {
        self.examples.iter().map(|(number, (info, _))| (*number, info))
    }

    /// The adapters by number.
    pub fn adapters(&self) -> &BTreeMap<Number, Generation> {
        &self.adapters
    }

    /// Files that were damaged when the folder was opened, where they are now.
    pub fn set_aside(&self) -> &[PathBuf] {
        &self.set_aside
    }

    /// The adapter that is to be in use: the one on trial, else the last that was confirmed.
    pub fn live(&self) -> Option<Number> {
        let last = |life| self.adapters.iter().rev().find(|(_, g)| g.life == life).map(|(number, _)| *number);
        last(Life::Trial).or_else(|| last(Life::Confirmed))
    }

    /// Keeps an example; when this returns it is on the disk. Its sound is dropped where that is not allowed.
    ///
    /// # Errors
    /// A disk that is full or cannot be written; nothing is kept then.
    pub fn add_example(&mut self, example: &Example) -> Result<Number, StoreError> {
        let sound: &[i16] = if self.sound_allowed { &example.sound } else { &[] };
        let info = ExampleInfo { features: example.features.len(), samples: sound.len(), ..example.info.clone() };
        let mut payload: Vec<u8> = example.features.iter().flat_map(|v| v.to_le_bytes()).collect();
        payload.extend(sound.iter().flat_map(|v| v.to_le_bytes()));
        let number = self.number(info.at);
        let bytes = pack(&info, &payload)?;
        self.put_new("examples", number, &bytes)?;
        self.examples.insert(number, (info, bytes.len() as u64));
        Ok(number)
    }

    /// Erases one example in whose place there is another, and nothing else: what learnt from it stays, see [`Personal::forget`].
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn remove_example(&mut self, number: Number) -> Result<(), StoreError> {
        if self.examples.contains_key(&number) {
            self.erase(&[("examples", number)])?;
        }
        Ok(())
    }

    /// An example with its values.
    ///
    /// # Errors
    /// None of that number, a file that cannot be read.
    pub fn example(&self, number: Number) -> Result<Example, StoreError> {
        let (info, payload) = self.get::<ExampleInfo>("examples", number)?;
        let split = (info.features * size_of::<f32>()).min(payload.len());
        let (features, sound) = payload.split_at(split);
        Ok(Example {
            features: features.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            sound: sound.as_chunks().0.iter().map(|b| i16::from_le_bytes(*b)).collect(),
            info,
        })
    }

    /// Keeps an adapter as a candidate.
    ///
    /// # Errors
    /// As [`Personal::add_example`].
    pub fn add_adapter(
        &mut self,
        files: &[(&str, Vec<u8>)],
        examples: Vec<Number>,
        note: &str,
        at: u64,
    ) -> Result<Number, StoreError> {
        let number = self.number(at);
        let generation = Generation {
            life: Life::Candidate,
            at,
            notes: vec![(at, note.to_owned())],
            examples,
            files: files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.len())).collect(),
        };
        let payload: Vec<u8> = files.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        self.put_new("adapters", number, &pack(&generation, &payload)?)?;
        self.adapters.insert(number, generation);
        Ok(number)
    }

    /// The files of an adapter.
    ///
    /// # Errors
    /// As [`Personal::example`].
    pub fn adapter_files(&self, number: Number) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let (generation, payload) = self.get::<Generation>("adapters", number)?;
        let mut rest = payload.as_slice();
        let mut files = Vec::new();
        for (name, len) in generation.files {
            let (bytes, behind) = rest.split_at_checked(len).ok_or_else(|| self.damaged("adapters", number))?;
            rest = behind;
            files.push((name, bytes.to_vec()));
        }
        Ok(files)
    }

    /// Moves an adapter on in its life, with the reason and the time. When this returns it is on the disk.
    ///
    /// # Errors
    /// A step that no life has; as [`Personal::add_example`], with the adapter where it was.
    pub fn advance(&mut self, number: Number, life: Life, note: &str, at: u64) -> Result<(), StoreError> {
        let (mut generation, payload) = self.get::<Generation>("adapters", number)?;
        if generation.life == life && self.adapters.get(&number).is_some_and(|known| known.life != life) {
            // The flush behind the last change failed: the file has it already.
            self.sync("adapters")?;
            self.adapters.insert(number, generation);
            return Ok(());
        }
        if !generation.life.leads_to(life) {
            return Err(StoreError::Life { number, from: generation.life, to: life });
        }
        generation.life = life;
        generation.notes.push((at, note.to_owned()));
        self.put("adapters", number, &pack(&generation, &payload)?)?;
        self.adapters.insert(number, generation);
        Ok(())
    }

    /// Keeps a small thing by name, in the place of what had that name.
    ///
    /// # Errors
    /// As [`Personal::add_example`]; the old one is there then.
    pub fn set_state(&mut self, name: &str, state: &[u8]) -> Result<(), StoreError> {
        let bytes = pack(&StateInfo {}, state)?;
        self.put_as("state", name, &bytes)
    }

    /// What was last kept by that name; none where it cannot be read.
    pub fn state(&self, name: &str) -> Option<Vec<u8>> {
        let bytes = self.disk.read(&self.root.join("state").join(name)).ok()?;
        unpack::<StateInfo>(&bytes).map(|(_, state)| state.to_vec())
    }

    /// The names of all small things.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn state_names(&self) -> Result<Vec<String>, StoreError> {
        let name = |file: &PathBuf| Some(file.file_name()?.to_str()?.to_owned());
        Ok(self.list("state")?.iter().filter_map(name).filter(|name| !name.starts_with('.')).collect())
    }

    /// Erases what is kept by that name, if something is.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn remove_state(&mut self, name: &str) -> Result<(), StoreError> {
        let path = self.root.join("state").join(name);
        if self.list("state")?.contains(&path) {
            self.wipe(&path)?;
            self.sync("state")?;
        }
        Ok(())
    }

    /// Erases what is beyond the limits; of the adapters neither the one in use nor the confirmed one that it would fall back
    /// to. Says how many files went.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn retain(&mut self, retention: &Retention, now: u64) -> Result<usize, StoreError> {
        let mut going = Vec::new();
        let mut held: u64 = self.examples.values().map(|e| e.1).sum();
        for (number, (info, bytes)) in &self.examples {
            let old = retention.age_seconds.is_some_and(|age| now.saturating_sub(info.at) > age);
            if old || retention.bytes.is_some_and(|most| held > most) {
                held -= bytes;
                going.push(("examples", *number));
            }
        }
        if let Some(most) = retention.adapters {
            let confirmed = self.adapters.iter().rev().find(|a| a.1.life == Life::Confirmed).map(|a| *a.0);
            let needed = [self.live(), confirmed];
            // One that was taken back says which examples are not to be learnt from again.
            let warns = |g: &Generation| {
                g.life == Life::RolledBack
                    && !g.files.is_empty()
                    && g.examples.iter().any(|e| self.examples.contains_key(e))
            };
            let idle = self.adapters.iter().filter(|(number, g)| !needed.contains(&Some(**number)) && !warns(g));
            let idle: Vec<Number> = idle.map(|(number, _)| *number).collect();
            going.extend(idle.iter().take(idle.len().saturating_sub(most)).map(|n| ("adapters", *n)));
        }
        self.erase(&going)
    }

    /// Erases examples, every adapter that learnt from them, and all damaged files, of which nobody knows what they hold: each
    /// is written over with zeros and removed. A flash chip may keep old pages until it needs them; only encryption helps
    /// there. Says how many files went.
    ///
    /// # Errors
    /// A file that cannot be removed; the next [`Personal::open`] goes on with those that were begun.
    pub fn forget(&mut self, what: Forget) -> Result<usize, StoreError> {
        let examples: Vec<Number> = self
            .examples
            .iter()
            .filter(|(number, (info, _))| match what {
                Forget::All => true,
                Forget::Label(label) => info.label == label,
                Forget::Example(one) => **number == one,
            })
            .map(|(number, _)| *number)
            .collect();
        let learnt = |g: &Generation| g.examples.iter().any(|e| examples.contains(e));
        let adapters = self.adapters.iter().filter(|(_, g)| what == Forget::All || learnt(g));
        let mut going: Vec<_> = adapters.map(|(number, _)| ("adapters", *number)).collect();
        going.extend(examples.iter().map(|number| ("examples", *number)));
        // What an earlier one left half done.
        for folder in ["adapters", "examples"] {
            for file in self.list(folder)? {
                self.tidy(&file)?;
            }
        }
        let damaged = self.list("damaged")?;
        for file in &damaged {
            self.wipe(file)?;
        }
        self.sync("damaged")?;
        self.set_aside.clear();
        // A trial or a training that rests has learnt from the examples too.
        let state = if going.is_empty() && what != Forget::All { Vec::new() } else { self.list("state")? };
        for file in &state {
            self.wipe(file)?;
        }
        self.sync("state")?;
        Ok(self.erase(&going)? + damaged.len() + state.len())
    }

    /// A number above all that were given, near the time in milliseconds.
    fn number(&mut self, at: u64) -> Number {
        self.last = at.saturating_mul(1000).max(self.last.saturating_add(1));
        self.last
    }

    fn path(&self, folder: &str, number: Number) -> PathBuf {
        self.root.join(folder).join(number.to_string())
    }

    fn damaged(&self, folder: &str, number: Number) -> StoreError {
        io_error("read", &self.path(folder, number))(io::ErrorKind::InvalidData.into())
    }

    fn list(&self, folder: &str) -> Result<Vec<PathBuf>, StoreError> {
        let folder = self.root.join(folder);
        let mut files = self.disk.list(&folder).map_err(io_error("read", &folder))?;
        files.sort();
        Ok(files)
    }

    fn sync(&mut self, folder: &str) -> Result<(), StoreError> {
        let folder = self.root.join(folder);
        self.disk.sync(&folder).map_err(io_error("flush", &folder))
    }

    /// Ends what a crash left half done; says whether the file is gone.
    fn tidy(&mut self, file: &Path) -> Result<bool, StoreError> {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let unfinished = name.starts_with(NEW) || name.starts_with(FORGOTTEN);
        if unfinished {
            self.wipe(file)?;
        }
        Ok(unfinished)
    }

    /// Reads all files of a folder.
    fn scan<H: DeserializeOwned, T>(
        &mut self,
        folder: &str,
        take: impl Fn(H, usize) -> T,
    ) -> Result<BTreeMap<Number, T>, StoreError> {
        let mut found = BTreeMap::new();
        for file in self.list(folder)? {
            if self.tidy(&file)? {
                continue;
            }
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let number = name.parse::<Number>().ok();
            self.last = self.last.max(number.unwrap_or(0));
            let read = self.disk.read(&file).ok();
            match (number, read.as_deref().and_then(|bytes| Some((unpack::<H>(bytes)?.0, bytes.len())))) {
                (Some(number), Some((header, bytes))) => {
                    found.insert(number, take(header, bytes));
                }
                _ => {
                    let aside = self.root.join("damaged").join(format!("{folder}-{name}"));
                    self.disk.rename(&file, &aside).map_err(io_error("set aside", &file))?;
                    self.set_aside.push(aside);
                }
            }
        }
        Ok(found)
    }

    fn put(&mut self, folder: &str, number: Number, bytes: &[u8]) -> Result<(), StoreError> {
        self.put_as(folder, &number.to_string(), bytes)
    }

    /// A file that was not there is not there afterwards either where this fails.
    fn put_new(&mut self, folder: &str, number: Number, bytes: &[u8]) -> Result<(), StoreError> {
        let put = self.put(folder, number, bytes);
        if put.is_err() {
            // It is there only where the flush behind its new name failed.
            let _ = self.disk.remove(&self.path(folder, number));
        }
        put
    }

    fn put_as(&mut self, folder: &str, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let target = self.root.join(folder).join(name);
        let new = target.with_file_name(format!("{NEW}{name}"));
        let written = self.disk.write(&new, bytes).and_then(|()| self.disk.rename(&new, &target));
        if let Err(source) = written {
            // What is left of it goes now, or when the folder is opened again.
            let _ = self.disk.remove(&new);
            return Err(io_error("write", &target)(source));
        }
        self.sync(folder)
    }

    fn get<H: DeserializeOwned>(&self, folder: &str, number: Number) -> Result<(H, Vec<u8>), StoreError> {
        let path = self.path(folder, number);
        let bytes = self.disk.read(&path).map_err(io_error("read", &path))?;
        let (header, payload) = unpack(&bytes).ok_or_else(|| self.damaged(folder, number))?;
        Ok((header, payload.to_vec()))
    }

    /// First all names go, then the content: a crash in between leaves nothing that would be read again.
    fn erase(&mut self, going: &[(&str, Number)]) -> Result<usize, StoreError> {
        if going.is_empty() {
            return Ok(0);
        }
        for (folder, number) in going {
            let path = self.path(folder, *number);
            let hidden = path.with_file_name(format!("{FORGOTTEN}{number}"));
            self.disk.rename(&path, &hidden).map_err(io_error("erase", &path))?;
            match *folder {
                "examples" => drop(self.examples.remove(number)),
                _ => drop(self.adapters.remove(number)),
            }
        }
        for folder in ["adapters", "examples"] {
            self.sync(folder)?;
        }
        for (folder, number) in going {
            self.wipe(&self.path(folder, *number).with_file_name(format!("{FORGOTTEN}{number}")))?;
        }
        for folder in ["adapters", "examples"] {
            self.sync(folder)?;
        }
        Ok(going.len())
    }

    fn wipe(&mut self, file: &Path) -> Result<(), StoreError> {
        let len = self.disk.read(file).map_or(0, |bytes| bytes.len());
        let wiped = self.disk.write(file, &vec![0; len]).and_then(|()| self.disk.remove(file));
        wiped.map_err(io_error("erase", file))
    }
}

fn pack(header: &impl Serialize, payload: &[u8]) -> Result<Vec<u8>, StoreError> {
    let header = serde_json::to_vec(header).map_err(|source| StoreError::Header { source })?;
    let mut out = MAGIC.to_vec();
    out.extend((header.len() as u64).to_le_bytes());
    out.extend(header);
    out.extend(payload);
    let digest = Sha256::digest(&out);
    out.extend_from_slice(&digest);
    Ok(out)
}

/// Header and payload of a file that is whole.
fn unpack<H: DeserializeOwned>(bytes: &[u8]) -> Option<(H, &[u8])> {
    let (body, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
    if Sha256::digest(body)[..] != *digest {
        return None;
    }
    let (len, rest) = body.strip_prefix(MAGIC)?.split_first_chunk()?;
    let (header, payload) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    Some((serde_json::from_slice(header).ok()?, payload))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Sound that no other file holds.
    const SOUND: [i16; 6] = [0x1234, 0x2345, 0x3456, 0x4567, 0x5678, 0x6789];

    fn example(label: &str, at: u64) -> Example {
        let info = ExampleInfo {
            label: label.into(),
            origin: "enrolled".into(),
            at,
            features: 4,
            samples: SOUND.len(),
            rate_hz: 16_000,
        };
        let features = (0..4).map(|k| at as f32 + k as f32 / 3.0).collect();
        Example { info, features, sound: SOUND.to_vec() }
    }

    fn open(root: &Path) -> Personal {
        Personal::open(SystemDisk, root, true).unwrap()
    }

    fn files() -> Vec<(&'static str, Vec<u8>)> {
        vec![("adapter_config.json", b"{}".to_vec()), ("adapter_model.safetensors", vec![7; 100])]
    }

    /// Every file below with its content.
    fn content(root: &Path) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        for folder in ["examples", "adapters", "damaged"] {
            for entry in fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
                let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
                found.push((name, fs::read(entry.path()).unwrap()));
            }
        }
        found.sort();
        found
    }

    /// Whether the features of an example stand in some file.
    fn holds(root: &Path, example: &Example) -> bool {
        let bytes: Vec<u8> = example.features.iter().flat_map(|v| v.to_le_bytes()).collect();
        content(root).iter().any(|(_, file)| file.windows(bytes.len()).any(|w| w == bytes))
    }

    #[test]
    fn what_is_kept_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        let one = store.add_example(&example("stop", 10)).unwrap();
        let two = store.add_example(&example("go", 10)).unwrap();
        assert!(two > one);
        let adapter = store.add_adapter(&files(), vec![one, two], "loss 0.1", 11).unwrap();
        assert_eq!(store.live(), None);
        store.advance(adapter, Life::Trial, "no guard clip lost", 12).unwrap();
        let store = open(folder.path());
        assert_eq!(store.example(one).unwrap(), example("stop", 10));
        assert_eq!(store.live(), Some(adapter));
        assert_eq!(store.adapters()[&adapter].notes, [(11, "loss 0.1".into()), (12, "no guard clip lost".into())]);
        let back = store.adapter_files(adapter).unwrap();
        assert!(back.iter().map(|(n, b)| (n.as_str(), b.clone())).eq(files()));

        // Without leave, no sound.
        let mut store = Personal::open(SystemDisk, folder.path(), false).unwrap();
        let three = store.add_example(&example("no", 12)).unwrap();
        assert_eq!(
            store.example(three).unwrap(),
            Example {
                sound: Vec::new(),
                info: ExampleInfo { samples: 0, ..example("no", 12).info },
                ..example("no", 12)
            }
        );
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let mut store = open(&root);
        let number = store.add_example(&example("stop", 10)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&root), 0o700);
        assert_eq!(mode(&root.join("examples")), 0o700);
        assert_eq!(mode(&root.join("examples").join(number.to_string())), 0o600);
    }

    #[test]
    fn a_life_has_its_order() {
        use Life::{Candidate, Confirmed, RolledBack, Trial};
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        let first = store.add_adapter(&files(), vec![], "", 1).unwrap();
        for life in [Confirmed, Candidate] {
            let error = store.advance(first, life, "", 12).unwrap_err().to_string();
            assert!(error.contains("candidate") && error.contains(&first.to_string()), "{error}");
        }
        store.advance(first, Trial, "", 12).unwrap();
        store.advance(first, Confirmed, "", 12).unwrap();
        let second = store.add_adapter(&files(), vec![], "", 2).unwrap();
        store.advance(second, Trial, "", 12).unwrap();
        assert_eq!(store.live(), Some(second));
        store.advance(second, RolledBack, "more false wakes", 12).unwrap();
        assert_eq!(store.live(), Some(first));
        assert!(store.advance(second, Trial, "", 12).is_err());
        store.advance(first, RolledBack, "", 12).unwrap();
        assert_eq!(open(folder.path()).live(), None);
        assert!(store.advance(99, Trial, "", 12).is_err());
    }

    #[test]
    fn damage_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        let kept = store.add_example(&example("stop", 1)).unwrap();
        let lost = store.add_example(&example("go", 2)).unwrap();
        let good = store.add_adapter(&files(), vec![kept], "", 3).unwrap();
        store.advance(good, Life::Trial, "", 12).unwrap();
        store.advance(good, Life::Confirmed, "", 12).unwrap();
        let bad = store.add_adapter(&files(), vec![kept, lost], "", 4).unwrap();
        store.advance(bad, Life::Trial, "", 12).unwrap();
        for (kind, number) in [("examples", lost), ("adapters", bad)] {
            let path = folder.path().join(kind).join(number.to_string());
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
        fs::write(folder.path().join("examples/notes.txt"), "?").unwrap();
        assert!(store.example(lost).is_err() && store.adapter_files(bad).is_err());
        let mut store = open(folder.path());
        assert_eq!(store.live(), Some(good), "the last good one");
        assert_eq!(store.examples().map(|e| e.0).collect::<Vec<_>>(), [kept]);
        assert_eq!(store.set_aside().len(), 3);
        assert!(store.add_example(&example("go", 2)).unwrap() > bad, "a number was given twice");
        // Forgetting forgets them too: they may hold anything.
        assert_eq!(store.forget(Forget::Label("no such word")).unwrap(), 3);
        assert!(content(folder.path()).iter().all(|(name, _)| !name.starts_with("damaged")));
    }

    #[test]
    fn forgotten_is_erased_with_what_learnt_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        let stop = store.add_example(&example("stop", 1)).unwrap();
        let go = store.add_example(&example("go", 2)).unwrap();
        let one = store.add_adapter(&files(), vec![stop], "", 3).unwrap();
        let two = store.add_adapter(&files(), vec![stop, go], "", 4).unwrap();
        for adapter in [one, two] {
            store.advance(adapter, Life::Trial, "", 12).unwrap();
            store.advance(adapter, Life::Confirmed, "", 12).unwrap();
        }
        assert!(holds(folder.path(), &example("go", 2)));
        assert_eq!(store.forget(Forget::Example(go)).unwrap(), 2);
        assert!(!holds(folder.path(), &example("go", 2)) && holds(folder.path(), &example("stop", 1)));
        assert_eq!((store.live(), open(folder.path()).live()), (Some(one), Some(one)));
        assert_eq!(store.forget(Forget::All).unwrap(), 2);
        assert_eq!(content(folder.path()), []);
        // A crash behind the renames: the rest goes when it is opened again.
        let number = store.add_example(&example("go", 2)).unwrap();
        let hidden = folder.path().join("examples").join(format!("{FORGOTTEN}{number}"));
        fs::rename(folder.path().join("examples").join(number.to_string()), hidden).unwrap();
        assert_eq!(open(folder.path()).examples().count(), 0);
        assert_eq!(content(folder.path()), []);
    }

    #[test]
    fn retention_takes_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        let numbers: Vec<Number> = (0..6).map(|at| store.add_example(&example("stop", at)).unwrap()).collect();
        let left = |store: &Personal| store.examples().map(|e| e.0).collect::<Vec<_>>();
        assert_eq!(store.retain(&Retention::default(), 100).unwrap(), 0);
        assert_eq!(store.retain(&Retention { age_seconds: Some(10), ..Retention::default() }, 12).unwrap(), 2);
        assert_eq!(left(&store), numbers[2..]);
        let bytes = fs::metadata(folder.path().join("examples").join(numbers[5].to_string())).unwrap().len();
        store.retain(&Retention { bytes: Some(3 * bytes), ..Retention::default() }, 12).unwrap();
        assert_eq!(left(&store), numbers[3..]);
        assert_eq!(left(&open(folder.path())), numbers[3..]);

        let adapters: Vec<Number> = (0..5).map(|at| store.add_adapter(&files(), vec![], "", at).unwrap()).collect();
        store.advance(adapters[0], Life::Trial, "", 12).unwrap();
        store.advance(adapters[0], Life::Confirmed, "", 12).unwrap();
        store.advance(adapters[1], Life::Trial, "", 12).unwrap();
        store.retain(&Retention { adapters: Some(1), ..Retention::default() }, 12).unwrap();
        let expected = [adapters[0], adapters[1], adapters[4]];
        assert!(store.adapters().keys().copied().eq(expected), "one in use, one below it, the youngest other");
    }

    /// What happens to one operation.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fault {
        /// It fails, as on a full disk; those behind it do not.
        Fails,
        /// Power is cut in it: of a write half is there.
        Cut,
        /// Power is cut behind it.
        CutBehind,
        /// The same, and names that were not flushed are as they were.
        CutAndNamesLost,
    }

    /// How a name is put back.
    enum Undo {
        Remove(PathBuf),
        Write(PathBuf, Vec<u8>),
    }

    /// A disk whose operation number `at` has a fault.
    struct Faulty {
        at: usize,
        done: usize,
        fault: Fault,
        off: bool,
        names: Vec<Undo>,
    }

    impl Faulty {
        fn operate(&mut self, cut: impl FnOnce(), operation: impl FnOnce() -> io::Result<Vec<Undo>>) -> io::Result<()> {
            let refused = || io::Error::from(io::ErrorKind::StorageFull);
            if self.off {
                return Err(refused());
            }
            self.done += 1;
            if self.done - 1 != self.at {
                self.names.extend(operation()?);
                return Ok(());
            }
            match self.fault {
                Fault::Fails => return Err(refused()),
                Fault::Cut => cut(),
                Fault::CutBehind => drop(operation()?),
                Fault::CutAndNamesLost => {
                    self.names.extend(operation()?);
                    for undo in self.names.drain(..).rev() {
                        match undo {
                            Undo::Remove(path) => drop(fs::remove_file(path)),
                            Undo::Write(path, bytes) => fs::write(path, bytes).unwrap(),
                        }
                    }
                }
            }
            self.off = true;
            Err(refused())
        }
    }

    impl Disk for &mut Faulty {
        fn make_folder(&mut self, folder: &Path) -> io::Result<()> {
            self.operate(|| {}, || SystemDisk.make_folder(folder).map(|()| Vec::new()))
        }

        fn write(&mut self, file: &Path, bytes: &[u8]) -> io::Result<()> {
            let undo = if file.exists() { vec![] } else { vec![Undo::Remove(file.into())] };
            let cut = || drop(SystemDisk.write(file, &bytes[..bytes.len() / 2]));
            self.operate(cut, || SystemDisk.write(file, bytes).map(|()| undo))
        }

        fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
            let mut undo = vec![Undo::Write(from.into(), fs::read(from)?)];
            undo.push(fs::read(to).map_or(Undo::Remove(to.into()), |old| Undo::Write(to.into(), old)));
            self.operate(|| {}, || SystemDisk.rename(from, to).map(|()| undo))
        }

        fn remove(&mut self, file: &Path) -> io::Result<()> {
            let undo = vec![Undo::Write(file.into(), fs::read(file)?)];
            self.operate(|| {}, || SystemDisk.remove(file).map(|()| undo))
        }

        fn sync(&mut self, folder: &Path) -> io::Result<()> {
            let here = |path: &Path| path.parent() == Some(folder);
            let result = self.operate(|| {}, || Ok(Vec::new()));
            if result.is_ok() {
                self.names.retain(|undo| match undo {
                    Undo::Remove(path) | Undo::Write(path, _) => !here(path),
                });
            }
            result
        }

        fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
            SystemDisk.read(file)
        }

        fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
            SystemDisk.list(folder)
        }
    }

    /// What the store said that it has done.
    #[derive(Default)]
    struct Said {
        examples: Vec<(Number, Example)>,
        confirmed: Option<Number>,
        /// The word whose forgetting was asked for, and whether it was done.
        forget: Option<bool>,
    }

    fn scenario(store: &mut Personal<&mut Faulty>, said: &mut Said) -> Result<(), StoreError> {
        for (k, label) in ["stop", "go", "stop"].into_iter().enumerate() {
            let example = example(label, k as u64);
            said.examples.push((store.add_example(&example)?, example));
        }
        let stops = vec![said.examples[0].0, said.examples[2].0];
        let first = store.add_adapter(&files(), stops, "first", 5)?;
        store.advance(first, Life::Trial, "", 12)?;
        store.advance(first, Life::Confirmed, "", 12)?;
        said.confirmed = Some(first);
        let all = said.examples.iter().map(|e| e.0).collect();
        let second = store.add_adapter(&files(), all, "second", 6)?;
        store.advance(second, Life::Trial, "", 12)?;
        let idle = store.add_adapter(&files(), vec![], "never used", 7)?;
        store.advance(idle, Life::RolledBack, "the gate said no", 12)?;
        store.retain(&Retention { adapters: Some(0), ..Retention::default() }, 8)?;
        said.forget = Some(false);
        store.forget(Forget::Label("go"))?;
        said.forget = Some(true);
        let example = example("no", 9);
        said.examples.push((store.add_example(&example)?, example));
        Ok(())
    }

    #[test]
    fn nothing_acknowledged_is_lost_whatever_fails() {
        for fault in [Fault::Fails, Fault::Cut, Fault::CutBehind, Fault::CutAndNamesLost] {
            let mut at = 0;
            loop {
                let folder = tempfile::tempdir().unwrap();
                let root = folder.path();
                let mut disk = Faulty { at, done: 0, fault, off: false, names: Vec::new() };
                let mut said = Said::default();
                let mut ended = false;
                if let Ok(mut store) = Personal::open(&mut disk, root, true) {
                    ended = scenario(&mut store, &mut said).is_ok();
                    if !ended && fault == Fault::Fails {
                        // The process goes on, and so does its store.
                        let example = example("yes", 20);
                        said.examples.push((store.add_example(&example).unwrap(), example));
                    }
                }
                let what = format!("{fault:?} at operation {at}");
                let mut store = open(root);
                assert_eq!(store.set_aside(), [] as [PathBuf; 0], "{what}: half a file under a name");
                assert!(content(root).iter().all(|(name, _)| !name.contains("/.")), "{what}: something is left over");
                for (number, example) in &said.examples {
                    let may_be_gone = example.info.label == "go" && said.forget.is_some();
                    match store.example(*number) {
                        Ok(found) => assert_eq!(found, *example, "{what}"),
                        Err(error) => assert!(may_be_gone, "{what}: {error}"),
                    }
                    if said.forget == Some(true) && example.info.label == "go" {
                        assert!(!holds(root, example), "{what}: it was not forgotten");
                    }
                }
                if let Some(first) = said.confirmed {
                    assert_eq!(store.adapters()[&first].life, Life::Confirmed, "{what}");
                    assert_eq!(store.adapter_files(first).unwrap().len(), 2, "{what}");
                    assert!(store.live().is_some(), "{what}");
                }
                if said.forget == Some(true) {
                    assert_eq!(store.live(), said.confirmed, "{what}: what learnt from the forgotten is in use");
                }
                store.add_example(&example("yes", 30)).unwrap();
                if ended {
                    assert!(at > 30, "{fault:?}: {at} operations are too few");
                    break;
                }
                at += 1;
            }
        }
    }
}
