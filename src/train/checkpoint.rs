//! A run on the disk: all that [`super::Run`] needs to go on, and what the run must have in common with it.
//!
//! Little-endian: the magic with the format's number, the fingerprint, the position, the parameters and the optimiser's
//! moments, then the SHA-256 of all that. Numbers are held as their bits: nothing is rounded on the way.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Cached, FitReport, RateTrial, Splits, TrainConfig, TrainError};
use crate::lora::Adapter;
use crate::manifest::sha256_hex_of;
use crate::store::{StoreError, write_file};

/// Format 1, the first.
const MAGIC: &[u8; 22] = b"accentor checkpoint 1\n";
const DIGEST_BYTES: usize = 32;

/// Why a run cannot go on from a checkpoint, or not write one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file could not be read.
    #[error("cannot read the checkpoint {}: {source}; remove it to start afresh", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// Not a checkpoint, or not all of one.
    #[error("{} is no whole checkpoint of this version of accentor: {reason}; remove it to start afresh", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// Another run.
    #[error(
        "the checkpoint is of another run: {what} was {expected}, is {found}; repeat the command that made it, or remove it to \
         start afresh"
    )]
    Other {
        /// What differs.
        what: String,
        /// In the checkpoint.
        expected: String,
        /// Now.
        found: String,
    },
    /// Values that no run has.
    #[error("the checkpoint contradicts itself; remove it to start afresh")]
    Contradiction,
    /// The file could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What two processes must have in common to be parts of one run, part by part: name and value, or SHA-256 of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(Vec<(String, String)>);

impl Fingerprint {
    pub(super) fn new(
        adapter: &Adapter,
        start: &[f32],
        config: &TrainConfig,
        automatic: bool,
        splits: Splits,
    ) -> Result<Self, TrainError> {
        let TrainConfig {
            epochs,
            batch,
            rate,
            schedule,
            optimiser,
            clip_norm,
            smoothing,
            class_weights,
            loss,
            patience,
            seed,
            replay,
        } = config;
        let data = |cached: Option<&Cached>| cached.map_or(Ok("none".to_owned()), digest);
        let text = |value: &dyn Debug| format!("{value:?}");
        let hash = |value: &dyn Debug| sha256_hex_of(text(value).as_bytes());
        let sites: Vec<_> = adapter
            .sites
            .iter()
            .map(|s| (&s.key, &s.weight_shape, s.layout, s.delta.adaptation(), s.delta.parameters()))
            .collect();
        let bytes: Vec<u8> = start.iter().flat_map(|v| v.to_le_bytes()).collect();
        let parts = [
            ("the version", env!("CARGO_PKG_VERSION").to_owned()),
            ("the model", adapter.base_sha256.clone().unwrap_or_default()),
            ("the list of labels", hash(&(&adapter.labels, &adapter.head))),
            ("the list of adapted layers", hash(&sites)),
            ("the adapter at the start", sha256_hex_of(&bytes)),
            ("the training data", data(Some(splits.train))?),
            ("the replayed data", data(splits.replay)?),
            ("the validation data", data(splits.valid)?),
            ("the search for a rate", text(&automatic)),
            ("the number of epochs", text(epochs)),
            ("the batch", text(batch)),
            ("the rate", text(rate)),
            ("the schedule", text(schedule)),
            ("the optimiser", text(optimiser)),
            ("the largest norm", text(clip_norm)),
            ("the label smoothing", text(smoothing)),
            ("the class weights", text(class_weights)),
            ("the loss", text(loss)),
            ("the patience", text(patience)),
            ("the seed", text(seed)),
            ("the share of replay", text(replay)),
        ];
        Ok(Self(parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()))
    }

    /// Whether `now` is the same.
    pub(super) fn check(&self, now: &Self) -> Result<(), CheckpointError> {
        if self == now {
            return Ok(());
        }
        let differs = self.0.iter().zip(&now.0).find(|(was, is)| was != is);
        let Some(((what, expected), (_, found))) = differs else { return Err(CheckpointError::Contradiction) };
        let (what, expected, found) = (what.clone(), expected.clone(), found.clone());
        Err(CheckpointError::Other { what, expected, found })
    }
}

/// The SHA-256 of what a cache gives, example by example.
fn digest(cached: &Cached) -> Result<String, TrainError> {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for index in 0..cached.len() {
        hash.update((cached.target(index) as u64).to_le_bytes());
        for variant in 0..cached.variants() {
            bytes.clear();
            bytes.extend(cached.values(index, variant)?.iter().flat_map(|v| v.to_le_bytes()));
            hash.update(&bytes);
        }
    }
    let examples = format!("{} examples of {} versions: ", cached.len(), cached.variants());
    Ok(examples + &sha256_hex_of(&hash.finalize()))
}

/// Where a run stands in its search for a rate; the rate is the one behind those with a trial.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct SearchPosition {
    pub(super) fold: usize,
    pub(super) correct: usize,
    pub(super) samples: usize,
    pub(super) loss: f64,
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Position {
    pub(super) trials: Vec<RateTrial>,
    pub(super) search: Option<SearchPosition>,
    pub(super) done: bool,
    /// Steps of the epoch at hand.
    pub(super) batch: usize,
    /// State of the generator before the epoch at hand, or before the next.
    pub(super) seed: u64,
    pub(super) sum: f32,
    pub(super) loss: f32,
    pub(super) valid_accuracy: Option<f64>,
    pub(super) since_best: usize,
    pub(super) best_loss: Option<f64>,
    pub(super) report: FitReport,
    pub(super) optimiser_steps: u32,
}

/// A run between two steps, made by [`super::Run::checkpoint`].
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub(super) fingerprint: Fingerprint,
    pub(super) position: Position,
    pub(super) parameters: Vec<f32>,
    /// Moments of the optimiser.
    pub(super) first: Vec<f32>,
    pub(super) second: Vec<f32>,
    /// Parameters of the best epoch, if there is one.
    pub(super) best: Vec<f32>,
}

impl Checkpoint {
    /// Steps of the training, or of the trial at hand.
    pub fn steps(&self) -> usize {
        self.position.report.steps
    }

    /// Writes the file, whole or not at all: power may be cut at any moment.
    ///
    /// # Errors
    /// [`CheckpointError::Store`]; what was there before is there then.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        Ok(write_file(path, &self.to_bytes())?)
    }

    /// Reads what [`Checkpoint::write`] wrote; nothing if there is no file.
    ///
    /// # Errors
    /// A file that cannot be read, or is not whole.
    pub fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CheckpointError::Read { path: path.to_owned(), source }),
        };
        let damaged = |reason| CheckpointError::Damaged { path: path.to_owned(), reason };
        Self::from_bytes(&bytes).map(Some).map_err(damaged)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer(MAGIC.to_vec());
        out.count(self.fingerprint.0.len());
        for (name, value) in &self.fingerprint.0 {
            out.text(name);
            out.text(value);
        }
        out.position(&self.position);
        [&self.parameters, &self.first, &self.second, &self.best].into_iter().for_each(|values| out.values(values));
        let digest = Sha256::digest(&out.0);
        out.0.extend_from_slice(&digest);
        out.0
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else { return Err("it does not start as one") };
        let Some(end) = rest.len().checked_sub(DIGEST_BYTES) else { return Err(SHORT) };
        let (body, digest) = rest.split_at(end);
        if Sha256::digest(&bytes[..MAGIC.len() + end])[..] != *digest {
            return Err("its content does not fit its checksum");
        }
        let mut from = Reader(body);
        let mut fingerprint = Vec::new();
        for _ in 0..from.count()? {
            fingerprint.push((from.text()?, from.text()?));
        }
        let position = from.position()?;
        let (parameters, first, second, best) = (from.values()?, from.values()?, from.values()?, from.values()?);
        if !from.0.is_empty() {
            return Err("something follows its end");
        }
        Ok(Self { fingerprint: Fingerprint(fingerprint), position, parameters, first, second, best })
    }
}

const SHORT: &str = "it is cut off";

struct Writer(Vec<u8>);

impl Writer {
    fn whole(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn count(&mut self, value: usize) {
        self.whole(value as u64);
    }

    fn single(&mut self, value: f32) {
        self.0.extend(value.to_le_bytes());
    }

    fn double(&mut self, value: f64) {
        self.whole(value.to_bits());
    }

    fn optional(&mut self, value: Option<f64>) {
        self.count(value.is_some().into());
        value.into_iter().for_each(|v| self.double(v));
    }

    fn text(&mut self, value: &str) {
        self.count(value.len());
        self.0.extend(value.as_bytes());
    }

    fn values(&mut self, values: &[f32]) {
        self.count(values.len());
        values.iter().for_each(|v| self.single(*v));
    }

    fn position(&mut self, at: &Position) {
        self.count(at.trials.len());
        for RateTrial { rate, loss, accuracy } in &at.trials {
            self.single(*rate);
            self.double(*loss);
            self.double(*accuracy);
        }
        self.count(at.search.is_some().into());
        if let Some(SearchPosition { fold, correct, samples, loss }) = at.search {
            [fold, correct, samples].into_iter().for_each(|v| self.count(v));
            self.double(loss);
        }
        let FitReport { steps, epochs, losses, cancelled, kept_epoch, valid_accuracy } = &at.report;
        [at.done.into(), at.batch, at.since_best, *steps, *epochs, (*cancelled).into(), *kept_epoch]
            .into_iter()
            .for_each(|v| self.count(v));
        self.whole(at.seed);
        self.whole(at.optimiser_steps.into());
        self.single(at.sum);
        self.single(at.loss);
        self.values(losses);
        [at.valid_accuracy, at.best_loss, *valid_accuracy].into_iter().for_each(|v| self.optional(v));
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn whole(&mut self) -> Result<u64, &'static str> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn count(&mut self) -> Result<usize, &'static str> {
        usize::try_from(self.whole()?).map_err(|_| "a number in it is too large")
    }

    fn truth(&mut self) -> Result<bool, &'static str> {
        Ok(self.whole()? != 0)
    }

    fn single(&mut self) -> Result<f32, &'static str> {
        Ok(f32::from_le_bytes(self.bytes()?))
    }

    fn double(&mut self) -> Result<f64, &'static str> {
        Ok(f64::from_bits(self.whole()?))
    }

    fn optional(&mut self) -> Result<Option<f64>, &'static str> {
        if self.truth()? { self.double().map(Some) } else { Ok(None) }
    }

    /// `count` things of `bytes` each.
    fn part(&mut self, bytes: usize) -> Result<&[u8], &'static str> {
        let len = self.count()?.checked_mul(bytes).filter(|len| *len <= self.0.len()).ok_or(SHORT)?;
        let (part, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(part)
    }

    fn text(&mut self) -> Result<String, &'static str> {
        String::from_utf8(self.part(1)?.to_vec()).map_err(|_| "a text in it is no text")
    }

    fn values(&mut self) -> Result<Vec<f32>, &'static str> {
        Ok(self.part(size_of::<f32>())?.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    fn position(&mut self) -> Result<Position, &'static str> {
        let mut trials = Vec::new();
        for _ in 0..self.count()? {
            trials.push(RateTrial { rate: self.single()?, loss: self.double()?, accuracy: self.double()? });
        }
        let search = if self.truth()? {
            let (fold, correct, samples) = (self.count()?, self.count()?, self.count()?);
            Some(SearchPosition { fold, correct, samples, loss: self.double()? })
        } else {
            None
        };
        let (done, batch, since_best) = (self.truth()?, self.count()?, self.count()?);
        let (steps, epochs, cancelled, kept_epoch) = (self.count()?, self.count()?, self.truth()?, self.count()?);
        let seed = self.whole()?;
        let optimiser_steps = u32::try_from(self.whole()?).map_err(|_| "a number in it is too large")?;
        let (sum, loss, losses) = (self.single()?, self.single()?, self.values()?);
        let (valid_accuracy, best_loss, kept_accuracy) = (self.optional()?, self.optional()?, self.optional()?);
        let report = FitReport { steps, epochs, losses, cancelled, kept_epoch, valid_accuracy: kept_accuracy };
        Ok(Position {
            trials,
            search,
            done,
            batch,
            seed,
            sum,
            loss,
            valid_accuracy,
            since_best,
            best_loss,
            report,
            optimiser_steps,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let report = FitReport { steps: 7, epochs: 2, losses: vec![0.1, 1e-9], ..FitReport::default() };
        Checkpoint {
            fingerprint: Fingerprint(vec![("the batch".into(), "16".into()), ("the seed".into(), "0".into())]),
            position: Position {
                trials: vec![RateTrial { rate: 1e-3, loss: f64::INFINITY, accuracy: 1.0 / 3.0 }],
                search: Some(SearchPosition { fold: 1, correct: 2, samples: 3, loss: 0.1 + 0.2 }),
                done: false,
                batch: 3,
                seed: u64::MAX - 1,
                sum: 0.3,
                loss: -0.0,
                valid_accuracy: Some(0.7),
                since_best: 1,
                best_loss: None,
                report,
                optimiser_steps: 7,
            },
            parameters: vec![1.0, f32::MIN_POSITIVE, -3.5],
            first: vec![0.25; 3],
            second: Vec::new(),
            best: Vec::new(),
        }
    }

    #[test]
    fn comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/run.checkpoint");
        assert_eq!(Checkpoint::read(&path).unwrap(), None);
        checkpoint().write(&path).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), Some(checkpoint()));
    }

    #[test]
    fn damage_is_seen_wherever_it_is() {
        let bytes = checkpoint().to_bytes();
        for at in 0..bytes.len() {
            assert!(Checkpoint::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
            let mut other = bytes.clone();
            other[at] ^= 4;
            assert!(Checkpoint::from_bytes(&other).is_err(), "changed at {at}");
        }
        // A file with a right checksum whose lengths are nonsense allocates nothing and ends in an error.
        let body = MAGIC.len()..bytes.len() - DIGEST_BYTES;
        for at in body.clone().step_by(8) {
            let mut other = bytes[..body.end].to_vec();
            other[at] = 0xff;
            other.extend_from_slice(&Sha256::digest(&other));
            let _ = Checkpoint::from_bytes(&other);
        }
        assert!(Checkpoint::from_bytes(b"PK\x03\x04").is_err());
    }

    #[test]
    fn another_run_is_named() {
        let one = checkpoint().fingerprint;
        let two = Fingerprint(vec![("the batch".into(), "8".into()), ("the seed".into(), "0".into())]);
        one.check(&one).unwrap();
        let error = one.check(&two).unwrap_err().to_string();
        assert!(error.contains("the batch was 16, is 8") && error.contains("remove"), "{error}");
    }
}
