"""What the decoding tests share: a session over a table, toy decoders, and their transformers twins.

Shapes: I items, M memory tokens, D width, V vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from openblip.decoding import Decoding, Hypothesis, generate, stack_hypotheses
from openblip.decoding.rank import TorchPackedDecoder
from openblip.engine.eager import EagerSession
from openblip.model.config import TextConfig
from openblip.model.text import LanguageHead, Memory, TextTransformer

EOS, PAD = 3, 0


def options(**overrides: Any) -> Decoding:
    """Options for the toy vocabularies."""
    return Decoding(**{"eos_id": EOS, "pad_id": PAD, **overrides})


def ids_of(results: list[list[Hypothesis]]) -> list[list[list[int]]]:
    return [[actual.ids for actual in item] for item in results]


class TableSession:
    """A session whose logits are a random function of the item and of all tokens fed to a row.

    ``tables`` (I, S, V): a row's tokens are hashed to one of S places. Rows that are reordered, kept or widened in
    a wrong way end up at wrong places.
    """

    def __init__(self, tables: Tensor) -> None:
        self.tables = tables
        self.width = 1
        self.items = torch.arange(len(tables))
        self.places = torch.zeros(len(tables), dtype=torch.long)
        self.calls: list[str] = []

    def step(self, ids: Tensor) -> Tensor:
        self.calls.append("step")
        assert len(ids) == len(self.items) * self.width
        for token in ids.T:
            self.places = (self.places * 31 + token + 7) % self.tables.shape[1]
        return self.tables[self.items.repeat_interleave(self.width), self.places].clone()

    def widen(self, width: int) -> None:
        self.calls.append("widen")
        assert self.width == 1
        self.width = width
        self.places = self.places.repeat_interleave(width)

    def reorder(self, rows: Tensor) -> None:
        self.calls.append("reorder")
        assert torch.equal(rows // self.width, torch.arange(len(self.places)) // self.width)
        assert not torch.equal(rows, torch.arange(len(rows)))
        self.places = self.places[rows]

    def keep(self, items: Tensor) -> None:
        self.calls.append("keep")
        self.items = self.items[items]
        self.places = self.places.view(-1, self.width)[items].flatten()


def tables(seed: int, items: int = 3, vocab: int = 12, eos_bias: float = 1.0, positions: int = 997) -> Tensor:
    """Random logits (I, places, V) with a say in how soon [SEP] comes."""
    logits = 2.0 * torch.randn(items, positions, vocab, generator=torch.Generator().manual_seed(seed))
    logits[:, :, EOS] += eos_bias
    return logits


@dataclass(frozen=True)
class Toy:
    """A decoder with its head, and something to read for I items."""

    text: TextTransformer
    head: LanguageHead
    states: Tensor  # (I, M, D)
    mask: Tensor | None = None  # (I, M)

    def memory(self, items: list[int] | None = None) -> Memory:
        chosen = slice(None) if items is None else items
        with torch.no_grad():
            return self.text.project(self.states[chosen], None if self.mask is None else self.mask[chosen])

    def packed_decoder(self, items: list[int] | None = None) -> TorchPackedDecoder:
        return TorchPackedDecoder(memory=self.memory(items), text=self.text, head=self.head)

    def session(self, capacity: int, items: list[int] | None = None) -> EagerSession:
        return EagerSession(self.text, self.head, self.memory(items), capacity)

    def generate(
        self, prompts: Tensor, chosen: Decoding, seed: int | None = None, items: list[int] | None = None
    ) -> list[list[Hypothesis]]:
        session = self.session(chosen.capacity(prompts.shape[1]), items)
        return generate(session, prompts, chosen, seed)

    def table(self, prompts: Tensor, chosen: Decoding) -> Tensor:
        """What was decoded as one padded table, the prompts included."""
        return stack_hypotheses(prompts, self.generate(prompts, chosen), chosen.pad_id)

    @torch.no_grad()
    def logits(self, ids: list[int], item: int) -> Tensor:
        """Logits (T, V) of a whole text for one item: no cache, no batch, no padding."""
        mask = None if self.mask is None else self.mask[[item]]
        states = self.text.decode(torch.tensor([ids]), None, self.states[[item]], mask)
        return self.head(states, self.text.embeddings.word)[0]

    def logprob(self, prompt: list[int], ids: list[int], item: int) -> float:
        """The summed log-probability of ``ids`` after ``prompt``."""
        logprobs = self.logits((prompt + ids)[:-1], item).log_softmax(-1)[len(prompt) - 1 :]
        return float(logprobs.gather(1, torch.tensor(ids)[:, None]).sum())


class RecomputeSession:
    """A session without a cache: it remembers what every row was fed and decodes it anew at every step."""

    def __init__(self, toy: Toy, items: list[int] | None = None) -> None:
        self.toy = toy
        self.owners = torch.arange(len(toy.states)) if items is None else torch.tensor(items)
        self.texts = torch.zeros(len(self.owners), 0, dtype=torch.long)
        self.width = 1

    def step(self, ids: Tensor) -> Tensor:
        self.texts = torch.cat([self.texts, ids], 1)
        pairs = zip(self.texts.tolist(), self.owners.repeat_interleave(self.width).tolist(), strict=True)
        return torch.stack([self.toy.logits(text, item)[-1] for text, item in pairs])

    def widen(self, width: int) -> None:
        self.width = width
        self.texts = self.texts.repeat_interleave(width, 0)

    def reorder(self, rows: Tensor) -> None:
        self.texts = self.texts[rows]

    def keep(self, items: Tensor) -> None:
        self.owners = self.owners[items]
        self.texts = self.texts.view(-1, self.width, self.texts.shape[1])[items].flatten(0, 1)


VOCAB, DEC = 40, 38


@cache
def twins(seed: int, items: int = 3, eos_bias: float = 6.0) -> tuple[Toy, Any]:
    """One random decoder twice: ours, and transformers' with the same weights. Sharp enough for varied texts."""
    torch.manual_seed(seed)
    config = BlipTextConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        encoder_hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        layer_norm_eps=1e-12,
    )
    theirs: Any = BlipTextLMHeadModel(config)  # its annotations do not fit its own classes
    theirs.eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 2:
                parameter.mul_(50.0)
        theirs.get_input_embeddings().weight.mul_(0.8)
        theirs.cls.predictions.bias.normal_(std=1.0)
        theirs.cls.predictions.bias[EOS] += eos_bias
    return Toy(*load(theirs.state_dict(), heads=2, pad_id=PAD), torch.randn(items, 5, 16)), theirs


@torch.no_grad()
def theirs_generate(model: Any, toy: Toy, prompts: Tensor, **overrides: Any) -> Any:
    """What transformers' generate gives over the toy's states: by default ids (I * n, T) with padding."""
    return model.generate(
        prompts,
        encoder_hidden_states=toy.states,
        encoder_attention_mask=torch.ones(toy.states.shape[:2], dtype=torch.long),
        attention_mask=torch.ones_like(prompts),
        eos_token_id=EOS,
        pad_token_id=PAD,
        **overrides,
    )


def load(state: Mapping[str, Tensor], heads: int, pad_id: int) -> tuple[TextTransformer, LanguageHead]:
    """Our decoder and head from weights with published names ("bert.*", "cls.*"), strictly."""
    renamed = {_rename(name): tensor for name, tensor in state.items() if not name.endswith(_COPIES)}
    text = {name[5:]: tensor for name, tensor in renamed.items() if name.startswith("text.")}
    head = {name[5:]: tensor for name, tensor in renamed.items() if name.startswith("head.")}
    word = text["embeddings.word.weight"]
    config = TextConfig(
        vocab_size=word.shape[0],
        width=word.shape[1],
        depth=1 + max(int(name.split(".")[1]) for name in text if name.startswith("layers.")),
        heads=heads,
        mlp_width=text["layers.0.mlp.fc1.weight"].shape[0],
        max_positions=text["embeddings.position.weight"].shape[0],
        memory_width=text["layers.0.cross_attn.key.weight"].shape[1],
        pad_id=pad_id,
    )
    ours, language = TextTransformer(config), LanguageHead(config)
    ours.load_state_dict(text)
    language.load_state_dict(head)
    return ours.eval(), language.eval()


def golden_decoder(folder: Path, name: str, prefix: str) -> tuple[TextTransformer, LanguageHead, dict[str, Tensor]]:
    """The decoder of a recorded toy model, and the tensors recorded from it."""
    weights = load_file(folder / f"{name}.weights.safetensors")
    med = json.loads((folder / f"{name}.json").read_text())["med"]
    state = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
    text, head = load(state, med["num_attention_heads"], med["pad_token_id"])
    return text, head, load_file(folder / f"{name}.io.safetensors")


def _rename(name: str) -> str:
    for pattern, ours in _RENAMES:
        name = re.sub(pattern, ours, name)
    return name


_COPIES = ("position_ids", "predictions.decoder.weight", "predictions.decoder.bias")
_RENAMES = [
    (r"^cls\.predictions\.(transform\.)?", "head."),
    (r"^head\.LayerNorm", "head.norm"),
    (r"^bert\.(encoder\.)?", "text."),
    (r"word_embeddings", "word"),
    (r"position_embeddings", "position"),
    (r"embeddings\.LayerNorm", "embeddings.norm"),
    (r"\.layer\.(\d+)\.", r".layers.\1."),
    (r"crossattention\.output\.LayerNorm", "cross_norm"),
    (r"attention\.output\.LayerNorm", "self_norm"),
    (r"crossattention\.output\.dense", "cross_attn.out"),
    (r"attention\.output\.dense", "self_attn.out"),
    (r"crossattention\.self", "cross_attn"),
    (r"attention\.self", "self_attn"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"output\.LayerNorm", "mlp_norm"),
]
