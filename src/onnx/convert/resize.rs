//! Resize and Upsample.

/// The shape that Resize gives for `sizes` of `axes`, with the aspect ratio kept or not (ONNX Resize, opset 18).
pub(in crate::onnx) fn resized(x: &[usize], axes: &[usize], sizes: &[usize], policy: &str) -> Option<Vec<usize>> {
    if axes.len() != sizes.len() || axes.iter().any(|a| *a >= x.len()) {
        return None;
    }
    let ratio = |(axis, size): (&usize, &usize)| *size as f64 / x[*axis] as f64;
    let ratios = axes.iter().zip(sizes).map(ratio);
    let scale = match policy {
        "not_larger" => Some(ratios.fold(f64::INFINITY, f64::min)),
        "not_smaller" => Some(ratios.fold(0.0, f64::max)),
        _ => None,
    };
    let mut shape = x.to_vec();
    for (axis, size) in axes.iter().zip(sizes) {
        // Halves go up, as in the specification.
        shape[*axis] = scale.map_or(*size, |scale| (scale * x[*axis] as f64 + 0.5).floor() as usize);
    }
    Some(shape)
}
