"""What two vocabularies share."""

from typing import NamedTuple

import numpy as np


class SharedVocabulary(NamedTuple):
    """Which tokens of two vocabularies are the same text: the i-th numbers of both name one.

    student, teacher: `[tokens]`, each number at most once
    """

    student: np.ndarray
    teacher: np.ndarray
