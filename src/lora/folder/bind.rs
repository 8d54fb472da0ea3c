//! Binding an adapter to its base.

use std::collections::BTreeSet;
use std::fmt;

use super::AdapterError;
use crate::graph::{Graph, Layout, Site, SiteKind};
use crate::lora::{Adapter, AdapterSite, Delta};

impl Adapter {
    /// Whether the base is the one that the adapter was trained on, where both are known.
    ///
    /// # Errors
    /// [`AdapterError::WrongBase`].
    pub fn check_base(&self, base_sha256: Option<&str>) -> Result<(), AdapterError> {
        match (self.base_sha256.as_deref(), base_sha256) {
            (Some(expected), Some(found)) if !expected.eq_ignore_ascii_case(found) => {
                let (name, expected, found) = (self.base_name.clone(), expected.to_owned(), found.to_owned());
                Err(AdapterError::WrongBase { name, expected, found })
            }
            _ => Ok(()),
        }
    }

    /// The graph's site for each site of the adapter, in its order, after checking that it fits: sha256 of the base
    /// where both are known, names, shapes, rank and finite values. `sites` are all of `graph`.
    ///
    /// # Errors
    /// [`AdapterError`], naming the site and what differs.
    pub fn bind(&self, graph: &Graph, sites: &[Site], base_sha256: Option<&str>) -> Result<Vec<Site>, AdapterError> {
        self.check_base(base_sha256)?;
        let mut taken = BTreeSet::new();
        let mut bound = Vec::new();
        for of_adapter in &self.sites {
            let site = find(sites, &of_adapter.key)?;
            if !taken.insert(of_adapter.key.as_str()) {
                return Err(AdapterError::Twice { name: of_adapter.key.clone() });
            }
            of_adapter.check_against(graph, site)?;
            bound.push(site.clone());
        }
        Ok(bound)
    }
}

pub(super) fn find<'a>(sites: &'a [Site], key: &str) -> Result<&'a Site, AdapterError> {
    let nearest = || nearest(key, sites.iter().map(|s| s.key.as_str()));
    sites.iter().find(|s| s.key == key).ok_or_else(|| AdapterError::NoSite { site: key.to_owned(), nearest: nearest() })
}

/// The name that takes the fewest changed letters to `name`.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    const LONGEST: usize = 512;
    let short = |n: &&str| n.len() <= LONGEST;
    short(&name).then(|| names.filter(short).min_by_key(|n| distance(name, n)))?.map(str::to_owned)
}

/// Levenshtein's distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl AdapterSite {
    /// Whether site and tensors fit `site` of a graph.
    pub(in crate::lora) fn check_against(&self, graph: &Graph, site: &Site) -> Result<(), AdapterError> {
        self.check()?;
        let here = AdapterSite::new(graph, site, self.delta.clone());
        let differs = |what, expected: &dyn fmt::Debug, found: &dyn fmt::Debug| {
            let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
            Err(AdapterError::Mismatch { site: self.key.clone(), what, expected, found })
        };
        if self.weight_shape != here.weight_shape {
            return differs("weight shape", &self.weight_shape, &here.weight_shape);
        }
        if self.layout != here.layout || self.groups != here.groups {
            return differs("layout", &(self.layout, self.groups), &(here.layout, here.groups));
        }
        if self.initializer != here.initializer {
            return differs("weight", &self.initializer, &here.initializer);
        }
        if self.bias != here.bias {
            return differs("bias", &self.bias, &here.bias);
        }
        if self.weight_scale != here.weight_scale {
            return differs("alpha", &self.weight_scale, &here.weight_scale);
        }
        let whole_bias = matches!(&self.delta, Delta::Full { bias, .. } if bias.is_some() != site.bias.is_some());
        if whole_bias {
            return differs("bias", &self.bias, &"not changed the same way");
        }
        let fits = match self.delta {
            Delta::ScaleShift { .. } => self.layout == Layout::OutInKernel,
            // Only layers that run as a convolution or dense layer by themselves train whole.
            Delta::Full { .. } => matches!(site.kind, SiteKind::Conv | SiteKind::Dense),
            Delta::LowRank { .. } => site.kind != SiteKind::Depthwise,
        };
        if fits { Ok(()) } else { differs("kind", &"another", &site.kind) }
    }
}
