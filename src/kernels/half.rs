//! f32 to and from the 16 bits of IEEE 754 binary16: one sign, five exponent, ten fraction bits.
//!
//! Branchless, so that the compiler makes vectors of the loops that call it.

/// The largest value of binary16, `(2 - 2⁻¹⁰)·2¹⁵`.
pub const LARGEST: f32 = 65504.0;

/// Bits of the fraction that f32 has more.
const SHIFT: u32 = 23 - 10;
/// By what the exponents' biases differ, in place in an f32.
const REBIAS: u32 = (127 - 15) << 23;
/// 2⁻¹⁴, the least normal value, in the bits of an f32.
const LEAST_NORMAL: u32 = (127 - 14) << 23;
/// The exponent that stands for infinity and NaN.
const SPECIAL: u32 = 31 << 10;

/// The nearest binary16, of two the even one; what lies beyond [`LARGEST`] by half a place or more becomes infinity, as IEEE 754
/// rounds.
#[inline]
pub fn to_half(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) & 0x8000;
    let bits = x.to_bits() & 0x7fff_ffff;
    // Half a place is added, or one bit less where the kept bits are even.
    let even = (bits >> SHIFT) & 1;
    let normal = bits.wrapping_sub(REBIAS).wrapping_add((1 << (SHIFT - 1)) - 1 + even) >> SHIFT;
    // In 0.5 + |x| the last place is 2⁻²⁴, that of the subnormal values.
    let subnormal = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let nan = bits > f32::INFINITY.to_bits();
    let magnitude = if bits < LEAST_NORMAL { subnormal } else { normal.min(SPECIAL) };
    (sign | if nan { SPECIAL | 1 << 9 } else { magnitude }) as u16
}

/// The f32 of the same value.
#[inline]
pub fn from_half(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let bits = u32::from(half & 0x7fff);
    let shifted = (bits << SHIFT) + REBIAS;
    let subnormal = f32::from_bits(shifted + (1 << 23)) - f32::from_bits(LEAST_NORMAL);
    let magnitude = if bits < 1 << 10 { subnormal.to_bits() } else { shifted };
    let special = if bits >= SPECIAL { REBIAS } else { 0 };
    f32::from_bits(sign | (magnitude + special))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (-1)^s · 2^(e - 15) · (1 + f/1024), and 2⁻¹⁴ · f/1024 for e = 0 (IEEE 754-2019, 3.4).
    fn value(half: u16) -> f64 {
        let (exponent, fraction) = (i32::from(half >> 10 & 31), f64::from(half & 1023));
        let magnitude = match exponent {
            0 => fraction * 2f64.powi(-24),
            31 if fraction == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
        };
        if half >> 15 == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn every_half_is_its_value_and_comes_back() {
        for half in 0..=u16::MAX {
            let (found, expected) = (f64::from(from_half(half)), value(half));
            if expected.is_nan() {
                assert!(found.is_nan() && from_half(to_half(found as f32)).is_nan(), "{half:#x}");
                continue;
            }
            assert_eq!(found.to_bits(), expected.to_bits(), "{half:#x}");
            assert_eq!(to_half(found as f32), half);
        }
    }

    #[test]
    fn the_nearest_is_taken_and_of_two_the_even_one() {
        for half in 0..SPECIAL as u16 - 1 {
            let (low, high) = (value(half), value(half + 1));
            let middle = (low + high) / 2.0;
            let even = half + (half & 1);
            for sign in [1.0, -1.0] {
                let of = |x: f64| to_half((sign * x) as f32) & 0x7fff;
                assert_eq!(of(middle), even, "{middle:e}");
                // Half a place of binary16 is 2¹² places of f32 or more: one of those to either side is exact.
                let place = f64::from(f32::EPSILON) * middle;
                assert_eq!((of(middle - place), of(middle + place)), (half, half + 1), "{middle:e}");
            }
        }
        assert_eq!(from_half(to_half(LARGEST)), LARGEST);
        assert_eq!(to_half(65519.0), to_half(LARGEST));
        assert_eq!(from_half(to_half(65520.0)), f32::INFINITY);
        assert_eq!(from_half(to_half(f32::MAX)), f32::INFINITY);
        assert_eq!(from_half(to_half(f32::MIN_POSITIVE)), 0.0);
    }
}
