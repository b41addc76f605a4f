"""Tests of `data.select`: which records a rule chooses, and that a resumed run trains on the same ones."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
import runs
from rich.console import Console

import jaxdistill
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import selections as registered
from jaxdistill.data import Batches, Records, store
from jaxdistill.data.selection import Selection, record_hardness
from jaxdistill.data.stream import Phases, StoredFields
from jaxdistill.run import subset
from jaxdistill.run.commands import cache
from jaxdistill.run.config import differ
from jaxdistill.run.distill import check_config
from jaxdistill.run.resolve import resolve


def build(spec: str) -> Selection:
    return registered.build(spec, "data.select")


@pytest.mark.parametrize(("share", "count"), [(0.1, 40), (0.3, 120), (1.0, 400), (0.001, 1)])
def test_a_share_is_of_all_records_and_of_one_seed_part_of_every_larger_one(share, count):
    found = build(f"random(share={share})").chosen(5, 400, None)
    assert len(found) == count and (np.diff(found) > 0).all()
    assert set(found) <= set(build("random(share=1.0)").chosen(5, 400, None))
    if count == 40:
        assert set(found) <= set(build("random(share=0.3)").chosen(5, 400, None))
        assert len(set(found) & set(build("random(share=0.1)").chosen(6, 400, None))) < 15  # 4 are expected by chance
        assert np.bincount(found // 100).min() > 3  # every quarter of the records has some


def test_the_hardest_and_the_easiest_by_hand():
    hard = np.array([0.5, 2.0, 0.1, 2.0, 1.0, 2.0])
    # Of equally hard records, the first are chosen.
    assert build("hardest(share=0.34, cache='x')").chosen(0, 6, hard).tolist() == [1, 3]
    assert build("easiest(share=0.5, cache='x')").chosen(0, 6, hard).tolist() == [0, 2, 4]
    assert build("hardest(share=1, cache=('x', 'y'))").chosen(7, 6, hard).tolist() == [0, 1, 2, 3, 4, 5]


def test_how_hard_by_hand():
    log = np.log([[[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]], [[0.5, 0.25, 0.25], [0.2, 0.1, 0.7]]])
    mean = np.array([[0.5, 0.25, 0.25], [0.5, 0.1, 0.4]])
    entropy = lambda p: -(p * np.log(p)).sum(-1)
    at = lambda by, labels=None: record_hardness(by, log, labels, None)
    np.testing.assert_allclose(at("entropy"), entropy(mean))
    np.testing.assert_allclose(at("margin"), [0.75, 0.9])
    np.testing.assert_allclose(at("disagreement"), [0, (entropy(mean) - entropy(np.exp(log)).mean(0))[1]], atol=1e-12)
    np.testing.assert_allclose(at("loss", np.array([0, 2])), -np.log([0.5, 0.4]))
    assert np.isnan(at("loss", np.array([0, -1]))[1])
    tokens = record_hardness("loss", log[:1, None], np.array([[0, 1]]), np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(tokens, -np.log([0.5]))  # the second token is masked out
    sure = record_hardness("loss", np.array([[[0.0, -np.inf]]]), np.array([1]), None)
    assert np.isfinite(sure).all() and sure > 700


def test_batches_are_of_the_chosen_records_and_keep_their_numbers_and_what_was_said_of_them():
    records = Records([{"x": np.float32(i)} for i in range(20)], None)
    said = StoredFields(Records([{"cached": np.float32(10 * i)} for i in range(20)], None))
    chosen = np.array([3, 4, 11, 19])
    draw = {"batch_size": 4, "seed": 1, "transforms": (), "stored": (said,)}
    batches = Batches(records, **draw, rows=slice(4), chosen=chosen)
    for number in range(3):
        batch = batches[number]
        assert sorted(batch["index"]) == chosen.tolist()  # each batch is one epoch
        assert np.array_equal(batch["x"], batch["index"]) and np.array_equal(batch["cached"], 10 * batch["index"])
    everyone = Batches(records, **draw, rows=slice(4), chosen=np.arange(20))
    plain = Batches(records, **draw, rows=slice(4))
    assert all(np.array_equal(everyone[2][field], plain[2][field]) for field in plain[2])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("random(share=0)", "share must be above 0 and at most 1; got 0"),
        ("random(share=1.5)", "got 1.5"),
        ("hardest(share=0.1)", "missing a required argument: 'cache'"),
        ("hardest(share=0.1, cache='')", "cache is empty; give the folder"),
        ("hardest(share=0.1, cache='x', by='entropie')", "'margin'"),
        ("easiest(share=0.1, cache='x', by='disagreement')", "needs the caches of two teachers"),
        ("hradest(share=0.1)", "unknown selection 'hradest'. Did you mean 'hardest'?"),
    ],
)
def test_a_mistake_is_told_with_its_cure(spec, said):
    with pytest.raises(ConfigError) as error:
        build(spec)
    assert str(error.value).startswith("data.select: ") and said in str(error.value)


# In a run


def faint(split: str, noise: float = 450.0):
    """Build 250 images of the tiny run's four classes with so much noise that any teacher makes errors."""
    clear = jaxdistill.registry.datasets["blobs"](split="train")[:4]
    draw = np.random.default_rng({"train": 1, "test": 2}[split]).normal(0, noise, (250, 8, 8, 1))
    return [
        {"image": np.clip(clear[i % 4]["image"] + each, 0, 255).astype(np.uint8), "label": i % 4}
        for i, each in enumerate(draw)
    ]


def quiet():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module", autouse=True)
def _registered():
    runs.load()
    jaxdistill.registry.datasets.register(faint)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Train a teacher and cache its outputs for all records; return a student's config and the cache folder."""
    workdir = tmp_path_factory.mktemp("teacher")
    with runs.compilation_cache(tmp_path_factory.mktemp("compiled")):
        config = differ(runs.load(), steps=1, control=False)
        config = differ(config, data={"name": "faint"})
        jaxdistill.distill(config, workdir, quiet())
        entry = {**config.teachers["big"].to_dict(), "steps": 0, "checkpoint": str(workdir / "teachers" / "big")}
        plain = {"augment": ()}
        said = {**entry, "cache": f"outputs(folder={str(workdir / 'said')!r})"}
        cache.write(differ(config, teachers={"big": said}, data=plain), quiet())
        yield differ(config, teachers={"big": entry}, steps=12, rate="0.01", objective={"kd": {}}), workdir / "said"


def selecting(config, select: str, **data):
    return differ(config, data={"select": select, **data})


@pytest.mark.slow
def test_a_selection_is_enriched_in_the_errors_of_its_teacher_and_one_of_shuffled_teachers_is_not(taught):
    config, said = taught
    records = Records(jaxdistill.registry.datasets["faint"](split="train"), 4)
    labels = records.take(np.arange(250))["label"]
    entries = store.Store(said / "train")
    logits = np.stack([entries[row]["logits"] for row in range(250)])
    wrong = logits.argmax(-1) != labels
    assert 12 < wrong.sum() < 120  # the teacher errs on some records, but not on most
    share = lambda numbers: wrong[numbers].mean() / wrong.mean()
    pipeline = lambda spec: resolve(selecting(config, spec), jax.devices()).data
    for by in ("entropy", "margin", "loss"):
        spec = f"hardest(share=0.2, cache={str(said)!r}, by={by!r})"
        numbers = subset.choose_records(pipeline(spec), records)
        assert len(numbers) == 50 and share(numbers) > 1.6, by
        assert share(subset.choose_records(pipeline(spec.replace("hardest", "easiest")), records)) < 0.5
        shuffled = logits[np.random.default_rng(0).permutation(250)]
        twin = build(spec).chosen(0, 250, record_hardness(by, shuffled[None], labels, None))
        assert share(twin) < 1.6
    assert share(subset.choose_records(pipeline("random(share=0.2)"), records)) < 1.6


def params(config, folder):
    return jaxdistill.distill(config, folder, quiet()).variables["student"].params


@pytest.mark.slow
def test_a_run_that_goes_on_learns_from_the_same_records_and_from_no_others(taught, tmp_path):
    config, said = taught
    chosen = selecting(config, f"hardest(share=0.2, cache={str(said)!r})")
    whole = params(chosen, tmp_path / "whole")
    params(differ(chosen, steps=5), tmp_path / "cut")
    again = params(chosen, tmp_path / "cut")
    assert not runs.differences(whole, again)
    note = json.loads((tmp_path / "cut" / "selection.json").read_text())
    assert note["records"] == 50 and note == json.loads((tmp_path / "whole" / "selection.json").read_text())
    assert runs.differences(
        whole, params(selecting(config, f"easiest(share=0.2, cache={str(said)!r})"), tmp_path / "e")
    )

    def shuffled(selection, records):
        return np.random.default_rng(0).random(len(records))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subset, "_hardness", shuffled)  # as if the cache had been written anew, by another teacher
        with pytest.raises(
            ConfigError,
            match=r"data\.select: .* no longer selects the records .*cut' started with. .* restore the cache",
        ):
            params(differ(chosen, steps=20), tmp_path / "cut")


def test_only_the_student_and_its_control_have_less_to_learn_from(tmp_path):
    """Check the length of an epoch in each stage by means of a learning rate that halves with every epoch."""
    config = differ(runs.load(), rate="step(start=1.0, factor=0.5, every=1)")
    stages = check_config(selecting(config, "random(share=0.256)"), tmp_path).stages
    assert [bool(stage.data.select) for stage in stages] == [False, True, True]
    for stage, records in zip(stages, (250, 64, 64), strict=True):
        rates = [float(stage.parts.components.schedules["rate"](np.int32(step))) for step in range(16)]
        np.testing.assert_allclose(rates, [0.5 ** (32 * step // records) for step in range(16)])


@pytest.mark.slow
def test_what_a_teacher_said_of_the_chosen_rows_is_read_as_it_was_said(taught, tmp_path):
    """Check that a run that reads cached outputs for its augmented batches equals a run with the teacher itself."""
    config, said = taught
    chosen = selecting(config, f"hardest(share=0.2, cache={str(said)!r})")
    entry = {**config.teachers["big"].to_dict(), "cache": f"outputs(folder={str(tmp_path / 'rows')!r})"}
    written = differ(chosen, teachers={"big": entry})
    cache.write(written, quiet())
    assert not runs.differences(params(chosen, tmp_path / "live"), params(written, tmp_path / "read"))
    with pytest.raises(ConfigError, match=r"is stale: draws\.asked was .*; draws\.select was \"hardest.* is 'random"):
        check_config(selecting(written, "random(share=0.2)"), tmp_path / "other")


@pytest.mark.parametrize(
    ("select", "data", "said"),
    [
        ("hardest(share=0.2, cache='nowhere')", {}, "nowhere/train has no cached outputs. Write it: jaxdistill cache"),
        ("hardest(share=0.2, cache={said!r})", {"name": "blobs"}, "is a cache of other data: contents was"),
        ("hardest(share=2.0, cache={said!r})", {}, "hardest: share must be above 0 and at most 1; got 2.0"),
        ("random(share=0.2, by='loss')", {}, "selection 'random' has no argument 'by'"),
    ],
)
def test_a_mistake_is_told_before_anything_compiles(taught, tmp_path, select, data, said):
    config, folder = taught
    before = len(runs.compilations)
    with pytest.raises(ConfigError) as error:
        check_config(selecting(config, select.format(said=str(folder)), **data), tmp_path / "never")
    assert str(error.value).startswith("data.select: ") and said in str(error.value)
    assert len(runs.compilations) == before


def test_a_cache_of_augmented_rows_says_nothing_of_records(taught, tmp_path):
    config, _ = taught
    entry = {**config.teachers["big"].to_dict(), "cache": f"outputs(folder={str(tmp_path / 'rows')!r})"}
    cache.write(differ(config, teachers={"big": entry}), quiet())
    with pytest.raises(ConfigError, match=r"data\.select: .* is a cache of augmented batches, not of records\. Write"):
        check_config(selecting(config, f"hardest(share=0.2, cache={str(tmp_path / 'rows')!r})"), tmp_path / "never")


def test_teachers_of_unlike_classes_cannot_disagree(taught, tmp_path):
    config, said = taught
    other = shutil.copytree(said, tmp_path / "other") / "train" / "manifest.json"
    manifest = json.loads(other.read_text())
    manifest["about"]["classes"] = 5
    del manifest["seal"]
    other.write_text(json.dumps(manifest))
    folders = (str(said), str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"data\.select: the teachers of .* have different numbers of classes"):
        check_config(selecting(config, f"hardest(share=0.2, cache={folders}, by='disagreement')"), tmp_path / "never")


def test_phases_of_equal_length_have_orders_of_their_own():
    pools = (np.arange(40), np.arange(40, 80))
    source = Records([{"label": n, "image": np.zeros(1, np.uint8)} for n in range(80)], None)
    batches = Batches(source, batch_size=8, seed=0, transforms=(), rows=slice(8), chosen=Phases(pools, 5))
    numbers = np.concatenate([batches[n]["label"] for n in range(10)])
    assert sorted(numbers[:40]) == list(range(40)) and sorted(numbers[40:]) == list(range(40, 80))
    assert not np.array_equal(numbers[:40], numbers[40:] - 40)


def test_a_share_is_rounded_to_the_nearest():
    assert build("random(share=0.35)").count(5) == 2
