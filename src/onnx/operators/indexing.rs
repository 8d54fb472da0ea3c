//! Choosing.

use super::{Family, Forward, Gradient, Operator};

pub(super) const FAMILY: Family = Family {
    title: "Choosing",
    rows: &[
        Operator::of("Where", 9).gradient(Gradient::Through("x and y")),
        Operator::of("Gather", 7).gradient(Gradient::Through("data")).note("an embedding takes no pair yet"),
        Operator::of("GatherElements", 11).gradient(Gradient::Through("data")),
        Operator::of("GatherND", 11).gradient(Gradient::Through("data")),
        Operator::of("Scatter", 9).until(10).gradient(Gradient::Through("data and updates")),
        Operator::of("ScatterElements", 11)
            .gradient(Gradient::Through("data and updates"))
            .note("reduction none or add"),
        Operator::of("ScatterND", 11).gradient(Gradient::Through("data and updates")).note("reduction none or add"),
        Operator::of("ArgMax", 7).forward(Forward::Tract).gradient(Gradient::None),
        Operator::of("ArgMin", 7).forward(Forward::Tract).gradient(Gradient::None),
        Operator::of("TopK", 7).forward(Forward::Tract).gradient(Gradient::None),
        Operator::of("NonZero", 9).forward(Forward::Folded).gradient(Gradient::None),
        Operator::of("OneHot", 9)
            .forward(Forward::Tract)
            .gradient(Gradient::None)
            .note("indices inside the depth; constant depth and values"),
        Operator::of("Equal", 7).forward(Forward::Tract).gradient(Gradient::None),
        Operator::of("Greater", 7).forward(Forward::Tract).gradient(Gradient::None),
        Operator::of("Less", 7).forward(Forward::Tract).gradient(Gradient::None),
        Operator::of("And", 7).forward(Forward::Tract).gradient(Gradient::None),
        Operator::of("Or", 7).forward(Forward::Tract).gradient(Gradient::None),
        Operator::of("Not", 7).forward(Forward::Tract).gradient(Gradient::None),
        Operator::of("BitShift", 11)
            .forward(Forward::Tract)
            .gradient(Gradient::None)
            .note("by constants from 0 to 7 bits"),
        Operator::of("Mod", 10).forward(Forward::Tract).gradient(Gradient::None),
    ],
};
