//! Inference: one plan, one adapter, any number of threads.
//!
//! A [`Session`] of its own has the adapter merged into its weights. Sessions of one [`Base`] share plan, packed weights and arenas, and bring
//! only the factors of their adapter: one for each user, chosen with each call.

mod sliding;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ndarray::{Array1, ArrayView, Dimension};

use crate::graph::{Ending, Graph, Site, ValueId};
use crate::lora::{Adapter, SharedLayer, SiteWeights};
use crate::plan::{Arena, Plan, PlanError, Program};
use crate::train::{Evaluation, Examples, Loss, TrainError};

pub(crate) use self::sliding::StreamSession;
pub use self::sliding::{Slides, Whole};

/// A plan with arenas for those who run it.
#[derive(Debug)]
struct Network {
    /// What it was planned from, for streams that plan it by rows; the weights are shared.
    program: Program,
    plan: Plan,
    ending: Ending,
    classes: usize,
    arenas: Mutex<Vec<Arena>>,
}

impl Network {
    fn new(graph: &Graph, ending: Ending, program: Program) -> Result<Self, PlanError> {
        let plan = Plan::new(&program, &[program.input], &[program.output], false)?;
        Ok(Self { program, plan, ending, classes: graph.values[ending.logits].len(), arenas: Mutex::new(Vec::new()) })
    }

    fn arenas(&self) -> MutexGuard<'_, Vec<Arena>> {
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs on one input and hands the logits to `read`.
    fn run<T>(&self, weights: &[SiteWeights], input: &[f32], read: impl FnOnce(&[f32]) -> T) -> Result<T, TrainError> {
        if input.len() != self.plan.input_len() {
            return Err(TrainError::Length { expected: self.plan.input_len(), found: input.len() });
        }
        let spare = self.arenas().pop();
        let mut arena = spare.unwrap_or_else(|| Arena::new(self.plan.arena_len()));
        let result = self.plan.forward(weights, &mut arena, input);
        let read = read(self.plan.output(&arena, 0));
        self.arenas().push(arena);
        result?;
        Ok(read)
    }
}

/// What a call runs: never changed, only exchanged as a whole.
#[derive(Debug)]
struct Current {
    network: Arc<Network>,
    weights: Vec<SiteWeights>,
    /// Multiply-adds that the adapter adds to those of the plan.
    added: u64,
}

/// A frozen base that many adapters share: the plan and its packed weights are in memory once. See [`crate::Model::base`].
///
/// The plan has every layer that any adapter may change. An adapter that is loaded is its factors; a layer that it lacks runs frozen, at no cost.
#[derive(Debug)]
pub struct Base {
    network: Arc<Network>,
    sites: Vec<Site>,
    layers: Vec<Option<Arc<SharedLayer>>>,
    input_shape: Vec<usize>,
}

impl Base {
    /// Plans inference with adapters that may change any of `sites`.
    ///
    /// # Errors
    /// A network that cannot be planned.
    pub fn new(graph: &Graph, input: ValueId, ending: Ending, sites: Vec<Site>) -> Result<Self, PlanError> {
        let program = Program::shared(graph, input, ending.logits, &sites)?;
        let layers = program.shared_layers().to_vec();
        let network = Arc::new(Network::new(graph, ending, program)?);
        Ok(Self { network, sites, layers, input_shape: graph.values[input].shape.clone() })
    }

    /// A session with an adapter of this base, or with none; `adapter` comes with its sites in order, see
    /// [`Adapter::bind`].
    ///
    /// # Errors
    /// A site that the base was not planned with.
    pub(crate) fn session(&self, adapter: Option<(&Adapter, Vec<Site>)>) -> Result<Session, PlanError> {
        let mut weights = vec![SiteWeights::default(); self.sites.len()];
        let mut added = 0;
        if let Some((adapter, bound)) = adapter {
            for (site, of_adapter) in bound.iter().zip(&adapter.sites) {
                let index = self.sites.iter().position(|own| own.key == site.key);
                let layer = index.and_then(|index| Some((index, self.layers[index].as_ref()?)));
                let (index, layer) = layer.ok_or(PlanError::NoSite)?;
                weights[index] = layer.load(site, &of_adapter.delta);
                added += layer.added_multiply_adds(&weights[index]);
            }
        }
        Ok(Session::of(Current { network: self.network.clone(), weights, added }, self.input_shape.clone()))
    }
}

/// Has `answer` write the scores of `classes`; the one score of a model becomes two.
fn spread(
    classes: usize,
    scores: &mut [f32],
    answer: impl FnOnce(&mut [f32]) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    match scores {
        [no, yes] if classes == 1 => {
            answer(std::slice::from_mut(yes))?;
            *no = 1.0 - *yes;
            Ok(())
        }
        _ => answer(scores),
    }
}

/// A model that answers. `Send + Sync`: calls from several threads each get an arena of their own.
#[derive(Debug)]
pub struct Session {
    current: RwLock<Arc<Current>>,
    input_shape: Vec<usize>,
    input_len: usize,
    classes: usize,
}

impl Session {
    /// Plans inference with an adapter merged; it comes with its sites in order, see [`Adapter::bind`].
    ///
    /// # Errors
    /// A network that cannot be planned.
    pub fn new(
        graph: &Graph,
        input: ValueId,
        ending: Ending,
        adapter: Option<(&Adapter, Vec<Site>)>,
    ) -> Result<Self, PlanError> {
        let adapted: Vec<_> = match &adapter {
            Some((adapter, sites)) => {
                sites.iter().zip(&adapter.sites).map(|(s, a)| (s.clone(), a.delta.adaptation())).collect()
            }
            None => Vec::new(),
        };
        let program = Program::new(graph, input, ending.logits, &adapted)?;
        let network = Arc::new(Network::new(graph, ending, program)?);
        let mut weights = Vec::new();
        if let Some((adapter, sites)) = &adapter {
            for ((step, site), bound) in network.program.sites().iter().zip(&adapter.sites).zip(sites) {
                let mut params = vec![0.0; step.parameters()];
                site.delta.to_parameters(bound, &mut params);
                let mut prepared = step.weights();
                step.prepare(&params, &mut prepared, false);
                weights.push(prepared);
            }
        }
        Ok(Self::of(Current { network, weights, added: 0 }, graph.values[input].shape.clone()))
    }

    fn of(current: Current, input_shape: Vec<usize>) -> Self {
        let (input_len, classes) = (current.network.plan.input_len(), current.network.classes);
        Self { current: RwLock::new(Arc::new(current)), input_shape, input_len, classes }
    }

    /// What a call that begins now runs.
    fn current(&self) -> Arc<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the adapter of another session, and gives it this one's. Other threads may call at any time: calls in flight end with the old adapter, later
    /// ones begin with the new one, none sees a mixture. The old one is in `other` then, to be dropped where there is time.
    ///
    /// # Errors
    /// A session with another input or another number of scores: callers could not read its answers.
    pub fn swap(&self, other: &mut Self) -> Result<(), TrainError> {
        let (expected, found) = (&self.input_shape, &other.input_shape);
        if expected != found {
            return Err(TrainError::Shape { expected: expected.clone(), found: found.clone() });
        }
        if self.classes != other.classes {
            let (found, cure) =
                (other.classes.to_string(), "a session of other classes cannot be swapped in: use it as it is");
            return Err(TrainError::Setting { what: "number of scores", found, cure });
        }
        let theirs = other.current.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut own = self.current.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *own, theirs);
        Ok(())
    }

    /// Values of one input.
    pub fn input_len(&self) -> usize {
        self.input_len
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
        self.current().network.plan.arena_len() * size_of::<f32>()
    }

    /// Multiply-adds of a call.
    pub fn multiply_adds(&self) -> u64 {
        let current = self.current();
        current.network.plan.multiply_adds() + current.added
    }

    /// Bytes of the weights that this session has for itself: none of a base without an adapter.
    pub fn own_bytes(&self) -> usize {
        self.current().weights.iter().map(SiteWeights::bytes).sum()
    }

    /// Logits of one input (row-major, in the shape of the file, one sample).
    ///
    /// # Errors
    /// Another number of values than [`Session::input_len`]; an operator of the other engine that fails.
    pub fn logits(&self, input: &[f32]) -> Result<Vec<f32>, TrainError> {
        let current = self.current();
        current.network.run(&current.weights, input, |logits| logits.to_vec())
    }

    /// [`Session::logits`] into `logits`, `[classes]`: nothing is allocated from the second call of a thread on.
    ///
    /// # Errors
    /// As [`Session::logits`]; another length of `logits`.
    pub fn logits_into(&self, input: &[f32], logits: &mut [f32]) -> Result<(), TrainError> {
        self.answer(input, logits, |_, _| ())
    }

    /// Probabilities of one input, in the order of the labels (two of a one-score model).
    ///
    /// # Errors
    /// As [`Session::logits`].
    pub fn scores(&self, input: &[f32]) -> Result<Vec<f32>, TrainError> {
        let mut scores = vec![0.0; self.classes.max(2)];
        self.scores_into(input, &mut scores)?;
        Ok(scores)
    }

    /// [`Session::scores`] into `scores`, one a label: nothing is allocated from the second call of a thread on.
    ///
    /// # Errors
    /// As [`Session::logits_into`].
    pub fn scores_into(&self, input: &[f32], scores: &mut [f32]) -> Result<(), TrainError> {
        spread(self.classes, scores, |scores| self.answer(input, scores, Ending::to_scores))
    }

    /// Writes the logits to `out`, then `finish` with the ending of the same model.
    fn answer(
        &self,
        input: &[f32],
        out: &mut [f32],
        finish: impl FnOnce(Ending, &mut [f32]),
    ) -> Result<(), TrainError> {
        if out.len() != self.classes {
            return Err(TrainError::Scores { expected: self.classes, found: out.len() });
        }
        let current = self.current();
        current.network.run(&current.weights, input, |logits| out.copy_from_slice(logits))?;
        finish(current.network.ending, out);
        Ok(())
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
    use crate::{Adapter, AdapterSpec, Base, Evaluation, Examples, Model, Session, Trainer};

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
        shared::<Base>();
        shared::<Adapter>();
        shared::<Examples>();
        sent::<Trainer>();
    }
}
