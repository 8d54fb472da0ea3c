//! What we do not lower runs through tract's own operator: a model of one node.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tract_onnx::pb::{
    GraphProto, ModelProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::Tensor;

use super::load::{brief, to_f32};
use crate::graph::Foreign;

/// A plan of tract's for one node, shapes and constants fixed.
#[derive(Debug)]
pub(super) struct TractNode {
    op_type: String,
    plan: Arc<TypedRunnableModel>,
    inputs: Vec<(Vec<usize>, DatumType)>,
    /// Values of each output.
    outputs: Vec<usize>,
}

impl TractNode {
    /// Builds the node with `constants` bound; `inputs` are name, shape and type of the rest, `outputs` how many values each
    /// output has.
    pub(super) fn new(
        node: &NodeProto,
        proto: &ModelProto,
        inputs: &[(String, Vec<usize>, DatumType)],
        constants: &[(String, Arc<Tensor>)],
        outputs: Vec<usize>,
    ) -> Result<Self, String> {
        let info = |name: &str| ValueInfoProto { name: name.into(), ..Default::default() };
        let declared = |name: &str, shape: &[usize], dt: DatumType| {
            let dim = |d: &usize| tensor_shape_proto::Dimension {
                value: Some(tensor_shape_proto::dimension::Value::DimValue(*d as i64)),
                ..Default::default()
            };
            let tensor = type_proto::Tensor {
                elem_type: onnx_type(dt),
                shape: Some(TensorShapeProto { dim: shape.iter().map(dim).collect() }),
            };
            let value = Some(type_proto::Value::TensorType(tensor));
            ValueInfoProto {
                name: name.into(),
                r#type: Some(TypeProto { value, ..Default::default() }),
                ..Default::default()
            }
        };
        let mut all: Vec<ValueInfoProto> = inputs.iter().map(|(n, s, d)| declared(n, s, *d)).collect();
        all.extend(constants.iter().map(|(n, t)| declared(n, t.shape(), t.datum_type())));
        let graph = GraphProto {
            node: vec![node.clone()],
            input: all,
            output: node.output.iter().filter(|o| !o.is_empty()).map(|o| info(o)).collect(),
            ..Default::default()
        };
        let single = ModelProto {
            graph: Some(graph),
            opset_import: proto.opset_import.clone(),
            ir_version: proto.ir_version,
            ..Default::default()
        };
        let plan = || -> TractResult<Arc<TypedRunnableModel>> {
            let mut model = tract_onnx::onnx().with_ignore_output_types(true).model_for_proto_model(&single)?;
            for (index, (_, shape, dt)) in inputs.iter().enumerate() {
                model.set_input_fact(index, InferenceFact::dt_shape(*dt, shape.as_slice()))?;
            }
            for (index, (_, tensor)) in constants.iter().enumerate() {
                model.set_input_fact(inputs.len() + index, InferenceFact::dt_shape_from_tensor(tensor))?;
            }
            // A constant input is no input any more: bind it before types are fixed.
            let outlets = model.input_outlets()?.to_vec();
            for (index, (_, tensor)) in constants.iter().enumerate() {
                let node = outlets[inputs.len() + index].node;
                let konst = tract_onnx::tract_hir::ops::konst::Const::new(tensor.clone())?;
                model.node_mut(node).op = Box::new(konst);
            }
            model.set_input_outlets(&outlets[..inputs.len()])?;
            model.into_optimized()?.into_runnable()
        };
        let plan = plan().map_err(|e| brief(&e))?;
        let inputs = inputs.iter().map(|(_, shape, dt)| (shape.clone(), *dt)).collect();
        Ok(Self { op_type: node.op_type.clone(), plan, inputs, outputs })
    }
}

fn onnx_type(dt: DatumType) -> i32 {
    use tract_onnx::pb::tensor_proto::DataType;
    let found = match dt {
        DatumType::Bool => DataType::Bool,
        DatumType::U8 => DataType::Uint8,
        DatumType::U16 => DataType::Uint16,
        DatumType::U32 => DataType::Uint32,
        DatumType::U64 => DataType::Uint64,
        DatumType::I8 => DataType::Int8,
        DatumType::I16 => DataType::Int16,
        DatumType::I32 => DataType::Int32,
        DatumType::F16 => DataType::Float16,
        DatumType::F32 => DataType::Float,
        DatumType::F64 => DataType::Double,
        _ => DataType::Int64,
    };
    found as i32
}

impl Foreign for TractNode {
    fn run(&self, x: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, String> {
        let run = || -> TractResult<Vec<Vec<f32>>> {
            let mut inputs: TVec<TValue> = tvec!();
            for (x, (shape, dt)) in x.iter().zip(&self.inputs) {
                let tensor = Tensor::from_shape(shape, x)?;
                inputs.push(tensor.cast_to_dt(*dt)?.into_owned().into_tvalue());
            }
            let outputs = self.plan.run(inputs)?;
            let values = outputs.iter().map(|t| to_f32(t).map(|v| v.to_vec()));
            let values: Option<Vec<Vec<f32>>> = values.collect();
            let values = values.ok_or_else(|| TractError::msg("an output is not numeric"))?;
            let found = self.outputs.iter().enumerate().map(|(i, _)| values.get(i).map_or(0, Vec::len));
            match found.eq(self.outputs.iter().copied()) {
                true => Ok(values),
                false => Err(TractError::msg("an output has another shape than the file lets expect")),
            }
        };
        // tract panics on some values, such as an index out of range.
        let result = catch_unwind(AssertUnwindSafe(run));
        let stopped = |_| TractError::msg("tract's operator stopped; a value may be out of its range");
        result.unwrap_or_else(|panic| Err(stopped(panic))).map_err(|e| format!("{}: {}", self.op_type, brief(&e)))
    }
}
