"""Export a tiny random network of each model family, for comparison with Hugging Face transformers.

    python -m experiments.parity.written FOLDER          # exports a folder for each family, with its outputs
    python experiments/parity/written_torch.py FOLDER    # in an environment with torch and transformers: compares

transformers has no EfficientNet-Lite; `efficientnet.py` compares it with timm's.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdistill.run.parts  # noqa: F401  (registers the parts)
from jaxdistill.core import registry
from jaxdistill.core.spec import Spec
from jaxdistill.core.types import Variables
from jaxdistill.export.model_folder import About, Extras, write
from jaxdistill.models.hub.family import families, family_name

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"  # configs and inputs of every family, as in transformers


def random_variables(shapes: Variables) -> Variables:
    """Draw random weights of a size like that of trained ones; variances are positive."""
    draw = np.random.default_rng(0)
    value = lambda x: jnp.asarray(draw.normal(scale=0.3, size=x.shape), x.dtype)
    state = {name: jnp.abs(value(x)) + 0.5 if name.endswith("var") else value(x) for name, x in shapes.state.items()}
    return Variables(jax.tree.map(value, shapes.params), state)


def export(name: str, config: dict[str, Any], batch: dict[str, np.ndarray], folder: Path) -> None:
    """Export a network of the config's family, with its inputs and outputs in an npz file."""
    family = family_name(config)
    arguments = families[family].arguments(config)
    model = registry.models.build(Spec(family, (), arguments), name)
    rows = len(next(iter(batch.values())))
    full_batch, key = {"mask": np.ones(rows, np.float32), **batch}, jax.random.key(0)
    variables = random_variables(Variables(*jax.eval_shape(model.init, key, full_batch)))
    out = jax.jit(lambda values: model.apply(*values, full_batch, train=False, key=key)[0].dense())(variables)
    inputs_of = {field: (x.shape[1:], str(x.dtype)) for field, x in full_batch.items()}
    about = About(
        model=family,
        options={},
        dtype="float32",
        inputs=inputs_of,
        tokens="",
        texts=[],
        transforms=[],
        task="image-classification",
        class_names=[],
        batch_size=4,
        columns={},
        channels=3,
        embeds=False,
        hub_layout=True,
        in_transformers=True,
        parts={},
    )
    write(folder / name, about, Extras(family, arguments), variables, f"# {name}, drawn\n")
    outputs = {"logits": out.logits, **{f"hidden/{number}": x for number, x in enumerate(out.hidden_states)}}
    inputs = {f"in/{field}": x for field, x in batch.items()}
    np.savez(folder / f"{name}.npz", **inputs, **{f"out/{field}": np.asarray(x) for field, x in outputs.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for path in sorted(GOLDEN.glob("*.npz")):
        with np.load(path) as file:
            if "about" not in file or path.stem.startswith("efficientnet"):
                continue
            config = json.loads(str(file["about"]))["config"]
            batch = {field.removeprefix("in/"): file[field] for field in file.files if field.startswith("in/")}
        if "model_type" in config:
            export(path.stem, config, batch, folder)
            print(f"wrote {folder / path.stem}")


if __name__ == "__main__":
    main()
