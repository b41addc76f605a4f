"""Recorded outputs of published code on seeded weights (`golden/record.py`), and our models with these weights."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from golden.weights import weight
from safetensors.numpy import save_file

from jaxdistill.core import registry
from jaxdistill.core.interfaces import Model
from jaxdistill.core.spec import Spec
from jaxdistill.core.types import Outputs, Variables
from jaxdistill.models.hub import family as hub_family
from jaxdistill.models.hub.source import Safetensors
from jaxdistill.models.hub.weights import export_arrays, load, map_weights

GOLDEN = Path(__file__).parent / "golden"
KEY = jax.random.key(0)


class Reference(NamedTuple):
    """The config, shapes and inputs of published code, and the outputs and gradients that it computed."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    batch: dict[str, jax.Array]
    said: dict[str, np.ndarray]
    gradients: dict[str, float]


def reference(name: str) -> Reference:
    with np.load(GOLDEN / f"{name}.npz") as file:
        about = json.loads(str(file["about"]))
        part = lambda kind: {n.removeprefix(f"{kind}/"): file[n] for n in file.files if n.startswith(f"{kind}/")}
        batch = {n: jnp.asarray(x) for n, x in part("in").items()}
        rows = next(iter(batch.values())).shape[0]
        batch = {"mask": jnp.ones(rows), **batch}
        shapes = {n: tuple(shape) for n, shape in about["shapes"].items()}
        return Reference(about["config"], shapes, batch, part("out"), {n: float(x) for n, x in part("grad").items()})


def write_folder(folder: Path, ref: Reference, dtype: Any = np.float32) -> Path:
    """Write a Hugging Face folder with the config and the seeded weights of a reference; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(ref.config))
    save_file({n: weight(n, s).astype(dtype) for n, s in ref.shapes.items()}, folder / "model.safetensors")
    return folder


def ours(folder: Path, batch: Mapping[str, jax.Array], **options: Any) -> tuple[str, dict[str, Any], Model, Variables]:
    """Build the model of a Hugging Face folder and load its weights; require that no array is freshly initialised."""
    source = Safetensors(folder)
    name = hub_family.family_name(source.config)
    family = hub_family.families[name]
    arguments = {**family.arguments(source.config), **options}
    model = registry.models.build(Spec(name, (), arguments), "model")
    shapes = Variables(*jax.eval_shape(model.init, KEY, batch))
    planned = map_weights(source, family, arguments, shapes)
    assert not planned.fresh, planned.fresh
    return name, arguments, model, load(source, planned, shapes)


def run(model: Model, variables: Variables, batch: Mapping[str, jax.Array]) -> Outputs:
    batch = jax.device_put(batch)
    return jax.jit(lambda values: model.apply(*values, batch, train=False, key=KEY)[0].dense())(variables)


def probabilities(out: Outputs) -> list[jax.Array]:
    """Return the attention probabilities of all layers that have them, which needs `attentions=True`."""
    return [heads.probabilities for heads in out.attentions if heads.probabilities is not None]


def check_outputs(ref: Reference, out: Outputs, tolerance: float = 1e-5) -> None:
    """Require that all recorded outputs agree, within a tolerance relative to the largest value of each."""
    found = {"logits": out.logits, "embedding": out.embedding, "text_embedding": out.text_embedding}
    found |= {f"hidden/{i}": x for i, x in enumerate(out.hidden_states)}
    found |= {f"attention/{i}": x for i, x in enumerate(probabilities(out))}
    assert {n for n in ref.said if n.startswith("hidden/")} == {n for n in found if n.startswith("hidden/")}
    for name, said in ref.said.items():
        error = float(np.max(np.abs(np.asarray(found[name], np.float64) - said))) / max(1.0, float(np.abs(said).max()))
        assert error <= tolerance, f"{name} differs by {error:.2e}"


def check_gradients(ref: Reference, folder: Path, tolerance: float = 1e-4, **options: Any) -> None:
    """Require that the gradient of `sum(sin(logits))` agrees: its product with a seeded direction for each array."""
    name, arguments, model, variables = ours(folder, ref.batch, **options)
    apply = lambda params: model.apply(params, variables.state, ref.batch, train=False, key=KEY)[0]
    loss = lambda params: jnp.sum(jnp.sin(apply(params).dense().logits))
    gradients = jax.jit(jax.grad(loss))(variables.params)
    family = hub_family.families[name]
    theirs = export_arrays(family, arguments, Variables(gradients, {}))
    # The published model may be the base model, whose names have no prefix.
    theirs |= {re.sub(f"^(?:{family.prefix})", "", n): x for n, x in theirs.items()}
    missing = set(ref.gradients) - set(theirs)
    assert not missing, f"no gradient for {sorted(missing)[:5]}"
    scale = max(1.0, max(abs(x) for x in ref.gradients.values()))
    for n, said in ref.gradients.items():
        found = float((theirs[n].astype(np.float64) * weight(f"direction/{n}", theirs[n].shape)).sum())
        assert abs(found - said) <= tolerance * max(abs(said), 1e-2 * scale), f"gradient of {n}: {found} and {said}"
