"""The tokens that two vocabularies share."""

from typing import NamedTuple

import numpy as np


class SharedVocabulary(NamedTuple):
    """Pairs of token ids with the same text: `student[i]` and `teacher[i]` are one token.

    student, teacher: `[tokens]`, every id at most once
    """

    student: np.ndarray
    teacher: np.ndarray
