//! Movement.

use super::{Family, Operator};

pub(super) const FAMILY: Family = Family {
    title: "Movement",
    rows: &[
        Operator::of("Identity", 7).note("tensors, no sequences or optional values"),
        Operator::of("Reshape", 7),
        Operator::of("Flatten", 7),
        Operator::of("Squeeze", 7),
        Operator::of("Unsqueeze", 7),
        Operator::of("Transpose", 7),
        Operator::of("Concat", 7),
        Operator::of("Split", 7),
        Operator::of("Slice", 7).note("constant starts and steps"),
        Operator::of("Pad", 7).note("constant, reflect, edge, wrap; constant pads"),
        Operator::of("Expand", 8),
        Operator::of("Tile", 7),
        Operator::of("DepthToSpace", 7),
        Operator::of("SpaceToDepth", 7),
        Operator::of("CenterCropPad", 18).note("constant shape"),
        Operator::of("Trilu", 14).note("constant k"),
        Operator::of("Dropout", 7).note("as in inference: nothing; in training mode the file is refused"),
        Operator::of("Cast", 7)
            .note("no float8, float4 or 2 bits; to 4 bits only what is stored; values are f32 throughout"),
        Operator::of("CastLike", 15).note("as Cast"),
    ],
};
