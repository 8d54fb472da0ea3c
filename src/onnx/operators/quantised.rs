//! Quantised layers.

use super::{Domain, Family, Gradient, Operator};

const PAIR: &str = "low-rank pair in f32 beside the integers";
const CONSTANT: &str = "1-D and 2-D, constant weight";

pub(super) const FAMILY: Family = Family {
    title: "Quantised layers",
    rows: &[
        Operator::of("QuantizeLinear", 10)
            .gradient(Gradient::StraightThrough)
            .note("constant scales, per tensor, per channel or in blocks; to 8 bits and more, no float8 or float4"),
        Operator::of("DequantizeLinear", 10)
            .gradient(Gradient::StraightThrough)
            .note("of 4 bits and more, no float8 or float4; constant scales where there are several; of a weight: its layer takes adapters as any other"),
        Operator::of("DynamicQuantizeLinear", 11).gradient(Gradient::StraightThrough),
        Operator::of("QLinearConv", 10).gradient(Gradient::StraightThrough).lora(PAIR).note(CONSTANT),
        Operator::of("QLinearMatMul", 10).gradient(Gradient::StraightThrough).lora(PAIR).note("constant scales and zero points"),
        Operator::of("ConvInteger", 10).gradient(Gradient::StraightThrough).lora(PAIR).note(CONSTANT),
        Operator::of("MatMulInteger", 10).gradient(Gradient::StraightThrough).lora(PAIR),
        Operator::of("MatMulNBits", 1).until(1).in_domain(Domain::Microsoft).lora(PAIR).note("4 bits, constant weight"),
        Operator::of("QGemm", 1).until(1).in_domain(Domain::Microsoft).gradient(Gradient::StraightThrough).lora(PAIR),
        Operator::of("MatMulIntegerToFloat", 1)
            .until(1)
            .in_domain(Domain::Microsoft)
            .gradient(Gradient::StraightThrough)
            .lora(PAIR),
        Operator::of("DynamicQuantizeMatMul", 1)
            .until(1)
            .in_domain(Domain::Microsoft)
            .gradient(Gradient::StraightThrough)
            .lora(PAIR),
        Operator::of("QLinearAdd", 1).until(1).in_domain(Domain::Microsoft).gradient(Gradient::StraightThrough),
        Operator::of("QLinearMul", 1).until(1).in_domain(Domain::Microsoft).gradient(Gradient::StraightThrough),
        Operator::of("QLinearConcat", 1).until(1).in_domain(Domain::Microsoft).gradient(Gradient::StraightThrough),
        Operator::of("QLinearAveragePool", 1).until(1).in_domain(Domain::Microsoft).gradient(Gradient::StraightThrough),
        Operator::of("QLinearGlobalAveragePool", 1)
            .until(1)
            .in_domain(Domain::Microsoft)
            .gradient(Gradient::StraightThrough),
        Operator::of("QLinearLeakyRelu", 1).until(1).in_domain(Domain::Microsoft).gradient(Gradient::StraightThrough),
        Operator::of("QLinearSigmoid", 1).until(1).in_domain(Domain::Microsoft).gradient(Gradient::StraightThrough),
        Operator::of("QLinearSoftmax", 1).until(1).in_domain(Domain::Microsoft).gradient(Gradient::StraightThrough),
    ],
};
