"""Run the same work in PyTorch, as a user would write it: PYTHON -m experiments.benchmarks.peer CASE [--compile]

Communicates with `measured.py`: reads a line with a number of steps, and writes a line with their milliseconds. The
networks are those of transformers, with random weights; `--size` chooses their shapes in `sizes.py`.
"""

import argparse
import json
import sys
import time

import torch
import transformers
from torch.nn import functional

from experiments.benchmarks.sizes import CLASSES, SIZES, TEMPERATURE


def built(how):
    """Return torch.compile, or the identity without --compile."""
    return torch.compile if how.compile else lambda f: f


def soft(student, teacher):
    """Compute T^2 KL of softened distributions, averaged over rows."""
    log_q, log_p = (functional.log_softmax(x.float() / TEMPERATURE, -1) for x in (student, teacher))
    return TEMPERATURE**2 * functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


class Learner:
    """A float32 student with AdamW, and a frozen teacher in the type in which both compute."""

    def __init__(self, student, teacher, how):
        self.device, self.half = how.device, how.device == "cuda"
        self.student = student.to(self.device).train()
        self.teacher = teacher.to(self.device, torch.bfloat16 if self.half else torch.float32).eval()
        self.call_student, self.call_teacher = map(built(how), (self.student, self.teacher))
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4, fused=True)

    def step(self, loss):
        """Run one step; `loss(student, teacher) -> scalar` calls both networks."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            value = loss(self.call_student, self.call_teacher)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()


def head(size, how):
    kind = torch.bfloat16 if how.device == "cuda" else torch.float32
    randn = lambda *shape: torch.randn(*shape, device=how.device, dtype=kind)
    tokens, words = size["rows"] * size["length"], size["vocabulary"]
    hs, ht = randn(tokens, size["student"]).requires_grad_(), randn(tokens, size["teacher"])
    ws, wt = (randn(words, size["student"]) * 0.02).requires_grad_(), randn(words, size["teacher"]) * 0.02
    loss = built(how)(lambda: soft(hs @ ws.t(), ht @ wt.t()))

    def step():
        hs.grad = ws.grad = None
        loss().backward()

    return step


def lm(size, how):
    def network(width, depth, heads, kv_heads, ffn):
        config = transformers.Qwen2Config(
            vocab_size=size["vocabulary"],
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=ffn,
            tie_word_embeddings=True,
            use_cache=False,
            attn_implementation="sdpa",
        )
        return transformers.Qwen2ForCausalLM(config)

    both = Learner(network(**size["student"]), network(**size["teacher"]), how)
    ids = torch.randint(0, size["vocabulary"], (size["rows"], size["length"]), device=how.device)
    divergence = built(how)(soft)

    def loss(student, teacher):
        with torch.no_grad():
            teacher_logits = teacher(input_ids=ids).logits.flatten(0, 1)
        return divergence(student(input_ids=ids).logits.flatten(0, 1), teacher_logits)

    return lambda: both.step(loss)


def bert(size, how):
    def network(depth):
        config = transformers.BertConfig(
            vocab_size=size["vocabulary"],
            hidden_size=size["width"],
            num_hidden_layers=depth,
            num_attention_heads=size["heads"],
            intermediate_size=4 * size["width"],
            num_labels=CLASSES["bert"],
            output_hidden_states=True,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
        return transformers.BertForSequenceClassification(config)

    both = Learner(network(size["depth"]), network(2 * size["depth"]), how)
    ids = torch.randint(0, size["vocabulary"], (size["rows"], size["length"]), device=how.device)
    labels = torch.randint(0, CLASSES["bert"], (size["rows"],), device=how.device)

    @built(how)
    def minimised(student_outputs, teacher_outputs, pairs):
        hidden = sum(functional.mse_loss(s.float(), t.float()) for s, t in pairs) / (size["depth"] + 1)
        return (
            0.7 * soft(student_outputs, teacher_outputs)
            + 0.3 * functional.cross_entropy(student_outputs.float(), labels)
            + hidden
        )

    def loss(student, teacher):
        with torch.no_grad():
            teacher_outputs = teacher(input_ids=ids)
        student_outputs = student(input_ids=ids)
        pairs = list(zip(student_outputs.hidden_states, teacher_outputs.hidden_states[::2], strict=True))
        return minimised(student_outputs.logits, teacher_outputs.logits, pairs)

    return lambda: both.step(loss)


def vit(size, how):
    def network(width, heads):
        config = transformers.ViTConfig(
            hidden_size=width,
            num_hidden_layers=size["depth"],
            num_attention_heads=heads,
            intermediate_size=4 * width,
            image_size=size["image"],
            num_labels=CLASSES["vit"],
            hidden_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
        return transformers.ViTForImageClassification(config)

    both = Learner(network(*size["student"]), network(*size["teacher"]), how)
    images = torch.randn(size["rows"], 3, size["image"], size["image"], device=how.device)
    divergence = built(how)(soft)

    def loss(student, teacher):
        with torch.no_grad():
            teacher_logits = teacher(images.to(torch.bfloat16) if both.half else images).logits
        return divergence(student(images).logits, teacher_logits)

    return lambda: both.step(loss)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=SIZES)
    parser.add_argument("--size", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    args.device = "cuda" if args.size == "gpu" else "cpu"
    torch.manual_seed(0)
    step = {"head": head, "lm": lm, "bert": bert, "vit": vit}[args.case](SIZES[args.case][args.size], args)
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            wait()
            start = time.perf_counter()
            step()
            wait()
            times.append(1000 * (time.perf_counter() - start))
        peak = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else None
        print(json.dumps({"ms": times, "peak_gib": peak, "torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
