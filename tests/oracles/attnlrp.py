"""AttnLRP of a torchvision VisionTransformer in closed form, and gradient x input of a net that must equal it.

Two references that share nothing with the decoder, nor with each other:

* :func:`relevance` is the paper's own formulation (Achtibat et al. 2024, arXiv 2402.05602): relevance, not
  coefficients, divided by activations at every step, in loops over blocks and explicit einsums.
* :func:`detached_input_x_gradient` is what those rules become without a stabiliser: input x gradient of the same
  network, some of whose factors autograd holds constant.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import EncoderBlock


def transformer(seed: int = 0) -> VisionTransformer:
    """A small VisionTransformer in float64, all of whose parameters are random (torchvision's head is 0)."""
    net = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            std = parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "embedding" not in name else 0.3
            parameter.normal_(0, std, generator=generator)
            if "ln" in name and name.endswith("weight"):
                parameter.add_(1)
    return net.double().eval()


def stabilized(z: Tensor, epsilon: float) -> Tensor:
    return torch.where(z >= 0, z + epsilon, z - epsilon)


def linear(x: Tensor, weight: Tensor, bias: Tensor, r: Tensor, epsilon: float) -> Tensor:
    """Epsilon rule (eq. 8), ``R_i = sum_j W_ji x_i / (z_j + eps sign z_j) R_j``; the bias absorbs its share."""
    z = torch.einsum("ji,nti->ntj", weight, x) + bias
    return torch.einsum("ji,nti,ntj->nti", weight, x, r / stabilized(z, epsilon))


def product(a: Tensor, v: Tensor, r: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Rule of ``O = A V`` (eq. 15), ``R(A_ji) = sum_p A_ji V_ip / (2 O_jp + eps sign) R_jp`` and likewise for V."""
    o = torch.einsum("nhji,nhip->nhjp", a, v)
    share = r / stabilized(2 * o, epsilon)
    terms = torch.einsum("nhji,nhip,nhjp->nhjip", a, v, share)
    return terms.sum(4), terms.sum(2)


def softmax(x: Tensor, r: Tensor) -> Tensor:
    """Deep Taylor decomposition (eq. 13), ``R_i = x_i (R_i - s_i sum_j R_j)``."""
    return x * (r - torch.softmax(x, -1) * r.sum(-1, keepdim=True))


def layer_norm(x: Tensor, norm: nn.LayerNorm, r: Tensor) -> Tensor:
    """The linear map ``y = diag(w / std) (I - 1/n) x + b`` with a constant std (section 3.3.3), epsilon 0."""
    n = x.shape[-1]
    std = torch.sqrt(x.var(-1, unbiased=False) + norm.eps)
    centering = torch.eye(n, dtype=x.dtype) - torch.full((n, n), 1 / n, dtype=x.dtype)
    y = torch.einsum("j,ji,nti,nt->ntj", norm.weight, centering, x, 1 / std) + norm.bias
    return torch.einsum("j,ji,nti,nt,ntj->nti", norm.weight, centering, x, 1 / std, r / y)


def heads(x: Tensor, count: int) -> Tensor:
    """(N, T, D) -> (N, heads, T, D / heads)."""
    n, tokens, width = x.shape
    return x.reshape(n, tokens, count, width // count).permute(0, 2, 1, 3)


def joined(x: Tensor) -> Tensor:
    """(N, heads, T, d) -> (N, T, heads * d)."""
    return x.permute(0, 2, 1, 3).flatten(2)


class Attention:
    """The values inside a self-attention on ``x`` (N, T, D)."""

    def __init__(self, module: nn.MultiheadAttention, x: Tensor) -> None:
        self.module, self.x = module, x
        self.weights = module.in_proj_weight.chunk(3)
        self.biases = module.in_proj_bias.chunk(3)
        projected = [x @ w.T + b for w, b in zip(self.weights, self.biases, strict=True)]
        self.q, self.k, self.v = (heads(p, module.num_heads) for p in projected)
        # As the paper and torch write it, the product comes first: the scale is a constant factor of it.
        self.scores = torch.einsum("nhjd,nhid->nhji", self.q, self.k) * self.q.shape[-1] ** -0.5
        self.mixed = joined(torch.einsum("nhji,nhip->nhjp", torch.softmax(self.scores, -1), self.v))
        self.output = self.mixed @ module.out_proj.weight.T + module.out_proj.bias

    def relevance(self, r: Tensor, epsilon: float) -> Tensor:
        """Relevance at x by way of values, queries and keys."""
        out = self.module.out_proj
        r = heads(linear(self.mixed, out.weight, out.bias, r, epsilon), self.module.num_heads)
        r_shares, r_v = product(torch.softmax(self.scores, -1), self.v, r, epsilon)
        r_q, r_k = product(self.q, self.k.mT, softmax(self.scores, r_shares), epsilon)
        total = torch.zeros_like(self.x)
        for weight, bias, part in zip(self.weights, self.biases, (r_q, r_k.mT, r_v), strict=True):
            total = total + linear(self.x, weight, bias, joined(part), epsilon)
        return total


class Block:
    """The values inside an encoder block on ``x`` (N, T, D)."""

    def __init__(self, block: EncoderBlock, x: Tensor) -> None:
        self.block, self.x = block, x
        self.attention = Attention(block.self_attention, block.ln_1(x))
        self.middle = x + self.attention.output
        self.normed = block.ln_2(self.middle)
        self.hidden = self.normed @ block.mlp[0].weight.T + block.mlp[0].bias
        self.active = F.gelu(self.hidden)
        self.branch = self.active @ block.mlp[3].weight.T + block.mlp[3].bias
        self.output = self.middle + self.branch

    def relevance(self, r: Tensor, epsilon: float) -> Tensor:
        """Relevance at x; sums split it in proportion, the GELU hands it on unchanged (identity rule, eq. 9)."""
        first, last = self.block.mlp[0], self.block.mlp[3]
        branch = linear(self.active, last.weight, last.bias, self.branch / self.output * r, epsilon)
        branch = linear(self.normed, first.weight, first.bias, branch, epsilon)
        r = self.middle / self.output * r + layer_norm(self.middle, self.block.ln_2, branch)
        attended = self.attention.relevance(self.attention.output / self.middle * r, epsilon)
        return self.x / self.middle * r + layer_norm(self.x, self.block.ln_1, attended)


def relevance(net: VisionTransformer, images: Tensor, epsilon: float) -> Tensor:
    """AttnLRP relevance of every class at the images, summed over channels: (N, C, H, W) -> (N, K, H, W)."""
    size, conv = net.patch_size, net.conv_proj
    patches = patchify(images, size)
    kernel = conv.weight.flatten(1)
    tokens = torch.einsum("ji,nti->ntj", kernel, patches) + conv.bias
    everything = torch.cat([net.class_token.expand(len(images), -1, -1), tokens], 1)
    embedded = everything + net.encoder.pos_embedding
    x, blocks = embedded, []
    for block in net.encoder.layers:
        blocks.append(Block(block, x))
        x = blocks[-1].output
    normed = net.encoder.ln(x)
    head = net.heads.head
    logits = normed[:, 0] @ head.weight.T + head.bias
    maps = []
    for k in range(logits.shape[1]):
        chosen = torch.zeros_like(logits)
        chosen[:, k] = logits[:, k]
        r = torch.zeros_like(normed)
        r[:, :1] = linear(normed[:, :1], head.weight, head.bias, chosen[:, None], epsilon)
        r = layer_norm(x, net.encoder.ln, r)
        for block in reversed(blocks):
            r = block.relevance(r, epsilon)
        r = everything / embedded * r  # the position embeddings keep their share, and so does the class token
        maps.append(unpatchify(linear(patches, kernel, conv.bias, r[:, 1:], epsilon), images.shape, size).sum(1))
    return torch.stack(maps, 1).detach()


def patchify(images: Tensor, size: int) -> Tensor:
    """(N, C, H, W) -> (N, patches, C * size * size), row by row."""
    n, channels, height, width = images.shape
    grid = images.reshape(n, channels, height // size, size, width // size, size)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * size * size)


def unpatchify(patches: Tensor, shape: torch.Size, size: int) -> Tensor:
    """The inverse of :func:`patchify`, to images of that shape."""
    n, channels, height, width = shape
    grid = patches.reshape(n, height // size, width // size, channels, size, size)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(shape)


class Detached:
    """The same network as a function of images whose gradient x input is AttnLRP without a stabiliser.

    Constants are the standard deviation of a LayerNorm and the ratio ``gelu(u) / u``; half of the gradient of a
    product of two activations goes to each of them. The softmax keeps its derivative.
    """

    def __init__(self, net: VisionTransformer) -> None:
        self.net = net

    def __call__(self, images: Tensor) -> Tensor:
        net = self.net
        tokens = net.conv_proj(images).flatten(2).mT
        x = torch.cat([net.class_token.expand(len(images), -1, -1), tokens], 1) + net.encoder.pos_embedding
        for block in net.encoder.layers:
            x = x + self._attention(block.self_attention, self._norm(block.ln_1, x))
            u = block.mlp[0](self._norm(block.ln_2, x))
            x = x + block.mlp[3](u * (F.gelu(u) / u).detach())
        return net.heads.head(self._norm(net.encoder.ln, x)[:, 0])

    @staticmethod
    def _norm(norm: Any, x: Tensor) -> Tensor:
        std = torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + norm.eps).detach()
        return (x - x.mean(-1, keepdim=True)) / std * norm.weight + norm.bias

    @staticmethod
    def _matmul(a: Tensor, b: Tensor) -> Tensor:
        return 0.5 * torch.matmul(a, b.detach()) + 0.5 * torch.matmul(a.detach(), b)

    def _attention(self, module: nn.MultiheadAttention, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (module.num_heads, -1)).transpose(1, 2)
            for part in F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, 2)
        )
        scores = self._matmul(q * q.shape[-1] ** -0.5, k.mT)
        mixed = self._matmul(torch.softmax(scores, -1), v)
        return module.out_proj(mixed.transpose(1, 2).flatten(2))
