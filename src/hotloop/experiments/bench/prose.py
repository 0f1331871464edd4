"""What the report says of each experiment before there are numbers."""

from __future__ import annotations

INTRODUCTIONS = {
    "matmul": (
        "One line, <code>a @ b</code>, is how many people first meet their GPU. They read the "
        "clock before the call and after it, and the GPU looks slower than the CPU. Two things "
        "are in that reading that do not belong there: the start-up of the libraries in the "
        "first call, and, on an accelerator, a clock that stops when the work is queued and not "
        "when it is done."
    ),
    "linear-regression": (
        "Fit y = x w + b to points that were made with w = (2, -3), b = 10 and noise of "
        "standard deviation 2, all of them in each step, with Adam at 0.1. The loss has to end "
        "at 4.0, the variance of the noise: no line can do better."
    ),
    "image": (
        "A small convolutional net learns to tell ten classes of grey images apart, 28 pixels a "
        "side. This is what daily training looks like: a loader, a metric, an optimizer, "
        "thousands of small steps, and validation after each epoch."
    ),
}

SNIPPETS = {
    "matmul": """import torch
from hotloop.hardware import choose_device, time_calls

device = choose_device().device
a, b = torch.rand(10_000, 200, device=device), torch.rand(200, 10_000, device=device)
timing = time_calls(lambda: a @ b, device)   # warms up, and waits for the device
print(f"first {timing.first:.4f} s, then {timing.median:.4f} s")""",
    "linear-regression": """import torch
from torch import nn
from hotloop import KerasModel, choose_device

device = choose_device().device
x = 10 * torch.rand(1_000_000, 2, device=device) - 5
noise = 2 * torch.randn(len(x), 1, device=device)
y = x @ torch.tensor([[2.0], [-3.0]], device=device) + 10 + noise
net = nn.Linear(2, 1)
model = KerasModel(net, nn.MSELoss(), optimizer=torch.optim.Adam(net.parameters(), lr=0.1))
model.fit([(x, y)] * 50, epochs=10, plot=False)
print(model.evaluate([(x, y)]))              # val_loss: 4.0""",
    "image": """from hotloop.experiments import image_classifier
from torch.utils.data import DataLoader

splits = image_classifier.load_data("digits")   # or "fashion-mnist"
model = image_classifier.make_model()
model.fit(DataLoader(splits.train, batch_size=128, shuffle=True),
          DataLoader(splits.val, batch_size=128), epochs=5, monitor="val_acc", mode="max")""",
}
