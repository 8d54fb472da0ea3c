//! RNN, GRU and LSTM.

use tract_onnx::pb::NodeProto;

use super::Converter;
use crate::graph::{Node, Op, RecurrentLayer, ValueId};
use crate::onnx::OnnxError;
use crate::onnx::attributes::Attributes;
use crate::ops::recurrent::{Cell, Gate, Recurrence};

/// Positions among the inputs of the ONNX operators.
const BIAS: usize = 3;
const LENGTHS: usize = 4;
const INITIAL_H: usize = 5;
const INITIAL_C: usize = 6;
const PEEPHOLES: usize = 7;

impl Converter<'_> {
    /// False for another operator, and for weights that are computed: those run through tract.
    pub(super) fn lower_recurrent(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        outputs: &[ValueId],
    ) -> Result<bool, OnnxError> {
        let attributes = Attributes(node);
        let flag = |name: &str| attributes.int(name).unwrap_or(0) != 0;
        let cell = match node.op_type.as_str() {
            "RNN" => Cell::Rnn,
            "GRU" => Cell::Gru { linear_before_reset: flag("linear_before_reset") },
            "LSTM" => Cell::Lstm { input_forget: flag("input_forget") },
            _ => return Ok(false),
        };
        let input = |i: usize| inputs.get(i).copied().flatten();
        let (Some(x), Some(w), Some(r)) = (input(0), input(1), input(2)) else {
            return Err(self.error(node, "it needs the inputs X, W and R; export the model again"));
        };
        let reverse = match attributes.string("direction").unwrap_or("forward") {
            "forward" => vec![false],
            "reverse" => vec![true],
            "bidirectional" => vec![false, true],
            other => {
                let what = format!("direction `{other}`; expected forward, reverse or bidirectional");
                return Err(self.error(node, what));
            }
        };
        let (x_shape, w_shape, r_shape) = (self.shape(x), self.shape(w), self.shape(r));
        let ([first, second, size], [_, _, hidden]) = (&x_shape[..], &r_shape[..]) else {
            return Err(self.error(node, format!("X {x_shape:?} and R {r_shape:?} must have rank 3")));
        };
        let (hidden, directions, batch_first) = (*hidden, reverse.len(), flag("layout"));
        let width = cell.gates() * hidden;
        let (steps, batch) = if batch_first { (*second, *first) } else { (*first, *second) };
        let state = if batch_first { vec![batch, directions, hidden] } else { vec![directions, batch, hidden] };
        let expected = [
            (w, vec![directions, width, *size]),
            (r, vec![directions, width, hidden]),
            (input(BIAS).unwrap_or(w), input(BIAS).map_or(w_shape, |_| vec![directions, 2 * width])),
            (input(INITIAL_H).unwrap_or(r), input(INITIAL_H).map_or(r_shape.clone(), |_| state.clone())),
            (input(INITIAL_C).unwrap_or(r), input(INITIAL_C).map_or(r_shape.clone(), |_| state)),
            (input(PEEPHOLES).unwrap_or(r), input(PEEPHOLES).map_or(r_shape, |_| vec![directions, 3 * hidden])),
        ];
        if let Some((value, expected)) = expected.iter().find(|(value, shape)| self.shape(*value) != *shape) {
            let (tensor, found) = (&self.graph.values[*value].name, self.shape(*value));
            let what = format!("`{tensor}` has shape {found:?}, expected {expected:?}; export the model again");
            return Err(self.error(node, what));
        }
        if let Some(lengths) = input(LENGTHS)
            && self.ints(Some(lengths)).is_none_or(|lengths| lengths.iter().any(|l| *l != steps as i64))
        {
            let what = format!(
                "sequence_lens must be left out, or be {steps} for every clip: here a clip has all its steps; \
                 export the model without sequence lengths"
            );
            return Err(self.error(node, what));
        }
        let clip = attributes.float("clip");
        if clip.is_some_and(|clip| clip.is_nan() || clip <= 0.0) {
            return Err(self.error(node, format!("clip is {}; expected a positive number", clip.unwrap_or_default())));
        }
        let functions = self.functions(node, &attributes, cell, directions)?;
        let recurrence = Recurrence { cell, hidden, reverse, functions, clip };
        let weights = [Some(w), Some(r), input(BIAS), input(PEEPHOLES)];
        if weights.iter().flatten().any(|v| !self.graph.is_constant(*v)) {
            // tract gives wrong values for the other directions, and passes the rest over.
            let plain = recurrence.clip.is_none()
                && cell != Cell::Lstm { input_forget: true }
                && recurrence.reverse == [false]
                && input(LENGTHS).is_none();
            if plain && recurrence.functions.iter().all(|f| *f == default_functions(cell)) {
                return Ok(false);
            }
            let what = "with weights that the model computes, only one direction forward with the default activations is \
                        supported; export the model with constant weights";
            return Err(self.error(node, what));
        }

        // The node keeps the inputs that count: x, W, R and whichever of the others there are.
        let mut kept = vec![x, w, r];
        let mut keep = |at: usize| {
            let value = input(at)?;
            kept.push(value);
            Some(kept.len() - 1)
        };
        let is_lstm = matches!(cell, Cell::Lstm { .. });
        let bias = keep(BIAS);
        let initial = [keep(INITIAL_H), if is_lstm { keep(INITIAL_C) } else { None }];
        let peepholes = if is_lstm { keep(PEEPHOLES) } else { None };
        let mut given = 0..outputs.len();
        let place = |at: usize| node.output.get(at).filter(|name| !name.is_empty());
        let outputs_at = [0, 1, 2].map(|at| place(at).and_then(|_| given.next()));
        let layer = RecurrentLayer { recurrence, batch_first, bias, initial, peepholes, outputs: outputs_at };
        let op = Op::Recurrent(Box::new(layer));
        let (name, op_type) = (name.to_owned(), node.op_type.clone());
        self.graph.nodes.push(Node { name, op_type, op, inputs: kept, outputs: outputs.to_vec() });
        Ok(true)
    }

    /// `activations` with `activation_alpha` and `activation_beta`, which the functions that have such a constant take in order.
    fn functions(
        &self,
        node: &NodeProto,
        attributes: &Attributes,
        cell: Cell,
        directions: usize,
    ) -> Result<Vec<[Gate; 3]>, OnnxError> {
        let Some(names) = attributes.strings("activations").filter(|names| !names.is_empty()) else {
            return Ok(vec![default_functions(cell); directions]);
        };
        let each = cell.functions();
        if names.len() != each * directions {
            let what = format!("{} activations; expected {each} a direction", names.len());
            return Err(self.error(node, what));
        }
        let mut alphas = attributes.floats("activation_alpha").unwrap_or_default().iter().copied();
        let mut betas = attributes.floats("activation_beta").unwrap_or_default().iter().copied();
        let mut gates = Vec::new();
        for name in &names {
            let mut alpha = |default: f32| alphas.next().unwrap_or(default);
            let mut beta = |default: f32| betas.next().unwrap_or(default);
            gates.push(match name.to_lowercase().as_str() {
                "sigmoid" => Gate::Sigmoid,
                "tanh" => Gate::Tanh,
                "relu" => Gate::Relu,
                "affine" => Gate::Affine { alpha: alpha(1.0), beta: beta(0.0) },
                "leakyrelu" => Gate::LeakyRelu { alpha: alpha(0.01) },
                "thresholdedrelu" => Gate::ThresholdedRelu { alpha: alpha(1.0) },
                "scaledtanh" => Gate::ScaledTanh { alpha: alpha(1.0), beta: beta(1.0) },
                "hardsigmoid" => Gate::HardSigmoid { alpha: alpha(0.2), beta: beta(0.5) },
                "elu" => Gate::Elu { alpha: alpha(1.0) },
                "softsign" => Gate::Softsign,
                "softplus" => Gate::Softplus,
                _ => {
                    let what =
                        format!("activation `{name}` is not one of ONNX; export the model with Sigmoid and Tanh");
                    return Err(self.error(node, what));
                }
            });
        }
        let refused = gates.iter().find(|gate| match gate {
            Gate::LeakyRelu { alpha } | Gate::ThresholdedRelu { alpha } | Gate::Elu { alpha } => {
                alpha.is_nan() || *alpha < 0.0
            }
            Gate::ScaledTanh { alpha, .. } => *alpha == 0.0,
            _ => false,
        });
        if let Some(gate) = refused {
            let what = format!("{gate:?} has no slope that its output tells; export the model with Sigmoid and Tanh");
            return Err(self.error(node, what));
        }
        let direction = |d: &[Gate]| std::array::from_fn(|i| d.get(i).copied().unwrap_or(Gate::Tanh));
        Ok(gates.chunks_exact(each).map(direction).collect())
    }
}

fn default_functions(cell: Cell) -> [Gate; 3] {
    match cell {
        Cell::Rnn => [Gate::Tanh; 3],
        _ => [Gate::Sigmoid, Gate::Tanh, Gate::Tanh],
    }
}
