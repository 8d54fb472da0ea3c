//! Inference: one plan, one adapter merged in memory, any number of threads.

use std::sync::{Mutex, PoisonError};

use ndarray::{Array1, ArrayView, Dimension};

use crate::graph::{Ending, Graph, Site, ValueId};
use crate::lora::{Adapter, SiteWeights};
use crate::plan::{Arena, Plan, PlanError, Program};
use crate::train::{Evaluation, Examples, Loss, TrainError};

/// A model that answers. `Send + Sync`: calls from several threads each get an arena of their own.
#[derive(Debug)]
pub struct Session {
    plan: Plan,
    weights: Vec<SiteWeights>,
    ending: Ending,
    input_shape: Vec<usize>,
    classes: usize,
    arenas: Mutex<Vec<Arena>>,
}

impl Session {
    /// Plans inference; `adapter` comes with its sites in order, see [`Adapter::bind`]. `merged` false keeps low-rank
    /// pairs beside the frozen weights.
    ///
    /// # Errors
    /// A network that cannot be planned.
    pub fn new(
        graph: &Graph,
        input: ValueId,
        ending: Ending,
        adapter: Option<(&Adapter, Vec<Site>)>,
        merged: bool,
    ) -> Result<Self, PlanError> {
        let adapted: Vec<_> = match &adapter {
            Some((adapter, sites)) => {
                sites.iter().zip(&adapter.sites).map(|(s, a)| (s.clone(), a.delta.adaptation())).collect()
            }
            None => Vec::new(),
        };
        let program = Program::new(graph, input, ending.logits, &adapted)?;
        let plan = Plan::new(&program, &[program.input], &[program.output], false)?;
        let mut weights = Vec::new();
        if let Some((adapter, sites)) = &adapter {
            for ((step, site), bound) in program.sites().iter().zip(&adapter.sites).zip(sites) {
                let mut params = vec![0.0; step.parameters()];
                site.delta.to_parameters(bound, &mut params);
                let mut prepared = step.weights();
                if merged {
                    step.prepare(&params, &mut prepared, false);
                } else {
                    step.prepare_unmerged(&params, &mut prepared);
                }
                weights.push(prepared);
            }
        }
        let classes = graph.values[ending.logits].len();
        let input_shape = graph.values[input].shape.clone();
        Ok(Self { plan, weights, ending, input_shape, classes, arenas: Mutex::new(Vec::new()) })
    }

    /// Values of one input.
    pub fn input_len(&self) -> usize {
        self.plan.input_len()
    }

    /// Shape of one input, batch 1 first.
    pub fn input_shape(&self) -> &[usize] {
        &self.input_shape
    }

    /// Number of scores.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Bytes of the arena that a call needs.
    pub fn arena_bytes(&self) -> usize {
        self.plan.arena_len() * size_of::<f32>()
    }

    /// Multiply-adds of a call.
    pub fn multiply_adds(&self) -> u64 {
        self.plan.multiply_adds()
    }

    /// Logits of one input (row-major, in the shape of the file, one sample).
    ///
    /// # Errors
    /// Another number of values than [`Session::input_len`]; an operator of the other engine that fails.
    pub fn logits(&self, input: &[f32]) -> Result<Vec<f32>, TrainError> {
        let mut logits = vec![0.0; self.classes];
        self.logits_into(input, &mut logits)?;
        Ok(logits)
    }

    /// [`Session::logits`] into `logits`. Nothing is allocated, but by the first call of each thread that calls at a time.
    ///
    /// # Errors
    /// As [`Session::logits`]; another number of logits than [`Session::classes`].
    pub fn logits_into(&self, input: &[f32], logits: &mut [f32]) -> Result<(), TrainError> {
        if input.len() != self.input_len() {
            return Err(TrainError::Length { expected: self.input_len(), found: input.len() });
        }
        if logits.len() != self.classes {
            return Err(TrainError::Scores { expected: self.classes, found: logits.len() });
        }
        let spare = self.arenas.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut arena = spare.unwrap_or_else(|| Arena::new(self.plan.arena_len()));
        let result = self.plan.forward(&self.weights, &mut arena, input);
        logits.copy_from_slice(self.plan.output(&arena, 0));
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner).push(arena);
        Ok(result?)
    }

    /// Probabilities of one input, in the order of the labels (two of a one-score model).
    ///
    /// # Errors
    /// As [`Session::logits`].
    pub fn scores(&self, input: &[f32]) -> Result<Vec<f32>, TrainError> {
        let scores = self.ending.scores(&self.logits(input)?);
        Ok(if let [score] = scores[..] { vec![1.0 - score, score] } else { scores })
    }

    /// [`Session::scores`] of an array in the shape of the file's input, in any memory order; dimensions of 1, such as
    /// the batch, may be left out.
    ///
    /// # Errors
    /// Another shape; an operator of the other engine that fails.
    pub fn predict<D: Dimension>(&self, input: ArrayView<f32, D>) -> Result<Array1<f32>, TrainError> {
        Ok(Array1::from_vec(self.scores(&crate::train::row_major(input, &self.input_shape)?)?))
    }

    /// Accuracy over examples, first variant of each; `labels` names the classes. Labels beyond the scores are of classes
    /// that this model lacks: their examples count as not found, and not in the mean loss.
    ///
    /// # Errors
    /// As [`Session::logits`]; fewer labels than scores; a label index that has no label.
    pub fn evaluate(&self, labels: &[String], examples: &Examples) -> Result<Evaluation, TrainError> {
        let classes = self.classes.max(2);
        if labels.len() < classes {
            let cure = "name each score, in their order (two of a one-score model): `Model::labels`";
            return Err(TrainError::Setting { what: "number of labels", found: labels.len().to_string(), cure });
        }
        if let Some(found) = examples.targets().iter().copied().find(|t| *t >= labels.len()) {
            return Err(TrainError::Target { found, classes: labels.len() });
        }
        let loss = Loss::for_scores(self.classes, 0.0);
        let mut scratch = vec![0.0; self.classes];
        let mut results = Vec::with_capacity(examples.len());
        for index in 0..examples.len() {
            let logits = self.logits(examples.input(index, 0))?;
            let target = examples.target(index);
            let value = (target < classes).then(|| loss.value(&logits, target, 1.0, &mut scratch));
            results.push((target, crate::train::predicted(&logits), value));
        }
        Ok(Evaluation::count(labels, &results))
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2};

    use crate::graph::{Element, Graph, Node, Op, Value};
    use crate::train::TrainError;
    use crate::{Adapter, AdapterSpec, Evaluation, Examples, Model, Session, Trainer};

    /// `[1, 4]` · weight → 3 scores.
    fn dense() -> Model {
        let value = |name: &str, shape: &[usize], constant: Option<Vec<f32>>| Value {
            name: name.into(),
            shape: shape.to_vec(),
            element: Element::F32,
            stored: constant.is_some(),
            constant: constant.map(Into::into),
            source: None,
            quantised: None,
        };
        let weight = (0..12).map(|i| i as f32 / 12.0).collect();
        let values = vec![value("x", &[1, 4], None), value("w", &[4, 3], Some(weight)), value("y", &[1, 3], None)];
        let (name, op_type) = (String::from("fc"), String::from("MatMul"));
        let nodes = vec![Node { name, op_type, op: Op::MatMul, inputs: vec![0, 1], outputs: vec![2] }];
        let graph = Graph { values, nodes, inputs: vec![0], outputs: vec![2], ..Graph::default() };
        Model::from_graph(graph, Vec::new(), None).unwrap()
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let model = dense();
        let session = model.session(None).unwrap();
        assert!(matches!(session.logits(&[0.0; 3]), Err(TrainError::Length { expected: 4, found: 3 })));
        assert!(matches!(
            session.logits_into(&[0.0; 4], &mut [0.0; 2]),
            Err(TrainError::Scores { expected: 3, found: 2 })
        ));
        assert!(session.predict(Array2::zeros((1, 4)).view()).is_ok());
        assert_eq!(session.predict(Array1::zeros(4).view()).unwrap().len(), 3);
        assert!(matches!(session.predict(Array2::zeros((2, 2)).view()), Err(TrainError::Shape { .. })));

        let mut examples = model.new_examples(1);
        examples.push_array(Array1::ones(4).view(), 3).unwrap();
        let evaluate = |labels: &[String]| -> Result<Evaluation, TrainError> { session.evaluate(labels, &examples) };
        assert!(matches!(evaluate(model.labels()), Err(TrainError::Target { found: 3, classes: 3 })));
        assert!(matches!(evaluate(&model.labels()[..2]), Err(TrainError::Setting { .. })));

        let mut trainer = model.trainer(model.new_adapter(&AdapterSpec::default(), 0).unwrap(), 1).unwrap();
        assert!(matches!(trainer.step(&[(&[0.0; 4], 3)], 0.1), Err(TrainError::Target { found: 3, classes: 3 })));
        assert!(matches!(trainer.step(&[(&[0.0; 5], 0)], 0.1), Err(TrainError::Uncached { expected: 4, found: 5 })));
        assert!(matches!(trainer.restore(&[0.0]), Err(TrainError::Parameters { found: 1, .. })));
        let at = trainer.snapshot();
        trainer.restore(&at).unwrap();
        assert!(trainer.step(&[(&[1.0; 4], 2)], 0.1).unwrap().is_finite());
        assert_eq!(trainer.gradient_values().len(), at.len());
    }

    #[test]
    fn what_a_user_holds_goes_between_threads() {
        fn shared<T: Send + Sync>() {}
        fn sent<T: Send>() {}
        shared::<Model>();
        shared::<Session>();
        shared::<Adapter>();
        shared::<Examples>();
        sent::<Trainer>();
    }
}
