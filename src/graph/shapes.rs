//! Whether the shapes of a node fit each other: what a file says wrongly must not reach a kernel.

use super::{Graph, Indexing, Node, Op, RecurrentLayer, Spread, ValueId, Window};
use crate::ops::quantise::DynamicPart;
use crate::ops::resize::AxisMap;

impl Graph {
    /// What is wrong with the shapes of `node`; empty if nothing is. What indices name is checked where they are read.
    pub(crate) fn misfit(&self, node: &Node) -> Option<String> {
        if self.fits(node) == Some(true) {
            return None;
        }
        let shapes =
            |ids: &[ValueId]| ids.iter().map(|i| format!("{:?}", self.values[*i].shape)).collect::<Vec<_>>().join(", ");
        let (read, given) = (shapes(&node.inputs), shapes(&node.outputs));
        Some(format!("inputs of {read} do not give {given} with its attributes; export the model again"))
    }

    /// Whether what `node` reads and gives has the shapes that its operator asks for; none where an input is missing.
    fn fits(&self, node: &Node) -> Option<bool> {
        let shape = |i: usize| Some(self.values[*node.inputs.get(i)?].shape.as_slice());
        let shapes = || node.inputs.iter().map(|i| self.values[*i].shape.as_slice());
        let y = self.values[*node.outputs.first()?].shape.as_slice();
        Some(match &node.op {
            Op::Foreign(_) => true,
            Op::Reshape => count(shape(0)?).is_some_and(|n| count(y) == Some(n)),
            Op::Unary(_) | Op::Function(_) => shape(0)? == y,
            Op::Conv(window, groups) => {
                let bias = node.inputs.get(2).is_none_or(|b| y.get(1) == Some(&self.values[*b].len()));
                convolves(window, *groups, shape(0)?, shape(1)?, y) && bias
            }
            Op::ConvTranspose(window, groups) => {
                let (x, w) = (shape(0)?, shape(1)?);
                let divides = |n: usize| *groups > 0 && n.is_multiple_of(*groups);
                let channels = || divides(w[0]) && w[0] == x[1] && w[1].checked_mul(*groups) == Some(y[1]);
                let bias = node.inputs.get(2).is_none_or(|b| y.get(1) == Some(&self.values[*b].len()));
                planes(window, x, w, y) && channels() && (0..2).all(|d| covers(window, d, x, y)) && bias
            }
            Op::MaxPool(window) | Op::AveragePool(window, _) | Op::LpPool(window, _) => {
                let x = shape(0)?;
                (3..=4).contains(&x.len()) && x.len() == y.len() && x[..2] == y[..2] && starts_inside(window, x, y)
            }
            Op::BatchNormalization { .. } => {
                let x = shape(0)?;
                let channels = *x.get(1).or(x.first())?;
                let constants = node.inputs.get(1..5)?;
                x == y && constants.iter().all(|c| self.values[*c].len() == channels)
            }
            Op::Norm(_, axes, groups) => {
                let x = shape(0)?;
                let grouped = *groups == 1 || *groups > 0 && x.get(1)?.is_multiple_of(*groups);
                let affine = shapes().skip(1).all(|s| broadcast([x, s].into_iter()).is_some_and(|s| s == x));
                x == y && distinct(axes, x.len()) && grouped && affine
            }
            Op::Lrn(size, _) => shape(0)? == y && y.len() > 1 && *size > 0,
            Op::Resize(maps, _) => {
                let x = shape(0)?;
                let axes: Vec<usize> = maps.iter().map(|(axis, _)| *axis).collect();
                let kept = |d: usize| axes.contains(&d) || x[d] == y[d];
                let mapped = |(axis, map): &(usize, AxisMap)| map.output() == y[*axis];
                x.len() == y.len() && distinct(&axes, x.len()) && (0..x.len()).all(kept) && maps.iter().all(mapped)
            }
            Op::Transpose(perm) => {
                let x = shape(0)?;
                perm.len() == x.len() && distinct(perm, x.len()) && perm.iter().map(|p| &x[*p]).eq(y)
            }
            Op::Concat(axis) => {
                let beside = |s: &[usize]| s.len() == y.len() && (0..y.len()).all(|d| d == *axis || s[d] == y[d]);
                shape(0)?;
                *axis < y.len() && shapes().all(beside) && shapes().map(|s| s[*axis]).sum::<usize>() == y[*axis]
            }
            Op::Binary(_) => broadcast([shape(0)?, shape(1)?].into_iter())? == y && node.inputs.len() == 2,
            Op::Where => broadcast([shape(0)?, shape(1)?, shape(2)?].into_iter())? == y,
            Op::Slice(first, step) => {
                let x = shape(0)?;
                let inside = |d: usize| {
                    let Some(moves) = y[d].checked_sub(1) else { return true };
                    let last = step[d].checked_mul(moves as isize).and_then(|by| first[d].checked_add_signed(by));
                    first[d] < x[d] && last.is_some_and(|last| last < x[d])
                };
                [x.len(), first.len(), step.len()] == [y.len(); 3] && (0..y.len()).all(inside)
            }
            Op::Pad(before, _) => [shape(0)?.len(), before.len()] == [y.len(); 2],
            Op::Reduce(_, axes) | Op::Fold(_, axes) => {
                let x = shape(0)?;
                let left: Vec<usize> = (0..x.len()).filter(|d| !axes.contains(d)).map(|d| x[d]).collect();
                let kept: Vec<usize> = (0..x.len()).map(|d| if axes.contains(&d) { 1 } else { x[d] }).collect();
                distinct(axes, x.len()) && (y == left || y == kept)
            }
            Op::Softmax { axis, .. } | Op::CumSum { axis, .. } => shape(0)? == y && *axis < y.len(),
            Op::Repeat => {
                let x = shape(0)?;
                let lead = y.len().checked_sub(x.len())?;
                let whole = |(x, y): (&usize, &usize)| if *x == 0 { *y == 0 } else { y.is_multiple_of(*x) };
                x.iter().zip(&y[lead..]).all(whole)
            }
            Op::Gather(indexing) => indexed(*indexing, shape(0)?, shape(1)?)? == y,
            Op::Scatter { indexing, .. } => shape(0)? == y && indexed(*indexing, y, shape(1)?)? == shape(2)?,
            Op::Recurrent(layer) => self.layer_fits(node, layer)?,
            Op::Quantise(_, quantisation) => {
                let (x, scales) = (shape(0)?, &quantisation.scales);
                let wanted = match quantisation.spread {
                    Spread::Tensor => Some(1),
                    Spread::Axis(axis) => x.get(axis).copied(),
                    Spread::Each => count(x),
                };
                x == y && [scales.scale.len(), scales.zero_point.len()].map(Some) == [wanted; 2]
            }
            Op::DynamicQuantise(DynamicPart::Integers | DynamicPart::Fake) => shape(0)? == y,
            Op::DynamicQuantise(_) => shape(0).is_some() && count(y) == Some(1),
            Op::MatMul => product(shape(0)?, shape(1)?)? == y,
            Op::Gemm { trans_a, trans_b, .. } => {
                let turned = |s: &[usize], turn: bool| match *s {
                    [rows, columns] => Some(if turn { [columns, rows] } else { [rows, columns] }),
                    _ => None,
                };
                let ([m, k], [l, n]) = (turned(shape(0)?, *trans_a)?, turned(shape(1)?, *trans_b)?);
                let added = shapes().skip(2).all(|c| broadcast([c, y].into_iter()).is_some_and(|s| s == y));
                k == l && y == [m, n] && added
            }
        })
    }

    fn layer_fits(&self, node: &Node, layer: &RecurrentLayer) -> Option<bool> {
        let at = |i: usize| Some(self.values[*node.inputs.get(i)?].shape.as_slice());
        let &[first, second, size] = at(0)? else { return None };
        let (steps, batch) = if layer.batch_first { (second, first) } else { (first, second) };
        let (hidden, directions) = (layer.recurrence.hidden, layer.recurrence.reverse.len());
        let width = layer.recurrence.cell.gates().checked_mul(hidden)?;
        let (sequence, state) = match layer.batch_first {
            true => (vec![batch, steps, directions, hidden], vec![batch, directions, hidden]),
            false => (vec![steps, directions, batch, hidden], vec![directions, batch, hidden]),
        };
        let is = |i: Option<usize>, shape: &[usize]| i.is_none_or(|i| at(i) == Some(shape));
        let reads = is(Some(RecurrentLayer::W), &[directions, width, size])
            && is(Some(RecurrentLayer::R), &[directions, width, hidden])
            && is(layer.bias, &[directions, 2 * width])
            && is(layer.peepholes, &[directions, 3 * hidden])
            && layer.initial.iter().all(|i| is(*i, &state));
        let given = |i: &Option<usize>, shape: &[usize]| {
            i.is_none_or(|i| node.outputs.get(i).is_some_and(|y| self.values[*y].shape == shape))
        };
        let [all, last @ ..] = &layer.outputs;
        Some(reads && given(all, &sequence) && last.iter().all(|y| given(y, &state)))
    }
}

/// Whether `axes` are dimensions of `rank`, each at most once.
fn distinct(axes: &[usize], rank: usize) -> bool {
    axes.iter().enumerate().all(|(i, axis)| *axis < rank && !axes[..i].contains(axis))
}

/// The plane behind batch and channels; a line has height 1.
fn plane(shape: &[usize]) -> [usize; 2] {
    if shape.len() == 3 { [1, shape[2]] } else { [shape[2], shape[3]] }
}

/// Whether x and y are planes or lines, and w is a kernel for them: that of lines slides over the lines of a plane too.
fn planes(window: &Window, x: &[usize], w: &[usize], y: &[usize]) -> bool {
    let ranks = (3..=4).contains(&x.len()) && y.len() == x.len() && (w.len() == x.len() || w.len() == 3);
    ranks && y[0] == x[0] && window.kernel == plane(w)
}

/// Whether x `[n, c, (h,) w]` and a weight `[out, c / groups, (kh,) kw]` give y.
fn convolves(window: &Window, groups: usize, x: &[usize], w: &[usize], y: &[usize]) -> bool {
    let channels =
        || y[1] == w[0] && groups > 0 && w[0].is_multiple_of(groups) && w[1].checked_mul(groups) == Some(x[1]);
    let size = |d: usize| {
        let reach = (window.kernel[d].checked_sub(1)?).checked_mul(window.dilation[d])?.checked_add(1)?;
        let room = plane(x)[d].checked_add(window.pads_begin[d])?.checked_add(window.pads_end[d])?;
        Some(room.checked_sub(reach)?.checked_div(window.stride[d])? + 1)
    };
    planes(window, x, w, y) && channels() && (0..2).all(|d| size(d) == Some(plane(y)[d]))
}

/// Whether what a transposed convolution writes from x lies inside y and its padding.
fn covers(window: &Window, d: usize, x: &[usize], y: &[usize]) -> bool {
    let covered = || {
        let reach = (window.kernel[d].checked_sub(1)?).checked_mul(window.dilation[d])?.checked_add(1)?;
        let last = plane(x)[d].checked_sub(1)?.checked_mul(window.stride[d])?.checked_add(reach)?;
        Some(last <= plane(y)[d].checked_add(window.pads_begin[d])?.checked_add(window.pads_end[d])?)
    };
    covered() == Some(true)
}

/// Whether every window of a pool starts inside x and its padding.
fn starts_inside(window: &Window, x: &[usize], y: &[usize]) -> bool {
    (0..2).all(|d| {
        let Some(moves) = plane(y)[d].checked_sub(1) else { return true };
        let room = plane(x)[d].checked_add(window.pads_begin[d]).and_then(|n| n.checked_add(window.pads_end[d]));
        moves.checked_mul(window.stride[d]).zip(room).is_some_and(|(start, room)| start <= room)
    })
}

/// The shape that indices of that shape pick out of the data, or update there.
fn indexed(indexing: Indexing, data: &[usize], indices: &[usize]) -> Option<Vec<usize>> {
    Some(match indexing {
        Indexing::Axis(axis) => [data.get(..axis)?, indices, data.get(axis + 1..)?].concat(),
        Indexing::Elements(axis) => {
            let inside = |d: usize| d == axis || indices[d] <= data[d];
            let fits = axis < data.len() && indices.len() == data.len() && (0..data.len()).all(inside);
            fits.then(|| indices.to_vec())?
        }
        Indexing::Tuples(batch) => {
            let (depth, tuples) = indices.split_last()?;
            let rest = data.get(batch.checked_add(*depth)?..)?;
            (data.get(..batch)? == tuples.get(..batch)?).then(|| [tuples, rest].concat())?
        }
    })
}

fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))
}

/// The shape that all of them broadcast to.
fn broadcast<'a>(shapes: impl Iterator<Item = &'a [usize]>) -> Option<Vec<usize>> {
    let mut out: Vec<usize> = Vec::new();
    for shape in shapes {
        let rank = out.len().max(shape.len());
        let at = |s: &[usize], d: usize| if d + s.len() < rank { 1 } else { s[d + s.len() - rank] };
        let join = |d: usize| match (at(&out, d), at(shape, d)) {
            (a, b) if a == b || b == 1 => Some(a),
            (1, b) => Some(b),
            _ => None,
        };
        out = (0..rank).map(join).collect::<Option<_>>()?;
    }
    Some(out)
}

/// A product as of numpy: vectors are rows on the left and columns on the right.
fn product(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let (lead_a, m, k) = match a {
        [] => return None,
        [k] => (&[][..], None, *k),
        [lead @ .., m, k] => (lead, Some(*m), *k),
    };
    let (lead_b, l, n) = match b {
        [] => return None,
        [l] => (&[][..], *l, None),
        [lead @ .., l, n] => (lead, *l, Some(*n)),
    };
    let lead = broadcast([lead_a, lead_b].into_iter())?;
    (k == l).then(|| lead.into_iter().chain(m).chain(n).collect())
}
