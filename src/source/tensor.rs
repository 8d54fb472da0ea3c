//! `.npy` files: numpy's format 1 to 3 (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).

use std::io::Read;
use std::path::Path;

use super::{MAX_VALUES, SourceError, Tensor, io_error};

const MAGIC: &[u8] = b"\x93NUMPY";
/// A header describes one array; numpy itself refuses longer ones.
const MAX_HEADER_BYTES: usize = 10_000;
const CURE: &str = "save it again with `numpy.save(path, array.astype('float32'))`";

/// Reads one array and converts its values to f32, in row-major order.
pub(super) fn read_npy(path: &Path, mut file: impl Read, file_bytes: u64) -> Result<Tensor, SourceError> {
    let malformed =
        |problem: String| SourceError::Malformed { path: path.to_path_buf(), format: "npy", problem, cure: CURE };
    let mut bytes = Vec::new();
    let most = MAX_VALUES as u64 * 8 + MAX_HEADER_BYTES as u64;
    if file_bytes > most {
        return Err(SourceError::TooLarge { path: path.to_path_buf(), limit: MAX_VALUES });
    }
    file.by_ref().take(most).read_to_end(&mut bytes).map_err(|source| io_error(path, source))?;
    let tensor = parse(&bytes).map_err(malformed)?;
    match tensor.values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(SourceError::NotFinite { path: path.to_path_buf(), found: tensor.values[index], index }),
        None => Ok(tensor),
    }
}

fn parse(bytes: &[u8]) -> Result<Tensor, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin as an npy file")?;
    let (header_bytes, rest) = match rest {
        [1, _, a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        [2 | 3, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        [version, ..] if !(1..=3).contains(version) => {
            return Err(format!("expected version 1 to 3, found {version}"));
        }
        _ => return Err("the file ends inside its header".to_string()),
    };
    if header_bytes > MAX_HEADER_BYTES {
        return Err(format!("expected a header of at most {MAX_HEADER_BYTES} bytes, found {header_bytes}"));
    }
    let (header, data) = rest.split_at_checked(header_bytes).ok_or("the file ends inside its header")?;
    let header = std::str::from_utf8(header).map_err(|_| "the header is not text")?;
    let Header { element, fortran, shape } = Header::parse(header)?;

    let count =
        shape.iter().try_fold(1usize, |count, &length| count.checked_mul(length)).filter(|&count| count <= MAX_VALUES);
    let count = count.ok_or_else(|| format!("shape {shape:?} has more than {MAX_VALUES} values"))?;
    let wanted = count * element.bytes();
    if data.len() != wanted {
        return Err(format!("shape {shape:?} takes {wanted} bytes of data, the file has {}", data.len()));
    }
    let values = element.values(data);
    let values = if fortran { row_major(&values, &shape) } else { values };
    Ok(Tensor { shape, values })
}

/// Values whose first dimension is the fastest, put so that the last one is.
fn row_major(values: &[f32], shape: &[usize]) -> Vec<f32> {
    let mut strides = vec![0usize; shape.len()];
    let mut stride = 1;
    for (to, &length) in strides.iter_mut().zip(shape) {
        *to = stride;
        stride *= length;
    }
    let mut index = vec![0usize; shape.len()];
    let mut at = 0usize;
    let mut ordered = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        ordered.push(values[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    ordered
}

/// The element types that are read.
#[derive(Clone, Copy)]
enum Type {
    F32,
    F64,
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
}

#[derive(Clone, Copy)]
struct Element {
    kind: Type,
    big_endian: bool,
}

impl Element {
    fn parse(descr: &str) -> Result<Self, String> {
        let (order, name) = descr.split_at_checked(1).unwrap_or(("", descr));
        let kind = match name {
            "f4" => Type::F32,
            "f8" => Type::F64,
            "i1" => Type::I8,
            "u1" => Type::U8,
            "i2" => Type::I16,
            "u2" => Type::U16,
            "i4" => Type::I32,
            "u4" => Type::U32,
            "i8" => Type::I64,
            _ => {
                return Err(format!("expected numbers of type f4, f8, i1, u1, i2, u2, i4, u4 or i8, found {descr:?}"));
            }
        };
        match order {
            "<" | "|" => Ok(Self { kind, big_endian: false }),
            ">" => Ok(Self { kind, big_endian: true }),
            _ => Err(format!("expected a byte order of < or >, found {descr:?}")),
        }
    }

    fn bytes(self) -> usize {
        match self.kind {
            Type::I8 | Type::U8 => 1,
            Type::I16 | Type::U16 => 2,
            Type::F32 | Type::I32 | Type::U32 => 4,
            Type::F64 | Type::I64 => 8,
        }
    }

    fn values(self, data: &[u8]) -> Vec<f32> {
        macro_rules! convert {
            ($number:ty) => {{
                let big_endian = self.big_endian;
                let one = |bytes: &[u8; size_of::<$number>()]| {
                    let number =
                        if big_endian { <$number>::from_be_bytes(*bytes) } else { <$number>::from_le_bytes(*bytes) };
                    number as f32
                };
                data.as_chunks::<{ size_of::<$number>() }>().0.iter().map(one).collect()
            }};
        }
        match self.kind {
            Type::F32 => convert!(f32),
            Type::F64 => convert!(f64),
            Type::I8 => convert!(i8),
            Type::U8 => convert!(u8),
            Type::I16 => convert!(i16),
            Type::U16 => convert!(u16),
            Type::I32 => convert!(i32),
            Type::U32 => convert!(u32),
            Type::I64 => convert!(i64),
        }
    }
}

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (49, 10), }`
struct Header {
    element: Element,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    fn parse(text: &str) -> Result<Self, String> {
        let descr = value_of(text, "descr")?;
        let quote = descr.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let quote = quote.ok_or("expected one number a cell, found a record of several")?;
        let descr = descr[1..].split(quote).next().unwrap_or_default();
        let fortran = value_of(text, "fortran_order")?;
        let fortran = match fortran {
            _ if fortran.starts_with("True") => true,
            _ if fortran.starts_with("False") => false,
            _ => return Err("fortran_order is neither True nor False".to_string()),
        };
        let shape = value_of(text, "shape")?;
        let shape = shape.strip_prefix('(').and_then(|shape| shape.split(')').next()).ok_or("the shape is no tuple")?;
        let length =
            |part: &str| part.parse::<usize>().map_err(|_| format!("the shape holds {part:?}, which is no length"));
        let shape =
            shape.split(',').map(str::trim).filter(|part| !part.is_empty()).map(length).collect::<Result<_, _>>()?;
        Ok(Self { element: Element::parse(descr)?, fortran, shape })
    }
}

/// What follows `'key':` in the header's dictionary.
fn value_of<'a>(text: &'a str, key: &str) -> Result<&'a str, String> {
    let after = [format!("'{key}'"), format!("\"{key}\"")]
        .iter()
        .find_map(|key| text.split_once(key.as_str()).map(|(_, after)| after));
    let after = after.and_then(|after| after.trim_start().strip_prefix(':'));
    after.map(str::trim_start).ok_or_else(|| format!("the header names no {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Sample, read};

    fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn read_bytes(bytes: &[u8]) -> Result<Tensor, SourceError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.npy");
        std::fs::write(&path, bytes).unwrap();
        match read(&path)? {
            Sample::Tensor(tensor) => Ok(tensor),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_type_and_order() {
        let want = [1.0, -2.0, 3.0];
        let signed = |data: Vec<u8>, descr: &str| {
            let tensor = read_bytes(&npy(descr, "False", "(3,)", &data)).unwrap();
            assert_eq!((tensor.shape, tensor.values), (vec![3], want.to_vec()), "{descr}");
        };
        signed(want.iter().flat_map(|v: &f32| v.to_le_bytes()).collect(), "<f4");
        signed(want.iter().flat_map(|v: &f32| v.to_be_bytes()).collect(), ">f4");
        signed(want.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(), "<f8");
        signed(want.iter().flat_map(|&v| (v as i8).to_le_bytes()).collect(), "|i1");
        signed(want.iter().flat_map(|&v| (v as i16).to_le_bytes()).collect(), "<i2");
        signed(want.iter().flat_map(|&v| (v as i32).to_be_bytes()).collect(), ">i4");
        signed(want.iter().flat_map(|&v| (v as i64).to_le_bytes()).collect(), "<i8");
        assert_eq!(read_bytes(&npy("|u1", "False", "(2,)", &[0, 255])).unwrap().values, [0.0, 255.0]);
        assert_eq!(read_bytes(&npy("<u2", "False", "(1,)", &[255, 255])).unwrap().values, [65535.0]);
        assert_eq!(read_bytes(&npy("<u4", "False", "(1,)", &[0, 0, 0, 128])).unwrap().values, [2_147_483_648.0]);
        assert_eq!(read_bytes(&npy("|u1", "False", "()", &[7])).unwrap(), Tensor { shape: vec![], values: vec![7.0] });
    }

    #[test]
    fn fortran_order_is_turned() {
        // numpy.asfortranarray([[[0, 1], [2, 3], [4, 5]]]) has shape (1, 3, 2) and these bytes.
        let tensor = read_bytes(&npy("|u1", "True", "(1, 3, 2)", &[0, 2, 4, 1, 3, 5])).unwrap();
        assert_eq!(tensor.values, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn bad_files_say_why() {
        for (bytes, why) in [
            (b"not numpy at all".to_vec(), "does not begin"),
            (b"\x93NUMPY\x01".to_vec(), "ends inside"),
            (b"\x93NUMPY\x09\0\0\0".to_vec(), "version"),
            ([MAGIC, &[2, 0, 255, 255, 255, 255]].concat(), "at most"),
            ([MAGIC, &[1, 0, 100, 0, b'{']].concat(), "ends inside"),
            (npy("<f4", "False", "(4000000000, 4000000000)", &[]), "more than"),
            (npy("<f4", "False", "(3,)", &[0; 8]), "takes 12 bytes"),
            (npy("<f4", "False", "(1,)", &[0; 8]), "takes 4 bytes"),
            (npy("<c8", "False", "(1,)", &[0; 8]), "<c8"),
            (npy("|O", "False", "(1,)", &[0; 8]), "|O"),
            (npy("<f4", "Maybe", "(1,)", &[0; 4]), "neither"),
            (npy("<f4", "False", "(-1,)", &[0; 4]), "-1"),
            (npy("<f4", "False", "((((((", &[0; 4]), "no length"),
            (npy("é", "False", "(1,)", &[0; 4]), "expected"),
        ] {
            let error = read_bytes(&bytes).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("t.npy"), "{error} does not say {why}");
        }
    }

    #[test]
    fn not_finite_is_an_error() {
        for bad in [f32::NAN, f32::INFINITY] {
            let data: Vec<u8> = [1.0, bad].iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
            assert!(matches!(
                read_bytes(&npy("<f4", "False", "(2,)", &data)),
                Err(SourceError::NotFinite { index: 1, .. })
            ));
        }
        // A double beyond f32 would become infinite.
        assert!(read_bytes(&npy("<f8", "False", "(1,)", &1e300f64.to_le_bytes())).is_err());
    }
}
