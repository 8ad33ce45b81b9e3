"""Models as deployments make them of others: quantized, fused, optimized and saved by ONNX Runtime's own tools, or with
declarations as other exporters leave them."""

import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers import float16, optimizer

import onnx

import inputs
from exports_torch import kept
from model import Model
from reference import Reference


def export(folder):
    """Writes every model below the folder."""
    of_torch = {model.name.removeprefix("torch."): model for model in kept()}
    models = []
    for name, (base, make) in RECIPES.items():
        file = folder / f"derived.{name}.onnx"
        make(of_torch[base], file)
        given = of_torch[base]
        sizes = {"x": ["batch", 8]} if name.endswith("without_rank") else given.sizes
        model = Model(f"derived.{name}", file, "onnxruntime's tools", sizes=sizes, values=given.values)
        model.overrules = name.endswith("overruled")
        models.append(model)
    return models


def _dynamic(model, file):
    quantize_dynamic(model.file, file)


class _Rows(CalibrationDataReader):
    """A few batches of the inputs that the check itself uses."""

    def __init__(self, model):
        with Reference(model) as reference:
            tensors, _ = reference.signature()
        self._left = [inputs.make(model, tensors, batch) for batch in (2, 3)]

    def get_next(self):
        return self._left.pop() if self._left else None


def _static(form):
    return lambda model, file: quantize_static(model.file, file, _Rows(model), quant_format=form)


def _four_bits(model, file):
    quantizer = MatMulNBitsQuantizer(onnx.load(model.file), block_size=16, is_symmetric=True)
    quantizer.process()
    onnx.save(quantizer.model.model, file)


def _half(model, file):
    onnx.save(float16.convert_float_to_float16(onnx.load(model.file), keep_io_types=True), file)


def _fused(model, file):
    fused = optimizer.optimize_model(str(model.file), model_type="bert", num_heads=2, hidden_size=16, opt_level=0)
    fused.save_model_to_file(str(file))


def _saved(level):
    def save(model, file):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(file)
        onnxruntime.InferenceSession(model.file, options, providers=["CPUExecutionProvider"])

    return save


def _edited(edit):
    """A model whose declarations alone are changed."""

    def make(model, file):
        proto = onnx.load(model.file)
        edit(proto)
        onnx.save(proto, file)

    return make


def _with_defaults(proto):
    """Weights that stand among the inputs, as older exporters had them: a request may overrule them."""
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def _with_old_inputs(proto):
    """The same in version 3 of the format, where an initializer had to be an input and is a constant all the same."""
    _with_defaults(proto)
    proto.ir_version = 3


def _without_rank(proto):
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.ClearField("shape")


def _without_symbols(proto):
    for value in [*proto.graph.input, *proto.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")


def _with_wrong_output(proto):
    """Declares another output than the model gives: the runtime only warns."""
    del proto.graph.output[0].type.tensor_type.shape.dim[-1]


def _with_odd_names(proto):
    """A name that is no word, as TensorFlow's and others are."""
    old, new = proto.graph.input[0].name, 'serving_default/"ü" x:0'
    proto.graph.input[0].name = new
    for node in proto.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


_LEVELS = onnxruntime.GraphOptimizationLevel
RECIPES = {
    "cnn.optimized": ("cnn.scripted", _saved(_LEVELS.ORT_ENABLE_ALL)),
    "cnn.qdq": ("cnn.scripted", _static(QuantFormat.QDQ)),
    "cnn.qlinear": ("cnn.scripted", _static(QuantFormat.QOperator)),
    "encoder.dynamic_int8": ("encoder.scripted", _dynamic),
    "encoder.four_bits": ("encoder.scripted", _four_bits),
    "encoder.fused": ("encoder.scripted", _fused),
    "encoder.half": ("encoder.scripted", _half),
    "encoder.optimized": ("encoder.scripted", _saved(_LEVELS.ORT_ENABLE_EXTENDED)),
    "gru.optimized": ("gru.scripted", _saved(_LEVELS.ORT_ENABLE_EXTENDED)),
    "lstm.dynamic_int8": ("lstm.scripted", _dynamic),
    "cnn.without_symbols": ("cnn.scripted", _edited(_without_symbols)),
    "mlp.defaults": ("external.scripted", _edited(_with_defaults)),
    "mlp.odd_names": ("external.scripted", _edited(_with_odd_names)),
    "mlp.old_inputs": ("external.scripted", _edited(_with_old_inputs)),
    "mlp.overruled": ("external.scripted", _edited(_with_defaults)),
    "mlp.without_rank": ("external.scripted", _edited(_without_rank)),
    "mlp.wrong_output": ("external.scripted", _edited(_with_wrong_output)),
    "mlp.dynamic_int8": ("external.scripted", _dynamic),
    "mlp.four_bits": ("external.scripted", _four_bits),
    "mlp.half": ("external.scripted", _half),
    "mlp.optimized": ("external.scripted", _saved(_LEVELS.ORT_ENABLE_EXTENDED)),
    "mlp.qdq": ("external.scripted", _static(QuantFormat.QDQ)),
}
