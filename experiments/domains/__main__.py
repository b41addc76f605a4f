"""Study the language of a domain: python -m experiments.domains [--workdir DIR] [--seeds 3]

configs/domains.py in five arms: which texts a student learns from, and which teacher it has. The adapted teacher knows
1,000 pairs of synonyms; the general one is all-MiniLM-L6 as it is. The texts are 18,641 of the domain, or as many
sentences from films, news, tweets and products (`vader/all`). Measured by linking 9,966 synonyms of unseen phenotypes
to 5,017 names (text R@1), and on another vocabulary: a linear head (ridge regression, penalty 1) learns the chapter of
37,708 diagnoses of ICD-10-CM from a model's vectors, and is tested on 9,173 of other categories.

Decided before the first run: 3 seeds. Expected: the domain's texts at least 8 points above general ones; the adapted
teacher at least 2 above the general one; pairs permuted at least 4 below the general teacher; on the other vocabulary
the adapted teacher's student loses at most 4 points to the general one's. A study that was stopped resumes.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console

import jaxdistill
from experiments.languages.vectors import accuracy, linear_head
from jaxdistill.core.packages import default_folder
from jaxdistill.core.registry import datasets
from jaxdistill.data import open_records
from jaxdistill.evaluation.comparison import mean_and_interval, paired
from jaxdistill.evaluation.report.formats import aligned
from jaxdistill.run.commands import cache
from jaxdistill.run.config import Config, differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.presets.text import MINILM
from jaxdistill.run.study import run_or_resume

DOMAIN, GENERAL, TEXTS = "domain texts, adapted teacher", "domain texts, general teacher", "general texts"
TWIN, CONTROL = "domain texts, teacher of permuted pairs (twin)", "1,000 pairs alone (control)"
FILE = str(Path(__file__).parents[2] / "configs" / "domains.py")
PAIRS, COUNT = 1000, 18_641  # pairs of synonyms; texts, as many as `vader/all` has
NETWORK = f"siamese(pretrained({MINILM!r}, classes=0, dropout=0.0, attention_dropout=0.0))"


@datasets.register
def phenotype_texts(split: str, folder: Path) -> list[dict]:
    """Load `phenotypes`, with two more splits: `general` texts, as many as `texts`, and pairs of `permuted` names."""
    plain = lambda part, name="phenotypes": _columns(name, part, folder)
    if split == "general":
        texts = plain(f"train[:{COUNT}]", "vader/all")["text"]
        return [{"text": text, "name": text} for text in texts]
    columns = plain(
        {"permuted": f"pairs[:{PAIRS}]", "pairs": f"pairs[:{PAIRS}]", "texts": f"texts[:{COUNT}]"}.get(split, split)
    )
    count = len(columns["text"])
    order = np.random.default_rng(0).permutation(count) if split == "permuted" else np.arange(count)
    return [{"text": columns["text"][number], "name": columns["name"][order[number]]} for number in range(count)]


def _columns(name: str, split: str, folder: Path) -> dict[str, list]:
    source = open_records(name, split, folder, "data", "train")
    columns = source.take(np.arange(len(source)))
    texts = {field: [text.decode() for text in columns[field]] for field in ("text", "name") if field in columns}
    return texts | ({"label": columns["label"].tolist()} if "label" in columns else {})


def teacher_config(pairs: str) -> Config:
    """Return the config of a teacher that is adapted on a split of pairs."""
    base = load_config(FILE)
    return differ(
        base,
        seed=100,
        title="A teacher, adapted on pairs",
        steps=base.teachers.minilm.steps,
        rate=base.teachers.minilm.rate,
        student={"model": NETWORK},
        teachers={},
        streams={"pairs": {"split": pairs}},
        objective={"contrastive": {"stream": "pairs"}},
        control=False,
        data={"name": "phenotype_texts"},
        evaluate={"every": base.teachers.minilm.steps},
        logging={"tensorboard": False},
    )


def arms(workdir: Path) -> dict[str, Config]:
    """Return the config of each arm; the control of the first one knows the pairs alone."""
    base = differ(
        load_config(FILE),
        data={"name": "phenotype_texts"},
        streams={"pairs": {"split": "pairs"}},
        control=False,
        evaluate={"every": 1500},
        logging={"tensorboard": False},
        mesh={"data": 1},
    )

    def of(name: str, teacher: str, train: str = "texts", **changes) -> Config:
        checkpoint = {} if teacher == "general" else {"checkpoint": str(workdir / teacher)}
        said = f"outputs(folder={str(workdir / 'said' / name)!r})"
        entry = {"model": NETWORK, "steps": 0, "rate": "", "cache": said, **checkpoint}
        return differ(base, teachers={"minilm": entry}, data={"train": train}, **changes)

    return {
        DOMAIN: of("domain", "adapted", control=True),
        GENERAL: of("general", "general"),
        TEXTS: of("texts", "adapted", "general"),
        TWIN: of("twin", "permuted"),
    }


def chapters(folder: Path, model: str = "student") -> float:
    """Return how often a linear head on a model's vectors finds the chapter of a diagnosis, in percent."""
    embedder = jaxdistill.load(folder, model=model)
    parts = [_columns("diagnoses", split, default_folder()) for split in ("train", "test")]
    vectors = [embedder.predict([{"text": text} for text in part["text"]]).embeddings for part in parts]
    labels = [np.array(part["label"]) for part in parts]
    return accuracy(linear_head(vectors[0], labels[0]), vectors[1], labels[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/domains_study", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    args = parser.parse_args()
    console, configs = Console(), arms(args.workdir)
    linked: dict[str, list[float]] = {}
    for name, pairs in (("adapted", "pairs"), ("permuted", "permuted")):
        (row,) = run_or_resume(teacher_config(pairs), args.workdir / name)
        console.print(f"teacher, {name}: R@1 {100 * row['image_text_r1']:.1f} %")
    for config in configs.values():
        cache.write(config, console)
    diagnosed: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        for number, (arm, config) in enumerate(configs.items()):
            folder = args.workdir / f"arm-{number}" / str(seed)
            rows = {row["name"]: row for row in run_or_resume(differ(config, seed=seed), folder)}
            for model, name in (("student", arm), ("control", CONTROL)):
                if model in rows:
                    linked.setdefault(name, []).append(100 * rows[model]["image_text_r1"])
                    diagnosed.setdefault(name, []).append(chapters(folder, model))
                    console.print(f"seed {seed}, {name}: {linked[name][-1]:.1f} %, {diagnosed[name][-1]:.1f} %")
    lines = [[name, mean_and_interval(values), mean_and_interval(diagnosed[name])] for name, values in linked.items()]
    console.print(aligned([["", "linked %", "chapter %"], *lines]), highlight=False, soft_wrap=True)
    console.print(f"chance: {100 / 5017:.2f} % linked; the commonest chapter has 32.0 %")
    if args.seeds > 1:
        for one, other in ((DOMAIN, TEXTS), (DOMAIN, GENERAL), (GENERAL, TWIN)):
            console.print(f"linked, {one} - {other}: {paired(linked[one], linked[other])}")
        console.print(f"chapter, {DOMAIN} - {GENERAL}: {paired(diagnosed[DOMAIN], diagnosed[GENERAL])}")
    (args.workdir / "domains.json").write_text(json.dumps({"linked": linked, "chapters": diagnosed}, indent=1))


if __name__ == "__main__":
    main()
