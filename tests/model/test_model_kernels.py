"""The Triton kernels against the plain code that they stand for: on a GPU in bf16, else interpreted, in fp32."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from repository import ROOT
from torch import Tensor


def test_kernels_compute_what_the_plain_code_computes_and_so_do_their_gradients():
    pytest.importorskip("triton", reason="Triton comes with torch for GPUs")
    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}  # read when triton is imported
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | interpret | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def compare(
    name: str, plain: Callable[..., object], kernel: Callable[..., object], inputs: Sequence[Tensor | None]
) -> None:
    """Outputs and gradients of both, by the norm of their difference."""
    results = []
    for function in (plain, kernel):
        given = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
        result = function(*given)
        outputs = list(result) if isinstance(result, (tuple, list)) else [result]
        generator = torch.Generator(outputs[0].device).manual_seed(1)
        weights = [torch.randn(y.shape, generator=generator, device=y.device).to(y.dtype) for y in outputs]
        results.append(outputs + list(torch.autograd.grad(outputs, [x for x in given if x is not None], weights)))
    tolerance = 1e-2 if results[0][0].dtype == torch.bfloat16 else 1e-5
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        error = float((a.float() - b.float()).norm().detach() / a.float().norm().detach())
        assert error < tolerance, f"{name}, result {i}: {error:.1e}"


def main() -> None:
    from model.network import dit, kernels, word_attention

    cuda = torch.cuda.is_available()
    if not cuda:
        for module in (kernels, word_attention):
            module.wrap_triton = lambda kernel: kernel  # it takes no interpreted ones
    dit.on_kernels = lambda x: False
    torch.manual_seed(0)

    def data(*shape: int) -> Tensor:
        x = torch.randn(*shape)
        return x.cuda().to(torch.bfloat16) if cuda else x

    x, update = (
        data(2, 2, 67, 192),
        data(2, 67, 2, 192).transpose(1, 2),
    )  # neither a power of two nor a multiple of a program's rows
    gate, shift, scale = torch.randn(2, 2, 6, 192, device=x.device).unbind(2)[:3]
    none = None
    for given in (
        (x, update, gate, shift, scale),
        (x, update, gate, none, none),
        (x, update, none, none, none),
        (x, none, none, shift, scale),
    ):
        compare("add_norm", dit.add_norm, lambda *a: kernels.add_norm(*a)[:2], given)

    rope = dit.rotation(dit.axis_angles(torch.arange(40, device=x.device), 32))
    q_norm, k_norm = dit.RMSNorm(192).to(x.device), dit.RMSNorm(192).to(x.device)

    def plain_split(qkv: Tensor, q_weight: Tensor, k_weight: Tensor) -> tuple[Tensor, ...]:
        for norm, weight in ((q_norm, q_weight), (k_norm, k_weight)):
            del norm.weight
            norm.weight = weight
        return dit.split_qkv(qkv, q_norm, k_norm, 3, rope)

    weights = (0.5 + torch.rand(2, 192, device=x.device)).unbind(0)
    compare("split_qkv", plain_split, lambda *a: kernels.split_qkv(*a, *rope)[:3], (data(2, 40, 576), *weights))

    for words in (5, 48, 100):

        def parts(kv: Tensor) -> tuple[Tensor, Tensor]:  # strided, as they come
            k, v = kv.chunk(2, dim=-1)
            return k.unflatten(-1, (3, 64)), v.unflatten(-1, (3, 64))

        compare(
            f"{words} words",
            lambda q, kv: dit.attend(q, *parts(kv)),
            lambda q, kv: word_attention.attend_words(q, *parts(kv)).flatten(2),
            (data(2, 90, 3, 64), data(2, words, 384)),
        )


if __name__ == "__main__":
    main()
