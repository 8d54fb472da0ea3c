//! `[front_end]` of a manifest: a kind and its keys, where an unknown key is an error that names the nearest.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

use super::FrontEnd;

impl<'de> Deserialize<'de> for FrontEnd {
    /// Done by hand: serde's `deny_unknown_fields` does not go with `flatten`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut table = toml::Table::deserialize(deserializer)?;
        let kind = table.remove("kind");
        let kind = kind.as_ref().and_then(toml::Value::as_str).ok_or_else(|| {
            D::Error::custom(format!("the front end has no `kind`; expected one of {}", Self::KINDS.join(", ")))
        })?;
        let front_end = match kind {
            "mfcc" => settings_of(kind, table).map(Self::Mfcc),
            "log-mel" => settings_of(kind, table).map(Self::LogMel),
            "waveform" => settings_of(kind, table).map(Self::Waveform),
            "image" => settings_of(kind, table).map(Self::Image),
            "tensor" => settings_of(kind, table).map(Self::Tensor),
            other => {
                let nearest =
                    nearest(other, &Self::KINDS).map(|kind| format!(" (did you mean `{kind}`?)")).unwrap_or_default();
                Err(format!("unknown front end kind `{other}`{nearest}; expected one of {}", Self::KINDS.join(", ")))
            }
        };
        front_end.map_err(D::Error::custom)
    }
}

/// The settings of one kind, whose default knows every key there is.
fn settings_of<T: Default + Serialize + DeserializeOwned>(kind: &str, table: toml::Table) -> Result<T, String> {
    let known = toml::Table::try_from(T::default()).map_err(|error| error.to_string())?;
    let known: Vec<&str> = known.keys().map(String::as_str).collect();
    if let Some(unknown) = table.keys().find(|key| !known.contains(&key.as_str())) {
        let cure = match nearest(unknown, &known) {
            Some(key) => format!("did you mean `{key}`?"),
            None => format!("expected {}", known.join(", ")),
        };
        return Err(format!("unknown key `{unknown}` in a `{kind}` front end; {cure}"));
    }
    // One key at a time first: the error of a whole table does not say which it was.
    for (key, value) in &table {
        let alone = toml::Table::from_iter([(key.clone(), value.clone())]);
        alone.try_into::<T>().map_err(|error| format!("`{key}`: {}", error.message()))?;
    }
    table.try_into().map_err(|error| error.message().to_string())
}

/// The name nearest to a mistyped one, where at most a third of it is different. The distance is that of optimal string
/// alignment: two neighbouring letters exchanged count once.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |other: &str| {
        let (a, b) = (name.as_bytes(), other.as_bytes());
        let mut of = vec![vec![0; b.len() + 1]; a.len() + 1];
        for i in 0..=a.len() {
            for j in 0..=b.len() {
                of[i][j] = if i == 0 || j == 0 {
                    i + j
                } else {
                    let changed = of[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let least = changed.min(of[i - 1][j] + 1).min(of[i][j - 1] + 1);
                    let exchanged = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    if exchanged { least.min(of[i - 2][j - 2] + 1) } else { least }
                };
            }
        }
        of[a.len()][b.len()]
    };
    let best = known.iter().map(|&other| (distance(other), other)).min()?;
    (best.0 * 3 <= name.len().max(best.1.len())).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{Align, Mfcc, PerChannel};

    fn parse(text: &str) -> Result<FrontEnd, String> {
        toml::from_str(text).map_err(|error| error.message().to_string())
    }

    #[test]
    fn settings_have_the_defaults_of_ds_cnn() {
        assert_eq!(parse("kind = \"mfcc\"").unwrap(), FrontEnd::Mfcc(Mfcc::default()));
        let FrontEnd::Mfcc(mfcc) =
            parse("kind = \"mfcc\"\nhigh_hz = 7600\nalign = \"loudest\"\ncoefficients = 13").unwrap()
        else {
            panic!()
        };
        assert_eq!((mfcc.bands.high_hz, mfcc.clip.align, mfcc.coefficients), (7600.0, Align::Loudest, 13));
        let FrontEnd::Image(image) = parse("kind = \"image\"\noffset = [1, 2, 3.5]\nscale = 2").unwrap() else {
            panic!()
        };
        assert_eq!((image.scale, image.offset), (PerChannel::All(2.0), PerChannel::Each([1.0, 2.0, 3.5])));
        for kind in FrontEnd::KINDS {
            let front_end = parse(&format!("kind = \"{kind}\"")).unwrap();
            assert_eq!(front_end.kind(), kind);
            front_end.check().unwrap();
            assert_eq!(parse(&toml::to_string(&front_end).unwrap()).unwrap(), front_end);
            let json = serde_json::to_string(&front_end).unwrap();
            assert_eq!(serde_json::from_str::<FrontEnd>(&json).unwrap(), front_end);
        }
    }

    #[test]
    fn a_mistyped_name_finds_the_one_meant() {
        let known = ["left", "right", "stop", "up"];
        for (name, meant) in
            [("rihgt", "right"), ("rigt", "right"), ("lefft", "left"), ("stpo", "stop"), ("left", "left")]
        {
            assert_eq!(nearest(name, &known), Some(meant), "{name}");
        }
        for name in ["television", "", "pu", "no"] {
            assert_eq!(nearest(name, &known), None, "{name}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        for (text, why) in [
            ("mels = 3", "no `kind`"),
            ("kind = 3", "no `kind`"),
            ("kind = \"spectrogram\"", "expected one of mfcc"),
            ("kind = \"log_mel\"", "did you mean `log-mel`"),
            ("kind = \"log-mel\"\ncoefficients = 3", "unknown key `coefficients`"),
            ("kind = \"tensor\"\nrate_hz = 3", "unknown key `rate_hz`"),
            ("kind = \"mfcc\"\nrate = 3", "unknown key `rate`"),
            ("kind = \"mfcc\"\nmels = -3", "`mels`"),
            ("kind = \"mfcc\"\nlow_hz = \"3\"", "`low_hz`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{error} does not say {why}");
        }
    }
}
