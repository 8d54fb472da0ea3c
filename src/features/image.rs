//! Pictures → pixels in the model's size, order and range.

use serde::{Deserialize, Serialize};

use super::augment::PictureDraw;
use super::{FeatureError, setting};
use crate::source::Picture;

/// The order of a picture's dimensions in the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// `[height, width, channels]`, as TensorFlow.
    #[default]
    Nhwc,
    /// `[channels, height, width]`, as PyTorch.
    Nchw,
}

/// The channels of a pixel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelOrder {
    /// Red first.
    #[default]
    Rgb,
    /// Blue first, as OpenCV.
    Bgr,
    /// One channel, `0.299·r + 0.587·g + 0.114·b`.
    Grey,
}

/// How a picture of another shape is brought to the model's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// The whole picture, stretched.
    #[default]
    Stretch,
    /// The middle, as large as the model's proportions allow.
    Crop,
}

/// One number for every channel or one a channel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerChannel {
    /// The same for all.
    All(f64),
    /// Red, green and blue, whatever the model's order.
    Each([f64; 3]),
}

impl PerChannel {
    fn of(self, channel: usize) -> f64 {
        match self {
            Self::All(value) => value,
            Self::Each(values) => values[channel],
        }
    }

    fn is_finite(self) -> bool {
        (0..3).all(|channel| self.of(channel).is_finite())
    }
}

/// A picture, `[height, width, channels]` or `[channels, height, width]`; every value is `pixel · scale + offset` of a pixel in 0..255.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    /// Columns; 0: as the model's input says.
    pub width: usize,
    /// Rows; 0: as the model's input says.
    pub height: usize,
    /// How a picture of another shape is brought to this one. Resizing uses a triangle filter as wide as the reduction.
    pub fit: Fit,
    /// The order of the dimensions.
    pub layout: Layout,
    /// The channels of a pixel.
    pub order: ChannelOrder,
    /// What pixels are multiplied by.
    pub scale: PerChannel,
    /// What is then added.
    pub offset: PerChannel,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            width: 0,
            height: 0,
            fit: Fit::Stretch,
            layout: Layout::Nhwc,
            order: ChannelOrder::Rgb,
            scale: PerChannel::All(1.0 / 255.0),
            offset: PerChannel::All(0.0),
        }
    }
}

impl Image {
    pub(super) fn check(&self) -> Result<(), FeatureError> {
        setting(self.width <= 16_384, "width", "0 to 16384", self.width)?;
        setting(self.height <= 16_384, "height", "0 to 16384", self.height)?;
        setting(self.scale.is_finite(), "scale", "finite numbers", format!("{:?}", self.scale))?;
        setting(self.offset.is_finite(), "offset", "finite numbers", format!("{:?}", self.offset))
    }

    fn channels(&self) -> usize {
        if self.order == ChannelOrder::Grey { 1 } else { 3 }
    }

    /// The shape of what it yields; sizes left open come from the model's input where its layout fits.
    pub(super) fn shape(&self, input_shape: &[usize]) -> [usize; 3] {
        let (open_height, open_width) = match (self.layout, input_shape) {
            (Layout::Nhwc, [_, height, width, _]) | (Layout::Nchw, [_, _, height, width]) => (*height, *width),
            _ => (0, 0),
        };
        let height = if self.height == 0 { open_height } else { self.height };
        let width = if self.width == 0 { open_width } else { self.width };
        match self.layout {
            Layout::Nhwc => [height, width, self.channels()],
            Layout::Nchw => [self.channels(), height, width],
        }
    }
}

/// A picture's way to the model.
pub(super) struct Pixels {
    width: usize,
    height: usize,
    fit: Fit,
    layout: Layout,
    /// Per channel of the model: weights of red, green, blue, then the offset.
    mix: Vec<[f32; 4]>,
}

impl Pixels {
    pub(super) fn new(settings: &Image, input_shape: &[usize]) -> Self {
        let shape = settings.shape(input_shape);
        let (height, width) = match settings.layout {
            Layout::Nhwc => (shape[0], shape[1]),
            Layout::Nchw => (shape[1], shape[2]),
        };
        let single = |channel: usize| {
            let mut row = [0.0; 4];
            row[channel] = settings.scale.of(channel) as f32;
            row[3] = settings.offset.of(channel) as f32;
            row
        };
        let mix = match settings.order {
            ChannelOrder::Rgb => vec![single(0), single(1), single(2)],
            ChannelOrder::Bgr => vec![single(2), single(1), single(0)],
            ChannelOrder::Grey => {
                let luma = [0.299, 0.587, 0.114];
                let mut row = [0.0; 4];
                for channel in 0..3 {
                    row[channel] = (luma[channel] * settings.scale.of(channel)) as f32;
                    row[3] += (luma[channel] * settings.offset.of(channel)) as f32;
                }
                vec![row]
            }
        };
        Self { width, height, fit: settings.fit, layout: settings.layout, mix }
    }

    pub(super) fn of(&self, picture: &Picture, draw: PictureDraw) -> Result<Vec<f32>, FeatureError> {
        let wanted = picture.width.checked_mul(picture.height).and_then(|pixels| pixels.checked_mul(3));
        if wanted != Some(picture.pixels.len()) || picture.pixels.is_empty() {
            return Err(FeatureError::Picture {
                width: picture.width,
                height: picture.height,
                bytes: picture.pixels.len(),
            });
        }
        let rgb = self.resized(picture);
        let factor = 1.0 + draw.brighter;
        let channels = self.mix.len();
        let mut values = vec![0.0; self.width * self.height * channels];
        for y in 0..self.height {
            let from_y = moved(y, draw.down, self.height);
            for x in 0..self.width {
                let mut from_x = moved(x, draw.right, self.width);
                if draw.flip {
                    from_x = self.width - 1 - from_x;
                }
                let at = (from_y * self.width + from_x) * 3;
                let [red, green, blue] = [rgb[at], rgb[at + 1], rgb[at + 2]].map(|value| (value * factor).min(255.0));
                for (channel, mix) in self.mix.iter().enumerate() {
                    let to = match self.layout {
                        Layout::Nhwc => (y * self.width + x) * channels + channel,
                        Layout::Nchw => (channel * self.height + y) * self.width + x,
                    };
                    values[to] = red * mix[0] + green * mix[1] + blue * mix[2] + mix[3];
                }
            }
        }
        Ok(values)
    }

    /// `[height, width, 3]`, 0..255
    fn resized(&self, picture: &Picture) -> Vec<f32> {
        if (picture.width, picture.height) == (self.width, self.height) {
            return picture.pixels.iter().map(|&value| f32::from(value)).collect();
        }
        let (width, height) = (picture.width as f64, picture.height as f64);
        let (part_width, part_height) = match self.fit {
            Fit::Stretch => (width, height),
            Fit::Crop => {
                let zoom = (width / self.width as f64).min(height / self.height as f64);
                (zoom * self.width as f64, zoom * self.height as f64)
            }
        };
        let columns = filter((width - part_width) / 2.0, part_width, picture.width, self.width);
        let rows = filter((height - part_height) / 2.0, part_height, picture.height, self.height);
        // Rows are first made narrow, each once, then blended.
        let first = rows.iter().map(|row| row.first).min().unwrap_or(0);
        let end = rows.iter().map(|row| row.first + row.weights.len()).max().unwrap_or(0);
        let mut narrow = vec![0.0f32; (end - first) * self.width * 3];
        for (y, row) in narrow.chunks_exact_mut(self.width * 3).enumerate() {
            let source = &picture.pixels[(first + y) * picture.width * 3..];
            for (to, column) in row.chunks_exact_mut(3).zip(&columns) {
                for (pixel, weight) in source[column.first * 3..].chunks_exact(3).zip(&column.weights) {
                    for channel in 0..3 {
                        to[channel] += weight * f32::from(pixel[channel]);
                    }
                }
            }
        }
        let mut resized = vec![0.0f32; self.height * self.width * 3];
        for (to, row) in resized.chunks_exact_mut(self.width * 3).zip(&rows) {
            for (source, weight) in
                narrow[(row.first - first) * self.width * 3..].chunks_exact(self.width * 3).zip(&row.weights)
            {
                for (to, from) in to.iter_mut().zip(source) {
                    *to += weight * from;
                }
            }
        }
        resized
    }
}

/// The source of a moved pixel; the border repeats.
fn moved(at: usize, by: isize, length: usize) -> usize {
    at.saturating_add_signed(-by).min(length - 1)
}

/// The source pixels of one row or column and their weights, which sum to 1.
struct Blend {
    first: usize,
    weights: Vec<f32>,
}

/// A triangle of one source pixel's half width when enlarging, of one target pixel's when reducing, as Pillow's BILINEAR.
fn filter(start: f64, span: f64, from: usize, to: usize) -> Vec<Blend> {
    let scale = span / to as f64;
    let support = scale.max(1.0);
    let blend = |at: usize| {
        let centre = start + (at as f64 + 0.5) * scale;
        let first = ((centre - support + 0.5).floor().max(0.0) as usize).min(from - 1);
        let end = ((centre + support + 0.5).floor().max(0.0) as usize).clamp(first + 1, from);
        let weight = |pixel: usize| (1.0 - ((pixel as f64 + 0.5 - centre) / support).abs()).max(0.0);
        let sum: f64 = (first..end).map(weight).sum();
        let even = 1.0 / (end - first) as f64;
        let share = |pixel: usize| if sum > 0.0 { weight(pixel) / sum } else { even };
        Blend { first, weights: (first..end).map(|pixel| share(pixel) as f32).collect() }
    };
    (0..to).map(blend).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{Augment, FrontEnd};
    use crate::source::Sample;

    /// Row y, column x holds [10y + x, 100 + 10y + x, 200].
    fn picture(width: usize, height: usize) -> Sample {
        let pixel = |y: usize, x: usize| [(10 * y + x) as u8, (100 + 10 * y + x) as u8, 200];
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(y, x))).collect();
        Sample::Picture(Picture { pixels, width, height })
    }

    fn raw() -> Image {
        Image { scale: PerChannel::All(1.0), ..Image::default() }
    }

    fn values(settings: Image, shape: &[usize], sample: &Sample) -> Vec<f32> {
        FrontEnd::Image(settings).build(shape).unwrap().features(sample).unwrap()
    }

    #[test]
    fn layouts_orders_and_ranges() {
        let nhwc = values(raw(), &[1, 2, 2, 3], &picture(2, 2));
        assert_eq!(nhwc, [0.0, 100.0, 200.0, 1.0, 101.0, 200.0, 10.0, 110.0, 200.0, 11.0, 111.0, 200.0]);
        let nchw = values(Image { layout: Layout::Nchw, ..raw() }, &[1, 3, 2, 2], &picture(2, 2));
        assert_eq!(nchw, [0.0, 1.0, 10.0, 11.0, 100.0, 101.0, 110.0, 111.0, 200.0, 200.0, 200.0, 200.0]);
        let bgr = values(Image { order: ChannelOrder::Bgr, ..raw() }, &[1, 1, 1, 3], &picture(1, 1));
        assert_eq!(bgr, [200.0, 100.0, 0.0]);
        let grey = values(Image { order: ChannelOrder::Grey, ..raw() }, &[1, 1, 1, 1], &picture(1, 1));
        assert!((grey[0] - (58.7 + 22.8)).abs() < 1e-4);
        let settings = Image {
            order: ChannelOrder::Bgr,
            scale: PerChannel::Each([1.0, 0.5, 0.1]),
            offset: PerChannel::Each([1.0, 2.0, 3.0]),
            ..raw()
        };
        assert_eq!(values(settings, &[1, 1, 1, 3], &picture(1, 1)), [23.0, 52.0, 1.0]);
        let unit = values(Image::default(), &[1, 1, 1, 3], &picture(1, 1));
        assert!((unit[2] - 200.0 / 255.0).abs() < 1e-6);
    }

    #[test]
    fn resizing() {
        // A reduction by 2 under a triangle of twice the width: interior weights 1/8 3/8 3/8 1/8, renormalised at the border.
        let red = |values: Vec<f32>| values.iter().step_by(3).copied().collect::<Vec<_>>();
        let half = red(values(raw(), &[1, 1, 2, 3], &picture(4, 1)));
        let (a, b) = ((3.0 * 0.0 + 3.0 * 1.0 + 2.0) / 7.0, (1.0 + 3.0 * 2.0 + 3.0 * 3.0) / 7.0);
        assert!((half[0] - a).abs() < 1e-5 && (half[1] - b).abs() < 1e-5, "{half:?}");
        // An enlargement by 2 is linear between the pixels' centres.
        let twice = red(values(raw(), &[1, 1, 4, 3], &picture(2, 1)));
        assert_eq!(twice, [0.0, 0.25, 0.75, 1.0]);
        // A flat picture stays flat at any size.
        let flat = Sample::Picture(Picture { pixels: vec![77; 13 * 7 * 3], width: 13, height: 7 });
        for (height, width) in [(1, 1), (5, 17), (40, 3)] {
            let resized = values(raw(), &[1, height, width, 3], &flat);
            assert!(resized.iter().all(|value| (value - 77.0).abs() < 1e-3));
        }
        // The middle of a wide picture, at its own size.
        let crop = red(values(Image { fit: Fit::Crop, ..raw() }, &[1, 2, 2, 3], &picture(4, 2)));
        assert_eq!(crop, [1.0, 2.0, 11.0, 12.0]);
    }

    #[test]
    fn shapes_that_do_not_fit() {
        for shape in [&[1, 3, 8, 8][..], &[1, 8, 8, 1], &[8, 8, 3], &[2, 8, 8, 3], &[1, 0, 8, 3], &[]] {
            let error = FrontEnd::Image(raw()).build(shape).unwrap_err().to_string();
            assert!(error.contains("`layout`") && error.contains(&format!("{shape:?}")), "{error}");
        }
        assert!(FrontEnd::Image(Image { width: 9, ..raw() }).build(&[1, 8, 8, 3]).is_err());
        let broken = Sample::Picture(Picture { pixels: vec![0; 5], width: 2, height: 1 });
        assert!(FrontEnd::Image(raw()).build(&[1, 8, 8, 3]).unwrap().features(&broken).is_err());
    }

    #[test]
    fn augmented_by_seed() {
        let extractor = FrontEnd::Image(raw()).build(&[1, 4, 4, 3]).unwrap();
        let run = |augment: &Augment, seed| {
            extractor.augmented(&picture(4, 4), augment, &mut fastrand::Rng::with_seed(seed)).unwrap()
        };
        let plain = extractor.features(&picture(4, 4)).unwrap();
        assert_eq!(run(&Augment::default(), 1), plain);
        let all = Augment { flip: true, shift_pixels: 2, brightness: 0.5, ..Augment::default() };
        assert_eq!(run(&all, 5), run(&all, 5));
        assert!((0..20).any(|seed| run(&all, seed) != run(&all, 5)));
        assert!((0..20).all(|seed| { run(&all, seed).iter().all(|value| (0.0..=255.0).contains(value)) }));

        let flip = Augment { flip: true, ..Augment::default() };
        let mirrored = run(&flip, 1);
        for y in 0..4 {
            for x in 0..4 {
                assert_eq!(mirrored[(y * 4 + x) * 3], plain[(y * 4 + 3 - x) * 3]);
            }
        }
        let far = Augment { shift_pixels: 100, ..Augment::default() };
        assert!((0..20).all(|seed| run(&far, seed).iter().all(|value| plain.contains(value))));
    }
}
