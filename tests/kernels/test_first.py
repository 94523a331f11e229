"""The first block with its convolution: the naive twins against autograd, the kernels against the twins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ..support.comparison import describe_difference, relative_error

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to run")

from pad_fast.errors import InputError
from pad_fast.kernels import first
from pad_fast.kernels.first import FirstBlock
from pad_fast.kernels.launch import dry_run

# K, B, channels, rows, columns, outputs, padding, whether the trajectories share the images.
CASES = [
    (1, 1, 1, 5, 7, 3, 3, True),  # grey, padding 3, an odd map
    (2, 3, 3, 6, 4, 17, 1, True),
    (2, 2, 7, 5, 5, 40, 1, False),  # most channels, more outputs than a tile has
    (1, 2, 3, 18, 17, 5, 1, False),  # several tiles of windows
]
PRECISIONS = {
    (torch.float64, "ieee"): 1e-12,  # worst seen: 1e-15
    (torch.float32, "ieee"): 5e-6,  # 6.4e-7
    (torch.float32, "tf32"): 5e-6 if not torch.cuda.is_available() else 1e-2,  # the interpreter keeps float32
    (torch.float32, "bf16"): 0.1,  # 3.8e-2
}


class Problem:
    """Inputs of one block whose parameters lie in the middle of a flat vector."""

    def __init__(self, case: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        K, B, C, H, W, N, padding, shared = case
        self.where = FirstBlock(C, N, H, W, padding, 2, 2 + 9 * C * N + N, 2 + 9 * C * N + 2 * N)
        generator = torch.Generator().manual_seed(1)

        def draw(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(device, dtype)

        self.x = (draw(B, C, H, W) + 1).expand(K, B, C, H, W) if shared else draw(K, B, C, H, W) - 1
        self.theta, self.v, self.out = draw(3, K, 9 * C * N + 3 * N + 5)
        rows, columns = self.where.map
        self.go, self.god = draw(2, K, B, rows // 2, columns // 2, N)

    def double(self) -> Problem:
        other = object.__new__(Problem)
        other.__dict__ = {
            name: value.double().clone() if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return other


def run(p: Problem, prefix: str, precision: str, accumulate: bool = False) -> dict[str, Tensor]:
    """Every output of the four operations, by kernel (prefix "") or by twin ("naive_")."""
    op = {name: getattr(first, prefix + name) for name in ("forward", "tangent", "backward", "adjoint")}
    found: dict[str, Tensor] = {}
    keywords = {"precision": precision}
    found["o"], stats = op["forward"](p.x, p.theta, p.where, **keywords)
    found["tangent o"], found["od"], dual = op["tangent"](p.x, p.theta, p.v, p.where, **keywords)
    op["backward"](p.x, p.theta, stats, p.god, p.where, p.out, accumulate=accumulate, **keywords)
    found["plain gradient"] = p.out.clone()
    inputs = (p.x, p.theta, p.v, dual, p.go, p.god, p.where, p.out)
    found["gx"] = op["adjoint"](*inputs, accumulate=accumulate, **keywords)
    found["gradient"] = p.out
    return found


@pytest.mark.parametrize("case", CASES[:3])
def test_naive_twins_are_the_derivatives_of_the_block(case: tuple[int, ...]) -> None:
    p = Problem(case, torch.float64, torch.device("cpu"))
    at, N = p.where, p.where.outputs

    def whole(x: Tensor, theta: Tensor) -> Tensor:
        rows = []
        for images, vector in zip(x, theta, strict=True):
            w = vector[at.w : at.w + 9 * at.channels * N].view(N, at.channels, 3, 3)
            z = torch.nn.functional.conv2d(images, w, padding=at.padding)
            centred = z - z.mean((2, 3), keepdim=True)
            n = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
            a = n * vector[at.g : at.g + N, None, None] + vector[at.b : at.b + N, None, None]
            rows.append(torch.nn.functional.avg_pool2d(a.relu(), 2).permute(0, 2, 3, 1))
        return torch.stack(rows)

    def dual(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(lambda vector: whole(x, vector), (theta,), (p.v,))

    p.out.zero_()
    found = run(p, "naive_", "ieee")
    (o, od), pull = torch.func.vjp(dual, p.x.clone(), p.theta)
    gx, gradient = pull((p.go, p.god))
    plain = torch.func.vjp(lambda vector: whole(p.x, vector), p.theta)[1](p.god)[0]
    expected = {"o": o, "tangent o": o, "od": od, "plain gradient": plain, "gx": gx, "gradient": gradient}
    for name, value in expected.items():
        assert relative_error(found[name], value) < 1e-10, f"{name}: {describe_difference(found[name], value)}"


@pytest.mark.parametrize(("dtype", "precision"), list(PRECISIONS), ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_their_twins(
    case: tuple[int, ...], dtype: torch.dtype, precision: str, kernel_device: torch.device, poisoned: None
) -> None:
    if precision in ("tf32", "bf16") and case is not CASES[1] and kernel_device.type == "cpu":
        pytest.skip("interpreted, precisions differ only in how they are rounded")
    p = Problem(case, dtype, kernel_device)
    expected = run(p.double(), "naive_", "ieee")
    assert 0.1 < float((expected["o"] > 0).double().mean()) <= 1  # neither all nor nothing is let through
    for name, actual in run(p, "", precision).items():
        error = relative_error(actual, expected[name])
        assert error < PRECISIONS[dtype, precision], f"{name}: {describe_difference(actual, expected[name])}"


def test_chunks_add_up_and_images_can_be_left_out(kernel_device: torch.device) -> None:
    p = Problem(CASES[1], torch.float32, kernel_device)
    start, double = p.out.clone(), p.double()
    expected = run(double, "naive_", "ieee", accumulate=True)["gradient"]
    assert relative_error(run(p, "", "ieee", accumulate=True)["gradient"], expected) < 5e-6
    with_images, p.out = p.out, start
    _, stats = first.forward(p.x, p.theta, p.where, precision="ieee")
    first.backward(p.x, p.theta, stats, p.god, p.where, p.out, precision="ieee", accumulate=True)
    _, _, stats = first.tangent(p.x, p.theta, p.v, p.where, precision="ieee")
    inputs = (p.x, p.theta, p.v, stats, p.go, p.god, p.where, p.out)
    assert first.adjoint(*inputs, precision="ieee", accumulate=True, wants_images=False) is None
    assert torch.equal(p.out, with_images)


def test_shared_images_give_the_bits_of_copies(kernel_device: torch.device) -> None:
    p = Problem(CASES[1], torch.float32, kernel_device)
    shared = run(p, "", "tf32")
    p.x = p.x.contiguous()  # the same images, once for each trajectory
    for name, value in run(p, "", "tf32").items():
        assert torch.equal(value, shared[name]), name
    # A batch cut out of larger images has other strides than its shape says.
    p.x = torch.nn.functional.pad(p.x, (0, 3, 1, 0))[..., 1:, :-3]
    assert torch.equal(run(p, "", "tf32")["gx"], shared["gx"])


def test_flat_images_have_no_variance(kernel_device: torch.device) -> None:
    p = Problem(CASES[1], torch.float32, kernel_device)
    p.x = torch.zeros_like(p.x) if p.x.stride(0) else torch.zeros_like(p.x[0]).expand(p.x.shape)
    found, expected = run(p, "", "tf32"), run(p.double(), "naive_", "ieee")
    for name in ("o", "od"):
        assert relative_error(found[name], expected[name]) < 1e-5
    assert relative_error(found["gradient"], expected["gradient"]) < 1e-5


def test_a_nan_shows_and_stays_in_its_image(kernel_device: torch.device) -> None:
    p = Problem(CASES[2], torch.float32, kernel_device)
    p.x[1, 0, 6, 4, 4] = float("nan")
    found = run(p, "", "tf32")
    for name in ("o", "od", "gx"):
        bad = found[name].isnan().flatten(2).any(2)  # [K, B]
        assert bad.tolist() == [[False, False], [True, False]], name
    assert found["gradient"].isnan().any(1).tolist() == [False, True]


def test_same_inputs_same_bits(kernel_device: torch.device) -> None:
    once, again = (run(Problem(CASES[1], torch.float32, kernel_device), "", "tf32") for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_launches_are_counted_without_running() -> None:
    p = Problem((2, 10, 3, 32, 32, 128, 1, True), torch.float32, torch.device("cpu"))
    with dry_run() as count:
        run(p, "", "tf32")
    names = [name.strip("_").removesuffix("_kernel") for name, _ in count.launches]
    forward = ["moments", "planes", "pooled"]
    backward = ["patch_sums", "gradients", "sum_images"]
    assert names == [*forward, *forward, *backward, *backward, "patch_gradient", "fold"]
    by_name = dict(zip(names, (cost for _, cost in count.launches), strict=True))
    pooled, images = 2 * p.go.numel() * 4, 10 * 3 * 34 * 34 * 4
    assert pooled + images < by_name["pooled"].bytes < 1.05 * (pooled + images)  # the full map is never written
    assert by_name["pooled"].flops == 2 * 32 * 128 * 2 * 10 * 1024 * 2


def test_wrong_inputs_are_refused() -> None:
    p = Problem(CASES[1], torch.float32, torch.device("cpu"))
    for precision in ("fp8", "high"):
        with pytest.raises(InputError, match="precision"):
            first.forward(p.x, p.theta, p.where, precision=precision)
    with pytest.raises(InputError, match="'ieee'"):
        first.forward(p.x.double(), p.theta.double(), p.where, precision="tf32")
    with pytest.raises(InputError, match=r"\[K, B, 3, 6, 4\]"):
        first.forward(p.x[..., :3], p.theta, p.where, precision="tf32")
    with pytest.raises(InputError, match="flat vectors"):
        first.forward(p.x, p.theta[:, :-8], p.where, precision="tf32")
    with pytest.raises(InputError, match="flat vectors"):
        first.tangent(p.x, p.theta, p.v[:1], p.where, precision="tf32")
    wide = FirstBlock(8, 4, 6, 4, 1, 0, 288, 292)
    with pytest.raises(InputError, match="1 to 7 image channels"):
        first.forward(torch.zeros(1, 1, 8, 6, 4), torch.zeros(1, 300), wide, precision="tf32")
    _, stats = first.forward(p.x, p.theta, p.where, precision="tf32")
    with pytest.raises(InputError, match="gradients of the pooled map"):
        first.backward(p.x, p.theta, stats, p.god[:, :, :1], p.where, p.out, precision="tf32")
