//! Constants.

use super::{Family, Forward, Gradient, Operator};

pub(super) const FAMILY: Family = Family {
    title: "Constants",
    rows: &[
        Operator::of("Constant", 7).forward(Forward::Folded).gradient(Gradient::None),
        Operator::of("ConstantOfShape", 9).forward(Forward::Folded).gradient(Gradient::None),
        Operator::of("Shape", 7).forward(Forward::Folded).gradient(Gradient::None),
        Operator::of("Size", 7).forward(Forward::Folded).gradient(Gradient::None),
        Operator::of("Range", 11).forward(Forward::Folded).gradient(Gradient::None),
        Operator::of("EyeLike", 9).forward(Forward::Folded).gradient(Gradient::None),
    ],
};
