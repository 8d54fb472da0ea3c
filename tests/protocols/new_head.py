"""Puts a dense layer for other classes on a named value of an ONNX file, in place of what followed that value.

usage: new_head.py MODEL.onnx OUT.onnx CLASSES [VALUE]          VALUE: `embedding` unless told

The layer starts at zero, the file's only output is `logits` [batch, CLASSES]. To train it and to write the file for good:
    accentor adapt --model OUT.onnx … --head --sites '^$' --out head
    accentor merge --model OUT.onnx … --adapter head --out BASE.onnx

Needs onnx.
"""
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

source, out, classes = sys.argv[1], sys.argv[2], int(sys.argv[3])
value = sys.argv[4] if len(sys.argv) > 4 else "embedding"
model = onnx.shape_inference.infer_shapes(onnx.load(source))
graph = model.graph
known = {v.name: v for v in [*graph.value_info, *graph.output]}
width = known[value].type.tensor_type.shape.dim[-1].dim_value

wanted, nodes = {value}, []
for node in reversed(graph.node):
    if wanted & set(node.output):
        nodes.insert(0, node)
        wanted |= set(node.input)
nodes.append(helper.make_node("Gemm", [value, "new_head.weight", "new_head.bias"], ["logits"], name="new_head", transB=1))
kept = [t for t in graph.initializer if t.name in wanted]
kept += [numpy_helper.from_array(np.zeros(shape, np.float32), f"new_head.{name}")
         for name, shape in (("weight", [classes, width]), ("bias", [classes]))]
outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])]
new = helper.make_model(helper.make_graph(nodes, graph.name, graph.input, outputs, kept),
                        opset_imports=model.opset_import, ir_version=model.ir_version)
onnx.checker.check_model(new, full_check=True)
onnx.save(new, out)
