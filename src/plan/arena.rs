//! Places buffers with lifetimes in one arena.

/// A buffer that lives from step `first` to step `last`, both included.
#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    pub(crate) len: usize,
    pub(crate) first: usize,
    pub(crate) last: usize,
}

/// Buffers start at multiples of this many values: one cache line.
const ALIGNMENT: usize = 16;

/// The values of an arena, the first at the start of a cache line: a vector that straddles two is loaded in twice the time.
#[derive(Debug, Default)]
pub struct Arena {
    values: Vec<f32>,
    first: usize,
    len: usize,
}

impl Arena {
    /// `len` zeros.
    pub fn new(len: usize) -> Self {
        let values = vec![0.0; len + ALIGNMENT - 1];
        // On a system that cannot tell, anywhere will do.
        let first = values.as_ptr().align_offset(ALIGNMENT * size_of::<f32>()).min(ALIGNMENT - 1);
        Self { values, first, len }
    }
}

impl std::ops::Deref for Arena {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.first..][..self.len]
    }
}

impl std::ops::DerefMut for Arena {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.first..][..self.len]
    }
}

/// An offset for each buffer, such that buffers alive at the same time do not overlap, and the arena's length.
///
/// Largest first, each at the lowest place that is free during its life (Pisarchyk and Lee 2020, "Efficient memory
/// management for deep neural net inference", arXiv 2001.03288, greedy by size).
pub(crate) fn place(buffers: &[Buffer]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(buffers[*i].len), *i));
    let mut offsets = vec![0; buffers.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for index in order {
        let buffer = &buffers[index];
        if buffer.len == 0 {
            continue;
        }
        let mut busy: Vec<(usize, usize)> = placed
            .iter()
            .filter(|p| buffers[**p].first <= buffer.last && buffer.first <= buffers[**p].last)
            .map(|p| (offsets[*p], offsets[*p] + buffers[*p].len))
            .collect();
        busy.sort_unstable();
        let mut at = 0;
        for (start, end) in busy {
            if at + buffer.len <= start {
                break;
            }
            at = at.max(end.next_multiple_of(ALIGNMENT));
        }
        offsets[index] = at;
        total = total.max(at + buffer.len);
        placed.push(index);
    }
    (offsets, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_alive_together_do_not_overlap() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..50 {
            let buffers: Vec<Buffer> = (0..40)
                .map(|_| {
                    let first = rng.usize(0..30);
                    Buffer { len: rng.usize(0..200), first, last: first + rng.usize(0..10) }
                })
                .collect();
            let (offsets, total) = place(&buffers);
            for i in 0..buffers.len() {
                assert!(buffers[i].len == 0 || offsets[i] + buffers[i].len <= total);
                for j in 0..i {
                    let together = buffers[i].first <= buffers[j].last && buffers[j].first <= buffers[i].last;
                    let apart = offsets[i] + buffers[i].len <= offsets[j] || offsets[j] + buffers[j].len <= offsets[i];
                    assert!(!together || apart || buffers[i].len == 0 || buffers[j].len == 0);
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_its_two_largest_neighbours() {
        let buffers: Vec<Buffer> =
            [64, 128, 32, 16].iter().enumerate().map(|(i, len)| Buffer { len: *len, first: i, last: i + 1 }).collect();
        assert_eq!(place(&buffers).1, 192);
    }
}
