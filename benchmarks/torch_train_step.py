"""The peer of train_step.py: GPT-J blocks, AdamW and clipping in torch. Needs torch alone.

    python benchmarks/torch_train_step.py '{"layers": 6, "width": 224, ...}' eager|compiled

Reads numbers of steps from standard input, one a line, and answers each with a JSON list of the
seconds they took. Attention is torch's fused one, the optimizer its fused AdamW; `compiled`
puts the model through torch.compile as well.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width: int, heads: int, rotary: int) -> None:
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        batch, length, width = x.shape
        q, k, v = (
            layer(normed).view(batch, length, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        q, k = (self.rotate(part, cos, sin) for part in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        attended = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + attended + self.down(F.gelu(self.up(normed), approximate="tanh"))

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        turning, passing = x[..., : self.rotary], x[..., self.rotary :]
        first, second = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return torch.cat((turned.flatten(-2), passing), dim=-1)


class Decoder(nn.Module):
    def __init__(self, shape: dict[str, int]) -> None:
        super().__init__()
        width, rotary = shape["width"], shape["rotary"]
        self.embedding = nn.Embedding(shape["vocabulary"], width)
        blocks = [Block(width, shape["heads"], rotary) for _ in range(shape["layers"])]
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, shape["vocabulary"])
        frequencies = 10_000.0 ** (-torch.arange(0, rotary, 2) / rotary)
        angles = torch.arange(shape["length"])[:, None] * frequencies
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def main() -> None:
    shape = json.loads(sys.argv[1])
    torch.manual_seed(0)
    model = Decoder(shape)
    run = torch.compile(model) if sys.argv[2] == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), fused=True)
    size = (shape["rows"], shape["length"] + 1)
    ids = torch.randint(0, shape["vocabulary"], size)

    def step() -> None:
        scores = run(ids[:, :-1])
        loss = F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def product() -> float:
        x = torch.ones(2048, 2048)
        began = time.perf_counter()
        x @ x
        return 2 * 2048**3 / (time.perf_counter() - began)

    step()
    count = sum(parameter.numel() for parameter in model.parameters())
    about = {"version": f"torch {torch.__version__}", "parameters": count}
    print(json.dumps(about | {"product": max(product() for _ in range(8))}), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
