//! Reductions and softmax.

use super::{Family, Operator};

pub(super) const FAMILY: Family = Family {
    title: "Reductions and softmax",
    rows: &[
        Operator::of("ReduceMean", 7),
        Operator::of("ReduceSum", 7),
        Operator::of("ReduceMax", 7).note("truth values: of one or more"),
        Operator::of("ReduceMin", 7),
        Operator::of("ReduceProd", 7),
        Operator::of("ReduceL1", 7),
        Operator::of("ReduceL2", 7),
        Operator::of("ReduceSumSquare", 7),
        Operator::of("ReduceLogSum", 7),
        Operator::of("ReduceLogSumExp", 7),
        Operator::of("Softmax", 7).note("any axis; opsets before 13 over all axes from it on"),
        Operator::of("LogSoftmax", 7).note("as Softmax"),
        Operator::of("CumSum", 11).note("constant axis"),
    ],
};
