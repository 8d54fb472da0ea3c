//! Operators: forward and vjp side by side, one file a family.
//!
//! An operator works on **one sample** whose shapes are fixed when it is built, on plain `f32` slices in the
//! physical layout that the plan chose (channels last, `[height, width, channels]`, for images and planes; row-major
//! for everything else). Constants (frozen weights, broadcast constants) are part of the operator; activations
//! come in as slices. Weights that an adapter changes are handed in by the plan, see [`conv`].
//!
//! `vjp` is the vector-Jacobian product: given `dy`, it **adds** to each `dx` that is wanted. What it needs from the
//! forward pass is declared by [`Operator::keeps`]; the plan keeps exactly that alive.

pub mod batch_norm;
pub mod binary;
pub mod conv;
pub mod conv_transpose;
pub mod cumulative;
pub mod depthwise;
pub mod embedding;
pub mod fold;
pub mod function;
pub mod index;
pub mod integer_conv;
pub mod integer_dense;
pub mod lrn;
pub mod matmul;
pub mod movement;
pub mod norm;
pub mod pool;
pub mod quantise;
pub mod recurrent;
pub mod reduce;
pub mod repeat;
pub mod resize;
pub mod rows;
pub mod select;
pub mod softmax;
pub mod unary;

#[cfg(test)]
pub(crate) mod check;

use std::ops::Range;

use self::conv::{ConvWeights, Factors};
use self::integer_conv::Pair;
use self::rows::{Part, RowWindow};
pub use crate::kernels::conv_geometry;
use crate::kernels::gemm::{Start, gemm, gemm_from};

/// Activations that an operator has at most.
pub const MAX_INPUTS: usize = 3;

/// What an operator needs in its vjp, beyond `dy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeps {
    /// Whether each of the inputs must be kept.
    pub x: [bool; MAX_INPUTS],
    /// Whether the output must be kept.
    pub y: bool,
    /// Values (f32 slots) of `saved` that forward writes for the vjp, such as a mask or an index.
    pub saved: usize,
}

/// One operator on one sample, with at most [`MAX_INPUTS`] activations in and one out.
pub trait Operator: Send + Sync + std::fmt::Debug {
    /// Values in the output.
    fn output_len(&self) -> usize;

    /// What the vjp needs; with `for_training` false nothing is saved.
    fn keeps(&self) -> Keeps;

    /// The inputs that a gradient passes to. The others (a condition, an index) may come from anything: `vjp` is never asked
    /// for theirs, and an operator without a gradient that leads to them is no obstacle.
    fn differentiates(&self) -> [bool; MAX_INPUTS] {
        [true; MAX_INPUTS]
    }

    /// Scratch values that `forward` needs; contents on entry are arbitrary.
    fn forward_work(&self) -> usize {
        0
    }

    /// Scratch values that `vjp` needs; contents on entry are arbitrary.
    fn vjp_work(&self) -> usize {
        0
    }

    /// Writes `y` from `x` (overwrites whatever was there).
    ///
    /// `saved` has [`Keeps::saved`] values when a vjp will follow and is empty otherwise: then nothing is saved.
    fn forward(&self, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], work: &mut [f32]);

    /// Adds to each wanted `dx` the product of `dy` with the Jacobian.
    ///
    /// `x` and `y` are empty slices where [`Operator::keeps`] does not ask for them. `dy` may be overwritten: it is
    /// not read again.
    fn vjp(
        &self,
        x: &[&[f32]],
        y: &[f32],
        saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        work: &mut [f32],
    );

    /// [`Operator::vjp`] for an operator with one input whose `dx` gets its first term here: writes it, whatever stands
    /// there.
    fn vjp_first(&self, x: &[f32], y: &[f32], saved: &[f32], dy: &mut [f32], dx: &mut [f32], work: &mut [f32]) {
        dx.fill(0.0);
        self.vjp(&[x], y, saved, dy, &mut [Some(dx)], work);
    }

    /// How the rows of the output read those of the inputs, where each input stands in memory as `rows` of equal length; none
    /// where a row of the output may read any row.
    fn row_window(&self, _rows: usize) -> Option<RowWindow> {
        None
    }

    /// The operator for rows `range` of the output, on the rows of each input that these read ([`RowWindow::reads`]); none
    /// where they read none.
    fn part(&self, _rows: usize, _range: Range<usize>) -> Part {
        None
    }
}

/// Weights of one step that adapters may change at most: input and recurrent weight, for two directions.
pub const MAX_WEIGHTS: usize = 4;

/// What an adapter makes of a weight of a step.
#[derive(Clone, Copy, Debug)]
pub enum Held<'a> {
    /// The merged weight.
    Merged(&'a ConvWeights),
    /// A low-rank pair for a weight that is held in integers.
    Pair(HeldPair<'a>),
}

/// A low-rank pair in the orders that its readers want.
#[derive(Clone, Copy, Debug)]
pub struct HeldPair<'a> {
    /// A and s·Bᵀ.
    pub pair: Pair<'a>,
    /// Aᵀ and B.
    pub factors: &'a Factors,
    /// alpha / r.
    pub scale: f32,
}

impl HeldPair<'_> {
    /// Adds the gradients of A and Bᵀ, one behind the other in `sums`, for rows x and dz; `work` is `[2 · rows · rank]`.
    pub fn add_gradients(
        &self,
        rows: usize,
        (x, inputs, x_row): (&[f32], usize, usize),
        (dz, outputs, dz_row): (&[f32], usize, usize),
        columns: Range<usize>,
        sums: &mut [f32],
        work: &mut [f32],
    ) {
        let (rank, width) = (self.pair.rank, columns.len());
        debug_assert_eq!(width, outputs);
        let all = self.factors.b.len() / rank.max(1);
        let (da, dbt) = sums.split_at_mut(rank * inputs);
        let (h, e) = work[..2 * rows * rank].split_at_mut(rows * rank);
        let b = &self.factors.b[columns.start * rank..];
        gemm_from(Start::Zero, rows, rank, inputs, x, x_row, 1, &self.factors.a_t, rank, h, rank);
        gemm_from(Start::Zero, rows, rank, outputs, dz, dz_row, 1, b, rank, e, rank);
        h.iter_mut().chain(e.iter_mut()).for_each(|v| *v *= self.scale);
        gemm(rank, inputs, rows, e, 1, rank, x, x_row, da, inputs);
        gemm(rank, outputs, rows, h, 1, rank, dz, dz_row, &mut dbt[columns.start..], all);
    }
}

/// The weights that a step runs with; its own frozen ones where there is none.
pub type Weights<'a> = [Option<Held<'a>>; MAX_WEIGHTS];

/// Where the gradients of trained weights are added: of `w` in its order, or of a pair, A before Bᵀ.
pub type WeightGradients<'a> = [Option<&'a mut [f32]>; MAX_WEIGHTS];

/// An operator that holds several weights which an adapter may change, each by itself.
pub trait Weighted: Operator {
    /// [`Operator::forward`] with other weights.
    fn forward_with(&self, weights: &Weights, x: &[&[f32]], y: &mut [f32], saved: &mut [f32], work: &mut [f32]);

    /// [`Operator::vjp`] with other weights; adds to each `dw` that is wanted.
    fn vjp_with(
        &self,
        weights: &Weights,
        dw: WeightGradients,
        x: &[&[f32]],
        y: &[f32],
        saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        work: &mut [f32],
    );

    /// [`Operator::vjp`] for an operator with one input whose `dx` gets its first term here: writes it, whatever stands
    /// there.
    fn vjp_first(&self, x: &[f32], y: &[f32], saved: &[f32], dy: &mut [f32], dx: &mut [f32], work: &mut [f32]) {
        dx.fill(0.0);
        self.vjp(&[x], y, saved, dy, &mut [Some(dx)], work);
    }
}
