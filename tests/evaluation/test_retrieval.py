"""Tests of retrieval: R@k by hand, candidates of the whole test set, equal texts, and embeddings that are all equal."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.core.types import Outputs
from jaxdistill.evaluation import retrieval as retrieval_file
from jaxdistill.evaluation.evaluator import scores, totals
from jaxdistill.evaluation.retrieval import Retrieval, recalls, retrieval


def test_by_hand():
    """Check three pairs, in which the second text is more similar to the third image than to its own."""
    images = np.eye(3)
    texts = np.float32([[1, 0, 0], [0, 0.6, 0.8], [0, 0, 0.7]])
    found = recalls(images, texts)
    assert found["image_text_r1"] == pytest.approx(2 / 3)  # image 3 prefers text 2 (0.8) to its own (0.7)
    assert found["text_image_r1"] == pytest.approx(2 / 3)  # text 2 prefers image 3 (0.8) to its own (0.6)
    assert found["image_text_r5"] == found["text_image_r5"] == 1.0
    assert (found["gallery_images"], found["gallery_texts"]) == (3, 3)
    assert found["chance_image_text_r1"] == pytest.approx(1 / 3) and found["chance_text_image_r5"] == 1.0


def test_equal_texts_are_one_candidate_and_all_their_images_are_right():
    images = np.eye(4)
    texts = np.eye(4)[[0, 0, 2, 3]]  # the second image's text is that of the first
    found = recalls(images, texts, np.array([[5, 0], [5, 0], [6, 0], [6, 1]]))
    assert found["gallery_texts"] == 3 and found["gallery_images"] == 4
    assert found["text_image_r1"] == 1.0
    assert found["image_text_r1"] == 0.75  # all texts are equally far from the second image: it finds none
    assert found["chance_text_image_r1"] == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)


def test_of_two_texts_each_different_one_is_a_candidate_once():
    """Check pairs of names and texts: name 1 has the texts 5 and 6, and name 2 has 6 alone, so 5 is wrong for it."""
    names, texts = np.eye(3)[[0, 0, 1, 2]], np.eye(3)[[0, 1, 1, 2]]
    tokens, of_names = np.array([[5], [6], [6], [7]]), np.array([[1], [1], [2], [3]])
    found = recalls(names, texts, tokens, of_names)
    assert (found["gallery_first_texts"], found["gallery_texts"]) == (3, 3) and "gallery_images" not in found
    assert found["image_text_r1"] == 1.0 and found["text_image_r1"] == 1.0
    assert found["chance_image_text_r1"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
    wrong = recalls(np.eye(3)[[0, 0, 0, 2]], np.eye(3)[[0, 1, 1, 2]], tokens, of_names)
    assert wrong["image_text_r1"] == pytest.approx(2 / 3)  # the second name is most like text 5, which is not its own


@pytest.mark.parametrize("alike", [np.ones((20, 3)), np.zeros((20, 3)), np.full((20, 3), np.nan)])
def test_embeddings_that_say_nothing_find_nothing(alike):
    found = recalls(alike, alike)
    assert {found[name] for name in found if not name.startswith(("chance", "gallery"))} == {0.0}


@pytest.mark.parametrize("size", [1, 3, 7])
def test_ranks_in_blocks_are_those_of_the_whole(size, monkeypatch):
    draw = np.random.default_rng(0)
    images, tokens = draw.normal(size=(20, 6)), np.arange(20)[:, None] // 2
    texts = images + 0.8 * draw.normal(size=(20, 6))
    whole = recalls(images, texts, tokens)
    monkeypatch.setattr(retrieval_file, "QUERIES", size)
    assert recalls(images, texts, tokens) == whole and 0.1 < whole["image_text_r1"] < 0.9


def test_chance_is_what_random_embeddings_reach():
    draw = np.random.default_rng(0)
    tokens = np.arange(60)[:, None] // 2  # each text has two images
    found = [recalls(draw.normal(size=(60, 8)), draw.normal(size=(60, 8)), tokens) for _ in range(40)]
    for name in ("image_text_r1", "image_text_r5", "text_image_r1", "text_image_r5"):
        share = np.mean([each[name] for each in found])
        assert share == pytest.approx(found[0][f"chance_{name}"], abs=0.02)


def test_the_candidates_are_those_of_all_batches():
    """Check that candidates come from all batches, without the rows that only fill a batch."""
    images, texts = np.float32([[1, 0], [0, 1], [1, 0], [0, 1]]), np.float32([[1, 0], [0, 1], [0.9, 0.1], [0.1, 0.9]])
    whole = scores({"retrieval": Retrieval({"image": images, "text": texts}, np.ones(4))})
    parts = [
        {"retrieval": Retrieval({"image": images[:3], "text": texts[:3]}, np.ones(3))},
        {"retrieval": Retrieval({"image": images[[3, 3]], "text": texts[[3, 3]]}, np.array([1, 0]))},
    ]
    assert scores(totals(parts)) == whole and whole["gallery_images"] == 4
    assert whole["image_text_r1"] == 0.5 and whole["image_text_r5"] == 1.0


def test_a_padded_text_is_not_one_that_ends_in_the_token_of_padding():
    rows = {"input_ids": np.int32([[5, 0], [5, 0], [5, 9]]), "attention_mask": np.int32([[1, 1], [1, 0], [1, 0]])}
    found = retrieval(Outputs(jnp.zeros((3, 3)), embedding=jnp.eye(3), text_embedding=jnp.eye(3)), rows, jnp.ones(3))
    first, second, third = np.asarray(found.values["tokens"]).tolist()
    assert first != second == third


def test_of_two_texts_equal_ones_are_known_on_each_side():
    rows = {"input_ids": np.int32([[5], [5]]), "teacher/input_ids": np.int32([[6], [7]]), "mask": np.ones(2)}
    out = Outputs(jnp.zeros((2, 2)), embedding=jnp.ones((2, 2)), text_embedding=jnp.ones((2, 2)))
    found = retrieval(out, rows, jnp.ones(2), "teacher/").values
    assert found["image_tokens"].tolist() == [[5], [5]] and found["tokens"].tolist() == [[6], [7]]
    of_towers = retrieval(out, rows, jnp.ones(2)).values  # without a second prefix, the model reads one text
    assert of_towers["tokens"].tolist() == [[5], [5]] and "image_tokens" not in of_towers
