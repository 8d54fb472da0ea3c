//! A session on windows that overlap: only what is new of each is computed.

use std::sync::Arc;

use super::{Current, Session, spread};
use crate::features::{NoOverlap, Stream};
use crate::graph::Ending;
use crate::plan::{Blocked, Sliding, SlidingState};
use crate::train::TrainError;

/// Why each window is computed whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Whole {
    /// The front end makes new features for every window.
    #[error(transparent)]
    FrontEnd(#[from] NoOverlap),
    /// The network has no layer that would reuse rows.
    #[error(transparent)]
    Network(#[from] Blocked),
}

/// What it takes to compute a window from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slides {
    /// Rows (frames, or samples of a waveform) of a window.
    pub rows: usize,
    /// Rows from one window to the next.
    pub hop_rows: usize,
    /// Windows kept: each is computed from the one that many before.
    pub turns: usize,
    /// Multiply-adds of a window that has a predecessor.
    pub multiply_adds: u64,
    /// Those of a whole window.
    pub whole_multiply_adds: u64,
    /// Bytes that the stream keeps, beside the session.
    pub state_bytes: usize,
}

/// The plan for one network, and what a stream has of its last windows.
#[derive(Debug)]
struct Running {
    plan: Sliding,
    state: SlidingState,
    info: Slides,
}

/// A session on the windows of one stream. Many streams may share the session; each has its own state.
///
/// Nothing is allocated from the second window on, but for the first one after [`Session::swap`].
#[derive(Debug)]
pub(crate) struct StreamSession {
    session: Arc<Session>,
    overlap: Result<[usize; 2], NoOverlap>,
    current: Arc<Current>,
    running: Result<Running, Whole>,
}

impl StreamSession {
    /// On the windows of `stream`.
    pub(crate) fn new(session: Arc<Session>, stream: &Stream) -> Self {
        Self::with_overlap(session, stream.overlap())
    }

    /// On windows that overlap so.
    pub(crate) fn with_overlap(session: Arc<Session>, overlap: Result<[usize; 2], NoOverlap>) -> Self {
        let current = session.current();
        let running = Self::plan(&current, overlap.clone());
        Self { session, overlap, current, running }
    }

    fn plan(current: &Current, overlap: Result<[usize; 2], NoOverlap>) -> Result<Running, Whole> {
        let [rows, hop_rows] = overlap?;
        let network = &current.network;
        let plan = Sliding::new(&network.program, rows, hop_rows)?;
        let info = Slides {
            rows,
            hop_rows,
            turns: plan.turns(),
            multiply_adds: plan.multiply_adds(),
            whole_multiply_adds: network.plan.multiply_adds(),
            state_bytes: plan.state_bytes(),
        };
        Ok(Running { state: plan.state(), plan, info })
    }

    /// [`Session::scores_into`] of the next window.
    pub(crate) fn scores_into(&mut self, input: &[f32], scores: &mut [f32]) -> Result<(), TrainError> {
        let current = self.session.current();
        // Another adapter: other values in every layer behind it, and perhaps another plan.
        if !Arc::ptr_eq(&current, &self.current) {
            self.running = Self::plan(&current, self.overlap.clone());
            self.current = current;
        }
        let Ok(Running { plan, state, .. }) = &mut self.running else {
            return self.session.scores_into(input, scores);
        };
        let Current { network, weights, .. } = &*self.current;
        if input.len() != network.plan.input_len() {
            return Err(TrainError::Length { expected: network.plan.input_len(), found: input.len() });
        }
        spread(network.classes, scores, |out| {
            if out.len() != network.classes {
                return Err(TrainError::Scores { expected: network.classes, found: out.len() });
            }
            out.copy_from_slice(plan.run(weights, state, input)?);
            Ending::to_scores(network.ending, out);
            Ok(())
        })
    }

    /// A window is not asked for: the one that would be computed from it is computed whole.
    pub(crate) fn skip(&mut self) {
        if let Ok(running) = &mut self.running {
            running.state.skip();
        }
    }

    /// The next window follows none.
    pub(crate) fn reset(&mut self) {
        if let Ok(running) = &mut self.running {
            running.state.reset();
        }
    }

    /// How windows are computed from those before, or why each is computed whole.
    pub(crate) fn slides(&self) -> Result<Slides, Whole> {
        self.running.as_ref().map(|running| running.info).map_err(Clone::clone)
    }
}
