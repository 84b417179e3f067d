"""Truncated SVD of linear layers against torch's own SVD."""

import pytest
import torch
from torch import nn

from model.truncated_svd import compress, compress_head
from model.vgg16 import VGG16RoIHead


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_full_rank_is_exact(shape):
    torch.manual_seed(0)
    layer, x = nn.Linear(*shape), torch.randn(7, shape[0])
    torch.testing.assert_close(compress(layer, 5)(x), layer(x))


def test_lower_rank_is_the_best_approximation():
    torch.manual_seed(0)
    layer = nn.Linear(12, 8)
    first, second = compress(layer, 3)
    u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
    torch.testing.assert_close(second.weight @ first.weight, u[:, :3] @ s[:3].diag() @ v[:3])
    assert first.bias is None
    assert second.bias is layer.bias


def test_a_head_is_compressed():
    head = VGG16RoIHead(2, width=16)
    compress_head(head, (10, 4))
    assert [layer.out_features for layer in (*head.fc6, *head.fc7)] == [10, 16, 4, 16]
    loc, score = head(torch.rand(1, 512, 4, 6), torch.tensor([[0.0, 16, 30, 90]]))
    assert (loc.shape, score.shape) == ((1, 3, 4), (1, 3))
    with pytest.raises(ValueError, match="no 17 singular values"):
        compress_head(VGG16RoIHead(2, width=16), (4, 17))
    with pytest.raises(ValueError, match="fc6 and fc7, which Linear"):
        compress_head(nn.Linear(2, 2), (1, 1))
