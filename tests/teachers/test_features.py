"""Tests of `features=True`: features from a cache or a sub-mesh train a student as logits beside the teacher do."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest
import runs
from rich.console import Console
from safetensors.numpy import load_file

import jaxdistill
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.types import Factored, Outputs, Variables
from jaxdistill.data.store import StoreManifest, read_manifest
from jaxdistill.parallel.mesh import make_mesh
from jaxdistill.run.commands import cache
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.distill import check_config
from jaxdistill.teachers import cached_head
from jaxdistill.teachers.codec import Encoding, decoding_model, encode, head_arrays, head_shapes

WIDTH, CLASSES, KEY = 16, 64, jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with runs.compilation_cache(tmp_path_factory.mktemp("compiled")):
        yield


def quiet():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Train a teacher, and return the config of a student that learns beside it, with the result of its run."""
    folder = tmp_path_factory.mktemp("teacher")
    load_config(plans.PODS)  # registers the data set
    config = plans.decoder(steps=4, mesh={"data": 2}, evaluate={"batch_size": 8, "every": 2}, logging={"every": 1})
    jaxdistill.distill(config, folder / "first", console=quiet())
    teacher = {**config.teachers["large"].to_dict(), "steps": 0, "checkpoint": str(folder / "first/teachers/large")}
    config = differ(config, teachers={"large": teacher})
    return config, jaxdistill.distill(config, folder / "beside", console=quiet())


def with_option(config, **option):
    return differ(config, teachers={"large": {**config.teachers["large"].to_dict(), **option}})


def assert_same_run(found, wanted, tolerance):
    losses = [[line["loss"] for line in runs.log(run.workdir / "student").train] for run in (found, wanted)]
    np.testing.assert_allclose(*losses, rtol=tolerance)
    students = (jax.device_get(run.variables["student"].params) for run in (found, wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), *students)
    rows = [next(row for row in run.rows if row["name"] == "student") for run in (found, wanted)]
    assert rows[0]["nll"] == pytest.approx(rows[1]["nll"], rel=tolerance)


def cached(taught, folder, words="features=True"):
    config = with_option(taught[0], cache=f"outputs(folder='{folder}', {words})")
    cache.write(config, quiet())
    return config


@pytest.fixture(scope="module")
def written(taught, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return cached(taught, folder), folder


def test_from_a_cache_a_student_ends_where_it_does_beside_the_teacher(taught, written, tmp_path):
    config, folder = written
    found = jaxdistill.distill(config, tmp_path, console=quiet())
    assert_same_run(found, taught[1], 1e-6)
    # a token takes WIDTH numbers instead of CLASSES
    assert read_manifest(folder / "train").fields == {"features": ((16, WIDTH), "float32")}
    kernel = load_file(folder / cached_head.FILE)["kernel"]
    assert kernel.shape in ((WIDTH, CLASSES), (CLASSES, WIDTH))


@pytest.mark.slow
def test_from_devices_of_its_own_too(taught, tmp_path):
    config = with_option(taught[0], placement="submesh(devices=2, features=True)")
    assert_same_run(jaxdistill.distill(config, tmp_path, console=quiet()), taught[1], 1e-5)


@pytest.mark.slow
def test_two_teachers_one_of_features_and_one_beside_are_fused_in_one_pass(taught, written, tmp_path):
    both = {name: taught[0].teachers["large"].to_dict() for name in ("large", "other")}
    config = differ(taught[0], teachers=both, fusion="average()")
    wanted = jaxdistill.distill(config, tmp_path / "beside", console=quiet())
    config = differ(written[0], teachers={"other": both["other"]}, fusion="average()")
    assert_same_run(jaxdistill.distill(config, tmp_path / "mixed", console=quiet()), wanted, 1e-5)


@pytest.mark.parametrize("damage", ["flipped", "missing", "another"])
def test_a_damaged_head_is_named_and_written_again(damage, written, tmp_path):
    config, folder = written
    file = folder / cached_head.FILE
    content = file.read_bytes()
    if damage == "flipped":
        runs.flip(file, len(content) // 2)
    elif damage == "missing":
        file.unlink()
    else:
        seal = file.with_suffix(".json")
        seal.write_text(seal.read_text().replace("checkpoint", "Checkpoint"))
        file.write_bytes(content[:-4] + b"\0\0\0\1")
    with pytest.raises(
        DamageError, match=r"head\.(safetensors|json) .*The same `jaxdistill cache` command writes it again"
    ):
        jaxdistill.distill(config, tmp_path, console=quiet())
    cache.write(config, quiet())
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"cache": "outputs(folder='x', features=True, top=3)"}, "one of top and features"),
        ({"placement": "submesh(devices=1, features=True, top=3)"}, "one of top and features"),
    ],
)
def test_logits_and_features_at_once_are_refused(option, said, taught, tmp_path):
    with pytest.raises(ConfigError, match=said):
        check_config(with_option(taught[0], **option), tmp_path)


def test_a_cache_of_features_is_no_cache_of_logits(taught, written, tmp_path):
    config = with_option(taught[0], cache=f"outputs(folder='{written[1]}')")
    with pytest.raises(ConfigError, match=r"is stale: kept\.features was True, is None"):
        check_config(config, tmp_path)


def test_a_cache_of_features_says_not_how_hard_a_record_is(taught, written, tmp_path):
    config = differ(taught[0], data={"select": f"hardest(share=0.5, cache={str(written[1])!r})"})
    with pytest.raises(ConfigError, match=r"data\.select: .* holds features, not logits\. Write it: jaxdistill cache"):
        check_config(config, tmp_path)


def test_a_teacher_whose_head_is_no_product_has_no_features(tmp_path):
    config = runs.load()
    teacher = {**config.teachers["big"].to_dict(), "placement": "submesh(devices=2, features=True)"}
    with pytest.raises(ConfigError, match=r"teachers\.big\.placement: features need a head that is one product"):
        check_config(differ(config, teachers={"big": teacher}), tmp_path)


def test_caps_biases_and_tables_come_back():
    draw = lambda n, *shape: jax.random.normal(jax.random.key(n), shape)
    for tied in (False, True):
        kernel = draw(1, 7, 5) if tied else draw(1, 5, 7)
        head = Factored(draw(0, 2, 3, 5), kernel, draw(2, 7), 4.0, tied)
        encoded = encode(Outputs(head), Encoding("", "float32", 0, (), features=True), jnp.zeros(()))
        model = decoding_model("x/", 7, 0, head=head_shapes(Outputs(head)))
        params = {"kernel": kernel, "bias": head.bias}
        assert jax.tree.map(jnp.shape, model.init(KEY, {})[0]) == jax.tree.map(jnp.shape, params)
        rows = {f"x/{name}": x for name, x in encoded.items()}
        out, _ = model.apply(params, {}, rows, train=False, key=KEY)
        np.testing.assert_array_equal(out.logits.dense(), head.dense())


def test_the_network_is_not_run_for_its_head(taught):
    teacher = jaxdistill.run.resolve.resolve(taught[0], jax.devices()).live_teacher("large")
    shapes = teacher_rows(taught[0])
    rows = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    mesh = make_mesh((1, 1, 1))
    with jax.set_mesh(mesh):
        values = Variables(*jax.jit(teacher.network.init)(jax.random.key(0), rows))
        out, _ = jax.jit(lambda values: teacher.network.apply(*values, rows, train=False, key=KEY))(values)
    np.testing.assert_array_equal(head_arrays(teacher.network, values, shapes, mesh)["kernel"], out.logits.kernel)


def teacher_rows(config):
    return jaxdistill.run.resolve.resolve(config, jax.devices()).student.shapes["train"]


def test_a_manifest_without_a_head_is_damaged():
    with pytest.raises(DamageError, match=r"folder/manifest\.json is damaged: 'head' is missing or of another type"):
        cached_head.head_of(StoreManifest(1, 1, {}, {"head": {"kernel": [3]}}), Path("folder"))


def test_the_head_of_other_weights_is_refused(tmp_path):
    encoding = Encoding(str(tmp_path), "float32", 0, (), features=True)
    kernel = jnp.ones((3, 5))
    about = lambda weights: {
        "identity": {"teacher": {"spec": "same", "weights": weights}},
        "head": {"kernel": [[3, 5], "float32"], "bias": None, "cap": 0.0, "tied": False},
    }
    one, other = (StoreManifest(1, 1, {}, about(weights)) for weights in ("a", "b"))
    cached_head.write_head(encoding, one, {"kernel": kernel})
    np.testing.assert_array_equal(cached_head.read_head(encoding, one)["kernel"], kernel)
    with pytest.raises(DamageError, match="belongs to something else"):
        cached_head.read_head(encoding, other)
