//! Operators whose indices are data: Gather, GatherElements, GatherND, ScatterElements, ScatterND.
//!
//! All of them pair *chunks* of `inner` neighbouring values with a place in a tensor, [`Places`]:
//!
//! | operator | chunk j | place |
//! |---|---|---|
//! | Gather, data `[outer, size, inner]` | (o, i) | (o · size + indexᵢ) · inner |
//! | GatherElements, ScatterElements | one value at position p | that of p, with index_p on the axis |
//! | GatherND, ScatterND, data `[batches, d₁ … dₖ, inner]` | tuple j of batch b | b · d₁ … dₖ · inner + Σ index_jᵢ · strideᵢ |
//!
//! Gather: y\[j\] = x\[place j\]; dx\[place j\] += dy\[j\]. Scatter: y is x with updates written (or added) at their
//! places; dx += dy where x is still to be seen (everywhere, if added), du\[j\] += dy\[place j\]. Two updates of one place
//! are only defined where they are added (ONNX). An index counts from the end where it is negative. One that is out of
//! range gives not a number: in its chunk for Gather, everywhere for Scatter.
//!
//! Formulas: ONNX operators of the same names. Indices are a constant, of which the places are made once, or an activation
//! (whole numbers as f32, exact up to 2²⁴), which is kept and has no gradient.

use std::sync::Arc;

use super::{Keeps, MAX_INPUTS, Operator};

/// The place of an index that is out of range.
const NOWHERE: usize = usize::MAX;

/// Where the chunks of a tensor stand in another one; see the table at the top of this file.
#[derive(Clone, Debug)]
pub struct Places {
    /// Number of chunks.
    chunks: usize,
    /// Values in a chunk.
    inner: usize,
    /// Values of the tensor that indices point into.
    data_len: usize,
    /// Size and stride of each dimension that an index tuple names.
    dims: Vec<[usize; 2]>,
    /// Number of index tuples.
    tuples: usize,
    base: Base,
    fixed: Option<Arc<[usize]>>,
}

/// The place of a chunk with indices 0.
#[derive(Clone, Debug)]
enum Base {
    /// Each `chunks` chunks move by `stride`.
    Every {
        chunks: usize,
        stride: usize,
    },
    Table(Arc<[usize]>),
}

impl Places {
    /// Gather: data `[outer, size, inner]`, `count` indices.
    pub fn along_axis(outer: usize, size: usize, inner: usize, count: usize) -> Self {
        Self {
            chunks: outer * count,
            inner,
            data_len: outer * size * inner,
            dims: vec![[size, inner]],
            tuples: count,
            base: Base::Every { chunks: count, stride: size * inner },
            fixed: None,
        }
    }

    /// GatherElements and ScatterElements: data and indices of one rank, row-major.
    pub fn elements(data_shape: &[usize], index_shape: &[usize], axis: usize) -> Self {
        let strides: Vec<usize> = (0..data_shape.len()).map(|d| data_shape[d + 1..].iter().product()).collect();
        let n: usize = index_shape.iter().product();
        let base = |mut flat: usize| {
            let mut at = 0;
            for d in (0..index_shape.len()).rev() {
                at += if d == axis { 0 } else { flat % index_shape[d] * strides[d] };
                flat /= index_shape[d];
            }
            at
        };
        Self {
            chunks: n,
            inner: 1,
            data_len: data_shape.iter().product(),
            dims: vec![[data_shape[axis], strides[axis]]],
            tuples: n,
            base: Base::Table((0..n).map(base).collect()),
            fixed: None,
        }
    }

    /// GatherND and ScatterND: tuples of `depth` indices behind `batch_dims` dimensions, `tuples` of them in all.
    pub fn tuples(data_shape: &[usize], batch_dims: usize, depth: usize, tuples: usize) -> Self {
        let from = batch_dims + depth;
        let inner: usize = data_shape[from..].iter().product();
        let batches: usize = data_shape[..batch_dims].iter().product();
        let stride = |d: usize| data_shape[d + 1..].iter().product();
        Self {
            chunks: tuples,
            inner,
            data_len: data_shape.iter().product(),
            dims: (batch_dims..from).map(|d| [data_shape[d], stride(d)]).collect(),
            tuples,
            base: Base::Every {
                chunks: (tuples / batches.max(1)).max(1),
                stride: data_shape[batch_dims..].iter().product(),
            },
            fixed: None,
        }
    }

    /// With constant indices; false if one of them is out of range.
    pub fn fix(&mut self, indices: &[i64]) -> bool {
        let places: Arc<[usize]> = (0..self.chunks).map(|j| self.place(j, |i| indices.get(i).copied())).collect();
        let inside = !places.contains(&NOWHERE);
        self.fixed = Some(places);
        inside
    }

    fn place(&self, chunk: usize, index: impl Fn(usize) -> Option<i64>) -> usize {
        let mut at = match &self.base {
            Base::Every { chunks, stride } => chunk / chunks * stride,
            Base::Table(table) => table[chunk],
        };
        let first = chunk % self.tuples * self.dims.len();
        for (i, [size, stride]) in self.dims.iter().enumerate() {
            let Some(index) = index(first + i) else { return NOWHERE };
            let index = if index < 0 { index.saturating_add(*size as i64) } else { index };
            match usize::try_from(index) {
                Ok(index) if index < *size => at += index * stride,
                _ => return NOWHERE,
            }
        }
        at
    }

    /// The place of a chunk; `indices` is read where they are no constant.
    pub(super) fn of(&self, chunk: usize, indices: &[f32]) -> Option<usize> {
        let place = match &self.fixed {
            Some(fixed) => fixed[chunk],
            // A value that is no whole number is no index; casts saturate.
            None => self.place(chunk, |i| indices.get(i).filter(|v| v.is_finite()).map(|v| *v as i64)),
        };
        (place != NOWHERE).then_some(place)
    }

    fn constant(&self) -> bool {
        self.fixed.is_some()
    }

    /// Number of chunks, and values in one.
    pub(super) fn sizes(&self) -> [usize; 2] {
        [self.chunks, self.inner]
    }
}

/// Chunks of a tensor, by index. Inputs: the data and the indices, each if it is not constant.
#[derive(Clone, Debug)]
pub struct Gather {
    places: Places,
    data: Option<Arc<[f32]>>,
}

impl Gather {
    /// `data` where it is a constant.
    pub fn new(places: Places, data: Option<Arc<[f32]>>) -> Self {
        debug_assert!(data.as_ref().is_none_or(|d| d.len() == places.data_len));
        Self { places, data }
    }

    fn indices<'a>(&self, x: &[&'a [f32]]) -> &'a [f32] {
        if self.places.constant() { &[] } else { x[usize::from(self.data.is_none())] }
    }
}

impl Operator for Gather {
    fn output_len(&self) -> usize {
        self.places.chunks * self.places.inner
    }

    fn keeps(&self) -> Keeps {
        Keeps { x: [false, self.data.is_none() && !self.places.constant(), false], ..Keeps::default() }
    }

    fn differentiates(&self) -> [bool; MAX_INPUTS] {
        [self.data.is_none(), false, false]
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        let n = self.places.inner;
        let data = self.data.as_deref().unwrap_or_else(|| x[0]);
        let indices = self.indices(x);
        for (j, y) in y.chunks_exact_mut(n.max(1)).enumerate() {
            match self.places.of(j, indices) {
                Some(place) => y.copy_from_slice(&data[place..place + n]),
                None => y.fill(f32::NAN),
            }
        }
    }

    fn vjp(
        &self,
        x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        if self.data.is_some() {
            return;
        }
        let Some(dx) = dx[0].as_deref_mut() else { return };
        let n = self.places.inner;
        let indices = self.indices(x);
        for (j, dy) in dy.chunks_exact(n.max(1)).enumerate() {
            let Some(place) = self.places.of(j, indices) else { continue };
            for (dx, dy) in dx[place..place + n].iter_mut().zip(dy) {
                *dx += dy;
            }
        }
    }
}

/// A tensor with chunks written over or added. Inputs: data, indices and updates, each if it is not constant.
#[derive(Clone, Debug)]
pub struct Scatter {
    places: Places,
    data: Option<Arc<[f32]>>,
    updates: Option<Arc<[f32]>>,
    add: bool,
}

impl Scatter {
    /// `data` and `updates` where they are constants; with `add` the updates are added.
    pub fn new(places: Places, data: Option<Arc<[f32]>>, updates: Option<Arc<[f32]>>, add: bool) -> Self {
        debug_assert!(data.as_ref().is_none_or(|d| d.len() == places.data_len));
        debug_assert!(updates.as_ref().is_none_or(|u| u.len() == places.chunks * places.inner));
        Self { places, data, updates, add }
    }

    /// The inputs that data, indices and updates are.
    fn inputs(&self) -> [Option<usize>; 3] {
        let mut next = 0;
        [self.data.is_none(), !self.places.constant(), self.updates.is_none()].map(|given| {
            next += usize::from(given);
            given.then(|| next - 1)
        })
    }
}

impl Operator for Scatter {
    fn output_len(&self) -> usize {
        self.places.data_len
    }

    fn keeps(&self) -> Keeps {
        let mut keeps = Keeps::default();
        if let [_, Some(indices), _] = self.inputs() {
            keeps.x[indices] = true;
        }
        keeps
    }

    fn differentiates(&self) -> [bool; MAX_INPUTS] {
        let mut out = [true; MAX_INPUTS];
        if let [_, Some(indices), _] = self.inputs() {
            out[indices] = false;
        }
        out
    }

    fn forward(&self, x: &[&[f32]], y: &mut [f32], _saved: &mut [f32], _work: &mut [f32]) {
        let n = self.places.inner;
        let [data, indices, updates] = self.inputs().map(|input| input.map_or(&[][..], |i| x[i]));
        let data = self.data.as_deref().unwrap_or(data);
        let updates = self.updates.as_deref().unwrap_or(updates);
        y.copy_from_slice(data);
        for (j, update) in updates.chunks_exact(n.max(1)).enumerate() {
            match self.places.of(j, indices) {
                Some(place) if self.add => y[place..place + n].iter_mut().zip(update).for_each(|(y, u)| *y += u),
                Some(place) => y[place..place + n].copy_from_slice(update),
                None => return y.fill(f32::NAN),
            }
        }
    }

    fn vjp(
        &self,
        x: &[&[f32]],
        _y: &[f32],
        _saved: &[f32],
        dy: &mut [f32],
        dx: &mut [Option<&mut [f32]>],
        _work: &mut [f32],
    ) {
        let n = self.places.inner;
        let [data, indices, updates] = self.inputs();
        let indices = indices.map_or(&[][..], |i| x[i]);
        if let Some(du) = updates.and_then(|i| dx[i].as_deref_mut()) {
            for (j, du) in du.chunks_exact_mut(n.max(1)).enumerate() {
                let Some(place) = self.places.of(j, indices) else { continue };
                for (du, dy) in du.iter_mut().zip(&dy[place..place + n]) {
                    *du += dy;
                }
            }
        }
        if let Some(dx) = data.and_then(|i| dx[i].as_deref_mut()) {
            if !self.add {
                for place in (0..self.places.chunks).filter_map(|j| self.places.of(j, indices)) {
                    dy[place..place + n].fill(0.0);
                }
            }
            for (dx, dy) in dx.iter_mut().zip(dy) {
                *dx += *dy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, indices, offset, values};
    use super::*;

    /// Runs an operator with its indices as a constant and as an activation, and data as an activation and a constant.
    fn check_gather(places: &Places, index: &[i64], data_len: usize, oracle: &dyn Fn(&[f64]) -> Vec<f64>) {
        let data = values(1, data_len);
        let mut fixed = places.clone();
        assert!(fixed.fix(index));
        let floats: Vec<f32> = index.iter().map(|i| *i as f32).collect();
        let op = Gather::new(fixed, None);
        Case { op: &op, x: vec![data.clone()], oracle: &|x| oracle(&x[0]) }.run();
        let op = Gather::new(places.clone(), None);
        assert_eq!((op.differentiates(), op.keeps().x), ([true, false, false], [false, true, false]));
        Case { op: &op, x: vec![data.clone(), floats.clone()], oracle: &|x| oracle(&x[0]) }.run();
        let op = Gather::new(places.clone(), Some(data.clone().into()));
        assert_eq!((op.differentiates()[0], op.keeps()), (false, Keeps::default()));
        let constant: Vec<f64> = data.iter().map(|v| f64::from(*v)).collect();
        Case { op: &op, x: vec![floats], oracle: &|_| oracle(&constant) }.run();
    }

    fn resolve(index: i64, size: usize) -> usize {
        if index < 0 { (index + size as i64) as usize } else { index as usize }
    }

    #[test]
    fn gather_agrees_with_the_oracle() {
        for (outer, size, inner, index) in [
            (1, 4, 1, &[0, -1, 2, 2, -4][..]),
            (2, 3, 5, &[2]),
            (3, 2, 2, &[1, 1, -2, 0]),
            (2, 3, 0, &[1]),
            (0, 3, 2, &[1]),
            (2, 3, 2, &[]),
        ] {
            let places = Places::along_axis(outer, size, inner, index.len());
            check_gather(&places, index, outer * size * inner, &|x| {
                let mut y = Vec::new();
                for o in 0..outer {
                    for i in index {
                        y.extend((0..inner).map(|c| x[(o * size + resolve(*i, size)) * inner + c]));
                    }
                }
                y
            });
        }
    }

    #[test]
    fn gather_elements_agrees_with_the_oracle() {
        let index = [1, 0, -1, 2, -3, 1, 1, 1];
        for (shape, index_shape, axis) in [
            (&[3, 4][..], &[2, 4][..], 0),
            (&[2, 3], &[2, 4], 1),
            (&[3, 2, 3], &[2, 2, 2], 2),
            (&[5, 3, 1], &[4, 2, 1], 1),
        ] {
            let places = Places::elements(shape, index_shape, axis);
            check_gather(&places, &index, shape.iter().product(), &|x| {
                let at = |(p, mut at): (usize, Vec<usize>)| {
                    at[axis] = resolve(index[p], shape[axis]);
                    x[offset(&at, shape)]
                };
                indices(index_shape).into_iter().enumerate().map(at).collect()
            });
        }
    }

    #[test]
    fn gather_nd_agrees_with_the_oracle() {
        let index = [1, 0, -1, 1, 0, -2];
        for (shape, batch_dims, depth) in [
            (&[3, 2, 4][..], 0, 1),
            (&[2, 2, 3], 0, 2),
            (&[2, 2, 2, 2], 0, 3),
            (&[3, 2, 2, 2], 1, 1),
            (&[3, 2, 2], 1, 2),
        ] {
            let tuples = index.len() / depth;
            let places = Places::tuples(shape, batch_dims, depth, tuples);
            let batches: usize = shape[..batch_dims].iter().product();
            check_gather(&places, &index, shape.iter().product(), &|x| {
                let mut y = Vec::new();
                for j in 0..tuples {
                    let batch = &indices(&shape[..batch_dims])[j / (tuples / batches)];
                    for rest in indices(&shape[batch_dims + depth..]) {
                        let named = (0..depth).map(|i| resolve(index[j * depth + i], shape[batch_dims + i]));
                        let at: Vec<usize> = batch.iter().copied().chain(named).chain(rest).collect();
                        y.push(x[offset(&at, shape)]);
                    }
                }
                y
            });
        }
    }

    fn check_scatter(places: &Places, index: &[i64], add: bool) {
        let (data, updates) = (values(1, places.data_len), values(2, places.chunks * places.inner));
        let mut fixed = places.clone();
        assert!(fixed.fix(index));
        let targets = fixed.fixed.clone().unwrap();
        let floats: Vec<f32> = index.iter().map(|i| *i as f32).collect();
        for set in 0..8usize {
            let constant = [0, 1, 2].map(|i| set >> i & 1 == 1);
            let given: Vec<usize> = (0..3).filter(|i| !constant[*i]).collect();
            let op = Scatter::new(
                if constant[1] { fixed.clone() } else { places.clone() },
                constant[0].then(|| data.clone().into()),
                constant[2].then(|| updates.clone().into()),
                add,
            );
            let all = [&data, &floats, &updates];
            let oracle = |x: &[Vec<f64>]| {
                let value = |i: usize| match given.iter().position(|g| *g == i) {
                    Some(at) => x[at].clone(),
                    None => all[i].iter().map(|v| f64::from(*v)).collect(),
                };
                let (mut y, u) = (value(0), value(2));
                for (j, place) in targets.iter().enumerate() {
                    for c in 0..places.inner {
                        let u = u[j * places.inner + c];
                        y[place + c] = if add { y[place + c] + u } else { u };
                    }
                }
                y
            };
            Case { op: &op, x: given.iter().map(|g| all[*g].clone()).collect(), oracle: &oracle }.run();
        }
    }

    #[test]
    fn scatter_agrees_with_the_oracle() {
        check_scatter(&Places::elements(&[3, 4], &[2, 3], 1), &[1, 0, -1, 3, 1, 2], false);
        check_scatter(&Places::elements(&[3, 4], &[2, 3], 1), &[1, 1, -3, 0, 0, 2], true);
        check_scatter(&Places::tuples(&[4, 3, 2], 0, 1, 2), &[3, -4], false);
        check_scatter(&Places::tuples(&[3, 2, 2], 0, 2, 3), &[0, 1, 0, 1, 2, -2], true);
    }

    #[test]
    fn an_index_out_of_range_is_not_a_number() {
        let mut places = Places::along_axis(1, 3, 2, 2);
        assert!(!places.clone().fix(&[0, 3]) && !places.clone().fix(&[-4, 0]) && places.fix(&[-3, 2]));
        let op = Gather::new(Places::along_axis(1, 3, 2, 3), None);
        let (data, index) = (values(1, 6), [1.0, 3.0, f32::NAN]);
        let (mut y, mut dx) = ([0.0; 6], [0.0; 6]);
        op.forward(&[&data, &index], &mut y, &mut [], &mut []);
        assert!(y[..2] == data[2..4] && y[2..].iter().all(|y| y.is_nan()));
        op.vjp(&[&[], &index], &[], &[], &mut [1.0; 6], &mut [Some(&mut dx), None], &mut []);
        assert_eq!(dx, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
        let op = Scatter::new(Places::tuples(&[3, 2], 0, 1, 1), None, None, false);
        op.forward(&[&data, &[-9.0], &[1.0, 1.0]], &mut y, &mut [], &mut []);
        assert!(y.iter().all(|y| y.is_nan()));
    }
}
