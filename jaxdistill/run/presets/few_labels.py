r"""Classify texts with few labels: a small network learns from a teacher what most of your texts, without labels, say.

jaxdistill train --preset few_labels --workdir runs/mine \
    --config.data.name="table(path='texts.csv', text='text', label='topic')"

Records whose label is empty are the split `unlabelled`. The teacher, all-MiniLM-L6 (22.7 M parameters, Apache-2.0, from
PyPI), is fine-tuned on those with labels; the student learns the teacher's soft targets on the others: Turc et al.,
Well-Read Students Learn Better, 2019 (arxiv.org/abs/1908.08962). The control is the student on the labels alone.
Cost: 3 to 6 minutes on 2 cores.
"""

from jaxdistill import make
from jaxdistill.run.config import Config
from jaxdistill.run.presets.text import MINILM


def get_config() -> Config:
    return make(
        title="A text classifier from few labels",
        steps=800,
        batch_size=32,
        rate="cosine(start=0.002, warmup=0.1)",
        clip_norm=1.0,
        data={
            "name": "table(path='data.csv', text='text', label='label')",
            "train": "unlabelled",
            "tokens": f"sentences(tokenizer={MINILM!r}, length=48, fields={{texts}})",
        },
        streams={"labelled": {"split": "train", "batch_size": 16}},
        student={
            "model": "bert(vocabulary={vocabulary}, width=64, depth=1, heads=2, ffn=128, positions=64, "
            "classes={classes}, dropout=0.1)"
        },
        teachers={
            "minilm": {
                "model": f"pretrained({MINILM!r}, classes={{classes}}, dropout=0.0, attention_dropout=0.0)",
                "steps": 150,
                "rate": "cosine(start=0.0003, warmup=0.1)",
            }
        },
        objective={"kd": {"term": "kd(temperature=1.0)"}},
        task={"cross_entropy": {"stream": "labelled"}},
        evaluate={"every": 400, "batch_size": 128, "layers": ()},
    )
