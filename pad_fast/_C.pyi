"""Types of the compiled extension (csrc/module.cpp and what it registers). Addresses are those of `Tensor.data_ptr()`.

Nothing is checked on the other side: call these through :mod:`pad_fast.scoring.native` and :mod:`pad_fast.engines.cpu`.
"""

# dtype "f32", "f64" or "bf16"; label_dtype "i32" or "i64"; 0 leaves features, scores, or mean and deviations out.
def score(
    *,
    dtype: str,
    label_dtype: str,
    logits: int,
    features: int,
    labels: int,
    rows: int,
    classes: int,
    width: int,
    scores: int,
    mean: int,
    deviations: int,
    seen: int,
    threads: int,
) -> None: ...

# With CUDA kernels only. `stream` is `torch.cuda.Stream.cuda_stream`; the result is CUDA's message where it refused.
def score_cuda(
    *,
    dtype: str,
    label_dtype: str,
    logits: int,
    features: int,
    labels: int,
    rows: int,
    classes: int,
    width: int,
    scores: int,
    mean: int,
    deviations: int,
    seen: int,
    device: int,
    stream: int,
) -> str | None: ...
def class_order(
    *,
    dtype: str,
    label_dtype: str,
    order: int,
    offsets: int,
    scores: int,
    labels: int,
    rows: int,
    classes: int,
    threads: int,
) -> None: ...
def labels_fit(*, label_dtype: str, labels: int, rows: int, classes: int) -> bool: ...
def build_info() -> dict[str, str | bool]: ...
def instruction_sets() -> list[str]: ...
def engine_instructions() -> str: ...

# The fastest for calls on maps of `pixels` pixels behind the first block, all images together.
def suited_isa(*, net_width: int, pixels: int) -> str: ...

class Cache:
    @property
    def bytes(self) -> int: ...

# Addresses are of contiguous tensors: theta, v, grad, dtheta [P]; x, dx [B, C, H, W]; logits, dy [B, K];
# labels [B] int64 (kind "hard"), or [B, K] ("logits", "probabilities"); features [B, F] in the order of
# the classifier's weights. 0 leaves an optional result out.
class Plan:
    def __init__(
        self,
        *,
        channels: int,
        height: int,
        width: int,
        pad_first: int = 1,
        depth: int,
        net_width: int,
        classes: int,
        dtype: str = "f32",
        precision: str = "high",
        threads: int = 1,
        images: int = 0,
        isa: str = "auto",
        chunk_tiles: int = 0,
        group_bytes: int = 0,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    def parameter_count(self) -> int: ...
    def products(self) -> int: ...
    def workspace_bytes(self) -> int: ...
    def cache_bytes(self, batch: int) -> int: ...
    def make_cache(self) -> Cache: ...
    def forward(self, theta: int, x: int, batch: int, logits: int = 0, features: int = 0) -> None: ...
    def loss_and_grad(
        self,
        theta: int,
        x: int,
        batch: int,
        labels: int,
        kind: str,
        grad: int,
        logits: int = 0,
        cache: Cache | None = None,
    ) -> float: ...
    def adjoint(
        self,
        theta: int,
        v: int,
        x: int,
        batch: int,
        labels: int,
        kind: str,
        dtheta: int,
        dx: int = 0,
        dy: int = 0,
        grad: int = 0,
        cache: Cache | None = None,
    ) -> float: ...
