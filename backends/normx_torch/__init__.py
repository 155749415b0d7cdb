"""PyTorch: where torch tensors live."""

from __future__ import annotations

from typing import Any

from normx._libraries import ArrayAPILibrary, numpy_library
from normx.plugins import dtype_name


def _namespace() -> Any:
    from array_api_compat import torch

    return torch


class TorchLibrary(ArrayAPILibrary):
    """torch.Tensor on any device."""

    arithmetic = "float32"
    mutable = True

    def key(self, x: Any) -> Any:
        import torch

        # Integers become the default dtype, which is the user's to change.
        default = None if x.dtype.is_floating_point else torch.get_default_dtype()
        return x.shape, x.dtype, x.device, default

    def is_concrete(self, x: Any) -> bool:
        import torch

        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
        traced = torch.compiler.is_compiling() or type(x).__name__ == "FakeTensor"
        return not (wrapped or traced or x.is_meta)

    def rng(self, seed: int) -> Any:
        import torch

        return torch.Generator().manual_seed(seed)

    def copy_of_rng(self, rng: Any) -> Any:
        return rng.clone_state()

    def check_rng(self, rng: Any) -> str | None:
        import torch

        return None if isinstance(rng, torch.Generator) else "a torch.Generator"

    def uniform(self, rng: Any, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        import torch

        bits = 52 if dtype == "float64" else 23
        steps = torch.randint(0, 2**bits, shape, generator=rng, device=rng.device)
        return ((steps.to(self.dtype(dtype)) + 0.5) / 2.0**bits).to(like.device)

    def stop_gradient(self, x: Any) -> Any:
        return x.detach()

    def from_numpy(self, x: Any) -> Any:
        if x.dtype.name == "bfloat16":  # torch reads NumPy's own dtypes only
            return self.cast(self.namespace().asarray(x.astype("float32")), "bfloat16")
        return self.namespace().asarray(x.copy())

    def to_numpy(self, x: Any) -> Any:
        x = x.detach().cpu()
        if dtype_name(x.dtype) == "bfloat16":
            return numpy_library.cast(self.cast(x, "float32").numpy(), "bfloat16")
        return x.numpy()

    def check_out(self, out: Any) -> str | None:
        if out.requires_grad:
            return "a tensor that requires grad"
        return None

    def overlaps(self, out: Any, x: Any) -> bool:
        same = (
            out.data_ptr() == x.data_ptr() and out.stride() == x.stride() and out.shape == x.shape
        )
        return not same and out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


library = TorchLibrary("torch", _namespace)
