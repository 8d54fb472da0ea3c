//! Models with classes that their file does not have.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Model, ModelError};
use crate::graph::{Ending, Graph, Head, HeadError, ValueId};
use crate::lora::{Adapter, Delta};
use crate::plan::{Plan, Program};
use crate::train::{Examples, TrainError, predicted};

impl Model {
    /// This model with more classes: `labels` are added behind its own, and the last layer of the file gets a row for
    /// each. An adapter for it trains that layer whole, and carries labels and rows.
    ///
    /// # Errors
    /// Scores that are not the plain result of a dense layer or convolution; a label that is there already.
    pub fn extended(&self, labels: &[String]) -> Result<Self, ModelError> {
        let all = self.labels.iter().chain(labels).cloned().collect();
        self.with_head(&Head::Extended, all)
    }

    /// This model with a new dense layer on the tensor `output` of its file (such as `embedding`), one score a label, in
    /// place of its own scores.
    ///
    /// # Errors
    /// No such tensor; fewer than two labels; a label that is there twice.
    pub fn with_new_head(&self, output: &str, labels: Vec<String>) -> Result<Self, ModelError> {
        self.with_head(&Head::New { output: output.to_owned() }, labels)
    }

    fn with_head(&self, head: &Head, labels: Vec<String>) -> Result<Self, ModelError> {
        if let Some(twice) = labels.iter().enumerate().find(|(i, l)| labels[..*i].contains(l)) {
            return Err(ModelError::LabelTwice { label: twice.1.clone() });
        }
        if labels.len() < 2 {
            return Err(HeadError::Classes { needed: 2, found: labels.len() }.into());
        }
        let base = self.base.as_deref().unwrap_or(self);
        let (graph, output) = match head {
            Head::Extended => (base.graph.extended(base.output, labels.len())?, base.output),
            Head::New { output } => {
                let graph = base.graph.with_new_head(output, labels.len())?;
                let output = graph.outputs[0];
                (graph, output)
            }
        };
        Ok(Self {
            ending: Ending::of(&graph, output),
            graph: Arc::new(graph),
            output,
            labels,
            head: Some(head.clone()),
            base: Some(Arc::new(base.clone())),
            ..base.clone()
        })
    }

    /// How this model got classes that its file lacks; none for a model as its file has it.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// The model as its file has it.
    pub fn frozen(&self) -> &Self {
        self.base.as_deref().unwrap_or(self)
    }

    /// The model with the classes of `adapter`: itself, where the adapter added none.
    ///
    /// # Errors
    /// An adapter of another base; a head that this model cannot have.
    pub fn for_adapter(&self, adapter: &Adapter) -> Result<Cow<'_, Self>, ModelError> {
        self.check_base(adapter)?;
        match &adapter.head {
            head if *head == self.head && (head.is_none() || adapter.labels == self.labels) => Ok(Cow::Borrowed(self)),
            None => Ok(Cow::Borrowed(self.frozen())),
            Some(head) => Ok(Cow::Owned(self.frozen().with_head(head, adapter.labels.clone())?)),
        }
    }

    /// Starts the new rows of `adapter`'s head from the class means of what the layer reads, without a step of training
    /// (after Qi et al. 2018, "Low-shot learning with imprinted weights", arXiv 1712.07136): on the mean of its class a
    /// new row of the file's layer scores what the right row scores on the old classes, on the mean of the others what
    /// the old rows score there on average. A new head starts as the classifier by the nearest class mean. Does nothing
    /// for a model as its file has it.
    ///
    /// # Errors
    /// Examples that do not fit; an operator of the other engine that fails.
    pub fn start_head(&self, adapter: &mut Adapter, examples: &[&Examples]) -> Result<(), ModelError> {
        let (Some(head), Some(site)) = (&self.head, self.graph.head_site(self.ending.logits)) else { return Ok(()) };
        let of_adapter = adapter.sites.iter_mut().find(|s| s.key == site.key);
        let Some(Delta::Full { weight, bias }) = of_adapter.map(|s| &mut s.delta) else { return Ok(()) };
        let node = &self.graph.nodes[site.node];
        let x = node.inputs.iter().copied().find(|i| !self.graph.is_constant(*i));
        let Some(x) = x.filter(|x| self.graph.values[*x].len() == site.inputs) else { return Ok(()) };
        let features = Features::of(&self.graph, self.input, x, examples)?;
        let frozen = self.frozen();
        let old = match head {
            Head::Extended => frozen.labels.len(),
            Head::New { .. } => 0,
        };
        // Rows of the layer, one behind the other.
        let (inputs, outputs) = (site.inputs, site.outputs);
        let mut rows = vec![0.0; weight.len()];
        site.weight_to_kernel(weight, &mut rows);
        let row = |rows: &[f32], k: usize| (0..inputs).map(|i| f64::from(rows[i * outputs + k])).collect::<Vec<f64>>();
        let bias_of = |bias: &Option<Vec<f32>>, k: usize| bias.as_ref().map_or(0.0, |b| f64::from(b[k]));
        let mut new = Vec::new();
        for k in old..outputs {
            let Some(mean) = features.mean(|target| target == k) else { continue };
            new.push(match head {
                Head::Extended => {
                    let (mut w, b) = (row(&rows, k), bias_of(bias, k));
                    let rest = features.mean(|target| target != k).unwrap_or_else(|| vec![0.0; inputs]);
                    let sure = features.mean_of(|x| {
                        let scores: Vec<f32> =
                            (0..old).map(|k| (dot(&row(&rows, k), x) + bias_of(bias, k)) as f32).collect();
                        f64::from(scores[predicted(&scores)])
                    });
                    let away: Vec<f64> = mean.iter().zip(&rest).map(|(m, r)| m - r).collect();
                    let distance = dot(&away, &away).max(f64::MIN_POSITIVE);
                    let factor = (sure - dot(&w, &mean) - b) / distance;
                    w.iter_mut().zip(&away).for_each(|(w, a)| *w += factor * a);
                    (k, w, b - factor * dot(&away, &rest))
                }
                Head::New { .. } => {
                    let spread = features.spread().max(f64::MIN_POSITIVE);
                    let half = dot(&mean, &mean) / (2.0 * spread);
                    (k, mean.iter().map(|m| m / spread).collect(), -half)
                }
            });
        }
        for (k, w, b) in new {
            w.iter().enumerate().for_each(|(i, w)| rows[i * outputs + k] = *w as f32);
            if let Some(bias) = bias {
                bias[k] = b as f32;
            }
        }
        site.weight_to_file(&rows, weight);
        Ok(())
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// What the head reads for each example, with its label.
struct Features(Vec<(usize, Vec<f64>)>);

impl Features {
    fn of(graph: &Graph, input: ValueId, x: ValueId, examples: &[&Examples]) -> Result<Self, ModelError> {
        let program = Program::new(graph, input, x, &[])?;
        let plan = Plan::new(&program, &[program.input], &[program.output], false)?;
        let mut arena = vec![0.0; plan.arena_len()];
        let mut out = Vec::new();
        for set in examples {
            let (expected, found) = (plan.input_len(), set.input_len());
            if found != expected {
                return Err(TrainError::Length { expected, found }.into());
            }
            for index in 0..set.len() {
                plan.forward(&[], &mut arena, set.input(index, 0))?;
                let values = plan.output(&arena, 0).iter().map(|v| f64::from(*v)).collect();
                out.push((set.target(index), values));
            }
        }
        Ok(Self(out))
    }

    /// Mean over the examples whose label `takes` takes; None if there is none.
    fn mean(&self, takes: impl Fn(usize) -> bool) -> Option<Vec<f64>> {
        let taken: Vec<&Vec<f64>> = self.0.iter().filter(|(t, _)| takes(*t)).map(|(_, x)| x).collect();
        let first = taken.first()?;
        let mean = |i: usize| taken.iter().map(|x| x[i]).sum::<f64>() / taken.len() as f64;
        Some((0..first.len()).map(mean).collect())
    }

    fn mean_of(&self, f: impl Fn(&[f64]) -> f64) -> f64 {
        self.0.iter().map(|(_, x)| f(x)).sum::<f64>() / self.0.len().max(1) as f64
    }

    /// Mean squared distance to the mean of the own class.
    fn spread(&self) -> f64 {
        let classes = self.0.iter().map(|(t, _)| t + 1).max().unwrap_or(0);
        let means: Vec<Option<Vec<f64>>> = (0..classes).map(|k| self.mean(|t| t == k)).collect();
        let distance = |(t, x): &(usize, Vec<f64>)| {
            let mean = means[*t].as_deref().unwrap_or_default();
            x.iter().zip(mean).map(|(x, m)| (x - m).powi(2)).sum::<f64>()
        };
        self.0.iter().map(distance).sum::<f64>() / self.0.len().max(1) as f64
    }
}
