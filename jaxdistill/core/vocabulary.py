"""The tokens that two vocabularies share."""

from typing import NamedTuple

import numpy as np


class SharedVocabulary(NamedTuple):
    """The tokens that the vocabularies of student and teacher share, as pairs of token ids.

    student, teacher: `[shared tokens]`; `student[i]` and `teacher[i]` are the ids of the same token; no id occurs twice
    """

    student: np.ndarray
    teacher: np.ndarray
