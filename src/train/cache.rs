//! What the frozen prefix gives for each example, kept for the epochs to come: in memory or in a file, exact or smaller.
//!
//! | format | bytes a value | error |
//! |---|---|---|
//! | f32 | 4 | none |
//! | f16 | 2 | 2⁻¹¹ of the value; 2⁻²⁵ below 2⁻¹⁴ |
//! | int8 | 1, and 8 a channel | 1/510 of the range that the channel has in the clip |
//!
//! A clip's record holds one section a tensor that the prefix hands over, in little-endian order.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::TrainError;
use crate::kernels::affine::{self, Groups};
use crate::kernels::half;

/// How a cached value is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheFormat {
    /// As it is.
    #[default]
    F32,
    /// IEEE 754 binary16.
    F16,
    /// One byte a value, with a lowest value and a step for each clip and channel.
    Int8,
}

impl fmt::Display for CacheFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        })
    }
}

/// How and where [`super::Trainer`] keeps what the frozen prefix gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// How a value is held.
    pub format: CacheFormat,
    /// A folder for a file that holds the clips in place of memory: it has no name there, and is gone when the last handle
    /// on it is dropped or the process ends.
    pub folder: Option<PathBuf>,
}

/// One tensor of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Section {
    len: usize,
    groups: Groups,
}

/// What a record is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    format: CacheFormat,
    sections: Vec<Section>,
}

impl Layout {
    /// For tensors of `(values, channels)`, channels innermost.
    pub(super) fn new(format: CacheFormat, tensors: impl Iterator<Item = (usize, usize)>) -> Self {
        let sections = tensors.map(|(len, channels)| Section { len, groups: Groups::new(len, channels) }).collect();
        Self { format, sections }
    }

    fn values(&self) -> usize {
        self.sections.iter().map(|s| s.len).sum()
    }

    fn section_bytes(&self, section: &Section) -> usize {
        match self.format {
            CacheFormat::F32 => section.len * size_of::<f32>(),
            CacheFormat::F16 => section.len * size_of::<u16>(),
            CacheFormat::Int8 => section.groups.bytes(section.len),
        }
    }

    /// Bytes of a record.
    pub(super) fn bytes(&self) -> usize {
        self.sections.iter().map(|s| self.section_bytes(s)).sum()
    }

    /// The first value that the format cannot hold.
    fn beyond(&self, values: &[f32]) -> Option<f32> {
        let largest = match self.format {
            CacheFormat::F32 => return None,
            CacheFormat::F16 => half::LARGEST,
            CacheFormat::Int8 => affine::LARGEST,
        };
        values.iter().copied().find(|v| v.is_nan() || v.abs() > largest)
    }

    fn encode(&self, mut values: &[f32], mut record: &mut [u8]) {
        for section in &self.sections {
            let (x, out);
            (x, values) = values.split_at(section.len);
            (out, record) = record.split_at_mut(self.section_bytes(section));
            match self.format {
                CacheFormat::F32 => {
                    out.as_chunks_mut().0.iter_mut().zip(x).for_each(|(b, v)| *b = v.to_le_bytes());
                }
                CacheFormat::F16 => {
                    out.as_chunks_mut().0.iter_mut().zip(x).for_each(|(b, v)| *b = half::to_half(*v).to_le_bytes());
                }
                CacheFormat::Int8 => section.groups.encode(x, out),
            }
        }
    }

    /// Section `index` goes to `places[index]` of `to`.
    fn decode(&self, mut record: &[u8], places: impl Iterator<Item = Range<usize>>, to: &mut [f32]) {
        for (section, place) in self.sections.iter().zip(places) {
            let bytes;
            (bytes, record) = record.split_at(self.section_bytes(section));
            let x = &mut to[place];
            match self.format {
                CacheFormat::F32 => {
                    x.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, b)| *v = f32::from_le_bytes(*b))
                }
                CacheFormat::F16 => {
                    let halves = bytes.as_chunks().0.iter();
                    x.iter_mut().zip(halves).for_each(|(v, b)| *v = half::from_half(u16::from_le_bytes(*b)));
                }
                CacheFormat::Int8 => section.groups.decode(bytes, x),
            }
        }
    }
}

/// Where the records are.
#[derive(Debug)]
enum Store {
    /// The values themselves, shared with the [`super::Examples`] where nothing is frozen.
    Values(Arc<Vec<f32>>),
    Records(Vec<u8>),
    File(File, PathBuf),
}

/// Labelled examples as the frozen prefix leaves them, made by [`super::Trainer::cache`]. A clone shares what is held.
#[derive(Clone, Debug)]
pub struct Cached {
    layout: Arc<Layout>,
    store: Arc<Store>,
    /// Place of each example in the store.
    places: Vec<usize>,
    variants: usize,
    targets: Vec<usize>,
}

impl Cached {
    /// Inputs of an example one behind the other, as [`super::Examples`] hold them.
    pub(super) fn shared(layout: Layout, values: Arc<Vec<f32>>, variants: usize, targets: Vec<usize>) -> Self {
        let places = (0..targets.len()).collect();
        Self { layout: Arc::new(layout), store: Arc::new(Store::Values(values)), places, variants, targets }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Variants that an example has.
    pub fn variants(&self) -> usize {
        self.variants
    }

    /// Label index of example `index`.
    pub fn target(&self, index: usize) -> usize {
        self.targets[index]
    }

    /// Label indices.
    pub fn targets(&self) -> &[usize] {
        &self.targets
    }

    /// What a step takes for variant `variant` of example `index`.
    ///
    /// # Panics
    /// If `index` is not below [`Cached::len`].
    pub fn input(&self, index: usize, variant: usize) -> ClipInput<'_> {
        ClipInput::Cached(CachedInput {
            of: self,
            record: self.places[index] * self.variants + variant % self.variants,
        })
    }

    /// The values of variant `variant` of example `index`.
    ///
    /// # Errors
    /// A file that cannot be read.
    ///
    /// # Panics
    /// As [`Cached::input`].
    pub fn values(&self, index: usize, variant: usize) -> Result<Vec<f32>, TrainError> {
        let mut values = vec![0.0; self.layout.values()];
        let mut at = 0;
        let places: Vec<Range<usize>> = self
            .layout
            .sections
            .iter()
            .map(|s| {
                at += s.len;
                at - s.len..at
            })
            .collect();
        let record = self.places[index] * self.variants + variant % self.variants;
        CachedInput { of: self, record }.read(&mut Vec::new(), places.into_iter(), &mut values)?;
        Ok(values)
    }

    /// Bytes that the clips take, in memory or in the file.
    pub fn bytes(&self) -> u64 {
        (self.len() * self.variants * self.layout.bytes()) as u64
    }

    /// The examples at `indices`; they stay where they are.
    pub(super) fn subset(&self, indices: &[usize]) -> Self {
        Self {
            layout: self.layout.clone(),
            store: self.store.clone(),
            places: indices.iter().map(|i| self.places[*i]).collect(),
            variants: self.variants,
            targets: indices.iter().map(|i| self.targets[*i]).collect(),
        }
    }
}

/// What a step takes of a clip.
#[derive(Clone, Copy, Debug)]
pub enum ClipInput<'a> {
    /// The values, tensor by tensor.
    Values(&'a [f32]),
    /// A clip of a cache.
    Cached(CachedInput<'a>),
}

/// A clip of [`Cached`].
#[derive(Clone, Copy, Debug)]
pub struct CachedInput<'a> {
    of: &'a Cached,
    record: usize,
}

impl<'a> From<&'a [f32]> for ClipInput<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::Values(values)
    }
}

impl<'a> From<&'a Vec<f32>> for ClipInput<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        Self::Values(values)
    }
}

impl<'a, const N: usize> From<&'a [f32; N]> for ClipInput<'a> {
    fn from(values: &'a [f32; N]) -> Self {
        Self::Values(values)
    }
}

impl<'a> From<&ClipInput<'a>> for ClipInput<'a> {
    fn from(input: &ClipInput<'a>) -> Self {
        *input
    }
}

impl ClipInput<'_> {
    /// Number of values.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Values(values) => values.len(),
            Self::Cached(cached) => cached.of.layout.values(),
        }
    }
}

impl CachedInput<'_> {
    /// Whether the tensors have these lengths.
    pub(super) fn fits(self, lengths: impl Iterator<Item = usize>) -> bool {
        self.of.layout.sections.iter().map(|s| s.len).eq(lengths)
    }

    /// Tensor `index` goes to `places[index]` of `to`; `record` holds what comes from a file.
    pub(super) fn read(
        self,
        record: &mut Vec<u8>,
        places: impl Iterator<Item = Range<usize>>,
        to: &mut [f32],
    ) -> Result<(), TrainError> {
        let layout = &*self.of.layout;
        let bytes = layout.bytes();
        match &*self.of.store {
            Store::Values(values) => {
                let mut at = self.record * layout.values();
                for place in places {
                    let len = place.len();
                    to[place].copy_from_slice(&values[at..at + len]);
                    at += len;
                }
            }
            Store::Records(records) => layout.decode(&records[self.record * bytes..][..bytes], places, to),
            Store::File(file, folder) => {
                record.resize(bytes, 0);
                read_at(file, record, self.record as u64 * bytes as u64)
                    .map_err(|source| TrainError::CacheRead { folder: folder.clone(), source })?;
                layout.decode(record, places, to);
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
fn read_at(file: &File, to: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, to, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut to: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !to.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, to, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                offset += read as u64;
                to = &mut to[read..];
            }
        }
    }
    Ok(())
}

/// Takes the clips of a [`Cached`] one by one.
#[derive(Debug)]
pub(super) struct Records {
    layout: Layout,
    store: Store,
    /// One record, on its way to a file.
    record: Vec<u8>,
    clips: usize,
}

impl Records {
    /// Room for `clips` of them is made at once where they are held in memory.
    pub(super) fn new(layout: Layout, folder: Option<&PathBuf>, clips: usize) -> Result<Self, TrainError> {
        let bytes = clips.saturating_mul(layout.bytes());
        let store = match folder {
            Some(folder) => {
                let failed = |source| TrainError::CacheWrite { folder: folder.clone(), bytes, source };
                Store::File(tempfile::tempfile_in(folder).map_err(failed)?, folder.clone())
            }
            None => {
                let mut records = Vec::new();
                records.try_reserve_exact(bytes).map_err(|_| TrainError::CacheMemory { bytes })?;
                Store::Records(records)
            }
        };
        Ok(Self { layout, store, record: Vec::new(), clips })
    }

    /// `values` are those of one variant of example `index`.
    pub(super) fn push(&mut self, values: &[f32], index: usize) -> Result<(), TrainError> {
        if let Some(found) = self.layout.beyond(values) {
            return Err(TrainError::CacheRange { index, found, format: self.layout.format });
        }
        let bytes = self.layout.bytes();
        match &mut self.store {
            Store::Values(_) => {}
            Store::Records(records) => {
                let at = records.len();
                records.resize(at + bytes, 0);
                self.layout.encode(values, &mut records[at..]);
            }
            Store::File(file, folder) => {
                self.record.resize(bytes, 0);
                self.layout.encode(values, &mut self.record);
                let bytes = self.clips.saturating_mul(bytes);
                file.write_all(&self.record).map_err(|source| TrainError::CacheWrite {
                    folder: folder.clone(),
                    bytes,
                    source,
                })?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(self, variants: usize, targets: Vec<usize>) -> Cached {
        let places = (0..targets.len()).collect();
        Cached { layout: Arc::new(self.layout), store: Arc::new(self.store), places, variants, targets }
    }
}
