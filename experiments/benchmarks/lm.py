"""Time a language model's step against PyTorch: python -m experiments.benchmarks.lm --size gpu --torch PYTHON

Student and teacher have Qwen2.5's shapes. The loss is the forward KL at T = 2 on every token; the optimiser is AdamW.
Parameters are float32, products on a GPU bfloat16. Layers are scanned, and the logits are computed chunk by chunk.
"""

import jax

from experiments.benchmarks.measured import compare, parse_arguments, training_step
from experiments.benchmarks.sizes import SIZES, TEMPERATURE
from jaxdistill.core import registry

TERMS = {"kd": (f"kd(temperature={TEMPERATURE})", 1.0)}


def network(vocabulary: int, width: int, depth: int, heads: int, kv_heads: int, ffn: int, **options):
    shape = {"vocabulary": vocabulary, "width": width, "depth": depth, "heads": heads, "kv_heads": kv_heads, "ffn": ffn}
    return registry.models["decoder"](**shape, head_size=width // heads, qkv_bias=True, **options)


def tokens(size) -> dict[str, jax.Array]:
    ids = jax.random.randint(jax.random.key(0), (size["rows"], size["length"]), 0, size["vocabulary"])
    return {"input_ids": ids, "label": ids, "mask": jax.numpy.ones(ids.shape)}


def main() -> None:
    args = parse_arguments(__doc__)
    size = SIZES["lm"][args.size]
    student, teacher = (network(size["vocabulary"], **size[who]) for who in ("student", "teacher"))
    compare("lm", training_step(student, teacher, TERMS, tokens(size), args.size, size["chunks"]), args)


if __name__ == "__main__":
    main()
