"""What a user sees: in a real terminal, in a file, in a real notebook."""

from __future__ import annotations

import base64
import os
import re
import struct
import subprocess
import sys
import textwrap

import nbformat
import pytest
from nbclient import NotebookClient

fcntl = pytest.importorskip("fcntl", reason="Windows has no terminals of this kind")
pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")

SCRIPT = textwrap.dedent(
    """
    import time
    import torch
    from torch import nn
    from torchmetrics import Accuracy
    from hotloop import KerasModel

    class Slow(nn.Linear):
        def forward(self, inputs):
            time.sleep({seconds})
            return super().forward(inputs)

    torch.manual_seed(0)
    net = Slow(4, 2)
    inputs = torch.randn(200, 4)
    batches = list(zip(inputs.split(10), (inputs[:, 0] > 0).long().split(10)))
    accuracy = {{"acc": Accuracy(task="multiclass", num_classes=2)}}
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    model = KerasModel(net, nn.CrossEntropyLoss(), accuracy, optimizer)
    history = model.fit(batches, batches, epochs=3, monitor="val_acc", mode="max",
                        plot={plot}, cpu=True)
    values = model.evaluate(batches)
    """
)


READING = textwrap.dedent(
    """
    import time
    import torch
    from torch import nn
    from hotloop import KerasModel

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return 800

        def __getitem__(self, index):
            time.sleep(0.005)
            return torch.randn(4, generator=torch.Generator().manual_seed(index)), index % 2

    net = nn.Linear(4, 2)
    model = KerasModel(net, nn.CrossEntropyLoss())
    model.fit(Samples(), epochs=2, batch_size=50, plot=False, cpu=True)
    """
)


def run_in_terminal(environment=None, columns=120, script=None):
    script = script or SCRIPT.format(seconds=0.03, plot=False)
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm-256color", **(environment or {})})
        os.execv(sys.executable, [sys.executable, "-c", script])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    output = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # Linux ends a terminal's reading so
            break
        if not chunk:
            break
        output += chunk
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0, output.decode()
    return output.decode()


# Python warns of forking a process with threads; the child replaces itself at once
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_terminal_has_a_bar_and_a_line_for_each_epoch():
    output = run_in_terminal()
    frames = output.split("\r")
    bars = [frame for frame in frames if "epoch 2/3 train" in frame and "samples/s" in frame]
    assert 2 <= len(bars) <= 20  # 20 steps, drawn ten times a second at most
    assert any("loss" in bar and "acc" in bar and "<00:0" in bar for bar in bars)
    lines = [line for line in frames if line.startswith("epoch 2/3  train_loss")]
    assert len(lines) == 1
    assert "val_acc" in lines[0]
    assert "\x1b[32m  * best so far" in output
    assert "training on cpu" in output
    assert "val: val_loss" in output


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_loss_and_metrics_are_seen_in_any_terminal(columns):
    frames = run_in_terminal(columns=columns).split("\r")
    bars = [frame for frame in frames if "epoch 2/3 train" in frame and "loss " in frame]
    assert len(bars) >= 2
    for bar in bars:
        assert len(bar) <= columns
        assert re.search(r"loss \d\.\d{4}, acc \d\.\d{4}\b", bar)
        assert re.search(r"\d+%", bar)
        assert ("|" in bar) == (columns == 120)
        assert ("samples/s" in bar) == (columns >= 80)
        assert bool(re.search(r", fit \d\.\d s left\]", bar)) == (columns == 120)


def test_values_that_are_too_many_for_a_line_are_left_out_at_its_end():
    script = SCRIPT.format(seconds=0.03, plot=False)
    script = script.replace("history = ", "model.metrics_dict.update({f'accuracy_{i}': "
                            "accuracy['acc'].clone() for i in range(6)})\nhistory = ")  # fmt: skip
    frames = run_in_terminal(columns=60, script=script).split("\r")
    bars = [frame for frame in frames if re.match(r" +\d+%, loss ", frame)]
    assert len(bars) >= 2
    for bar in bars:
        assert len(bar.rstrip()) < 60
        assert re.search(r"%, loss \d\.\d{4}, acc \d\.\d{4}, accuracy_0 \d\.\d{4}$", bar.rstrip())


def test_how_far_slow_reading_is_can_be_seen():
    frames = run_in_terminal(script=READING).split("\r")
    bars = [frame for frame in frames if frame.startswith(" reading train_data")]
    assert any(re.search(r"67%\|.*\| 2/3 \[00:\d\d<00:\d\d, \d+ samples/s\]", b) for b in bars)
    lines = [frame.strip() for frame in frames]
    assert any(
        re.match(r"reading all of train_data once, about \d+ s by its first 32 samples", line)
        for line in lines
    )
    assert not any(line.startswith("reading train_data:") for line in lines)
    assert any(re.match(r"train_data is resident: 800 samples, \d\d KiB", line) for line in lines)


def test_no_color_is_heard():
    assert "\x1b[32m" not in run_in_terminal({"NO_COLOR": "1"})


def test_a_log_file_has_whole_lines_and_few(tmp_path):
    log = tmp_path / "train.log"
    with log.open("wb") as file:
        script = SCRIPT.format(seconds=0.001, plot=True)
        subprocess.run([sys.executable, "-c", script], stdout=file, check=True, timeout=300)
    text = log.read_text()
    assert "\r" not in text
    assert "\x1b" not in text
    assert len(text.splitlines()) <= 8
    assert sum(line.startswith("epoch ") for line in text.splitlines()) == 3
    assert text.splitlines()[-2] == "the plot of val_acc is in history.png"
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


def test_a_notebook_has_one_display_with_plot_and_table(tmp_path):
    notebook = nbformat.v4.new_notebook()
    script = SCRIPT.format(seconds=0.005, plot=True).replace("values = model.evaluate(batches)", "")
    notebook.cells = [nbformat.v4.new_code_cell(script), nbformat.v4.new_code_cell("history")]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [o for o in notebook.cells[0].outputs if o.output_type != "stream"]
    assert len(outputs) == 1
    page = outputs[0].data["text/html"]
    assert "data:image/png;base64," in page
    assert page.count("<tr") == 4  # a head and three epochs
    assert "3 of 3 epochs" in page
    assert not (tmp_path / "history.png").exists()


def test_a_notebook_shows_what_is_over_without_a_moving_bar(tmp_path):
    """Nor does one stay where the number of batches is not known, or after an error."""
    script = SCRIPT.format(seconds=0.005, plot=False).replace("values = model.evaluate", "")
    failing = textwrap.dedent(
        """
        class Fails:
            def on_train_epoch_end(self, model):
                raise KeyError("planted")
        try:
            model.fit(iter(batches), batches, epochs=3, plot=False, cpu=True, callbacks=[Fails()])
        except KeyError:
            print("failed")
        """
    )
    cells = [script, "model.evaluate(batches)", "model.evaluate(iter(batches))", failing]
    cells.append("model.time_report().plot()")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    for cell, steps in zip(notebook.cells[1:3], ("20/20", "20"), strict=True):
        page = cell.outputs[0].data["text/html"]
        assert "<progress" not in page
        assert re.search(
            rf">val {steps}, [\d,]+ samples/s, loss \d\.\d{{4}}, acc \d\.\d{{4}}<", page
        )
    page = notebook.cells[3].outputs[0].data["text/html"]
    assert re.findall(r"<progress ([^>]*?) style", page) == ['value="0" max="3"']
    assert ">train 20, " in page
    (plotted,) = notebook.cells[4].outputs
    assert base64.b64decode(plotted.data["image/png"]).startswith(b"\x89PNG")
