"""The ways in which a user, an optimizer or another process may write to a tensor: `WAYS`, and `OPTIMIZERS`.

A way takes a `Place`, the new values, and `look`, which calls the subject: ways that first bring the tensor into other
memory look at it there before they write.
"""

from __future__ import annotations

import ctypes
import functools
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import dlpack

Look = Callable[[], object]
Way = Callable[["Place", Tensor, Look], None]
WAYS: dict[str, Way] = {}


@dataclass
class Place:
    """Where a tensor stands: `owner`.`entry`, which is `root`'s `name`."""

    root: nn.Module
    name: str

    @property
    def owner(self) -> nn.Module:
        return self.root.get_submodule(self.name.rpartition(".")[0])

    @property
    def entry(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def tensor(self) -> Tensor:
        found = self.owner._parameters.get(self.entry)
        return self.owner._buffers[self.entry] if found is None else found  # type: ignore[return-value]


def way(name: str) -> Callable[[Way], Way]:
    def add(function: Way) -> Way:
        WAYS[name] = function
        return function

    return add


# ---- new values --------------------------------------------------------------------------------------------------

CHANGES = ("scaled", "noise", "one entry", "two swapped", "sign")


def changed(old: Tensor, how: str, seed: int) -> Tensor:
    """New values, far enough from the old ones to be seen in an output; "two swapped" keeps every sum of entries."""
    old = old.detach().clone(memory_format=torch.contiguous_format)
    flat = old.view(-1)
    if how == "noise":
        noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(seed)).to(old.dtype)
        return old + 0.3 * noise * old.float().abs().mean().clamp(min=0.1).to(old.dtype)
    if how == "one entry":
        flat[seed % flat.numel()] += 1
    elif how == "two swapped" and flat.max() > flat.min():
        i, j = int(flat.argmax()), int(flat.argmin())
        flat[[i, j]] = flat[[j, i]]
    elif how == "sign":
        flat.neg_()
    else:
        flat.mul_(1.5 if flat.abs().max() < 8 else 0.4)
    return old


# ---- in place, through torch -------------------------------------------------------------------------------------


@way("in place")
def _(place: Place, new: Tensor, look: Look) -> None:
    with torch.no_grad():
        place.tensor.copy_(new)


@way("data.copy_")
def _(place: Place, new: Tensor, look: Look) -> None:
    place.tensor.data.copy_(new)


@way("data =")
def _(place: Place, new: Tensor, look: Look) -> None:
    place.tensor.data = new


@way("data -=")
def _(place: Place, new: Tensor, look: Look) -> None:
    place.tensor.data -= place.tensor.detach() - new


@way("data.mul_")
def _(place: Place, new: Tensor, look: Look) -> None:
    old = place.tensor.detach()
    place.tensor.data.mul_(torch.where(old.abs() > 1e-3, new / old, 1.5))


@way("data[...] =")
def _(place: Place, new: Tensor, look: Look) -> None:
    data = place.tensor.data
    for i, row in enumerate(new.reshape(1, 1) if data.dim() == 0 else new):
        (data.view(1, 1) if data.dim() == 0 else data)[i] = row


@way("detach().copy_")
def _(place: Place, new: Tensor, look: Look) -> None:
    place.tensor.detach().copy_(new)


@way("a view of data")
def _(place: Place, new: Tensor, look: Look) -> None:
    data = place.tensor.data
    view = data.T if data.dim() == 2 else data.unsqueeze(0)
    look()
    view.copy_(new.T if new.dim() == 2 else new)


@way("set_")
def _(place: Place, new: Tensor, look: Look) -> None:
    with torch.no_grad():
        place.tensor.set_(new)


@way("foreach_copy_ of data")
def _(place: Place, new: Tensor, look: Look) -> None:
    torch._foreach_copy_([place.tensor.data], [new])


@way("foreach_add_")
def _(place: Place, new: Tensor, look: Look) -> None:
    with torch.no_grad():
        torch._foreach_add_([place.tensor], [new - place.tensor])


@way("vector_to_parameters")
def _(place: Place, new: Tensor, look: Look) -> None:
    """All parameters of the owner become pieces of one vector, as torch's own line search and averaging do it."""
    group = [p for p in place.owner.parameters(recurse=False) if p.dtype == new.dtype] or [place.tensor]
    values = [new if p is place.tensor else p.detach() for p in group]
    nn.utils.vector_to_parameters(torch.cat([v.reshape(-1) for v in values]), group)


@way("from another thread")
def _(place: Place, new: Tensor, look: Look) -> None:
    thread = threading.Thread(target=lambda: place.tensor.data.copy_(new))
    thread.start()
    thread.join()


# ---- through the memory ------------------------------------------------------------------------------------------


def _array(tensor: Tensor) -> np.ndarray:
    """A view; numpy has no bfloat16, whose bits it sees as integers."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@way("numpy view")
def _(place: Place, new: Tensor, look: Look) -> None:
    view = _array(place.tensor)
    look()
    view[...] = _array(new)


@way("from_numpy")
def _(place: Place, new: Tensor, look: Look) -> None:
    array = _array(place.tensor.detach().clone())
    place.tensor.data = torch.from_numpy(array).view(new.dtype)
    look()
    array[...] = _array(new)


@way("memmap")
def _(place: Place, new: Tensor, look: Look) -> None:
    with tempfile.TemporaryDirectory() as folder:
        old = _array(place.tensor)
        mapped = np.memmap(Path(folder) / "weights", dtype=old.dtype, mode="w+", shape=old.shape or (1,))
        mapped[...] = old
        place.tensor.data = torch.from_numpy(mapped).view(new.dtype).view(new.shape)
        look()
        mapped[...] = _array(new)
        mapped.flush()


@way("storage.copy_")
def _(place: Place, new: Tensor, look: Look) -> None:
    tensor = place.tensor
    storage = tensor.untyped_storage().clone()
    there = torch.empty(0, dtype=tensor.dtype)
    there.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    there.copy_(new)
    tensor.untyped_storage().copy_(storage)


@way("storage freed and filled")
def _(place: Place, new: Tensor, look: Look) -> None:
    """What sharding libraries do between two uses: the tensor stays, its memory is given back and taken again."""
    storage = place.tensor.untyped_storage()
    # memory of numpy's, of other processes (where PyTorch says that it can be resized, and crashes), of more parameters
    if not storage.resizable() or storage.is_shared() or storage.nbytes() != new.nbytes:
        place.tensor.data = place.tensor.detach().clone()
        storage = place.tensor.untyped_storage()
        look()
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    place.tensor.data.copy_(new)


@way("memmove")
def _(place: Place, new: Tensor, look: Look) -> None:
    if not place.tensor.is_contiguous():
        place.tensor.data = place.tensor.detach().contiguous()
        look()
    ctypes.memmove(place.tensor.data_ptr(), new.data_ptr(), new.nbytes)


@way("dlpack")
def _(place: Place, new: Tensor, look: Look) -> None:
    dlpack.from_dlpack(dlpack.to_dlpack(place.tensor.detach())).copy_(new)


@way("another process")
def _(place: Place, new: Tensor, look: Look) -> None:
    place.tensor.data.share_memory_()
    look()
    conversation = _child()
    conversation.send((place.tensor.data, new))
    conversation.recv()  # an EOFError where that process has died


@functools.cache
def _child() -> Connection:
    """One process for the whole run, that ends with this one."""
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_write, args=(theirs,), daemon=True).start()
    theirs.close()
    return ours


def _write(conversation: Connection) -> None:
    while True:
        shared, new = conversation.recv()
        shared.copy_(new)
        conversation.send("written")


# ---- another tensor in its place ---------------------------------------------------------------------------------


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


@way("setattr")
def _(place: Place, new: Tensor, look: Look) -> None:
    setattr(place.owner, place.entry, _like(place.tensor, new))


@way("delattr and register")
def _(place: Place, new: Tensor, look: Look) -> None:
    owner, entry, value = place.owner, place.entry, _like(place.tensor, new)
    delattr(owner, entry)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(entry, value)
    else:
        owner.register_buffer(entry, value)


@way("swap_tensors")
def _(place: Place, new: Tensor, look: Look) -> None:
    torch.utils.swap_tensors(place.tensor, _like(place.tensor, new))


@way("load_state_dict")
def _(place: Place, new: Tensor, look: Look) -> None:
    place.root.load_state_dict({place.name: new}, strict=False)


@way("load_state_dict, assign")
def _(place: Place, new: Tensor, look: Look) -> None:
    place.root.load_state_dict({place.name: new}, strict=False, assign=True)


# ---- optimizers --------------------------------------------------------------------------------------------------

Step = Callable[[list[nn.Parameter]], None]


def _by_hand(parameters: list[nn.Parameter]) -> None:
    for p in parameters:
        p.data -= 0.1 * p.grad  # type: ignore[operator]


def _step(kind: type[torch.optim.Optimizer], **options: bool) -> Step:
    return lambda parameters: kind(parameters, lr=0.1, **options).step() and None  # type: ignore[call-arg]


OPTIMIZERS: dict[str, Step] = {
    "by hand": _by_hand,
    **{
        f"{kind.__name__} {name}": _step(kind, foreach=name == "foreach", fused=name == "fused")
        for kind in (torch.optim.SGD, torch.optim.Adam)
        for name in ("plain", "foreach", "fused")
    },
}
