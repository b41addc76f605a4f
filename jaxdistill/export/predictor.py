"""Use a trained model: predict classes with probabilities, embeddings, or the likelihood of texts."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdistill.data
import jaxdistill.models  # noqa: F401  (importing registers transforms, tokenizations and models)
from jaxdistill.compress.aware import Quantizer
from jaxdistill.compress.input_ranges import require_ranges, with_ranges
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, DamageError, WeightsError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.spec import Spec, parse
from jaxdistill.core.types import Array, Variables
from jaxdistill.data.checks import CheckedStack
from jaxdistill.data.records import Records
from jaxdistill.data.stream import Batch, evaluation_batches
from jaxdistill.data.table import images
from jaxdistill.data.text import tokenizer as tokenizers
from jaxdistill.data.text.tokens import Columns, NoTokensError, Tokenization, joined
from jaxdistill.evaluation.evaluator import answers, prevent_fusion, text_answers
from jaxdistill.export import model_folder
from jaxdistill.export.definition import model_spec
from jaxdistill.export.model_folder import About
from jaxdistill.export.predictions import Predictions
from jaxdistill.export.zero_shot import PLACE, ZeroShotClassifier
from jaxdistill.models.abstract import has_no_classes
from jaxdistill.models.build import build_model

PATH = "records"  # named in errors about records
SHORTEST = 8  # tokens of the shortest bucket of texts
Column = Sequence[Any]


class Predictor:
    """A trained model that is ready for use: it preprocesses records as its training did, and runs them in batches.

    Batches have a few sizes only, and texts a few lengths (powers of 2), so that few programs are compiled.

    Args:
        folder: the folder of a trained model, such as `runs/mine/student/hub` for the student of a run.

    Raises:
        ConfigError: the folder holds no model, or the model has a part that is not registered.
        DamageError: a file of the model has changed since it was written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.about: About = model_folder.read_about(self.folder)
        except FileNotFoundError:
            problem = f"{str(folder)!r} holds no model that jaxdistill has written ({model_folder.ABOUT} is missing)"
            raise ConfigError("", f"{problem}. Give the folder of a finished run, or RUN/student/hub.") from None
        self.float_variables = self._read()
        self.variables = self._with_ranges() if self.about.quantized else self.float_variables

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, in order; empty if the training data did not name them."""
        return tuple(self.about.class_names)

    @property
    def text_fields(self) -> tuple[str, ...]:
        """Return the fields of a record that hold texts; empty if the model reads no text."""
        return tuple(self.about.texts)

    @cached_property
    def tokenization(self) -> Tokenization | None:
        """Return the rule that converts texts to tokens; None if the model reads no text."""
        if not self.about.texts:
            return None
        if not self.about.tokens:
            raise ConfigError("model", "its own tokenization does not say how it is used (`Tokenization.serving`).")
        return registry.tokenizations.build(self._local(self.about.tokens), "tokens")

    def _local(self, text: str) -> Spec:
        """Parse a spec string, and replace each argument "." by the folder of the model."""
        spec = parse(text, "model")
        return spec._replace(
            kwargs={name: str(self.folder) if value == "." else value for name, value in spec.kwargs.items()}
        )

    @cached_property
    def model(self) -> Model:
        """Return the network, built from its spec string or from the files of its folder.

        For a model from quantisation-aware training, it is the quantised network.
        """
        floats = self._built(self.about.dtype)
        if not self.about.quantized:
            return floats
        quantizer: Quantizer = registry.quantizers.build(self.about.quantized, "quantized")
        return quantizer.wrap(floats, 0)

    def float_model(self) -> Model:
        """Return the network without quantisation, computed in float32; its variables are `float_variables`."""
        return self._built("float32")

    def _built(self, dtype: str) -> Model:
        about = self.about
        try:
            return build_model(model_spec(self.folder, about), "model", dtype)
        except ConfigError as error:
            needs = ", ".join(f"{part} (module {module})" for part, module in about.parts.items())
            cure = f" The model needs {needs}: import it first, or pass trust_source=True." if needs else ""
            raise ConfigError("model", f"{error.message}{cure}") from None

    def _with_ranges(self) -> Variables:
        """Return the variables together with the fixed ranges of the quantised inputs.

        Raises:
            DamageError: the ranges in the folder do not fit the model.
        """
        try:
            ranges = {name: jnp.asarray(span, jnp.float32) for name, span in self.about.ranges.items()}
            require_ranges(self.model, ranges, self._shapes())
        except (TypeError, ValueError, ConfigError) as error:
            raise DamageError(f"{self.folder / model_folder.ABOUT} is damaged ({error})") from None
        return with_ranges(self.float_variables, ranges)

    def _shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {name: jax.ShapeDtypeStruct((2, *shape), dtype) for name, (shape, dtype) in self.about.inputs.items()}
        shapes["mask"] = shapes.get("mask", jax.ShapeDtypeStruct((2,), np.float32))
        return shapes

    def _read(self) -> Variables:
        shapes = self._shapes()
        model = self._built(self.about.dtype)
        try:
            expected = Variables(*jax.eval_shape(model.init, jax.random.key(0), shapes))
        except ValueError as error:
            raise ConfigError("model", f"it does not read the inputs of its run: {error}.") from None
        if model.load is None:
            return jax.device_put(model_folder.read_arrays(self.folder, expected))
        try:
            return model.load(expected).read()
        except WeightsError as error:
            raise ConfigError("model", f"{error}.") from None

    @cached_property
    def _program(self) -> Any:
        """Return the compiled function `(variables, batch) -> {name of an output: array}`."""
        model = self.model

        def run(variables: Variables, rows: Mapping[str, Array]) -> dict[str, Array]:
            key = jax.random.key(0)
            out, _ = model.apply(variables.params, variables.state, rows, train=False, key=key)
            embeds, logits = has_no_classes(out), prevent_fusion(out.dense().logits)
            embedding = {} if out.embedding is None else {"embeddings": out.embedding}
            embedding |= {} if out.text_embedding is None else {"text_embeddings": out.text_embedding}
            embedding |= {} if out.text_embedding is None or out.scale is None else {"scale": out.scale}
            if embeds or out.text_embedding is not None:
                return embedding
            if logits.ndim > 2:  # a language model
                return text_answers(logits, rows["label"], rows["mask"])
            return {"probabilities": jax.nn.softmax(logits.astype(jnp.float32)), **embedding, **answers(logits)}

        return jax.jit(run)

    def predict(
        self, records: Sequence[Any] | np.ndarray, batch_size: int | None = None, first: int = 0
    ) -> Predictions:
        """Predict the classes of records, or compute their embeddings or the likelihood of texts.

        Args:
            records: texts, image arrays `[height, width, channels]`, paths of image files, or dicts with the fields of
                the training data, such as `{"text": ...}` or `{"image": ...}`.
            batch_size: rows of a batch. The last batch and all texts are then padded as in the evaluation of the run,
                so that the outputs are the same to the bit. With None, batches have the size of this evaluation, or
                fewer rows for fewer records, and texts are padded no more than needed.
            first: number of the first record, for error messages.

        Raises:
            ConfigError: a record lacks a field that the model reads, or has a wrong value; the message says which.
        """
        if isinstance(records, str | bytes | Mapping):
            raise ConfigError(PATH, f"a {type(records).__name__} is one record; give a list, such as [record].")
        if not len(records):
            raise ConfigError(PATH, "there are none. Give at least one record.")
        exact, size = batch_size is not None, batch_size or self.about.batch_size
        parts = []
        for start in range(0, len(records), size):
            opened, texts = self._opened(records[start : start + size], first + start)
            rows = size if exact or len(records) > size else min(size, _power_of_two(len(opened)))
            outputs = _joined(list(self._outputs(opened, rows, exact)))
            count = len(records[start : start + size])
            parts.append(_per_text(outputs, texts, count) if "nll_sum" in outputs else outputs)
        joined: dict[str, Any] = _joined(parts)
        for name in joined.keys() & {"probabilities", "embeddings", "text_embeddings"}:
            wrong = ~np.isfinite(joined[name]).all(axis=tuple(range(1, joined[name].ndim)))
            if wrong.any():
                if wrong.all() and len(wrong) > 1:
                    problem = "the model's answer is not finite for any record"
                    raise ConfigError(PATH, f"{problem}: its weights, or all records, are unusable. Check both.")
                problem = f"record {first + int(wrong.argmax())}: the model's answer is not finite"
                raise ConfigError(PATH, f"{problem}; a value is too far from those of its training. Leave it out.")
        if "predicted" in joined:
            names = self.class_names or tuple(map(str, range(joined["probabilities"].shape[1])))
            joined["labels"] = [names[number] for number in joined["predicted"]]
        return Predictions(**joined)

    def zero_shot(self, classes: Sequence[str], templates: Sequence[str] = (PLACE,)) -> ZeroShotClassifier:
        """Return a classifier of images whose classes are texts; the model must have two towers (images and texts).

            predictor.zero_shot(("cat", "dog"), ("a picture of a {}",)).predict(images).labels

        Args:
            classes: names of the classes, in order.
            templates: texts in which `{}` stands for the name of a class. The vector of a class is the mean of their
                embeddings, each of unit norm.

        Raises:
            ConfigError: the model does not have two towers, or classes or templates are wrong.
        """
        return ZeroShotClassifier(self, classes, templates)

    def _outputs(self, opened: Records, rows: int, exact: bool) -> Iterator[dict[str, np.ndarray]]:
        """Yield the outputs of each batch of `rows` rows, `{name: [rows, ...]}`, without the rows that only fill it."""
        transforms = [registry.transforms.build(self._local(spec), "transforms") for spec in self.about.transforms]
        batches = evaluation_batches(opened, batch_size=rows, rows=slice(None), transforms=transforms)
        for number, batch in enumerate(batches):
            fields = {name: x for name, x in batch.items() if name != "index"}
            self._check_image(fields)
            outputs = self._program(self.variables, fields if exact else self._shortened(fields))
            real = len(opened) - number * rows
            yield {name: np.asarray(x)[:real] for name, x in outputs.items()}

    def _opened(self, records: Sequence[Any] | np.ndarray, first: int) -> tuple[Records, np.ndarray]:
        """Check and tokenise records; return the rows to make batches from, and the index of the record of each row."""
        dicts = [self._record(record, first + number) for number, record in enumerate(records)]
        stack = lambda part, numbers: CheckedStack(None, PATH)(part, [first + number for number in numbers])
        plain = Records(dicts, None, stack=stack)
        if self.tokenization is None:
            return plain, np.arange(len(plain))
        loaded, columns = tokenizers.load(self.tokenization.file), plain.take(np.arange(len(plain)))
        if self.tokenization.labelled:
            encoded = joined(self.tokenization.encode(loaded, iter([columns])))
            return Records(encoded.columns, None), np.arange(len(plain))
        texts = ({name: x[row : row + 1] for name, x in columns.items()} for row in range(len(plain)))
        parts = [self._tokens_of(loaded, text) for text in texts]
        owner = np.repeat(np.arange(len(parts)), [len(part["mask"]) for part in parts])  # a text may need many rows
        return Records({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, None), owner

    def _tokens_of(self, loaded: Any, text: Columns) -> Columns:
        """Return the rows of tokens of one text; a text without tokens is a row of padding."""
        assert self.tokenization is not None
        try:
            return joined(self.tokenization.encode(loaded, iter([text]))).columns
        except NoTokensError:
            fields = {name: about for name, about in self.about.inputs.items() if name != "index"}
            empty = {name: np.zeros((1, *shape), dtype) for name, (shape, dtype) in fields.items()}
            return {**empty, "label": np.zeros_like(empty["input_ids"])}

    def _check_image(self, batch: Batch) -> None:
        """Require that images, or vectors, have the shape and dtype of those that the model was trained on.

        Raises:
            ConfigError: the shape or the dtype differs.
        """
        if "image" in self.about.inputs and "image" in batch:
            shape, dtype = self.about.inputs["image"]
            shape_and_type = batch["image"].shape[1:], str(batch["image"].dtype)
            if shape_and_type != (shape, dtype):
                kind = "images" if len(shape) == 3 else "numbers"
                problem = f"{kind} of shape {list(shape_and_type[0])} and type {shape_and_type[1]}"
                raise ConfigError(PATH, f"{problem}; the model was trained on {list(shape)} and {dtype}. Convert them.")

    def _record(self, record: Any, number: int) -> dict[str, Any]:
        """Return a record as a dict with the fields that the model reads."""
        pictures = ("image",) if self.text_fields and "image" in self.about.inputs else ()
        fields = (*self.text_fields, *pictures) or tuple(name for name in self.about.inputs if name != "mask")
        if not isinstance(record, Mapping):
            if len(fields) > 1:
                raise ConfigError(PATH, f"record {number} is no dict; give the fields {', '.join(fields)}.")
            record = {fields[0]: record}
        if absent := [field for field in fields if field not in record]:
            known = ", ".join(map(str, record)) or "none"
            raise ConfigError(PATH, f"record {number} has no field {absent[0]!r}; it has {known}.")
        if wrong := [field for field in self.text_fields if not isinstance(record[field], str | bytes)]:
            raise ConfigError(PATH, f"record {number}: {wrong[0]!r} is {record[wrong[0]]!r:.80}, not a text.")
        inputs = {field: record[field] for field in fields}
        if isinstance(inputs.get("image"), str | bytes | Path):
            image = inputs["image"] if isinstance(inputs["image"], bytes) else str(inputs["image"])
            inputs["image"] = images.decode(image, self.about.channels)
        return inputs

    @cached_property
    def _reads_short_texts(self) -> bool:
        """Return True if the network reads texts of fewer tokens than in training; SigLIP, for example, does not."""
        shapes = self._shapes()
        length = shapes["attention_mask"].shape[1]
        size = min(length, SHORTEST)
        cut = lambda x: jax.ShapeDtypeStruct((x.shape[0], size), x.dtype) if x.shape[1:] == (length,) else x
        short = {name: cut(x) for name, x in shapes.items()}
        run = lambda v, rows: self.model.apply(v.params, v.state, rows, train=False, key=jax.random.key(0))
        try:
            jax.eval_shape(run, self.variables, short)
        except Exception:  # whatever a network raises for another length, also one of the user's
            return False
        return True

    def _shortened(self, batch: Batch) -> Batch:
        """Remove padding from a batch of texts: shorten it to its longest text, rounded up to a power of 2."""
        if "attention_mask" not in batch:
            return batch
        length = batch["attention_mask"].shape[1]
        longest = int(batch["attention_mask"].sum(1).max())
        bucket = min(length, max(SHORTEST, _power_of_two(longest)))
        if bucket == length or not self._reads_short_texts:
            return batch
        ends = lambda x: x.ndim == 2 and x.shape[1] == length
        return {name: x[:, :bucket] if ends(x) else x for name, x in batch.items()}


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _per_text(rows: Mapping[str, np.ndarray], texts: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Return `{"nll": [texts]}`, the mean negative log-likelihood of each text's tokens; NaN for a text without any.

    Args:
        rows: `nll_sum` and `tokens` of each row of tokens.
        texts: number of the text of each row.
        count: number of texts.
    """
    total, tokens = (np.bincount(texts, rows[name], minlength=count) for name in ("nll_sum", "tokens"))
    return {"nll": np.where(tokens > 0, total / np.maximum(tokens, 1), np.nan).astype(np.float32)}


def _power_of_two(number: int) -> int:
    """Round a positive whole number up to a power of 2."""
    return 1 << (number - 1).bit_length()
