"""Convert a JAX function to an ONNX graph, one equation of its trace (jaxpr) after the other.

A value of the trace becomes a constant or a tensor of the graph. A broadcast is carried out only where an operation
needs it, because elementwise operations of ONNX broadcast their inputs. Loops of a fixed length (`scan`) are unrolled.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.tree import path_name
from jaxdistill.export.network import Network, any_number

OPSET, IR_VERSION = 21, 10  # of September 2024; runtimes read older versions than their own
BATCH = "rows"  # name of the first dimension of all inputs
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")

Shape = tuple[Any, ...]  # dimensions: numbers, or symbols for the number of rows


class Value(NamedTuple):
    """A value of a JAX trace (jaxpr) in the ONNX graph: a constant, or a tensor that the graph computes.

    shape: its shape in the trace
    dtype: its dtype
    array: the values of a constant, which may have size 1 where `shape` has more; None for a tensor
    name: name of the tensor in the graph; empty for a constant
    extent: shape of `array`, or of the tensor; it has size 1 where a broadcast has not been carried out
    label: name of a constant in the graph, such as the name of a parameter; if it is empty, the constant gets a number
    """

    shape: Shape
    dtype: np.dtype
    array: np.ndarray | None
    name: str
    extent: Shape
    label: str = ""


Tensors = Sequence[Value | str]  # what a primitive returns: values, or names of tensors of the shape in the trace
Emit = Callable[["Graph", Any, Sequence[Value]], Tensors]
EMITTERS: dict[str, Emit] = {}  # name of a primitive of JAX -> `(graph, equation, inputs) -> outputs`


def emits(*primitives: str) -> Callable[[Emit], Emit]:
    """Return a decorator that registers a function which converts the given JAX primitives to ONNX nodes.

    The function, `(graph, equation, inputs) -> outputs`, returns for each output a `Value`, or the name of a tensor
    with the shape that the trace gives.
    """

    def register(emit: Emit) -> Emit:
        EMITTERS.update(dict.fromkeys(primitives, emit))
        return emit

    return register


class Graph:
    """An ONNX graph under construction, to which nodes and constants are added.

    Args:
        rows: symbol for the number of rows of a batch.
        batch_input: name of an input whose first dimension is the number of rows.
    """

    def __init__(self, rows: Any, batch_input: str):
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._known: dict[Any, tuple[str, np.ndarray]] = {}
        self._count = 0
        self._rows, self._batch_input, self._batch = rows, batch_input, ""

    def constant(self, array: Any, label: str = "") -> str:
        """Add a constant, and return its name; equal small constants, and the same array, are added only once."""
        from onnx import numpy_helper

        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes() if array.size <= 64 else id(array))
        if key not in self._known:
            name = label if label and label not in self.constants else f"{label or 'constant'}/{len(self.constants)}"
            self.constants[name] = numpy_helper.from_array(array, name)
            self._known[key] = name, array  # the array is kept, so that its id stays its own
        return self._known[key][0]

    def node(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node, and return the name of its output, or a list of names if it has several outputs.

        Args:
            kind: ONNX operator.
            inputs: names of tensors, or arrays.
            outputs: number of outputs.
            attributes: attributes of the operator.
        """
        from onnx import helper

        names = [f"{kind}/{self._count + number}" for number in range(outputs)]
        self._count += outputs
        names_of_inputs = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        self.nodes.append(helper.make_node(kind, names_of_inputs, names, name=names[0], **attributes))
        return names[0] if outputs == 1 else names

    def plain(self, value: Value) -> str:
        """Return the name of a value's tensor before its broadcast: the tensor has the shape `value.extent`."""
        return value.name if value.array is None else self.constant(value.array, value.label)

    def whole(self, value: Value) -> str:
        """Return the name of a value's tensor, broadcast to the whole shape of the value."""
        if value.extent == value.shape:
            return self.plain(value)
        if value.array is not None and is_known(value.shape):
            return self.constant(np.broadcast_to(value.array, value.shape))
        return self.node("Expand", self.plain(value), self.dimensions(value.shape))

    def dimensions(self, shape: Shape) -> str:
        """Return the name of an int64 tensor that holds a shape, in which the number of rows may be symbolic."""
        if is_known(shape):
            return self.constant(np.array(shape, np.int64))
        if not self._batch:
            self._batch = self.node("Shape", self._batch_input, start=0, end=1)
        parts = [self._dimension(size) for size in shape]
        return self.node("Concat", *parts, axis=0)

    def _dimension(self, size: Any) -> str:
        if is_known((size,)):
            return self.constant(np.array([size], np.int64))
        factor, rest = divmod(size, self._rows)
        if not is_known((factor, rest)) or rest != 0:
            raise unsupported("a dimension", f"of size {size}")
        return self._batch if factor == 1 else self.node("Mul", self._batch, np.array([int(factor)], np.int64))

    def reshaped(self, name: str, shape: Shape) -> str:
        """Reshape the tensor `name`, and return the name of the result; ONNX infers a single symbolic dimension."""
        if sum(not is_known((size,)) for size in shape) == 1 and 0 not in [s for s in shape if is_known((s,))]:
            sizes = [size if is_known((size,)) else -1 for size in shape]
            return self.node("Reshape", name, np.array(sizes, np.int64))
        return self.node("Reshape", name, self.dimensions(shape))


def is_known(shape: Shape) -> bool:
    """Return True if all dimensions of a shape are numbers, not symbols."""
    return all(isinstance(size, int | np.integer) for size in shape)


def unsupported(kind: str, how: str = "") -> ConfigError:
    """Return the error for an operation that cannot be converted to ONNX; `how` describes the unsupported variant."""
    problem = f"the model computes {kind!r}{f' {how}' if how else ''}, which has no translation to ONNX"
    return ConfigError("--to", f"{problem}. Export it with --to stablehlo, or compute it otherwise.")


def onnx_model(network: Network) -> Any:
    """Convert a network to an `onnx.ModelProto` that takes any number of rows.

    Raises:
        ConfigError: the network has an operation that cannot be converted to ONNX; the message names it.
    """
    from onnx import helper

    from jaxdistill.export.formats import onnx_operators, onnx_products  # noqa: F401  (registers the operations)

    number = any_number()
    rows = network.shapes(number)
    traced = jax.make_jaxpr(lambda variables, rows: network.apply(variables, rows)[network.output])(
        network.variables, rows
    )
    alive, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True], instantiate=True)
    names = list(rows)
    graph = Graph(number, names[0])
    leaves = jax.tree_util.tree_leaves_with_path(network.variables)
    weights = [constant(np.asarray(x), path_name(path)) for path, x in leaves]
    inputs = [Value(rows[n].shape, np.dtype(rows[n].dtype), None, n, rows[n].shape) for n in sorted(names)]
    (output,) = read(graph, alive, [constant(x) for x in traced.consts], [*weights, *inputs])
    graph.nodes.append(helper.make_node("Identity", [graph.whole(output)], [network.output]))
    described = lambda name, shape, dtype: helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [s if is_known((s,)) else BATCH for s in shape]
    )
    made = helper.make_graph(
        graph.nodes,
        "jaxdistill",
        [described(name, x.shape, x.dtype) for name, x in rows.items()],
        [described(network.output, output.shape, output.dtype)],
        list(graph.constants.values()),
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="jaxdistill"
    )


def constant(array: Any, label: str = "") -> Value:
    """Return an array as a constant `Value`, with `label` as its name in the graph; a random key becomes its data."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)  # no model draws numbers when it is used
    array = np.asarray(array)
    return Value(array.shape, array.dtype, array, "", array.shape, label)


def read(graph: Graph, jaxpr: Any, constants: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
    """Convert the equations of a jaxpr to nodes of a graph, and return the values of the jaxpr's outputs.

    Args:
        graph: the graph to which the nodes are added.
        jaxpr: the traced program.
        constants: values of the jaxpr's constants.
        inputs: values of the jaxpr's inputs.
    """
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    known |= zip(jaxpr.invars, inputs, strict=True)

    def value_of(atom: Any) -> Value:
        aval: Any = atom.aval
        return constant(np.asarray(atom.val, aval.dtype)) if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        outputs = _emitted(graph, equation, [value_of(atom) for atom in equation.invars])
        known |= zip(equation.outvars, outputs, strict=True)
    return [value_of(atom) for atom in jaxpr.outvars]


def _emitted(graph: Graph, equation: Any, inputs: Sequence[Value]) -> list[Value]:
    kind, results = equation.primitive.name, [variable.aval for variable in equation.outvars]
    if kind in CALLS:
        inner = next(equation.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in equation.params)
        consts = getattr(inner, "consts", ())  # of a closed trace
        return read(graph, getattr(inner, "jaxpr", inner), [constant(x) for x in consts], inputs)
    known = all(value.array is not None and is_known(value.shape) for value in inputs)
    if known and all(is_known(result.shape) for result in results) and kind not in ("scan", "dim_as_value"):
        arrays = [np.broadcast_to(value.array, value.shape) for value in inputs if value.array is not None]
        values = equation.primitive.bind(*arrays, **equation.params)
        return [constant(np.asarray(x)) for x in (values if equation.primitive.multiple_results else [values])]
    if kind not in EMITTERS:
        raise unsupported(kind)
    emitted = EMITTERS[kind](graph, equation, inputs)
    return [
        Value(result.shape, np.dtype(result.dtype), None, each, result.shape) if isinstance(each, str) else each
        for each, result in zip(emitted, results, strict=True)
    ]


def product(sizes: Sequence[Any]) -> Any:
    """Return the product of dimensions, which may be symbols."""
    return math.prod(sizes, start=1)
