"""Small models of transformers, where that is installed: graphed as eager, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from hotloop import KerasModel

transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]
SIZES = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64}  # fmt: skip
GPT2 = {"vocab_size": 101, "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 32}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
       "intermediate_size": 64, "image_size": 16, "patch_size": 4, "num_labels": 3}  # fmt: skip
BY_VALUES = "compute otherwise while a graph is captured, and cannot be captured as they are"


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def texts(mask=True):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 101, (70, 16), generator=generator)
    rows = [{"input_ids": row, "labels": row.clone()} for row in tokens]
    return [{**row, "attention_mask": torch.ones_like(row["labels"])} if mask else row
            for row in rows]  # fmt: skip


def labelled_texts():
    rows = [{**row, "labels": torch.tensor(i % 2)} for i, row in enumerate(texts())]
    for i, row in enumerate(rows):
        row["attention_mask"][16 - i % 6 :] = 0
    return rows


def pictures():
    generator = torch.Generator().manual_seed(1)
    return [
        {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": torch.tensor(i % 3)}
        for i in range(70)
    ]


def train(name, config, options, data, compile):
    torch.manual_seed(0)
    net = getattr(transformers, name)(getattr(transformers, config)(**options))
    model = KerasModel(net, None, None, torch.optim.AdamW(net.parameters(), lr=1e-3))
    history = model.fit(
        DataLoader(data, 8, shuffle=True), epochs=3, plot=False, compile=compile,
        monitor="train_loss",
    )  # fmt: skip
    return history["train_loss"].tolist(), [tensor.cpu() for tensor in net.state_dict().values()]


@pytest.mark.parametrize(("name", "config", "options", "data", "said"), [
    ("BertForSequenceClassification", "BertConfig", SIZES, labelled_texts, "is one graph"),
    ("GPT2LMHeadModel", "GPT2Config", GPT2, texts, "is one graph"),
    ("GPT2LMHeadModel", "GPT2Config", GPT2, lambda: texts(mask=False), "is one graph"),
    ("ViTForImageClassification", "ViTConfig", VIT, pictures, "is one graph"),
    ("Olmo2ForCausalLM", "Olmo2Config", SIZES, texts, "is one graph"),
    ("LlamaForCausalLM", "LlamaConfig", {**SIZES, "num_key_value_heads": 2}, texts, BY_VALUES),
])  # fmt: skip
def test_graphed_as_eager(name, config, options, data, said, capsys):
    eager = train(name, config, options, data(), compile=False)
    graphed = train(name, config, options, data(), compile=True)
    assert said in capsys.readouterr().out
    assert eager[0] == graphed[0]
    assert all(torch.equal(a, b) for a, b in zip(eager[1], graphed[1], strict=True))
