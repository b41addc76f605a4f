"""Born again: a student with the architecture of its teacher, for several generations.

Paper: Furlanello, Lipton, Tschannen, Itti and Anandkumar, Born Again Neural Networks, 2018 (arxiv.org/abs/1805.04770):
soft targets and labels. Every generation learns from the one before, and the first from labels alone.
Command: python -m jaxdistill.main --config configs/born_again.py --workdir runs/born1 (2 minutes on 2 cores)
Next generation: python -m jaxdistill.main --config configs/born_again.py --workdir runs/born2 \
    --config.seed=1 --config.teachers.before.checkpoint=runs/born1
Result (1 seed): the first network has 93.3 %, the second 92.3, the third 92.4; from labels alone 92.7 and 93.3. No
gain, as in experiments/peers, which has two generations on 500 digits over 3 seeds.
"""

from jaxdistill import make

MODEL = "mlp(widths=(128,), classes=10)"


def get_config():
    return make(
        title="Born again: digits",
        steps=1000,
        student={"model": MODEL},
        teachers={"before": {"model": MODEL, "steps": 1000}},
        objective={"kd": {"term": "kd(temperature=1.0)"}, "cross_entropy": {}},
        optimizer="adamw(weight_decay=0.0001)",
        rate="cosine(start=0.003)",
        data={"name": "mnist5k"},
    )
