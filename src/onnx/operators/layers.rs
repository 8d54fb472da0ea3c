//! Layers.

use super::{Family, Operator};

pub(super) const FAMILY: Family = Family {
    title: "Layers",
    rows: &[
        Operator::of("Conv", 7)
            .lora("low-rank pair; depthwise: scale and shift")
            .note("1-D and 2-D, constant weight; any stride, dilation, padding, groups"),
        Operator::of("ConvTranspose", 7).lora("low-rank pair").note("1-D and 2-D, constant weight"),
        Operator::of("MatMul", 7).lora("low-rank pair, weight on either side").note("also of two activations, batched"),
        Operator::of("Gemm", 7).lora("low-rank pair, any transposition"),
        Operator::of("Einsum", 12).note("sums, products and diagonals of any number of operands"),
    ],
};
