"""Everything that needs a GPU, in stages: is it right, how fast is it, and the rest; no network, nothing installed.

    python3 -m benchmarks.gpu_check --out results --stage smoke,headline
    python3 -m benchmarks.gpu_check --bundle           copy what the tests need beside the tree's own files
    python3 -m benchmarks.gpu_check --prefill 90       compile what the stages need, on a machine without a GPU
    make gpu-check OUT=results                         all stages

`stages` lists them, `check` runs them, `results` keeps what they find, `dealing` runs the tests, `carried` is what goes
along with a tree; the other modules are programs of single stages. What runs the programs imports nothing but Python's
own library: a machine that lacks torch is told so.
"""
