//! The operators of ONNX that are known here: in which opsets, with which gradient, with which adapters.
//!
//! The table is what `docs/operators.md` is made of (`accentor operators --markdown`); tests/operators.rs holds it
//! against the converter. A family is a file; a new operator is a row of one.

mod constant;
mod contrib;
mod control;
mod elementwise;
mod indexing;
mod layers;
mod movement;
mod normalisation;
mod pooling;
mod quantised;
mod recurrent;
mod reduction;

use serde::Serialize;

/// The newest opset that the tables were read for.
const NEWEST: u8 = 24;

/// Rows that stand under one heading.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Family {
    /// The heading.
    pub title: &'static str,
    /// Its operators.
    pub rows: &'static [Operator],
}

/// One operator.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Operator {
    /// Its type in a file.
    pub name: &'static str,
    /// The first opset in which it is taken.
    pub since: u8,
    /// The last.
    pub until: u8,
    /// Where the operator is defined.
    pub domain: Domain,
    /// What computes it.
    pub forward: Forward,
    /// What passes back.
    pub gradient: Gradient,
    /// What an adapter on it is; empty where there is none.
    pub lora: &'static str,
    /// Limits.
    pub note: &'static str,
}

/// Domain of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Domain {
    /// ai.onnx.
    Standard,
    /// com.microsoft.
    Microsoft,
}

/// What computes an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Forward {
    /// A step of the plan.
    Own,
    /// tract's operator, once a call.
    Tract,
    /// The loader: it is constant for one input shape.
    Folded,
    /// Nothing: the file is refused.
    Refused,
}

/// What passes back through an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Gradient {
    /// To every input that is computed.
    Full,
    /// To some inputs.
    Through(&'static str),
    /// Zero: it is flat almost everywhere.
    Zero,
    /// As if it were not there (straight-through).
    StraightThrough,
    /// Nothing: training through it is refused before it starts.
    None,
}

impl Operator {
    const fn of(name: &'static str, since: u8) -> Self {
        Self {
            name,
            since,
            until: NEWEST,
            domain: Domain::Standard,
            forward: Forward::Own,
            gradient: Gradient::Full,
            lora: "",
            note: "",
        }
    }

    const fn in_domain(self, domain: Domain) -> Self {
        Self { domain, ..self }
    }

    const fn until(self, until: u8) -> Self {
        Self { until, ..self }
    }

    const fn forward(self, forward: Forward) -> Self {
        Self { forward, ..self }
    }

    const fn gradient(self, gradient: Gradient) -> Self {
        Self { gradient, ..self }
    }

    const fn lora(self, lora: &'static str) -> Self {
        Self { lora, ..self }
    }

    const fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }
}

/// Every operator, by family.
pub const FAMILIES: &[Family] = &[
    layers::FAMILY,
    recurrent::FAMILY,
    elementwise::FAMILY,
    reduction::FAMILY,
    normalisation::FAMILY,
    pooling::FAMILY,
    movement::FAMILY,
    indexing::FAMILY,
    constant::FAMILY,
    quantised::FAMILY,
    contrib::FAMILY,
    control::FAMILY,
];

/// The row of an operator; `domain` as a node has it.
pub fn find(domain: &str, name: &str) -> Option<&'static Operator> {
    let of = match domain {
        "" | "ai.onnx" => Domain::Standard,
        "com.microsoft" => Domain::Microsoft,
        _ => return None,
    };
    FAMILIES.iter().flat_map(|f| f.rows).find(|o| o.domain == of && o.name == name)
}

/// The tables of docs/operators.md.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Operators\n\n\
         Made by `accentor operators --markdown`; a test holds this file against the program.\n\n\
         - **Opsets**: those in which a file may use the operator (com.microsoft counts its own versions).\n\
         - **Forward**: *own* runs in the plan; *tract* runs through tract's operator; *folded* is constant for one input shape.\n\
         - **Gradient**: *yes* to every input that is computed. Where there is none, training that would need one is refused\n  \
         before it starts, with the node's name (`accentor inspect`).\n\
         - **LoRA**: what an adapter on the layer is.\n\n\
         An operator that is not named here runs through tract if tract has it, without a gradient; else the file is refused.\n\
         Integers and truth values are held as f32. An input that decides a shape (a shape, axes, pads, repeats, sizes) must be\n\
         a constant, or follow from the shape of the model's input. No operator takes float8, float4, strings, sequences or\n\
         optional values.\n",
    );
    for family in FAMILIES {
        out += &format!(
            "\n## {}\n\n| operator | opsets | forward | gradient | LoRA | limits |\n|---|---|---|---|---|---|\n",
            family.title
        );
        for row in family.rows {
            let opsets = match (row.domain, row.since == row.until) {
                (Domain::Microsoft, _) => format!("com.microsoft {}", row.since),
                (_, true) => row.since.to_string(),
                _ => format!("{}–{}", row.since, row.until),
            };
            let forward = match row.forward {
                Forward::Own => "own",
                Forward::Tract => "tract",
                Forward::Folded => "folded",
                Forward::Refused => "refused",
            };
            let gradient = match row.gradient {
                Gradient::Full => String::from("yes"),
                Gradient::Through(inputs) => format!("to {inputs}"),
                Gradient::Zero => String::from("zero"),
                Gradient::StraightThrough => String::from("straight-through"),
                Gradient::None => String::from("none"),
            };
            out += &format!("| {} | {opsets} | {forward} | {gradient} | {} | {} |\n", row.name, row.lora, row.note);
        }
    }
    out
}
