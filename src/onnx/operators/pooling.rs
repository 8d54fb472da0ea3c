//! Pooling and resizing.

use super::{Family, Operator};

pub(super) const FAMILY: Family = Family {
    title: "Pooling and resizing",
    rows: &[
        Operator::of("MaxPool", 7).note("one output; with the indices through tract"),
        Operator::of("AveragePool", 7),
        Operator::of("GlobalMaxPool", 7),
        Operator::of("LpPool", 7),
        Operator::of("GlobalLpPool", 7),
        Operator::of("GlobalAveragePool", 7),
        Operator::of("Resize", 10).note("nearest, linear and cubic; constant scales or sizes"),
        Operator::of("Upsample", 7).until(9).note("nearest, linear and cubic; constant scales or sizes"),
    ],
};
