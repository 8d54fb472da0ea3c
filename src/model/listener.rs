//! A session that hears sound as it comes.

use std::sync::Arc;

use super::{Model, ModelError};
use crate::features::Stream;
use crate::session::{Session, Slides, StreamSession, Whole};
use crate::train::TrainError;

/// Scores of a window that slides over sound in blocks of any size. Nothing is allocated once its session was called.
///
/// The front end computes each frame once where it can ([`Stream::keeps_frames`]), and the network each row of its first layers
/// ([`Listener::slides`]); the scores are bit for bit those of the whole window.
#[derive(Debug)]
pub struct Listener {
    stream: Stream,
    session: StreamSession,
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
        Ok(Listener { session: StreamSession::new(session, &stream), stream, scores })
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
        let features = match self.stream.next(block) {
            Ok(Some(features)) => features,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.session.skip();
                return Err(error.into());
            }
        };
        self.session.scores_into(features, &mut self.scores)?;
        Ok(Some(&self.scores))
    }

    /// The front end.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// How a window is computed from those before it, and what that saves and takes.
    ///
    /// # Errors
    /// Why each window is computed whole.
    pub fn slides(&self) -> Result<Slides, Whole> {
        self.session.slides()
    }

    /// Forgets what came so far: after a gap in the sound.
    pub fn reset(&mut self) {
        self.stream.reset();
        self.session.reset();
    }
}
