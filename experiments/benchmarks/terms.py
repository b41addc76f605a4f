"""What does each term cost? python -m experiments.benchmarks.terms [--only NAME ...] [--rounds 5]

Value and gradient of a term in what its student returns and in what it learns, compiled, beside

- its docstring's formula, written down as it stands there, without masks, gathers, padding and care for infinities, by
  the same compiler: FLOPs (a transcendental is one, a comparison or a selection none) and bytes of both, and their
  ratios, which may be 1.5;
- the bare step: a student of such outputs by cross-entropy alone, and its teacher's forward pass: FLOPs and time.
"""

import argparse
import ast
import math
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxdistill.core import registry
from jaxdistill.core.objective import Weighted, objective
from jaxdistill.core.schedules import Horizon
from jaxdistill.core.types import Heads, Outputs, Signals
from jaxdistill.run.parts import build_loss as loss

KEY = jax.random.key(0)
NHWC = ("NHWC", "HWIO", "NHWC")
EDGES = "((0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (7, 8))"
NETWORKS = {  # student and teacher that return what a world holds, for the bare step
    "rows": ("mlp(widths=(512, 256), classes=1000)", "mlp(widths=(1024, 512), classes=1000)"),
    "maps": (
        "resnet(widths=(32, 32), blocks=1, classes=10)",
        "resnet(widths=(32, 32), blocks=2, classes=10)",
    ),
    "tokens": (
        "vit(patch=4, width=128, depth=2, heads=4, classes=10)",
        "vit(patch=4, width=128, depth=4, heads=4, classes=10)",
    ),
}
SIZES = {"rows": (256, 1000), "maps": (32, 10), "tokens": (32, 10)}  # rows of a batch, classes


def world(kind: str) -> Signals:
    """What a term sees, drawn at random."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    rows, classes = SIZES[kind]
    heads = lambda: Heads(*(draw(rows, 49, 4, 32) for _ in range(3)))

    def outputs(width: int, depth: int) -> Outputs:
        shape = {"rows": (width,), "maps": (14, 14, 32), "tokens": (49, 128)}[kind]
        states = tuple(draw(rows, *shape) for _ in range(depth + 1))
        return Outputs(
            draw(rows, classes),
            states,
            tuple(heads() for _ in range(depth)) if kind == "tokens" else (),
            draw(rows, width),
            input_gradients=draw(rows, 784),
            state_gradients=tuple(draw(*x.shape) for x in states),
        )

    student, teacher = outputs(256, 2), outputs(512, 4)
    labels = jnp.asarray(rng.integers(0, classes, rows), jnp.int32)
    kernels = lambda: {"a/kernel": draw(512, 512)}
    batch = {"label": labels, "index": jnp.arange(rows, dtype=jnp.int32)}
    params = {"student": kernels(), "teachers": (kernels(),)}
    return Signals(student, (teacher,), teacher, batch, jnp.ones(rows), jnp.asarray(5), 1.0, params)


# Formulas as docstrings have them


ls, sm = jax.nn.log_softmax, jax.nn.softmax
unit = lambda x, axis=-1: x / jnp.sqrt(jnp.sum(x**2, axis, keepdims=True))
kl = lambda log_p, log_q: jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
logits = lambda s: (s.student.logits, s.teacher.logits)
label = lambda s: s.batch["label"][:, None] == jnp.arange(s.student.logits.shape[-1])
last = lambda s: (s.student.hidden_states[-1], s.teacher.hidden_states[-1])
both = lambda s: (s.student.embedding, s.teacher.embedding)
huber = lambda x: jnp.where(jnp.abs(x) < 1, 0.5 * x**2, jnp.abs(x) - 0.5)
at = lambda number: number.reshape(-1)


def soft(temperature: float, scale: float, function: Callable):
    """A formula of softened log-probabilities (student, teacher), times a constant."""

    def formula(s, p):
        return scale * jnp.mean(function(*(ls(z / temperature) for z in logits(s))))

    return formula


def dkd(s, p):
    log_q, log_p, own = ls(logits(s)[0] / 4), ls(logits(s)[1] / 4), label(s)
    two = lambda z: jnp.sum(jnp.where(own, jnp.exp(z), 0), -1)
    a, b = two(log_p), two(log_q)
    target = a * jnp.log(a / b) + (1 - a) * jnp.log((1 - a) / (1 - b))
    others = kl(ls(jnp.where(own, -1e3, log_p)), ls(jnp.where(own, -1e3, log_q)))
    return 16 * jnp.mean(target + 8 * others)


def dist(s, p):
    q, r = (sm(z) for z in logits(s))

    def correlation(axis):
        a, b = (x - jnp.mean(x, axis, keepdims=True) for x in (q, r))
        return jnp.sum(a * b, axis) / jnp.sqrt(jnp.sum(a**2, axis) * jnp.sum(b**2, axis))

    return 2 - jnp.mean(correlation(-1)) - jnp.mean(correlation(0))


def standardized(s, p):
    z = lambda x: (x - jnp.mean(x, -1, keepdims=True)) / (jnp.std(x, -1, keepdims=True, ddof=1) + 1e-7)
    q, r = (ls(z(x) / 2) for x in logits(s))
    return 4 * jnp.mean(kl(r, q))


def jsd(log_q, log_p):
    m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    return 0.5 * kl(log_p, m) + 0.5 * kl(log_q, m)


def taid(s, p):
    q, t = logits(s)
    return -jnp.mean(jnp.sum(sm(0.6 * jax.lax.stop_gradient(q) + 0.4 * t) * ls(q), -1))


def hard(s, p):
    log_q, log_p = (ls(z / 4) for z in logits(s))
    hardness = jax.lax.stop_gradient(-jnp.sum(jnp.exp(log_p) * log_p, -1))
    return 16 * jnp.sum(hardness * kl(log_p, log_q)) / jnp.sum(hardness)


def jacobian(s, p):
    return jnp.mean(jnp.sum((unit(s.student.input_gradients) - unit(s.teacher.input_gradients)) ** 2, -1))


def rkd(s, p):
    def parts(x):
        distance = jnp.sqrt(jnp.sum((x[:, None] - x[None, :]) ** 2, -1) + 1e-12)
        away = x[None, :] - x[:, None]
        e = away / jnp.sqrt(jnp.sum(away**2, -1, keepdims=True) + 1e-12)
        return distance / (jnp.sum(distance) / (len(x) * (len(x) - 1))), jnp.einsum("ijc,ikc->ijk", e, e)

    (d, a), (D, A) = map(parts, both(s))
    return 25 * jnp.mean(huber(d - D)) + 50 * jnp.mean(huber(a - A))


def sampled(s, p):
    draws = [jax.random.randint(KEY, (3, 4096), 0, len(s.mask))]

    def parts(x):
        distance = jnp.sqrt(jnp.sum((x[None, :] - x[:, None]) ** 2, -1) + 1e-12)
        i, j, k = (x[n] for n in draws[0])
        cosine = jnp.sum(unit(j - i) * unit(k - i), -1)
        return distance / (jnp.sum(distance) / (len(x) * (len(x) - 1))), cosine

    (d, a), (D, A) = map(parts, both(s))
    return 25 * jnp.mean(huber(d - D)) + 50 * jnp.mean(huber(a - A))


def graph(s, p):
    def relative(x):
        d = jnp.sqrt(jnp.sum((x[None, :] - x[:, None]) ** 2, -1) + 1e-12)
        return d / (jnp.sum(d * near) / jnp.sum(near))

    edges = np.zeros((1000, 1000), np.float32)
    for i, j in ((0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (7, 8)):
        edges[i, j] = edges[j, i] = 1
    near = jnp.asarray(edges)[s.batch["label"][:, None], s.batch["label"][None, :]] + 1e-9
    d, D = map(relative, both(s))
    return jnp.sum(near * huber(d - D)) / jnp.sum(near)


def cc(s, p):
    def kernel(x):
        g = unit(x) @ unit(x).T
        return jnp.exp(-0.8) * (0.8 * g + 0.32 * g**2)

    return jnp.mean((kernel(both(s)[0]) - kernel(both(s)[1])) ** 2)


def pkt(s, p):
    def near(x):
        k = (1 + unit(x) @ unit(x).T) / 2
        return k / jnp.sum(k, -1, keepdims=True)

    Q, P = map(near, both(s))
    return jnp.mean(P * jnp.log((P + 1e-7) / (Q + 1e-7)))


def similarity(s, p):
    g, G = (unit(x @ x.T) for x in both(s))
    return jnp.mean((g - G) ** 2)


def crd(s, p):
    total = 0.0
    rows = {
        x: unit(y @ p[f"{x}/kernel"] + p[f"{x}/bias"]) for x, y in zip(("student", "teacher"), both(s), strict=True)
    }
    draws = jax.random.randint(KEY, (len(s.mask), 257), 0, 4096)
    bank = jnp.ones((4096, 64))
    for x in rows.values():
        score = jnp.exp(jnp.take_along_axis(x @ bank.T, draws, 1) / 0.07)
        own = score / jax.lax.stop_gradient(jnp.mean(score) * 4096)
        c = 256 / 4096
        total += jnp.mean(-jnp.log(own[:, 0] / (own[:, 0] + c)) - jnp.sum(jnp.log(c / (own[:, 1:] + c)), 1))
    return total


def hints(s, p):
    x, t = last(s)
    return jnp.mean((x @ jax.tree.leaves(p)[0] - t) ** 2)


def fisher(s, p):
    (x, t), g = last(s), s.teacher.state_gradients[-1]
    return jnp.mean(g**2 / jnp.mean(g**2) * (x @ jax.tree.leaves(p)[0] - t) ** 2)


def cosine(a, b):
    return 1 - jnp.mean(jnp.sum(unit(a) * unit(b), -1))


def loss_gradients(s, p):
    g, t = s.student.state_gradients[-1], s.teacher.state_gradients[-1]
    return cosine(g, t @ jax.tree.leaves(p)[0].T)


def energy(x):
    return unit(jnp.mean(x**2, -1).reshape(len(x), -1))


def pairs(s):
    return [(s.student.hidden_states[i], s.teacher.hidden_states[2 * i]) for i in (1, 2)]


def attention_transfer(s, p):
    return jnp.mean(jnp.stack([jnp.mean((energy(a) - energy(b)) ** 2) for a, b in pairs(s)]))


def nst(s, p):
    def one(a, b):
        a, b = (unit(x.reshape(len(x), -1, x.shape[-1]), 1) for x in (a, b))
        k = lambda x, y: jnp.mean(jnp.einsum("bpc,bpd->bcd", x, y, precision="highest") ** 2)
        return k(a, a) + k(b, b) - 2 * k(a, b)

    return (one(*pairs(s)[0]) + one(*pairs(s)[1])) / 2


def fsp(s, p):
    flat = lambda x: x.reshape(len(x), -1, x.shape[-1])
    (a, t), (b, u) = pairs(s)
    flow = lambda x, y: jnp.einsum("bpc,bpd->bcd", flat(x), flat(y)) / 196
    return jnp.mean((flow(a, b) - flow(t, u)) ** 2)


def vid(s, p):
    total = 0.0
    for number, (x, t) in enumerate(pairs(s)):
        x = x @ p[f"{number}/0/kernel"]
        x = jax.nn.relu(x) @ p[f"{number}/1/kernel"]
        x = jax.nn.relu(x) @ p[f"{number}/2/kernel"]
        variance = jax.nn.softplus(p[f"{number}/variance"]) + 1e-5
        total += jnp.mean(0.5 * ((x - t) ** 2 / variance + jnp.log(variance))) / 2
    return total


def pkd(s, p):
    (a, b), _ = pairs(s)
    return jnp.mean((unit(a[:, 0]) - unit(b[:, 0])) ** 2)


def scores(x, y):
    return jnp.einsum("bqhd,bkhd->bhqk", x, y) / x.shape[-1] ** 0.5


def minilm(s, p):
    a, b = s.student.attentions[-1], s.teacher.attentions[-1]
    attention = kl(ls(scores(b.query, b.key)), ls(scores(a.query, a.key)))
    return jnp.mean(attention + kl(ls(scores(b.value, b.value)), ls(scores(a.value, a.value))))


def minilm2(s, p):
    a, b = s.student.attentions[-1], s.teacher.attentions[-1]
    anew = lambda x: x.reshape(*x.shape[:2], 8, 16)
    relation = lambda x: ls(scores(anew(x), anew(x)))
    names = ("query", "key", "value")
    return sum(jnp.mean(kl(relation(getattr(b, n)), relation(getattr(a, n)))) for n in names)


def key_heads(s, p):
    total = 0.0
    for i, j in ((2, 4), (1, 2)):
        a, b = s.student.attentions[i - 1], s.teacher.attentions[j - 1]
        pick = lambda x: x[:, :, :2]
        found = kl(ls(scores(pick(b.query), pick(b.key))), ls(scores(pick(a.query), pick(a.key))))
        total += jnp.mean(found) / 2
    return total


def tinybert(s, p):
    (w,) = jax.tree.leaves(p)
    total = jnp.mean((s.student.hidden_states[0] @ w - s.teacher.hidden_states[0]) ** 2)
    for i, (x, t) in enumerate(pairs(s)):
        a, b = s.student.attentions[i], s.teacher.attentions[2 * i + 1]
        total += jnp.mean((x @ w - t) ** 2) + jnp.mean((scores(a.query, a.key) - scores(b.query, b.key)) ** 2)
    return total


def smoothed(s, p):
    log_q = ls(logits(s)[0])
    return -jnp.mean(0.9 * jnp.sum(jnp.where(label(s), log_q, 0), -1) + 0.1 * jnp.mean(log_q, -1))


def skew(log_q, log_p, share=0.1):
    return kl(log_p, jnp.log(share * jnp.exp(log_p) + (1 - share) * jnp.exp(log_q)))


def weighted_ttm(s, p):
    q, t = logits(s)
    return jnp.mean(jnp.sum(sm(t) ** 0.25, -1) * kl(ls(t / 4), ls(q)))


ranked = lambda s: jnp.mean(jnp.sum(jnp.abs(jnp.sort(sm(logits(s)[0])) - jnp.sort(sm(logits(s)[1]))), -1))


def generalised(log_q, log_p):
    """Of measures, all of whose classes are shared: nothing is left to be ranked."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q) - jnp.exp(log_p) + jnp.exp(log_q), -1)


def related(s, p):
    """A label gives 0.1 to its neighbours in the graph, evenly."""
    near = [[j for edge in ast.literal_eval(EDGES) for i, j in (edge, edge[::-1]) if i == c] for c in range(1000)]
    to = np.array([[c, *(near[c] + [c, c])[:2]] for c in range(1000)])
    share = np.array([[0.9] + [0.1 / len(n)] * len(n) + [0.0] * (2 - len(n)) if n else [1.0, 0, 0] for n in near])
    chosen = jnp.take_along_axis(ls(logits(s)[0]), jnp.asarray(to)[s.batch["label"]], -1)
    return -jnp.mean(jnp.sum(jnp.asarray(share, jnp.float32)[s.batch["label"]] * chosen, -1))


def convolution(x, k):
    return x @ k if k.ndim == 2 else jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC)


def batch_norm(x, p, name):
    centred = x - jnp.mean(x, (0, 1, 2))
    root = jnp.sqrt(jnp.mean(centred**2, (0, 1, 2)) + 1e-5)
    return centred / root * p[f"{name}/scale"] + p[f"{name}/bias"]


def pooled(x, size):
    """Bins as PyTorch's adaptive pooling has them."""
    edges = [(n * 14 // size, -(-(n + 1) * 14 // size)) for n in range(size)]
    rows = jnp.stack([jnp.mean(x[:, a:b], 1) for a, b in edges], 1)
    return jnp.stack([jnp.mean(rows[:, :, a:b], 2) for a, b in edges], 2)


def context(x, t):
    """HCL: as it is, and where it is larger than that pooled to 4 x 4, 2 x 2 and 1 x 1."""
    square = lambda a, b: jnp.mean((a - b) ** 2)
    if x.shape[1] == 1:
        return square(x, t)
    parts = [0.5**n * square(pooled(x, size), pooled(t, size)) for n, size in ((1, 4), (2, 2), (3, 1))]
    return (square(x, t) + sum(parts)) / 1.875


def review(s, p):
    mean = lambda x: jnp.mean(x, (1, 2), keepdims=True)
    stages = [*pairs(s), tuple(map(mean, pairs(s)[-1]))]
    total, r = 0.0, None
    for n in (2, 1, 0):
        x = batch_norm(convolution(stages[n][0], p[f"{n}/enter/kernel"]), p, f"{n}/enter")
        if r is not None:
            up = jnp.broadcast_to(r, x.shape)
            g = jax.nn.sigmoid(jnp.concatenate([x, up], -1) @ p[f"{n}/gate/kernel"] + p[f"{n}/gate/bias"])
            x = g[..., :1] * x + g[..., 1:] * up
        r = x
        total += context(batch_norm(convolution(r, p[f"{n}/leave/kernel"]), p, f"{n}/leave"), stages[n][1])
    return total / 3


def semckd(s, p):
    (a, t), (b, u) = pairs(s)

    def embedded(x, name):
        flat = unit(x.reshape(len(x), -1))
        entries = jax.nn.relu((flat @ flat.T)[..., None] * p[f"{name}/entry/kernel"][0] + p[f"{name}/entry/bias"])
        return unit(jnp.mean(entries, 1) @ p[f"{name}/mean/kernel"] + p[f"{name}/mean/bias"])

    def distance(x, target, name):
        for n in (0, 1):
            x = jax.nn.relu(batch_norm(convolution(x, p[f"{name}/{n}/kernel"]), p, f"{name}/{n}"))
        return jnp.mean((x @ p[f"{name}/2/kernel"] - target) ** 2, (1, 2, 3))

    query = jnp.stack([embedded(x, f"query/{n}") for n, x in enumerate((a, b))], 1)
    key = jnp.stack([embedded(x, f"key/{n}") for n, x in enumerate((t, u))], 1)
    alpha = sm(jnp.einsum("bis,bjs->bij", query, key))
    found = [[distance(x, y, f"regressor/{i}/{j}") for j, y in enumerate((t, u))] for i, x in enumerate((a, b))]
    return jnp.mean(jnp.sum(alpha * jnp.stack([jnp.stack(row, -1) for row in found], 1), -1))


@dataclass(frozen=True)
class Case:
    """A spec in a world, and its formula."""

    kind: str
    spec: str
    formula: Callable


CASES = {
    "cross_entropy": Case("rows", "cross_entropy(label_smoothing=0.1)", smoothed),
    "kd": Case("rows", "kd(temperature=4.0)", soft(4, 16, lambda q, p: kl(p, q))),
    "dkd": Case("rows", "dkd", dkd),
    "dist": Case("rows", "dist", dist),
    "standardized": Case("rows", "standardized(loss=kd(temperature=2.0))", standardized),
    "logit_mse": Case("rows", "logit_mse", lambda s, p: jnp.mean((logits(s)[0] - logits(s)[1]) ** 2)),
    "reverse_kl": Case("rows", "reverse_kl", soft(1, 1, kl)),
    "jsd": Case("rows", "jsd(beta=0.5)", soft(1, 1, jsd)),
    "skew_kl": Case("rows", "skew_kl", soft(1, 1, skew)),
    "skew_reverse_kl": Case("rows", "skew_reverse_kl", soft(1, 1, lambda q, p: skew(p, q))),
    "taid": Case("rows", "taid(floor=0.4)", taid),
    "ttm": Case("rows", "ttm(temperature=4.0, weighted=True)", weighted_ttm),
    "hard": Case("rows", "hard(loss=kd(temperature=4.0), by='entropy')", hard),
    "uld": Case("rows", "uld", lambda s, p: ranked(s)),
    "gold": Case("rows", "gold", soft(1, 1, generalised)),
    "related_labels": Case("rows", f"related_labels(edges={EDGES})", related),
    "rkd": Case("rows", "rkd", rkd),
    "rkd_sampled": Case("rows", "rkd(triplets=4096)", sampled),
    "similarity": Case("rows", "similarity", similarity),
    "pkt": Case("rows", "pkt", pkt),
    "cc": Case("rows", "cc", cc),
    "graph": Case("rows", f"graph(edges={EDGES})", graph),
    "crd": Case("rows", "crd(records=4096, negatives=256, width=64)", crd),
    "hidden": Case("rows", "hidden(layers='last')", hints),
    "fisher_hints": Case("rows", "fisher_hints(layers='last')", fisher),
    "loss_gradients": Case("rows", "loss_gradients(layers='last')", loss_gradients),
    "jacobian": Case("rows", "jacobian", jacobian),
    "sobolev": Case(
        "rows",
        "sobolev",
        lambda s, p: jnp.mean(jnp.sum((s.student.input_gradients - s.teacher.input_gradients) ** 2, -1)),
    ),
    "decay": Case("rows", "decay", lambda s, p: 0.5 * jnp.sum(s.params["student"]["a/kernel"] ** 2)),
    "attention_transfer": Case("maps", "attention_transfer", attention_transfer),
    "nst": Case("maps", "nst", nst),
    "fsp": Case("maps", "fsp", fsp),
    "vid": Case("maps", "vid", vid),
    "review": Case("maps", "review", review),
    "semckd": Case("maps", "semckd", semckd),
    "pkd": Case("tokens", "pkd", pkd),
    "tinybert": Case("tokens", "tinybert", tinybert),
    "minilm": Case("tokens", "minilm", minilm),
    "minilm2": Case("tokens", "minilm2(relation_heads=8)", minilm2),
    "heads": Case("tokens", "heads(((4, 0), (4, 1), (2, 0), (2, 1)))", key_heads),
}


@dataclass(frozen=True)
class Cost:
    """Of a compiled program: FLOPs, bytes that are read and written, bytes of what it keeps meanwhile, seconds."""

    flops: float
    bytes: float
    memory: float
    seconds: float


def choices(program: str) -> int:
    """Numbers that a compiled program compares, selects or joins as truths, which the compiler counts as FLOPs."""
    found = re.findall(r"= \w+\[([\d,]*)\]\S* (?:compare|select|and|or|not)\(", program)
    return sum(math.prod(int(size) for size in shape.split(",") if size) for shape in found)


def cost(function: Callable, *arguments, rounds: int) -> Cost:
    compiled = jax.jit(function).lower(*arguments).compile()
    (found,) = [compiled.cost_analysis()] if isinstance(compiled.cost_analysis(), dict) else compiled.cost_analysis()
    times = []
    for _ in range(rounds + 1 if rounds else 0):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    flops = found.get("flops", 0) + found.get("transcendentals", 0) - choices(compiled.as_text())
    memory = compiled.memory_analysis().temp_size_in_bytes
    return Cost(flops, found.get("bytes accessed", 0), memory, statistics.median(times[1:]) if rounds else 0)


def measured(case: Case, rounds: int) -> tuple[Cost, Cost]:
    """A term's cost, and its formula's."""
    seen = world(case.kind)
    term = loss(case.spec, "objective", Horizon(steps=100, epoch=10.0))
    minimised = objective({"term": Weighted(term)}, registry.fusions.build("single", ""))
    params, state = minimised.init(KEY, {"train": seen})

    def value(student, kernels, learned, seen):
        shown = replace(seen, student=student, params=seen.params | {"student": kernels})
        means, new = minimised.apply(params | {"terms": {"term": learned}}, state, {"train": shown}, key=KEY)
        return means["term"].compute(), new

    def formula(student, kernels, learned, seen):
        return case.formula(replace(seen, student=student, params=seen.params | {"student": kernels}), learned)

    given = (seen.student, seen.params["student"], params["terms"]["term"], seen)
    ours = cost(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True), *given, rounds=rounds)
    plain = jax.value_and_grad(formula, argnums=(0, 1, 2))
    return ours, cost(plain, *given, rounds=0)


def bare(kind: str, rounds: int) -> Cost:
    """Value and gradient of a student by cross-entropy, and its teacher's forward pass."""
    rows, _ = SIZES[kind]
    image = jax.random.normal(KEY, (rows, 28, 28, 1))
    batch = {"image": image, "label": jnp.zeros(rows, jnp.int32), "mask": jnp.ones(rows)}
    student, teacher = (registry.models.build(spec, "") for spec in NETWORKS[kind])
    ours, theirs = (jax.jit(model.init)(KEY, batch) for model in (student, teacher))

    def value(params, frozen):
        out, _ = student.apply(params, ours[1], batch, train=True, key=KEY)
        taught, _ = teacher.apply(frozen, theirs[1], batch, train=False, key=KEY)
        return -jnp.mean(ls(out.logits)[:, 0]), taught.logits

    return cost(jax.value_and_grad(value, has_aux=True), ours[0], theirs[0], rounds=rounds)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--only", nargs="*", default=list(CASES))
    words.add_argument("--rounds", default=5, type=int)
    known = words.parse_args()
    console, steps = Console(width=140), {}
    table = Table("term", "MFLOP", "/ formula", "MB moved", "/ formula", "MB kept", "ms", "/ bare step: FLOPs", "time")
    for name in known.only:
        case = CASES[name]
        if case.kind not in steps:
            steps[case.kind] = one = bare(case.kind, known.rounds)
            row = f"{one.flops / 1e6:.1f}", "", f"{one.bytes / 1e6:.1f}", "", f"{one.memory / 1e6:.1f}"
            table.add_section()
            table.add_row(f"bare step, {case.kind}", *row, f"{1e3 * one.seconds:.1f}", "", "")
        ours, plain = measured(case, known.rounds)
        step = steps[case.kind]
        flops, moved = (f"{getattr(ours, field) / getattr(plain, field):.2f}" for field in ("flops", "bytes"))
        table.add_row(
            name,
            f"{ours.flops / 1e6:.1f}",
            flops,
            f"{ours.bytes / 1e6:.1f}",
            moved,
            f"{ours.memory / 1e6:.1f}",
            f"{1e3 * ours.seconds:.2f}",
            f"{ours.flops / step.flops:.2f}",
            f"{ours.seconds / step.seconds:.2f}" if known.rounds else "-",
        )
        console.print(f"{name}: {flops} of the FLOPs, {moved} of the bytes")
    console.print(table)


if __name__ == "__main__":
    main()
