//! What chooses, repeats, indexes and rearranges.

use tract_onnx::pb::NodeProto;

use super::super::OnnxError;
use super::super::attributes::{Attributes, axis};
use super::Converter;
use crate::graph::{Indexing, Op, ValueId};

/// A shape that splits blocks off, and the order of its dimensions behind that.
type Blocks = (Vec<usize>, Vec<usize>);

impl Converter<'_> {
    /// Lowers the operators of this file; false for another one, or one that must run through tract.
    pub(super) fn lower_selection(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        y: ValueId,
    ) -> Result<bool, OnnxError> {
        let attributes = Attributes(node);
        let present: Vec<ValueId> = inputs.iter().flatten().copied().collect();
        let Some(x) = inputs.first().copied().flatten() else { return Ok(false) };
        let shape = self.shape(x);
        let rank = shape.len();
        let out_of_range = || self.error(node, "its axis is out of range");
        let op = match node.op_type.as_str() {
            "Where" if present.len() == 3 => Op::Where,
            "Expand" | "Tile" => {
                let to = self.shape(y);
                let lead = to.len().saturating_sub(rank);
                let fits = |(from, to): (&usize, &usize)| if *from == 0 { *to == 0 } else { to % from == 0 };
                if to.len() < rank || !shape.iter().zip(&to[lead..]).all(fits) {
                    return Ok(false);
                }
                self.push(node, name, Op::Repeat, vec![x], y);
                return Ok(true);
            }
            "CumSum" => {
                let Some(at) = self.ints(inputs.get(1).copied().flatten()).and_then(|a| a.first().copied()) else {
                    return Ok(false);
                };
                let op = Op::CumSum {
                    axis: axis(at, rank).ok_or_else(out_of_range)?,
                    exclusive: attributes.int("exclusive").unwrap_or(0) != 0,
                    reverse: attributes.int("reverse").unwrap_or(0) != 0,
                };
                self.push(node, name, op, vec![x], y);
                return Ok(true);
            }
            "Gather" | "GatherElements" if present.len() == 2 => {
                let at = axis(attributes.int("axis").unwrap_or(0), rank).ok_or_else(out_of_range)?;
                Op::Gather(if node.op_type == "Gather" { Indexing::Axis(at) } else { Indexing::Elements(at) })
            }
            "GatherND" if present.len() == 2 => {
                let batch = attributes.int("batch_dims").unwrap_or(0);
                Op::Gather(Indexing::Tuples(usize::try_from(batch).map_err(|_| out_of_range())?))
            }
            "Scatter" | "ScatterElements" | "ScatterND" if present.len() == 3 => {
                let add = match attributes.string("reduction").unwrap_or("none") {
                    "none" => false,
                    "add" => true,
                    _ => return Ok(false),
                };
                let indexing = match node.op_type.as_str() {
                    "ScatterND" => Indexing::Tuples(0),
                    _ => Indexing::Elements(axis(attributes.int("axis").unwrap_or(0), rank).ok_or_else(out_of_range)?),
                };
                Op::Scatter { indexing, add }
            }
            "Trilu" => return self.trilu(node, name, inputs, &shape, y),
            "DepthToSpace" | "SpaceToDepth" => {
                let Some(between) = self.blocks(node, &shape)? else { return Ok(false) };
                let (split, perm) = between;
                let turned: Vec<usize> = perm.iter().map(|p| split[*p]).collect();
                let first = self.temporary(node, name, split, x);
                self.push(node, &format!("{name}~split"), Op::Reshape, vec![x], first);
                let second = self.temporary(node, name, turned, x);
                self.push(node, &format!("{name}~turn"), Op::Transpose(perm), vec![first], second);
                self.push(node, name, Op::Reshape, vec![second], y);
                return Ok(true);
            }
            _ => return Ok(false),
        };
        if let Op::Gather(indexing) | Op::Scatter { indexing, .. } = op {
            self.check_indices(node, indexing, &shape, present[1])?;
        }
        self.push(node, name, op, present, y);
        Ok(true)
    }

    /// Whether indices fit the data, as far as the file tells.
    fn check_indices(
        &self,
        node: &NodeProto,
        indexing: Indexing,
        data: &[usize],
        indices: ValueId,
    ) -> Result<(), OnnxError> {
        let shape = self.shape(indices);
        let sizes: Vec<usize> = match indexing {
            Indexing::Axis(axis) => vec![data[axis]],
            Indexing::Elements(axis) => {
                let inside = shape.len() == data.len() && (0..data.len()).all(|d| d == axis || shape[d] <= data[d]);
                if !inside {
                    return Err(self.error(node, format!("indices {shape:?} do not fit data {data:?}")));
                }
                vec![data[axis]]
            }
            Indexing::Tuples(batch) => {
                let depth = shape.last().copied().unwrap_or(0);
                let fits = batch < shape.len() && batch + depth <= data.len() && shape[..batch] == data[..batch];
                if !fits {
                    let what = format!("indices {shape:?} with {batch} batch dimensions do not fit data {data:?}");
                    return Err(self.error(node, what));
                }
                data[batch..batch + depth].to_vec()
            }
        };
        for (at, index) in self.ints(Some(indices)).unwrap_or_default().into_iter().enumerate() {
            let size = sizes[at % sizes.len().max(1)] as i64;
            if !(-size..size).contains(&index) {
                return Err(self.error(node, format!("index {index} is out of range: its axis has {size} values")));
            }
        }
        Ok(())
    }

    /// One triangle of the last two dimensions, as a choice between x and 0.
    fn trilu(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        shape: &[usize],
        y: ValueId,
    ) -> Result<bool, OnnxError> {
        let ([.., rows, columns], Some(x)) = (shape, inputs[0]) else { return Ok(false) };
        let diagonal = match inputs.get(1).copied().flatten() {
            Some(k) => match self.ints(Some(k)).and_then(|k| k.first().copied()) {
                Some(k) => k,
                None => return Ok(false),
            },
            None => 0,
        };
        let upper = Attributes(node).int("upper").unwrap_or(1) != 0;
        let kept = |i: usize, j: usize| {
            let (above, k) = (j as i64 - i as i64, diagonal);
            if upper { above >= k } else { above <= k }
        };
        let mask = (0..rows * columns).map(|at| f32::from(kept(at / columns, at % columns))).collect();
        let mask = self.new_constant(node, name, vec![*rows, *columns], mask);
        let zero = self.new_constant(node, name, vec![], vec![0.0]);
        self.push(node, name, Op::Where, vec![mask, x, zero], y);
        Ok(true)
    }

    /// What DepthToSpace or SpaceToDepth reshapes to, and how it is then transposed.
    fn blocks(&self, node: &NodeProto, shape: &[usize]) -> Result<Option<Blocks>, OnnxError> {
        let attributes = Attributes(node);
        let &[n, c, h, w] = shape else { return Ok(None) };
        let size = attributes.int("blocksize").and_then(|b| usize::try_from(b).ok()).filter(|b| *b > 0);
        let Some(b) = size else { return Err(self.error(node, "its blocksize must be at least 1")) };
        if node.op_type == "SpaceToDepth" {
            if !h.is_multiple_of(b) || !w.is_multiple_of(b) {
                return Err(self.error(node, format!("blocks of {b} do not fit {shape:?}")));
            }
            let crd = attributes.string("mode") == Some("CRD");
            let perm = if crd { vec![0, 1, 3, 5, 2, 4] } else { vec![0, 3, 5, 1, 2, 4] };
            return Ok(Some((vec![n, c, h / b, b, w / b, b], perm)));
        }
        if !c.is_multiple_of(b * b) {
            return Err(self.error(node, format!("{c} channels do not fill blocks of {b} by {b}")));
        }
        Ok(Some(match attributes.string("mode").unwrap_or("DCR") {
            "CRD" => (vec![n, c / (b * b), b, b, h, w], vec![0, 1, 4, 2, 5, 3]),
            _ => (vec![n, b, b, c / (b * b), h, w], vec![0, 3, 4, 1, 5, 2]),
        }))
    }
}
