//! Several networks, one behind the other, as one graph.
//!
//! | what a stage is fed | how it gets it |
//! |---|---|
//! | the same values as it takes | as they are, under the shape that it takes; two dimensions also transposed |
//! | with a window: more frames than it takes | once for each window, with the same constants; the outputs are stacked, `[windows, …]` |
//!
//! Dimensions of 1 count for nothing in both. Names stay those of the stage's file; where an earlier stage has the same
//! name, the file's name comes before it (`head/fc.weight`).

use std::collections::HashSet;
use std::sync::Arc;

use super::{Element, Graph, Node, NodeId, Op, Site, Source, Value, ValueId};
use crate::ops::binary::BinaryKind;

/// Windows over frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// Frames of a window.
    pub window: usize,
    /// Frames from one window to the next.
    pub hop: usize,
}

/// How a stage is fed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Windows, where it runs more than once.
    pub frames: Option<Frames>,
    /// What it is fed is multiplied by this.
    pub scale: f32,
    /// Then this is added.
    pub offset: f32,
    /// Whether no adapter may sit in it.
    pub frozen: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self { frames: None, scale: 1.0, offset: 0.0, frozen: false }
    }
}

/// Why stages do not fit together.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// Shapes.
    #[error("stage {index} (`{name}`) takes {takes:?}, {} gives {given:?}; {cure}", before(*index))]
    Shape {
        /// Its place, from 1.
        index: usize,
        /// Its file.
        name: String,
        /// What it takes.
        takes: Vec<usize>,
        /// What comes before it gives.
        given: Vec<usize>,
        /// What would do.
        cure: String,
    },
    /// No input or output that depends on it.
    #[error("stage {index} (`{name}`): {what}")]
    Stage {
        /// Its place, from 1.
        index: usize,
        /// Its file.
        name: String,
        /// What is wrong, and the cure.
        what: String,
    },
    /// More windows than a device can want.
    #[error(
        "stage {index} (`{name}`) would run over {windows} windows, at most {MAX_WINDOWS} are possible; \
         set a larger `hop`, or feed a shorter clip"
    )]
    Windows {
        /// Its place, from 1.
        index: usize,
        /// Its file.
        name: String,
        /// How many.
        windows: usize,
    },
}

/// What comes before a stage.
fn before(index: usize) -> String {
    if index > 1 { format!("stage {}", index - 1) } else { "the front end".to_owned() }
}

/// Copies of a stage that a graph may hold.
const MAX_WINDOWS: usize = 1024;

/// A stage of a finished chain: its own network, and where that stands in the whole.
#[derive(Clone, Debug)]
pub struct Stage {
    /// File name, made different from that of the other stages.
    pub name: String,
    /// The network as its file has it.
    pub graph: Arc<Graph>,
    /// How often it runs.
    pub windows: usize,
    nodes: Vec<NodeId>,
    values: Vec<ValueId>,
}

impl Stage {
    /// A site of the whole as a site of this stage, if it is one.
    pub fn site(&self, site: &Site) -> Option<Site> {
        let value = |id: ValueId| self.values.iter().position(|v| *v == id);
        let node = self.nodes.iter().position(|n| *n == site.node)?;
        let bias = match site.bias {
            Some(bias) => Some(value(bias)?),
            None => None,
        };
        Some(Site { node, weight: value(site.weight)?, bias, ..site.clone() })
    }
}

/// A chain that is being put together.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    graph: Graph,
    stages: Vec<Stage>,
    /// Shape of what the first stage is fed, if it is known.
    fed: Option<Vec<usize>>,
    /// What the next stage is fed.
    at: Option<ValueId>,
    names: HashSet<String>,
    node_names: HashSet<String>,
}

impl Chain {
    /// A chain that is fed a value of this shape, where that is known: it fixes dimensions that the first stage leaves
    /// open, and says how many windows fit.
    pub fn new(fed: Option<&[usize]>) -> Self {
        Self { fed: fed.map(<[usize]>::to_vec), ..Self::default() }
    }

    /// The shape that the next stage would be fed, if it is known: of one window, where there are windows.
    pub fn offers(&self, frames: Option<Frames>) -> Option<Vec<usize>> {
        let mut shape = self.at.map(|at| self.shape(at)).or_else(|| self.fed.clone())?;
        if let (Some(frames), Some(first)) = (frames, shape.iter_mut().find(|d| **d != 1)) {
            *first = frames.window;
        }
        Some(shape)
    }

    /// Puts `stage`, read from a file of that name, behind the others: its first input and first output.
    ///
    /// # Errors
    /// [`ChainError`], naming the stage, what it takes and what it is fed.
    pub fn push(&mut self, name: &str, stage: Graph, link: &Link) -> Result<(), ChainError> {
        let index = self.stages.len() + 1;
        let stem = name.strip_suffix(".onnx").unwrap_or(name);
        let stem = self.free(stem, |chain, stem| chain.stages.iter().all(|s| s.name != stem));
        let wrong = |what: &str| ChainError::Stage { index, name: name.to_owned(), what: what.to_owned() };
        let (Some(input), Some(output)) = (stage.inputs.first().copied(), stage.outputs.first().copied()) else {
            return Err(wrong("it has no input or no output; name them with `input` and `output`"));
        };
        if stage.is_constant(output) {
            return Err(wrong("its output does not depend on its input; name another with `output`"));
        }
        let takes = stage.values[input].shape.clone();
        let fed = match self.at {
            Some(fed) => fed,
            None => {
                let given = match (link.frames, &self.fed) {
                    (None, _) => takes.clone(),
                    (Some(_), Some(fed)) => fed.clone(),
                    _ => {
                        return Err(wrong(
                            "its `window` needs `input_shape` above the stages: what the front end gives",
                        ));
                    }
                };
                let fed = self.value(&stage.values[input].name, given);
                self.graph.inputs = vec![fed];
                fed
            }
        };
        let first = self.graph.nodes.len();
        let fed = self.scaled(fed, link, &stem);
        let (nodes, values, at, count);
        match self.arrange(fed, &takes, link.frames, index, name, &stem)?.as_slice() {
            [one] => {
                count = 1;
                (nodes, values) = self.copy(&stage, input, *one, None, &stem);
                self.graph.outputs = stage.outputs.iter().map(|o| values[*o]).collect();
                at = values[output];
            }
            windows => {
                count = windows.len();
                let mut outputs = Vec::new();
                let (of_first, shared) = self.copy(&stage, input, windows[0], None, &stem);
                outputs.push(shared[output]);
                for window in &windows[1..] {
                    let (copies, own) = self.copy(&stage, input, *window, Some(&shared), &stem);
                    self.graph.copies.extend(copies.iter().copied().zip(of_first.iter().copied()));
                    outputs.push(own[output]);
                }
                at = self.stack(&outputs, &stem);
                self.graph.outputs = vec![at];
                (nodes, values) = (of_first, shared);
            }
        }
        if link.frozen {
            self.graph.frozen.extend(first..self.graph.nodes.len());
        }
        self.at = Some(at);
        self.stages.push(Stage { name: stem, graph: Arc::new(stage), windows: count, nodes, values });
        Ok(())
    }

    /// The whole as one graph, and its stages.
    pub fn finish(self) -> (Graph, Vec<Stage>) {
        (self.graph, self.stages)
    }

    /// `name`, or the first of `name#2`, `name#3`, … that is free.
    fn free(&self, name: &str, is_free: impl Fn(&Self, &str) -> bool) -> String {
        let numbered = |i: usize| if i == 1 { name.to_owned() } else { format!("{name}#{i}") };
        (1..).map(numbered).find(|n| is_free(self, n)).unwrap_or_default()
    }

    /// A new activation.
    fn value(&mut self, name: &str, shape: Vec<usize>) -> ValueId {
        let name = self.free(name, |chain, name| !chain.names.contains(name));
        self.names.insert(name.clone());
        let (element, constant, stored, source, quantised) = (Element::F32, None, false, None, None);
        self.graph.values.push(Value { name, shape, element, constant, stored, source, quantised });
        self.graph.values.len() - 1
    }

    /// A node of ours that computes a new activation.
    fn node(&mut self, name: String, op_type: &str, op: Op, inputs: Vec<ValueId>, shape: Vec<usize>) -> ValueId {
        let y = self.value(&name, shape);
        self.graph.nodes.push(Node { name, op_type: op_type.into(), op, inputs, outputs: vec![y] });
        y
    }

    fn shape(&self, value: ValueId) -> Vec<usize> {
        self.graph.values[value].shape.clone()
    }

    fn reshape(&mut self, x: ValueId, shape: &[usize], stem: &str) -> ValueId {
        if self.graph.values[x].shape == shape {
            return x;
        }
        self.node(format!("{stem}/shape"), "Reshape", Op::Reshape, vec![x], shape.to_vec())
    }

    fn scaled(&mut self, fed: ValueId, link: &Link, stem: &str) -> ValueId {
        let mut at = fed;
        let parts = [
            ("scale", "Mul", BinaryKind::Mul, link.scale, link.scale != 1.0),
            ("offset", "Add", BinaryKind::Add, link.offset, link.offset != 0.0),
        ];
        for (what, op_type, kind, number, wanted) in parts {
            if wanted {
                let constant = self.value(&format!("{stem}/{what}"), Vec::new());
                self.graph.values[constant].constant = Some([number].into());
                let shape = self.shape(at);
                at = self.node(format!("{stem}/{what}"), op_type, Op::Binary(kind), vec![at, constant], shape);
            }
        }
        at
    }

    /// What each run of a stage is fed, in the shape that it takes.
    fn arrange(
        &mut self,
        fed: ValueId,
        takes: &[usize],
        frames: Option<Frames>,
        index: usize,
        name: &str,
        stem: &str,
    ) -> Result<Vec<ValueId>, ChainError> {
        let given = self.shape(fed);
        let wrong = |cure: String| {
            let (name, takes, given) = (name.to_owned(), takes.to_vec(), given.clone());
            ChainError::Shape { index, name, takes, given, cure }
        };
        let Some(Frames { window, hop }) = frames else {
            let fits = fit(&given, takes).ok_or_else(|| wrong(cure(&given, takes)))?;
            return Ok(vec![self.take(fed, fits, takes, stem)]);
        };
        let with = |axis: usize| {
            let mut shape = given.clone();
            shape[axis] = window;
            shape
        };
        let wide = || (0..given.len()).filter(|axis| given[*axis] >= window.max(2));
        let places = [Fit::Direct, Fit::Flat, Fit::Transposed];
        let place = places
            .into_iter()
            .find_map(|kind| wide().find(|axis| fit(&with(*axis), takes) == Some(kind)).map(|axis| (axis, kind)));
        let Some((axis, fits)) = place else {
            let most = given.iter().copied().max().unwrap_or(0);
            return Err(wrong(match most < window {
                true => format!("`window = {window}` needs {window} frames: feed a longer clip (`window_samples`)"),
                false => format!("windows of {window} frames do not fit: {}", cure(&given, takes)),
            }));
        };
        let windows = (given[axis] - window) / hop.max(1) + 1;
        if windows > MAX_WINDOWS {
            return Err(ChainError::Windows { index, name: name.to_owned(), windows });
        }
        let shape = with(axis);
        Ok((0..windows)
            .map(|k| {
                let mut starts = vec![0; given.len()];
                starts[axis] = k * hop;
                let op = Op::Slice(starts, vec![1; given.len()]);
                let cut = self.node(format!("{stem}/window"), "Slice", op, vec![fed], shape.clone());
                self.take(cut, fits, takes, stem)
            })
            .collect())
    }

    /// `x` in the shape that a stage takes.
    fn take(&mut self, mut x: ValueId, fits: Fit, takes: &[usize], stem: &str) -> ValueId {
        if fits == Fit::Transposed {
            let plane = squeezed(&self.shape(x));
            x = self.reshape(x, &plane, stem);
            let turned = vec![plane[1], plane[0]];
            x = self.node(format!("{stem}/turn"), "Transpose", Op::Transpose(vec![1, 0]), vec![x], turned);
        }
        self.reshape(x, takes, stem)
    }

    /// Adds the stage's values and nodes with `fed` in the place of its input; with `shared`, the values of an earlier
    /// copy, the constants are those. Returns where each node and value of the stage stands.
    fn copy(
        &mut self,
        stage: &Graph,
        input: ValueId,
        fed: ValueId,
        shared: Option<&[ValueId]>,
        stem: &str,
    ) -> (Vec<NodeId>, Vec<ValueId>) {
        let mut values = Vec::with_capacity(stage.values.len());
        for (id, value) in stage.values.iter().enumerate() {
            values.push(match shared {
                _ if id == input => fed,
                Some(shared) if value.constant.is_some() => shared[id],
                _ => {
                    let taken = self.names.contains(&value.name);
                    let name = if taken { format!("{stem}/{}", value.name) } else { value.name.clone() };
                    let at = self.value(&name, value.shape.clone());
                    let name = self.graph.values[at].name.clone();
                    self.graph.values[at] = Value { name, source: None, ..value.clone() };
                    at
                }
            });
        }
        for (value, at) in stage.values.iter().zip(&values) {
            if let (Some(source), None) = (value.source, shared) {
                self.graph.values[*at].source = Some(Source { value: values[source.value], ..source });
            }
        }
        let first = self.graph.nodes.len();
        let mut own = Vec::new();
        for node in &stage.nodes {
            let taken = self.node_names.contains(&node.name);
            let name = if taken { format!("{stem}/{}", node.name) } else { node.name.clone() };
            own.push(node.name.clone());
            let at = |ids: &[ValueId]| ids.iter().map(|id| values[*id]).collect();
            let (inputs, outputs) = (at(&node.inputs), at(&node.outputs));
            self.graph.nodes.push(Node { name, inputs, outputs, ..node.clone() });
        }
        if shared.is_none() {
            self.node_names.extend(own);
        }
        ((first..self.graph.nodes.len()).collect(), values)
    }

    /// The outputs of all windows as `[windows, …]`.
    fn stack(&mut self, outputs: &[ValueId], stem: &str) -> ValueId {
        let mut shape = squeezed(&self.shape(outputs[0]));
        shape.insert(0, 1);
        let rows: Vec<ValueId> = outputs.iter().map(|o| self.reshape(*o, &shape, stem)).collect();
        shape[0] = rows.len();
        self.node(format!("{stem}/stack"), "Concat", Op::Concat(0), rows, shape)
    }
}

/// How what is given becomes what is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// The same dimensions.
    Direct,
    /// One of both has all values in one dimension.
    Flat,
    /// Two dimensions in the other order.
    Transposed,
}

fn fit(given: &[usize], takes: &[usize]) -> Option<Fit> {
    let (given, takes) = (squeezed(given), squeezed(takes));
    let count = |shape: &[usize]| shape.iter().product::<usize>();
    match (given.as_slice(), takes.as_slice()) {
        (a, b) if a == b => Some(Fit::Direct),
        (a, b) if count(a) == count(b) && (a.len() <= 1 || b.len() <= 1) => Some(Fit::Flat),
        ([a, b], [c, d]) if a == d && b == c => Some(Fit::Transposed),
        _ => None,
    }
}

/// What a user can do about shapes that do not fit.
fn cure(given: &[usize], takes: &[usize]) -> String {
    let (from, to) = (squeezed(given), squeezed(takes));
    let differing: Vec<usize> = (0..from.len().min(to.len())).filter(|i| from[*i] != to[*i]).collect();
    match differing[..] {
        [axis] if from.len() == to.len() && from[axis] > to[axis] => {
            format!("set `window = {}` to run it over the frames, or its `input_shape` if it takes any", to[axis])
        }
        [axis] if from.len() == to.len() => {
            format!("it needs {} frames: feed a longer clip, or set its `input_shape` if it takes any", to[axis])
        }
        _ => "name another `output` there or another `input` here, or set `input_shape`".to_owned(),
    }
}

/// A shape without its dimensions of 1.
fn squeezed(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|d| *d != 1).collect()
}

/// The dimensions that a file leaves open, from the shape that its input is `fed`: the batch is 1, one other is what the
/// number of values says, several are taken in order. `None` where that is not clear.
#[cfg(feature = "onnx")]
pub(crate) fn fill(dims: &[Option<usize>], fed: &[usize]) -> Option<Vec<usize>> {
    let mut dims = dims.to_vec();
    if let [batch @ None, _, ..] = dims.as_mut_slice() {
        *batch = Some(1);
    }
    let values = fed.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    let open = dims.iter().filter(|d| d.is_none()).count();
    if open == 1 {
        let known: usize = dims.iter().flatten().product();
        let rest = (known > 0 && values % known == 0).then(|| values / known)?;
        return Some(dims.into_iter().map(|d| d.unwrap_or(rest)).collect());
    }
    let mut fed = squeezed(fed).into_iter();
    let filled: Option<Vec<usize>> = dims
        .into_iter()
        .map(|d| match d {
            Some(1) => Some(1),
            Some(d) => (fed.next() == Some(d)).then_some(d),
            None => fed.next(),
        })
        .collect();
    filled.filter(|_| open > 0 && fed.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "onnx")]
    #[test]
    fn open_dimensions_are_what_is_fed() {
        for (dims, fed, filled) in [
            (&[None, None][..], &[16000][..], Some(&[1, 16000][..])),
            (&[None], &[16000], Some(&[16000])),
            (&[None, None, Some(96)], &[16, 96], Some(&[1, 16, 96])),
            (&[None, None, Some(96)], &[1, 1, 16, 96], Some(&[1, 16, 96])),
            (&[None, None, None], &[1, 98, 40], Some(&[1, 98, 40])),
            (&[Some(1), None, Some(1), None], &[49, 10], Some(&[1, 49, 1, 10])),
            (&[None, None, Some(96)], &[16, 95], None),
            (&[None, None, None], &[98], None),
            (&[None, Some(3)], &[3], None),
        ] {
            assert_eq!(fill(dims, fed).as_deref(), filled, "{dims:?} {fed:?}");
        }
    }

    #[test]
    fn dimensions_of_one_do_not_matter() {
        for (given, takes, expected) in [
            (&[1, 1, 19, 3][..], &[1, 19, 3][..], Some(Fit::Direct)),
            (&[16, 96], &[1, 1536], Some(Fit::Flat)),
            (&[1], &[1, 1], Some(Fit::Direct)),
            (&[98, 40], &[1, 40, 98, 1], Some(Fit::Transposed)),
            (&[4, 6], &[3, 8], None),
            (&[4, 6], &[4, 5], None),
        ] {
            assert_eq!(fit(given, takes), expected, "{given:?} {takes:?}");
        }
        assert!(cure(&[197, 32], &[1, 76, 32, 1]).contains("window = 76"));
        assert!(cure(&[50, 32], &[1, 76, 32, 1]).contains("76 frames"));
        assert!(cure(&[50, 31], &[1, 76, 32, 1]).contains("`output`"));
    }
}
