//! Boards: what is known of each kind, and what is found on the one that this runs on.
//!
//! A [`Profile`] names a kind of board and the budgets of training on it; those of `targets/` are built in. [`Found`] is what
//! a running system says of itself, read below a root folder, and [`Found::advice`] what to change there.

mod found;
mod profile;
mod simd;
mod temperature;

pub use found::{Access, Found, SoundCard};
pub use profile::{BoardError, Profile};
pub use simd::simd;
pub(crate) use temperature::temperature_c;

/// `2.36` as numbers, to compare by.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    // 2.36-9+deb12u10 is 2.36.
    let digits = minor.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, digits.parse().ok()?))
}
