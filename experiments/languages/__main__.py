"""Study words across languages: python -m experiments.languages [--workdir DIR] [--seeds 3]

The names of emoji in 26 languages. A teacher (all-MiniLM-L6) embeds the English name, a small student reads the name in
any language and learns the teacher's vector: Reimers and Gurevych, 2020 (arxiv.org/abs/2004.09813). Then a linear head
learns the category of an emoji from the teacher's English vectors alone, and is applied to the student's vectors of
other languages. The control has no teacher: the same network learns by `contrastive` that both names belong together,
and its head learns from its own English vectors.

Decided before the first run: 3 seeds; the pictures' splits of `emoji_names/twitter`; one in five emoji is for the test,
in no language seen before; the head is a ridge regression on one-hot categories with penalty 1; British English is left
out. Expected: the student at least 6 points above the control, in the mean over the 26 other languages; with the
teacher's rows shuffled, at chance (the share of the commonest category). In a batch of the control, about 5 pairs of
rows are names of one emoji and count as wrong.

The tokenizer (8,000 pieces) is trained on the names for training. A study that was stopped resumes.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

import jaxdistill
from experiments.languages.vectors import accuracy, linear_head, sentence_vectors
from jaxdistill.core.packages import default_folder
from jaxdistill.core.registry import datasets
from jaxdistill.data import open_records
from jaxdistill.data.builders.emoji import LANGUAGES
from jaxdistill.evaluation.comparison import mean_and_interval, paired
from jaxdistill.evaluation.report.formats import aligned
from jaxdistill.run.commands import cache
from jaxdistill.run.config import Config, differ, make
from jaxdistill.run.presets.text import MINILM
from jaxdistill.run.study import run_or_resume

ENGLISH = "text"
OTHERS = tuple(f"text_{language.replace('-', '_')}" for language in LANGUAGES if language != "en-gb")
PIECES = 8000
STUDENT = f"bert(vocabulary={PIECES}, width=384, depth=1, heads=6, ffn=384, positions=24, classes=0)"
TEACHER = "teacher, in English"
ARMS = ("with a teacher", "contrastive, no teacher (control)", "the teacher's rows shuffled (twin)")


@datasets.register
def names(split: str, folder: Path) -> list[dict]:
    """Load pairs of names: one in any language (`text`) with the English one; in `shuffled`, of another emoji."""
    columns = emoji("test" if split == "test" else "train", folder)
    count = len(columns[ENGLISH])
    order = np.random.default_rng(0).permutation(count) if split == "shuffled" else np.arange(count)
    english = [columns[ENGLISH][number] for number in order]
    pairs = [(text, english[number]) for field in (ENGLISH, *OTHERS) for number, text in enumerate(columns[field])]
    return [{"text": text, "english": name} for text, name in pairs]


def emoji(split: str, folder: Path) -> dict[str, list]:
    """Return the names of the emoji of a split by field, and their categories, `label`."""
    source = open_records("emoji_names/twitter", split, folder, "data", split)
    columns = source.take(np.arange(len(source)))
    texts = {field: [text.decode() for text in columns[field]] for field in (ENGLISH, *OTHERS)}
    return {**texts, "label": columns["label"].tolist()}


def tokenizer(folder: Path) -> Path:
    """Train a tokenizer on the names for training in all languages, unless it is there, and return its folder."""
    file = folder / "tokenizer" / "tokenizer.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        columns = emoji("train", default_folder())
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        trainer = trainers.UnigramTrainer(vocab_size=PIECES, special_tokens=special, unk_token="[UNK]")
        made.train_from_iterator((text for field in (ENGLISH, *OTHERS) for text in columns[field]), trainer)
        ends = [(word, made.token_to_id(word)) for word in ("[CLS]", "[SEP]")]
        made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
        made.save(str(file))
    return file.parent


def configs(workdir: Path) -> dict[str, Config]:
    """Return the config of each arm."""
    tokens = f"sentences(tokenizer={str(tokenizer(workdir))!r}, length=16, teacher_fields=('english',)"
    small = {"model": STUDENT}
    base = make(
        title="Names of emoji in 27 languages",
        steps=1000,
        batch_size=128,
        student=small,
        teachers={
            "minilm": {
                "model": f"pretrained({MINILM!r}, classes=0)",
                "reads": "teacher/",
                "cache": f"outputs(folder={str(workdir / 'said')!r})",
            }
        },
        objective={"logit_mse": {}},
        control=False,
        optimizer="adamw(weight_decay=0.01)",
        rate="cosine(start=0.002)",
        data={"name": "names", "tokens": f"{tokens}, teacher={MINILM!r})"},
        evaluate={"every": 1000, "layers": ()},
        logging={"tensorboard": False, "every": 100},
        mesh={"data": 1},
    )
    own = {"student": {"model": f"siamese({STUDENT})"}, "teachers": {}, "objective": {"contrastive": {}}}
    control = differ(base, **own, task={"contrastive": {}}, data={"tokens": f"{tokens})"})
    said = {"minilm": {"cache": f"outputs(folder={str(workdir / 'shuffled')!r})"}}
    twin = differ(base, data={"train": "shuffled"}, teachers=said)
    return dict(zip(ARMS, (base, control, twin), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/languages", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    args = parser.parse_args()
    console, arms = Console(), configs(args.workdir)
    for arm in (ARMS[0], ARMS[2]):
        cache.write(arms[arm], console)
    train, test = (emoji(split, default_folder()) for split in ("train", "test"))
    labels, of_test = np.array(train["label"]), np.array(test["label"])
    of_teacher = linear_head(sentence_vectors(train[ENGLISH]), labels)
    english = {TEACHER: [accuracy(of_teacher, sentence_vectors(test[ENGLISH]), of_test)]}
    others: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        for number, (arm, config) in enumerate(arms.items()):
            folder = args.workdir / str(number) / str(seed)
            run_or_resume(differ(config, seed=seed), folder)
            student = jaxdistill.load(folder)
            embed = lambda texts, student=student: student.predict([{"text": text} for text in texts]).embeddings
            weights = linear_head(embed(train[ENGLISH]), labels) if arm == ARMS[1] else of_teacher
            found = {field: accuracy(weights, embed(test[field]), of_test) for field in (ENGLISH, *OTHERS)}
            english.setdefault(arm, []).append(found[ENGLISH])
            others.setdefault(arm, []).append(float(np.mean([found[field] for field in OTHERS])))
            console.print(f"seed {seed}, {arm}: {others[arm][-1]:.1f} %, {english[arm][-1]:.1f} % in English")
    shown = lambda values, arm: mean_and_interval(values[arm]) if arm in values else ""
    lines = [[arm, shown(others, arm), shown(english, arm)] for arm in english]
    chance = 100 * float(np.mean(of_test == np.bincount(labels).argmax()))
    lines.append(["the commonest category", f"{chance:.1f}", f"{chance:.1f}"])
    heading = ["", "26 other languages %", "English %"]
    console.print(aligned([heading, *lines]), highlight=False, soft_wrap=True)
    if args.seeds > 1:
        console.print(f"student - control: {paired(others[ARMS[0]], others[ARMS[1]])}")
    (args.workdir / "languages.json").write_text(json.dumps({"others": others, "english": english}, indent=1))


if __name__ == "__main__":
    main()
