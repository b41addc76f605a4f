"""Convert a trained model to a function of arrays, with its weights inside, for exporters."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.interpreters import partial_eval

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, RowsLike, Shapes, Variables
from jaxdistill.models.abstract import has_no_classes

Rows = Mapping[str, np.ndarray]  # the inputs of a batch, `{field: [rows, ...]}`
LOGITS, EMBEDDING = "logits", "embedding"


class Definition(NamedTuple):
    """The definition of a network, for formats that store weights by name and implement the operations themselves.

    family: name of the model family, such as "decoder"
    arguments: arguments of the family's factory
    tokenizer: the tokenizer.json; None if the network reads no text
    end: the token that followed each text in training; empty if there was none
    """

    family: str
    arguments: Mapping[str, Any]
    tokenizer: Path | None = None
    end: str = ""


class Network(NamedTuple):
    """A trained model as a pure function of one batch.

    apply: `(variables, rows) -> {name: array}`: the output, and the hidden states as `hidden_states/0`, ...
    variables: parameters and state
    inputs: shape and dtype of one example of each field that the output depends on, in the order of the file's inputs
    output: name of the output: `logits` `[rows, classes]`, for a language model `[rows, length, vocabulary]`; or
        `embedding` `[rows, width]` of a model without classes
    definition: architecture and tokenizer of the model; None if the model has no Hugging Face format
    """

    apply: Callable[[Variables, RowsLike], dict[str, Array]]
    variables: Variables
    inputs: Mapping[str, tuple[tuple[int, ...], str]]
    output: str
    definition: Definition | None = None

    def shapes(self, rows: Any) -> Shapes:
        """Return the shapes of a batch, `{field: [rows, ...]}`; `rows` is a number, or a symbol from `any_number`."""
        return {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in self.inputs.items()}

    def function(self, rows: RowsLike) -> Array:
        """Compute the network's output (`output` names it) for a batch, `{field: [rows, ...]}`."""
        return self.apply(self.variables, rows)[self.output]


class Write(Protocol):
    """The type of a function that writes a network to a file.

    `samples()` gives batches of training records, to calibrate the activation ranges of quantisation.
    """

    def __call__(self, network: Network, file: Path, samples: Callable[[], Iterable[Rows]]) -> Sequence[str] | None:
        """Write the file, and return notes for its readers, one sentence each; None for no notes."""


Refuse = Callable[[Definition | None], str]  # see `Exporter.refuse`


class Exporter(NamedTuple):
    """An export format: how a trained model is written to a file, and what can run the file; see `registry.exporters`.

    file: name of the file, such as `model.onnx`
    runtimes: names of the runtimes that run the file (modules of `export/runtimes`); the first one is the default
    write: function that writes the file
    packages: packages that writing needs, beside the runtime
    rounds: whether weights or activations are rounded, to integers or to 16 bits, so that outputs differ from those of
        the model
    bits: bits of a weight in the file
    any_batch: whether the file takes any number of rows, not one row only
    refuse: function `(definition) -> sentence`, which says why the format cannot hold a model, and what to use instead;
        the sentence is empty if it can. The definition is None for a model without a Hugging Face format. If `refuse`
        is None, every model may be tried
    reads: description of the file's inputs, for a file without the operations of the model, which its runtime has; such
        a file has no hidden states. It is empty if the file has the operations, and reads the inputs of the network
    """

    file: str
    runtimes: tuple[str, ...]
    write: Write
    packages: tuple[str, ...] = ()
    rounds: bool = False
    bits: int = 32
    any_batch: bool = True
    refuse: Refuse | None = None
    reads: str = ""


def any_number() -> Any:
    """Return a symbolic dimension for a number of rows that is not fixed, for `jax.export`."""
    return export.symbolic_shape("rows")[0]


def network_of(model: Model, variables: Variables, fields: Mapping[str, tuple[tuple[int, ...], str]]) -> Network:
    """Convert a trained model to a `Network`, a pure function of the batch fields that its output depends on.

    Args:
        model: the model.
        variables: parameters and state of the model.
        fields: shape and dtype of one example of each field of a batch.
    """
    masks = {name: shape for name, (shape, _) in fields.items() if name == "mask"} or {"mask": ()}
    inputs = {name: about for name, about in sorted(fields.items()) if name not in masks}

    def apply(variables: Variables, rows: RowsLike) -> dict[str, Array]:
        count = next(iter(rows.values())).shape[0]
        full = {name: jnp.ones((count, *shape), jnp.float32) for name, shape in masks.items()}  # only losses read it
        key = jax.random.key(0)
        out, _ = model.apply(variables.params, variables.state, {**rows, **full}, train=False, key=key)
        states = {f"hidden_states/{number}": x for number, x in enumerate(out.hidden_states)}
        if has_no_classes(out) and out.embedding is not None:
            return {**states, EMBEDDING: out.embedding}
        return {**states, LOGITS: out.dense().logits}

    whole = Network(apply, variables, inputs, "")
    output = EMBEDDING if EMBEDDING in jax.eval_shape(apply, variables, whole.shapes(2)) else LOGITS
    traced = jax.make_jaxpr(lambda rows: apply(variables, rows)[output])(whole.shapes(2))
    _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True])
    read = {name: inputs[name] for name, is_used in zip(inputs, used, strict=True) if is_used}
    return whole._replace(output=output, inputs=read)
