//! Resize and Upsample.

use std::sync::Arc;

use tract_onnx::pb::NodeProto;

use super::Converter;
use crate::graph::{Op, ValueId};
use crate::onnx::OnnxError;
use crate::onnx::attributes::Attributes;
use crate::ops::resize::{AxisMap, Coordinates, Interpolation, Rounding, Rule};

/// Default of `cubic_coeff_a`.
const CUBIC: f32 = -0.75;

impl Converter<'_> {
    /// Lowers Resize and Upsample with constant scales or sizes; false for another node.
    pub(super) fn lower_resize(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        y: ValueId,
    ) -> Result<bool, OnnxError> {
        let attributes = Attributes(node);
        let upsample = node.op_type == "Upsample";
        if !upsample && node.op_type != "Resize" {
            return Ok(false);
        }
        let Some(x) = inputs.first().copied().flatten() else { return Ok(false) };
        let (shape, y_shape) = (self.shape(x), self.shape(y));
        // Before opset 11 there is one way only: o / scale, rounded down.
        let plain = upsample || self.opset < 11;
        let (scales_at, sizes_at) = if plain { (1, usize::MAX) } else { (2, 3) };
        let input = |i: usize| inputs.get(i).copied().flatten().filter(|v| !self.graph.values[*v].is_empty());
        let axes = attributes.ints("axes").filter(|_| !plain && self.opset >= 18).map(<[i64]>::to_vec);
        let axes = self.axes(node, axes, shape.len())?;
        if shape.len() != y_shape.len() {
            return Err(self.error(node, format!("{shape:?} and {y_shape:?} have different ranks")));
        }
        let ratio = |axis: usize| y_shape[axis] as f64 / shape[axis] as f64;
        let listed = attributes.get("scales").filter(|_| upsample).map(|a| a.floats.clone());
        let scales: Vec<f64> = if let Some(sizes) = input(sizes_at) {
            let Some(sizes) = self.ints(Some(sizes)) else { return Ok(false) };
            let asked = axes.iter().zip(sizes).map(|(axis, size)| size as f64 / shape[*axis] as f64);
            match attributes.string("keep_aspect_ratio_policy").unwrap_or("stretch") {
                "not_larger" => vec![asked.fold(f64::INFINITY, f64::min); axes.len()],
                "not_smaller" => vec![asked.fold(0.0, f64::max); axes.len()],
                _ => axes.iter().map(|axis| ratio(*axis)).collect(),
            }
        } else if let Some(scales) = listed.filter(|l| !l.is_empty()) {
            scales.iter().map(|s| f64::from(*s)).collect()
        } else {
            let constant = input(scales_at).and_then(|id| self.graph.values[id].values());
            let Some(scales) = constant else { return Ok(false) };
            scales.iter().map(|s| f64::from(*s)).collect()
        };
        // Sizes are rounded down from the scale, or to the nearest.
        let fits = |(axis, scale): (&usize, &f64)| {
            let (from, to) = (shape[*axis], y_shape[*axis]);
            let near = (scale * from as f64 - to as f64).abs() <= 1.0;
            from == 0 || scale.is_finite() && *scale > 0.0 && near
        };
        if scales.len() != axes.len() || !axes.iter().zip(&scales).all(fits) {
            return Err(self.error(node, format!("scales {scales:?} do not fit {shape:?} to {y_shape:?}")));
        }

        let text = |name: &str, default: &'static str| attributes.string(name).unwrap_or(default).to_owned();
        let unknown = |what: &str, found: &str| Err(self.error(node, format!("{what} `{found}` is not known")));
        let rounding = match text("nearest_mode", "round_prefer_floor").as_str() {
            _ if plain => Rounding::Floor,
            "round_prefer_floor" => Rounding::PreferFloor,
            "round_prefer_ceil" => Rounding::PreferCeil,
            "floor" => Rounding::Floor,
            "ceil" => Rounding::Ceil,
            other => return unknown("nearest_mode", other),
        };
        let interpolation = match text("mode", "nearest").as_str() {
            "nearest" => Interpolation::Nearest(rounding),
            "linear" | "bilinear" => Interpolation::Linear,
            "cubic" => Interpolation::Cubic { a: attributes.float("cubic_coeff_a").unwrap_or(CUBIC).into() },
            other => return unknown("mode", other),
        };
        let given = text("coordinate_transformation_mode", "half_pixel");
        let crop = !plain && given == "tf_crop_and_resize";
        let region = if crop {
            let region = input(1).and_then(|id| self.graph.values[id].values());
            match region.filter(|r| r.len() == 2 * axes.len()) {
                Some(region) => region.to_vec(),
                None => return Ok(false),
            }
        } else {
            Vec::new()
        };
        let coordinates = match given.as_str() {
            _ if plain => Coordinates::Asymmetric,
            "half_pixel" => Coordinates::HalfPixel,
            "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
            "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
            "tf_half_pixel_for_nn" => Coordinates::TfHalfPixelForNearest,
            "align_corners" => Coordinates::AlignCorners,
            "asymmetric" => Coordinates::Asymmetric,
            "tf_crop_and_resize" => Coordinates::Crop(0.0, 1.0),
            other => return unknown("coordinate_transformation_mode", other),
        };
        let flag = |name: &str| !plain && attributes.int(name).unwrap_or(0) != 0;
        let rule =
            Rule { interpolation, coordinates, exclude_outside: flag("exclude_outside"), antialias: flag("antialias") };
        let mut maps = Vec::new();
        for (i, (axis, scale)) in axes.iter().zip(&scales).enumerate() {
            let mut rule = rule;
            if crop {
                rule.coordinates = Coordinates::Crop(region[i].into(), region[axes.len() + i].into());
            }
            maps.push((*axis, AxisMap::new(&rule, shape[*axis], y_shape[*axis], *scale)));
        }
        let fill = attributes.float("extrapolation_value").unwrap_or(0.0);
        self.push(node, name, Op::Resize(Arc::from(maps), fill), vec![x], y);
        Ok(true)
    }
}

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
