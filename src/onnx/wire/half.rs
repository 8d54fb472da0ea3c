//! 16-bit floats, as bits.

/// The nearest 16-bit float, ties to even; what is too large becomes infinite.
pub(crate) fn f16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    // Adding half a unit of the last place that stays, and that place's own bit, rounds to nearest, ties to even.
    let rounded = |bits: u32, dropped: u32| {
        let odd = bits >> dropped & 1;
        (bits + (1 << (dropped - 1)) - 1 + odd) >> dropped
    };
    let exponent = magnitude >> 23;
    let half = match exponent {
        143.. => 0x7c00,
        // Normal: the exponent bias goes from 127 to 15; a carry out of the fraction raises the exponent.
        113..143 => rounded(magnitude - (112 << 23), 13),
        // Subnormal: units of 2⁻²⁴.
        102..113 => rounded(magnitude & 0x7f_ffff | 0x80_0000, 126 - exponent),
        _ => 0,
    };
    sign | half as u16
}

/// The nearest bfloat16, the upper half of a float, ties to even; what is too large becomes infinite.
pub(crate) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The value of a 16-bit float.
pub(crate) fn f16_value(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (bits >> 10 & 0x1f, f32::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(i32::from(exponent) - 25),
    }
}
