"""Two bits: a perceptron whose weights are -1, 0 or 1 times a scale learns from itself in floats.

Papers: Bengio et al., straight-through gradients, 2013 (arxiv.org/abs/1308.3432); ternary weights: Ma et al., The Era
of 1-bit LLMs, 2024 (arxiv.org/abs/2402.17764). The student starts with the weights of its teacher (a cut that removes
nothing), and learns from its answers at temperature 1.
Command: python -m jaxdistill.main --config configs/few_bits.py --workdir runs/few_bits (1 minute on 2 cores)
Result (5 seeds of experiments/few_bits, 2,000 steps): 92.3 % in 2 bits against 92.4 in floats; rounded afterwards 36.9.
"""

from jaxdistill import make

MODEL = "mlp(widths=(128,), classes=10)"


def get_config():
    return make(
        title="Two bits: digits",
        steps=2000,
        student={"model": "cut(teacher='floats')", "quantized": "aware(weights=2, inputs=8)"},
        teachers={"floats": {"model": MODEL, "steps": 2000, "rate": "cosine(start=0.003)"}},
        objective={"kd": {"term": "kd(temperature=1.0)"}},
        optimizer="adamw(weight_decay=0.0001)",
        rate="cosine(start=0.001)",
        data={"name": "mnist5k"},
    )
