"""Losses that compare the examples of a batch, written as plain loops in float64."""

import itertools

import numpy as np


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def by_loops_rkd(s: np.ndarray, t: np.ndarray) -> float:
    def distances(x):
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        return d / d[d > 0].mean()

    def angle(x, i, j, k):
        one, other = x[j] - x[i], x[k] - x[i]
        size = np.linalg.norm(one) * np.linalg.norm(other)
        return one @ other / size if size else 0.0

    pairs = np.mean([huber(a - b) for a, b in zip(distances(s).flat, distances(t).flat, strict=True)])
    triples = itertools.product(range(len(s)), repeat=3)
    return 25 * pairs + 50 * np.mean([huber(angle(s, *n) - angle(t, *n)) for n in triples])


def by_loops_similarity(s, t):
    rows = lambda x: np.array([g / np.linalg.norm(g) for g in x @ x.T])
    return ((rows(s) - rows(t)) ** 2).sum() / len(s) ** 2


def by_loops_pkt(s, t):
    def neighbours(x):
        k = np.array([[(1 + a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / 2 for b in x] for a in x])
        return k / k.sum(1, keepdims=True)

    p, q = neighbours(t), neighbours(s)
    return (p * np.log(p / q)).mean()


def by_loops_cc(s, t):
    def kernel(x):
        c = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in x] for a in x])
        return np.exp(-0.8) * (1 + 0.8 * c + 0.64 / 2 * c**2)

    return ((kernel(s) - kernel(t)) ** 2).mean()


BY_LOOPS = {"rkd": by_loops_rkd, "similarity": by_loops_similarity, "pkt": by_loops_pkt, "cc": by_loops_cc}
