"""One model on several processes: `torchrun` and plain DDP. Without torchrun's environment there is one process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed.nn.functional
from torch import Tensor, nn

from arlat_core.config import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among `world` others, and the device that it works on."""

    rank: int
    world: int
    device: str

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows of what all processes hold alike: every `world`-th, so that all shares have one size.

        Raises:
            ValueError: When the number of rows is no multiple of the number of processes.
        """
        if len(rows) % self.world:
            raise ValueError(
                f"{len(rows)} rows cannot be shared by {self.world} processes. Make the batch a multiple of it."
            )
        return rows[self.rank :: self.world]

    def gather(self, rows: Tensor) -> Tensor:
        """What all processes hold alike, from each one's share: the inverse of `share`.

        A gradient flows back to the share from every process; with `wrap`'s mean over processes it is that of one process
        which holds all rows.
        """
        if self.world == 1:
            return rows
        parts = torch.distributed.nn.functional.all_gather(rows.contiguous())  # type: ignore[no-untyped-call]
        return torch.stack(list(parts), 1).flatten(0, 1)

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module`, with gradients that are means over all processes; all that is differentiated goes through its forward."""
        if self.world == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over all processes."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
            values = values / self.world
        return values

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over all processes."""
        if self.world == 1:
            return dict(values)
        found = self.mean(torch.tensor(list(values.values()), device=self.device))
        return dict(zip(values, found.tolist(), strict=True))

    def asked(self, wishes: Sequence[bool]) -> list[bool]:
        """Which of `wishes` any process has."""
        if self.world == 1:
            return list(wishes)
        return (self.mean(torch.tensor(wishes, dtype=torch.float32, device=self.device)) > 0).tolist()

    @contextlib.contextmanager
    def first_decides(self) -> Iterator[None]:
        """Inside, the first process does what it alone does; where that fails, every process fails, and none is left waiting.

        Raises:
            UserError: In the other processes, when the first came to grief.
        """
        try:
            yield
        except BaseException:
            self._heard(fine=False)
            raise
        if not self._heard(fine=True):
            raise UserError("The first process could not go on; its own message says why.")

    def _heard(self, fine: bool) -> bool:
        """What the first process says."""
        if self.world == 1:
            return fine
        word = torch.tensor([int(fine)], device=self.device)
        torch.distributed.broadcast(word, 0)
        return bool(word.item())


@contextlib.contextmanager
def ranks(device: str = "cpu") -> Iterator[Ranks]:
    """Joins the processes that torchrun has started: gloo on a CPU, NCCL on GPUs, each process on the GPU of its local rank.

    Inside another `ranks` it is that one: processes meet once.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(0, 1, device)
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    met = torch.distributed.is_initialized()
    if not met:
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Ranks(torch.distributed.get_rank(), world, device)
    finally:
        if not met:
            torch.distributed.destroy_process_group()
