"""CUDA graphs and memory on a GPU: replays, runs at once, no waiting, constant memory in T, too little of it."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor

from pad_fast import DSA, trajectory_matching_loss

from ...support.comparison import relative_error
from ...support.gpu import CIFAR, DOUBLE, GPU, SMALL, STEP, assert_same, gradients, needs_gpu, problem_of

pytestmark = needs_gpu


def test_graphs_against_plain_launches(engine, monkeypatch):
    for net, dtype, tolerance in ((SMALL, torch.float64, 1e-11), (CIFAR, torch.float32, STEP["ieee"])):
        problems = [problem_of(net, seed=seed, count=6, dtype=dtype) for seed in range(4)]
        dsa = DSA("color_crop_cutout_flip_scale_rotate")
        before = engine.graphs.recorded
        graphs = [
            gradients(p, backend="triton", augment=dsa.seeded(seed), cache=1 << 30)
            for seed, p in enumerate([problems[0], *problems])
        ][1:]
        assert engine.graphs.recorded == before + 2
        again = gradients(problems[2], backend="triton", augment=dsa.seeded(3), cache=1 << 30)
        assert all(torch.equal(a, b) for a, b in zip(graphs[2], again, strict=True)), "a replay is a replay"
        monkeypatch.setenv("PAD_FAST_GRAPHS", "0")
        for seed, (problem, ours) in enumerate(zip(problems, graphs, strict=True)):
            plain = gradients(problem, backend="triton", augment=dsa.seeded(seed + 1), cache=1 << 30)
            assert_same(ours, plain, tolerance)
        monkeypatch.delenv("PAD_FAST_GRAPHS")


def test_dsa_in_a_graph_equals_autograd_with_the_same_draws(engine):
    from pad_fast.kernels import augment as kernels

    problem = problem_of({"channels": 3, "resolution": 32, "depth": 2, "width": 8}, steps=9)
    sizes = [len(batch) for batch in problem["batches"]]
    for seed in range(5):
        table = kernels.draw(torch.tensor(seed, device=GPU), steps=9, batch=max(sizes), shape=(32, 32))

        def same_draws(images: Tensor, step: int, table: Tensor = table) -> Tensor:
            return kernels.naive_apply(images, table[step, 0, : len(images)])

        ours = gradients(problem, backend="triton", augment=DSA().seeded(seed))
        assert_same(ours, gradients(problem, gradient="unroll", augment=same_draws), DOUBLE)
    assert engine.graphs.recorded == 2


def test_shapes_that_change_and_come_back(engine):
    for count in (5, 8, 5, 8, 5):
        problem = problem_of(SMALL, count=count)
        assert_same(gradients(problem, backend="triton"), gradients(problem, gradient="unroll"), DOUBLE)
    assert engine.graphs.recorded == 4


def test_several_trajectories_equal_one_by_one(engine):
    problem = problem_of(SMALL, stacked=4)
    weight = torch.linspace(1, -0.5, 4, dtype=torch.float64, device=GPU)
    for _ in range(3):
        together = gradients(problem, backend="triton")
        total: list[Any] = [0, 0, 0]
        for k in range(4):
            one = {**problem, **{name: problem[name][k : k + 1] for name in ("theta_start", "theta_target")}}
            loss, *grads = gradients(one, backend="triton")
            assert relative_error(together[0][k : k + 1], loss) < 1e-12
            total = [summed + weight[k] * grad for summed, grad in zip(total, grads, strict=True)]
        assert_same(together[1:], total, 1e-11)


def test_runs_at_once_and_results_that_stay(engine):
    problems = [problem_of(SMALL, seed=seed) for seed in range(3)]
    truth = [gradients(problem, gradient="unroll") for problem in problems]
    for _ in range(3):
        leaves = [problem["images"].clone().requires_grad_() for problem in problems]
        losses = [
            trajectory_matching_loss(backend="triton", **{**problem, "images": leaf})
            for problem, leaf in zip(problems, leaves, strict=True)
        ]
        for grad, expected in zip(torch.autograd.grad(sum(losses).sum(), leaves), truth, strict=True):
            assert relative_error(grad, expected[1]) < DOUBLE
        del losses, leaves
        gc.collect()


def test_an_iteration_does_not_wait_for_the_gpu(engine):
    problem = problem_of(SMALL, dtype=torch.float32)
    gradients_of = [gradients(problem, backend="triton", augment=DSA().seeded(seed)) for seed in range(3)]
    del gradients_of
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for seed in range(3):
            gradients(problem, backend="triton", augment=DSA().seeded(seed))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_does_not_grow_with_t(engine):
    peaks = []
    for steps in (4, 32):
        problem = problem_of(CIFAR, count=100, steps=1, dtype=torch.float32)
        problem["batches"] = [torch.arange(100)] * steps
        engine.graphs.clear()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        for _ in range(3):
            gradients(problem, backend="triton")
        peaks.append(torch.cuda.max_memory_reserved() - before)
    vector = 4 * problem["model"].parameter_count
    assert peaks[1] <= 1.2 * peaks[0] + 2 * 28 * vector, peaks


def test_out_of_memory_goes_on_in_parts(engine, caplog):
    problem = problem_of(CIFAR, count=400, steps=1, dtype=torch.float32)
    problem["batches"] = [torch.arange(400)] * 3
    truth = gradients(problem, backend="triton", precision="ieee")
    engine.graphs.clear()
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    limit = torch.cuda.memory_reserved() + 300 * 2**20
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        for _ in range(3):
            ours = gradients(problem, backend="triton", precision="ieee", cache=1 << 40)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "GPU memory ran out" in caplog.text
    assert_same(ours, truth, STEP["ieee"])
