"""A language model's step beside PyTorch's: python -m experiments.benchmarks.lm --size gpu --torch PYTHON [--compile]

A student and a teacher of Qwen2.5's shapes, forward KL at T = 2 on every token, AdamW, float32 parameters, bfloat16
products on a GPU; layers scanned, the heads never multiplied out whole.
"""

import jax

from experiments.benchmarks.measured import compare, learning, told
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
    known = told(__doc__)
    size = SIZES["lm"][known.size]
    student, teacher = (network(size["vocabulary"], **size[who]) for who in ("student", "teacher"))
    compare("lm", learning(student, teacher, TERMS, tokens(size), known.size, size["chunks"]), known)


if __name__ == "__main__":
    main()
