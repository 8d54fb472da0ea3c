//! accentor teaches a frozen ONNX model the local accent or the local camera, on the device.
//!
//! ```text
//! clip / frame → features → frozen prefix → adapted suffix → loss → LoRA gradients → optimiser → adapter
//!                               (cached)
//! live input  → features → the same model + the adapter → label
//! ```
//!
//! A [`Model`] is opened from an ONNX file, a [`Trainer`] trains an [`Adapter`] on it, a [`Session`] answers with it:
//!
//! ```no_run
//! use accentor::{AdapterSpec, Augment, Model, Splits, TrainConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::open("models/kws-commands/model.toml")?;
//! let clips = accentor::source::dataset("my-clips".as_ref())?;
//! let examples = model.examples(&clips, &Augment::default(), 1, 0)?;
//!
//! let mut trainer = model.trainer(model.new_adapter(&AdapterSpec::default(), 0)?, 1)?;
//! let cached = trainer.cache(&examples)?;
//! let splits = Splits { train: &cached, replay: None, valid: None };
//! trainer.fit(&TrainConfig::default(), splits, &mut |progress| {
//!     eprintln!("{}/{}", progress.step, progress.steps);
//!     true
//! })?;
//!
//! let session = model.session(Some(&trainer.adapter()))?;
//! println!("{:?}", session.scores(examples.input(0, 0))?);
//! # Ok(())
//! # }
//! ```
//!
//! Modules stand in the order of the flow; what a board is, its button and its LED stand before it.

pub mod board;

pub mod button;

pub mod source;

pub mod features;

pub mod manifest;

pub mod onnx;

pub mod graph;

pub mod ops;

pub mod kernels;

pub mod plan;

pub mod lora;

pub mod train;

pub mod store;

mod model;
mod session;

pub mod listen;

pub mod gate;

#[cfg(all(feature = "serve", unix))]
pub mod serve;

#[cfg(feature = "cli")]
pub mod cli;

pub use features::{Augment, FrontEnd};
pub use lora::{Adapter, AdapterSpec};
pub use manifest::Manifest;
pub use model::{Listener, MergedStage, Model, ModelError, ModelOptions, Recipe};
pub use ndarray;
pub use session::{Base, Session, Slides, Whole};
pub use train::{CacheFormat, CacheOptions, Cached, Evaluation, Examples, Splits, TrainConfig, Trainer};
