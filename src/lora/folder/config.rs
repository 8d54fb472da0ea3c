//! What stands in `adapter_config.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::graph::{Head, Layout};
use crate::lora::{AdapterSite, Delta, StageBase};

/// The object `accentor`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) format_version: u64,
    pub(super) base_sha256: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(super) stages: Vec<StageBase>,
    pub(super) parent: Option<String>,
    pub(super) examples: usize,
    pub(super) steps: usize,
    pub(super) labels: Vec<String>,
    /// Since version 2.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) head: Option<Head>,
    pub(super) sites: Vec<SiteRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SiteRecord {
    pub(super) key: String,
    pub(super) node: String,
    pub(super) initializer: String,
    pub(super) bias: Option<String>,
    pub(super) kind: Kind,
    pub(super) layout: LayoutName,
    pub(super) groups: usize,
    pub(super) shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) rank: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) alpha: Option<f32>,
    pub(super) weight_scale: f32,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    LowRank,
    ScaleShift,
    Whole,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LayoutName {
    OutInKernel,
    InOut,
    OutIn,
    Stacked { part: usize },
    Rows,
}

/// What is read of PEFT's own fields.
#[derive(Deserialize)]
pub(super) struct PeftConfig {
    pub(super) peft_type: Option<String>,
    pub(super) r: Option<usize>,
    pub(super) lora_alpha: Option<f32>,
    pub(super) use_rslora: Option<bool>,
    pub(super) bias: Option<String>,
    pub(super) init_lora_weights: Option<serde_json::Value>,
    pub(super) base_model_name_or_path: Option<String>,
    pub(super) rank_pattern: Option<Pairs<usize>>,
    pub(super) alpha_pattern: Option<Pairs<f32>>,
    pub(super) modules_to_save: Option<Vec<String>>,
    pub(super) accentor: Option<serde_json::Value>,
    #[serde(flatten)]
    pub(super) rest: BTreeMap<String, serde_json::Value>,
}

/// Settings of PEFT that change what the tensors mean; absent, null, false and empty are fine.
pub(super) const UNSUPPORTED: [&str; 13] = [
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "arrow_config",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "megatron_config",
];

/// Initialisations of PEFT that change the base, so that the pair does not fit the frozen one.
pub(super) const BASE_CHANGING: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// A JSON object in the order of the file.
pub(super) struct Pairs<V>(pub(super) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Collect<V> {
            type Value = Pairs<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Pairs<V>, M::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Collect(PhantomData))
    }
}

impl SiteRecord {
    pub(super) fn new(site: &AdapterSite) -> Self {
        Self {
            key: site.key.clone(),
            node: site.node.clone(),
            initializer: site.initializer.clone(),
            bias: site.bias.clone(),
            kind: match site.delta {
                Delta::LowRank { .. } => Kind::LowRank,
                Delta::ScaleShift { .. } => Kind::ScaleShift,
                Delta::Full { .. } => Kind::Whole,
            },
            layout: match site.layout {
                Layout::OutInKernel => LayoutName::OutInKernel,
                Layout::InOut => LayoutName::InOut,
                Layout::OutIn => LayoutName::OutIn,
                Layout::Stacked { part } => LayoutName::Stacked { part },
                Layout::Rows => LayoutName::Rows,
            },
            groups: site.groups,
            shape: site.weight_shape.clone(),
            rank: None,
            alpha: None,
            weight_scale: site.weight_scale,
        }
    }
}
