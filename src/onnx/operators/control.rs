//! Control flow.

use super::{Family, Forward, Gradient, Operator};

pub(super) const FAMILY: Family = Family {
    title: "Control flow",
    rows: &[
        Operator::of("If", 7)
            .forward(Forward::Refused)
            .gradient(Gradient::None)
            .note("a file with it is refused: export without control flow"),
        Operator::of("Loop", 7)
            .forward(Forward::Refused)
            .gradient(Gradient::None)
            .note("a file with it is refused: export without control flow"),
        Operator::of("Scan", 8)
            .forward(Forward::Refused)
            .gradient(Gradient::None)
            .note("a file with it is refused: export without control flow"),
    ],
};
