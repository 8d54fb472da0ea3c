//! Places boxes in rows, each below all that it reads.

pub(super) const BOX_WIDTH: f64 = 280.0;
/// Between boxes of a row, and the width of a line that passes a row.
const GAP: f64 = 26.0;
const ROW_GAP: f64 = 26.0;

/// Where boxes and lines are.
pub(super) struct Layout {
    /// Middle of the upper edge of each box.
    pub(super) places: Vec<(f64, f64)>,
    /// Points of each line, from the lower edge of a box to the upper edge of another.
    pub(super) ways: Vec<Vec<(f64, f64)>>,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// What stands in a row: a box, or a line that passes it.
struct Place {
    row: usize,
    node: Option<usize>,
    /// What it hangs on, in the row above.
    above: Vec<usize>,
    x: f64,
}

/// Where a place would stand: below what it hangs on; where ways meet, below the place at which they parted, so that a
/// trunk stays straight beside its branches.
fn wish(places: &[Place], p: usize) -> f64 {
    let up = |from: usize| std::iter::successors(Some(from), |p| places[*p].above.first().copied());
    match places[p].above.as_slice() {
        [] => 0.0,
        [one] => places[*one].x,
        [first, second, ..] => {
            let way: Vec<usize> = up(*first).collect();
            places[up(*second).find(|p| way.contains(p)).unwrap_or(*first)].x
        }
    }
}

/// `from[i]` are the boxes that box `i` reads, all before it.
pub(super) fn layout(from: &[Vec<usize>], heights: &[f64]) -> Layout {
    let mut row = vec![0usize; from.len()];
    for (i, above) in from.iter().enumerate() {
        row[i] = above.iter().map(|a| row[*a] + 1).max().unwrap_or(0);
    }
    let mut places: Vec<Place> =
        (0..from.len()).map(|i| Place { row: row[i], node: Some(i), above: Vec::new(), x: 0.0 }).collect();
    // A line that passes rows has a place in each; lines from one box share them.
    let mut passing: Vec<Vec<usize>> = vec![Vec::new(); from.len()];
    let mut chains: Vec<Vec<usize>> = Vec::new();
    for (i, above) in from.iter().enumerate() {
        for source in above {
            let mut chain = vec![*source];
            for passed in row[*source] + 1..row[i] {
                let at = passed - row[*source] - 1;
                if passing[*source].len() <= at {
                    places.push(Place { row: passed, node: None, above: vec![chain[chain.len() - 1]], x: 0.0 });
                    passing[*source].push(places.len() - 1);
                }
                chain.push(passing[*source][at]);
            }
            places[i].above.push(chain[chain.len() - 1]);
            chain.push(i);
            chains.push(chain);
        }
    }
    let rows = row.iter().max().map_or(0, |r| r + 1);
    for r in 0..rows {
        let of_row: Vec<usize> = (0..places.len()).filter(|p| places[*p].row == r).collect();
        let (mut boxes, lines): (Vec<usize>, Vec<usize>) = of_row.into_iter().partition(|p| places[*p].node.is_some());
        let wishes: Vec<f64> = (0..places.len()).map(|p| wish(&places, p)).collect();
        boxes.sort_by(|a, b| wishes[*a].total_cmp(&wishes[*b]));
        let mut x = f64::NEG_INFINITY;
        let mut drift = 0.0;
        for p in &boxes {
            x = wishes[*p].max(x + BOX_WIDTH + GAP);
            places[*p].x = x;
            drift += x - wishes[*p];
        }
        let drift = drift / boxes.len().max(1) as f64;
        boxes.iter().for_each(|p| places[*p].x -= drift);
        // Lines take the nearest free place on the right.
        let mut busy: Vec<(f64, f64)> = boxes.iter().map(|p| (places[*p].x, BOX_WIDTH / 2.0 + GAP / 2.0)).collect();
        for p in lines {
            let mut x = wishes[p];
            while let Some((at, reach)) = busy.iter().find(|(at, reach)| (x - at).abs() < reach + 4.0) {
                x = at + reach + 4.5;
            }
            places[p].x = x;
            busy.push((x, 8.0));
        }
    }
    let left =
        places.iter().map(|p| p.x - if p.node.is_some() { BOX_WIDTH / 2.0 } else { 8.0 }).fold(f64::MAX, f64::min);
    let right =
        places.iter().map(|p| p.x + if p.node.is_some() { BOX_WIDTH / 2.0 } else { 8.0 }).fold(f64::MIN, f64::max);
    let tall =
        |r: usize| places.iter().filter(|p| p.row == r).filter_map(|p| Some(heights[p.node?])).fold(0.0, f64::max);
    let mut tops = Vec::new();
    let mut y = 0.0;
    for r in 0..rows {
        tops.push(y);
        y += tall(r) + ROW_GAP;
    }
    let ways = chains
        .iter()
        .map(|chain| {
            let mut points = Vec::new();
            for (i, p) in chain.iter().enumerate() {
                let place = &places[*p];
                let (x, top) = (place.x - left, tops[place.row]);
                match place.node {
                    Some(node) if i == 0 => points.push((x, top + heights[node])),
                    Some(_) => points.push((x, top)),
                    // Straight down beside the boxes of the row.
                    None => points.extend([(x, top), (x, top + tall(place.row))]),
                }
            }
            points
        })
        .collect();
    Layout {
        places: (0..from.len()).map(|i| (places[i].x - left, tops[places[i].row])).collect(),
        ways,
        width: (right - left).max(BOX_WIDTH),
        height: (y - ROW_GAP).max(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trunk_is_straight_and_nothing_overlaps() {
        // 0 → 1 → 2 → 3, and 0 → 3 beside it; 3 → 4, 5, 6 → 7.
        let from = [vec![], vec![0], vec![1], vec![2, 0], vec![3], vec![3], vec![3], vec![4, 5, 6]];
        let of = layout(&from, &[40.0; 8]);
        assert!((0..4).all(|i| of.places[i].0 == of.places[0].0), "{:?}", of.places);
        for i in 0..8 {
            for j in 0..i {
                let (a, b) = (of.places[i], of.places[j]);
                assert!((a.0 - b.0).abs() >= BOX_WIDTH || (a.1 - b.1).abs() >= 40.0, "{i} {j}");
            }
        }
        assert_eq!(of.ways.len(), 10);
        let passing = of.ways.iter().find(|w| w.len() > 2).unwrap();
        assert!(passing[1].0 > of.places[1].0 + BOX_WIDTH / 2.0);
    }
}
