"""Makes the TorchScript examples: `digits_torch`, with the weights of `digits`, and `loudness`.

Needs torch 2.11, numpy and onnx 1.23.2. The files are committed; `config.pbtxt` is written by hand. `python3 make_torch.py`
"""

from pathlib import Path
from typing import Tuple

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

HERE = Path(__file__).resolve().parent


class Digits(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.dense0, self.dense1 = nn.Linear(512, 32), nn.Linear(32, 10)
        for name in ("conv0", "conv1", "dense0", "dense1"):
            weight, bias = torch.from_numpy(weights[f"{name}.w"].copy()), torch.from_numpy(weights[f"{name}.b"].copy())
            layer = getattr(self, name)
            # Gemm of ONNX has them the other way round.
            layer.weight.data = weight if name.startswith("conv") else weight.T.contiguous()
            layer.bias.data = bias

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.conv1(torch.relu(self.conv0(image))))
        hidden = torch.relu(self.dense0(max_pool2d(hidden, 2).flatten(1)))
        return torch.softmax(self.dense1(hidden), -1)


class Loudness(nn.Module):
    """The root of the mean square of 10 ms of sound at 16 kHz in dB, smoothed over those before; quiet is -100."""

    def forward(self, sound: Tensor, before: Tensor) -> Tuple[Tensor, Tensor]:
        power = sound.square().mean(1, keepdim=True)
        smoothed = 0.8 * before + 0.2 * power
        return 10 * torch.log10(smoothed.clamp_min(1e-10)), smoothed


def main():
    graph = onnx.load(HERE / "digits/1/model.onnx").graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    torch.jit.script(Digits(weights).eval()).save(str(HERE / "digits_torch/1/model.pt"))
    torch.jit.script(Loudness().eval()).save(str(HERE / "loudness/1/model.pt"))


if __name__ == "__main__":
    main()
