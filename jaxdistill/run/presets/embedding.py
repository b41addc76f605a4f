r"""Embed texts, without labels: two layers of all-MiniLM-L6 learn its sentence embeddings on your texts.

jaxdistill train --preset embedding --workdir runs/mine \
    --config.data.name="table(path='texts.csv', text='text')"

The student imitates the embedding of its teacher (squared distance), so that embeddings of both can be compared:
Reimers and Gurevych, Making Monolingual Sentence Embeddings Multilingual, 2020 (arxiv.org/abs/2004.09813). The folder
`student/hub` is a model of sentence-transformers. Cost: 3 to 6 minutes on 2 cores.
"""

from jaxdistill import differ
from jaxdistill.run.config import Config
from jaxdistill.run.presets import text


def get_config() -> Config:
    return differ(
        text.get_config(),
        title="A sentence embedding, distilled",
        data={"name": "table(path='data.csv', text='text')"},
        student={"model": f"pretrained({text.MINILM!r}, layers=('uniform', 2), classes=0)"},
        teachers={"minilm": {"model": f"pretrained({text.MINILM!r}, classes=0)"}},
        objective={"logit_mse": {}},  # of a model without classes, the logits are its embedding
    )
