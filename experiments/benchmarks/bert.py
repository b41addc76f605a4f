"""Time BERT with a student of half its layers against PyTorch: python -m experiments.benchmarks.bert --torch PYTHON

The loss is soft targets, labels, and the hidden states of every second layer of the teacher; the optimiser is AdamW.
`--size gpu` uses the shapes of a real run.
"""

import jax

from experiments.benchmarks.measured import compare, parse_arguments, training_step
from experiments.benchmarks.sizes import CLASSES, SIZES, TEMPERATURE
from jaxdistill.core import registry


def main() -> None:
    args = parse_arguments(__doc__)
    size, classes = SIZES["bert"][args.size], CLASSES["bert"]
    shape = {"vocabulary": size["vocabulary"], "width": size["width"], "heads": size["heads"], "classes": classes}
    network = lambda depth: registry.models["bert"](**shape, depth=depth, ffn=4 * size["width"])
    keys = jax.random.split(jax.random.key(0))
    ids = jax.random.randint(keys[0], (size["rows"], size["length"]), 0, size["vocabulary"])
    label = jax.random.randint(keys[1], (size["rows"],), 0, classes)
    batch = {"input_ids": ids, "label": label, "mask": jax.numpy.ones(size["rows"])}
    pairs = tuple((layer, 2 * layer) for layer in range(size["depth"] + 1))
    terms = {
        "kd": (f"kd(temperature={TEMPERATURE})", 0.7),
        "cross_entropy": ("cross_entropy()", 0.3),
        "hidden": (f"hidden(layers={pairs}, projector='none')", 1.0),
    }
    compare("bert", training_step(network(size["depth"]), network(2 * size["depth"]), terms, batch, args.size), args)


if __name__ == "__main__":
    main()
