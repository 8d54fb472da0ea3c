//! The physical order of a value's dimensions.

pub(crate) use crate::ops::movement::permuted;

/// `order[i]` is the logical dimension at physical position i.
pub(crate) type Order = Vec<usize>;

/// Row-major.
pub(crate) fn row_major(rank: usize) -> Order {
    (0..rank).collect()
}

/// Batch, then the plane, then channels.
pub(crate) fn channels_last(rank: usize) -> Order {
    if rank < 3 {
        return row_major(rank);
    }
    std::iter::once(0).chain(2..rank).chain(std::iter::once(1)).collect()
}

/// Whether two orders put the same elements in the same places: dimensions of size 1 do not count.
pub(crate) fn same(shape: &[usize], a: &[usize], b: &[usize]) -> bool {
    let wide = |order: &[usize]| -> Vec<usize> { order.iter().copied().filter(|d| shape[*d] != 1).collect() };
    wide(a) == wide(b)
}

/// `shape` in physical order.
pub(crate) fn physical(shape: &[usize], order: &[usize]) -> Vec<usize> {
    order.iter().map(|d| shape[*d]).collect()
}

/// Where logical dimension `axis` stands physically.
pub(crate) fn position(order: &[usize], axis: usize) -> usize {
    order.iter().position(|d| *d == axis).unwrap_or(0)
}

/// The order of a reshaped value, if it keeps its elements in place without being row-major: the dimensions other than
/// 1 must be the same in the same sequence.
pub(crate) fn reshaped(from: &[usize], order: &[usize], to: &[usize]) -> Option<Order> {
    let wide = |shape: &[usize]| -> Vec<usize> { (0..shape.len()).filter(|d| shape[*d] != 1).collect() };
    let (old, new) = (wide(from), wide(to));
    let sizes = |dims: &[usize], shape: &[usize]| -> Vec<usize> { dims.iter().map(|d| shape[*d]).collect() };
    if sizes(&old, from) != sizes(&new, to) {
        return None;
    }
    let mut out: Order = (0..to.len()).filter(|d| to[*d] == 1).collect();
    for d in order {
        if let Some(k) = old.iter().position(|o| o == d) {
            out.push(new[k]);
        }
    }
    Some(out)
}
