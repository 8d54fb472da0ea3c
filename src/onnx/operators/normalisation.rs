//! Normalisation.

use super::{Family, Operator};

pub(super) const FAMILY: Family = Family {
    title: "Normalisation",
    rows: &[
        Operator::of("BatchNormalization", 7).note(
            "constant statistics, in training mode the file is refused; folded into a frozen convolution before it",
        ),
        Operator::of("LayerNormalization", 17).note("constant scale and bias; also where it is spelled out"),
        Operator::of("RMSNormalization", 23),
        Operator::of("InstanceNormalization", 7),
        Operator::of("GroupNormalization", 18),
        Operator::of("LpNormalization", 7),
        Operator::of("MeanVarianceNormalization", 9),
        Operator::of("LRN", 7),
    ],
};
