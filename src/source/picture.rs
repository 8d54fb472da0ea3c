//! PNG and JPEG files as RGB bytes.

use std::io::{BufRead, Seek};
use std::path::Path;

use image::{ImageError, ImageReader, Limits};

use super::{Picture, SourceError, io_error};

/// The longest side of a picture that is decoded, in pixels.
const MAX_SIDE: u32 = 16_384;
/// The memory a picture may take while it is decoded.
const MAX_BYTES: u64 = 256 << 20;
const CURE: &str = "save it again as an 8-bit PNG or JPEG";

/// Reads a picture; the content, not the extension, says which of the two formats it is (cameras mix them up).
pub(super) fn read_image(path: &Path, file: impl BufRead + Seek) -> Result<Picture, SourceError> {
    let malformed = |problem: String| SourceError::Malformed {
        path: path.to_path_buf(),
        format: "PNG or JPEG",
        problem,
        cure: CURE,
    };
    let mut reader = ImageReader::new(file).with_guessed_format().map_err(|source| io_error(path, source))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let decoded = reader.decode().map_err(|error| match error {
        ImageError::Limits(_) => {
            malformed(format!("expected at most {MAX_SIDE} pixels a side and {MAX_BYTES} bytes, found more"))
        }
        error => malformed(error.to_string()),
    })?;
    let rgb = decoded.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Ok(Picture { pixels: rgb.into_raw(), width, height })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Sample, read};
    use image::{DynamicImage, GrayImage, ImageBuffer, Luma, LumaA, Rgb, RgbImage, Rgba};

    fn saved(name: &str, image: &DynamicImage) -> Picture {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        image.save(&path).unwrap();
        match read(&path).unwrap() {
            Sample::Picture(picture) => picture,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_colour_type_becomes_rgb() {
        let rgb = RgbImage::from_fn(3, 2, |x, y| Rgb([x as u8 * 10, y as u8 * 20, 200]));
        let picture = saved("a.PNG", &rgb.clone().into());
        assert_eq!((picture.width, picture.height, &picture.pixels), (3, 2, rgb.as_raw()));
        let grey = saved("a.png", &GrayImage::from_pixel(2, 1, Luma([77])).into());
        assert_eq!(grey.pixels, [77; 6]);
        let alpha = saved("a.png", &ImageBuffer::from_pixel(1, 1, Rgba([1u8, 2, 3, 0])).into());
        assert_eq!(alpha.pixels, [1, 2, 3]);
        let deep = saved("a.png", &ImageBuffer::from_pixel(1, 1, LumaA([65535u16, 65535])).into());
        assert_eq!(deep.pixels, [255; 3]);
        let jpeg = saved("a.jpeg", &RgbImage::from_pixel(16, 8, Rgb([120, 130, 140])).into());
        assert_eq!((jpeg.width, jpeg.height), (16, 8));
        assert!(jpeg.pixels.iter().zip([120u8, 130, 140].iter().cycle()).all(|(a, b)| a.abs_diff(*b) < 4));
    }

    #[test]
    fn damaged_and_oversized_pictures_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        RgbImage::from_pixel(40, 40, Rgb([1, 2, 3])).save(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let mut oversized = whole.clone();
        oversized[16..24].copy_from_slice(&[0x7f, 255, 255, 255, 0x7f, 255, 255, 255]);
        for bytes in [&whole[..whole.len() / 2], &whole[..5], b"no picture", &oversized] {
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("a.png") && error.contains("save it again"), "{error}");
        }
    }
}
