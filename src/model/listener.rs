//! A session that hears sound as it comes.

use std::sync::Arc;

use super::{Model, ModelError};
use crate::features::Stream;
use crate::session::Session;
use crate::train::TrainError;

/// Scores of a window that slides over sound in blocks of any size. Nothing is allocated once its session was called.
///
/// Each window is computed whole; the front end computes each frame once where it can ([`Stream::keeps_frames`]).
#[derive(Debug)]
pub struct Listener {
    stream: Stream,
    session: Arc<Session>,
    scores: Vec<f32>,
}

impl Model {
    /// Listens with `session`, a window every `hop_samples`. The session may be shared, and swapped at any time.
    ///
    /// # Errors
    /// A front end of pictures or tensors, a hop of 0, a session of another model.
    pub fn listener(&self, session: Arc<Session>, hop_samples: usize) -> Result<Listener, ModelError> {
        let stream = self.stream(hop_samples)?;
        let (expected, found) = (self.extractor().values(), session.input_len());
        if expected != found {
            return Err(TrainError::Length { expected: found, found: expected }.into());
        }
        let scores = vec![0.0; session.classes().max(2)];
        Ok(Listener { stream, session, scores })
    }
}

impl Listener {
    /// Takes samples from the front of `block` until a window is full; its scores, in the order of the labels. None when the
    /// block is used up.
    ///
    /// # Errors
    /// Samples so large that a feature is not finite: the window is passed over. An operator of the other engine that
    /// fails.
    pub fn next(&mut self, block: &mut &[f32]) -> Result<Option<&[f32]>, ModelError> {
        let Some(features) = self.stream.next(block)? else { return Ok(None) };
        self.session.scores_into(features, &mut self.scores)?;
        Ok(Some(&self.scores))
    }

    /// The front end.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Forgets what came so far: after a gap in the sound.
    pub fn reset(&mut self) {
        self.stream.reset();
    }
}
