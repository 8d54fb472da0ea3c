//! Recurrent layers.

use super::{Family, Operator};

pub(super) const FAMILY: Family = Family {
    title: "Recurrent layers",
    rows: &[
        Operator::of("GRU", 7)
            .lora("low-rank pairs on W and R")
            .note("both directions; every clip has all its steps; computed weights in direction forward only, through tract; initial state, linear_before_reset"),
        Operator::of("LSTM", 7)
            .lora("low-rank pairs on W and R")
            .note("both directions; every clip has all its steps; computed weights in direction forward only, through tract; initial states, peepholes without a pair"),
        Operator::of("RNN", 7)
            .lora("low-rank pairs on W and R")
            .note("both directions; every clip has all its steps; computed weights in direction forward only, through tract; initial state"),
    ],
};
