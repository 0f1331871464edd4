"""A small transformer encoder on token ids; samples and batches are dicts."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset

from benchmarks.jobs.job import Job, JobFamily, Setting

NUM_TOKENS, LENGTH, NUM_GROUPS, WIDTH = 1_000, 32, 4, 64


class Texts(Dataset[dict[str, torch.Tensor]]):
    """Made-up texts; the label is the group that more of the tokens belong to than by chance.

    Attributes:
        tokens: int64 (texts, 32), 0 where a text has ended.
        padding_mask: bool (texts, 32), True there.
        labels: int64 (texts,), 0 to 3.
    """

    def __init__(self, num_texts: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (num_texts, LENGTH)
        self.labels = torch.randint(NUM_GROUPS, (num_texts,), generator=generator)
        by_chance = torch.randint(1, NUM_TOKENS, shape, generator=generator)
        group_size = NUM_TOKENS // NUM_GROUPS
        within = torch.randint(1, group_size, shape, generator=generator)
        of_group = self.labels[:, None] * group_size + within
        tokens = torch.where(torch.rand(shape, generator=generator) < 0.4, of_group, by_chance)
        lengths = torch.randint(LENGTH // 2, LENGTH + 1, (num_texts, 1), generator=generator)
        self.padding_mask = torch.arange(LENGTH) >= lengths
        self.tokens = tokens.masked_fill(self.padding_mask, 0)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            "tokens": self.tokens[index],
            "padding_mask": self.padding_mask[index],
            "labels": self.labels[index],
        }


class TextClassifier(nn.Module):
    """Two encoder layers and the mean over a text: logits float32 (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(NUM_TOKENS, WIDTH, padding_idx=0)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.1, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, NUM_GROUPS)

    def forward(self, tokens: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(tokens) + self.positions
        hidden = self.encoder(hidden, src_key_padding_mask=padding_mask)
        hidden = hidden.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        lengths = (~padding_mask).sum(1, keepdim=True)
        logits: torch.Tensor = self.head(hidden.sum(1) / lengths)
        return logits


def make(setting: Setting) -> Job:
    num_train = setting.rows(cpu=8_000, cuda=40_000, quick=960)
    num_val = setting.rows(cpu=2_000, cuda=8_000, quick=320)
    return Job(
        data=f"{num_train:,} + {num_val:,} made-up texts of {LENGTH} tokens",
        device=setting.device,
        train=Texts(num_train, seed=0),
        val=Texts(num_val, seed=1),
        make_net=TextClassifier,
        make_loss=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer_options={"lr": 1e-3, "weight_decay": 0.01},
        num_classes=NUM_GROUPS,
        batch_size=32,
        label_key="labels",
    )


FAMILY = JobFamily(
    name="transformer",
    title="two-layer transformer encoder on token ids, dict batches of 32",
    variants={"transformer": make},
)
