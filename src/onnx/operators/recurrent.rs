//! Recurrent layers.

use super::{Family, Operator};

pub(super) const FAMILY: Family = Family {
    title: "Recurrent layers",
    rows: &[
        Operator::of("GRU", 7)
            .lora("low-rank pairs on W and R")
            .note("constant weights; both directions, initial state, linear_before_reset"),
        Operator::of("LSTM", 7)
            .lora("low-rank pairs on W and R")
            .note("constant weights; both directions, initial states, peepholes without a pair"),
        Operator::of("RNN", 7)
            .lora("low-rank pairs on W and R")
            .note("constant weights; both directions, initial state"),
    ],
};
