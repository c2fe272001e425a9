"""M2-BERT and M2-GPT, on one process and sharded on two: trained, evaluated, loaded with other weights, evaluated.

Run by test_sharded.py: sharded_worker.py FOLDER PORT PORT. What was found is in FOLDER/1.pt and FOLDER/2.pt. The three
processes are forks of the one that has imported everything.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).parent))

from m2bert_tiny import tiny, tokens

from m2gen.models import M2GPT, M2BertForMaskedLM, M2GPTConfig

BATCH, LENGTH = 4, 24


def models(seed: int) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    gpt = M2GPT(M2GPTConfig(vocab_size=90, d_model=32, n_layers=2, max_length=64, filter_options={"width": 16})).eval()
    return {"M2-BERT": tiny(M2BertForMaskedLM, seed=seed, hidden_dropout_prob=0.0), "M2-GPT": gpt}


def layers(model: nn.Module) -> nn.ModuleList:
    return model.layers if isinstance(model, M2GPT) else model.bert.encoder.layer  # type: ignore[return-value]


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    out = model(ids)
    found: Tensor = out if isinstance(out, Tensor) else out.logits
    return found


def run(rank: int, ranks: int) -> dict[str, list[Tensor]]:
    ids = tokens(BATCH, LENGTH)
    mine = ids[rank * BATCH // ranks : (rank + 1) * BATCH // ranks]
    others = {name: model.state_dict() for name, model in models(1).items()}
    found: dict[str, list[Tensor]] = {}
    for name, model in models(0).items():
        model.double()  # two steps multiply rounding
        if ranks > 1:
            for layer in layers(model):
                fully_shard(layer)
            fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        seen = found.setdefault(name, [])

        def evaluate(model: nn.Module = model, seen: list[Tensor] = seen) -> None:
            model.eval()
            for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
                with mode():
                    seen.append(logits(model, ids).clone())

        evaluate()
        for _ in range(2):
            model.train()
            logits(model, mine).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            evaluate()
        if ranks > 1:
            model.reshard()  # the root stays whole after a forward pass, and would be taken for not sharded
        how = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, {} if rank else others[name], options=how)
        evaluate()
    return found


def child(rank: int, ranks: int, port: str, file: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    found = run(rank, ranks)
    if rank == 0:
        torch.save(found, file)
    dist.destroy_process_group()


def main(folder: Path, ports: list[str]) -> None:
    torch.set_num_threads(1)
    pids = []
    for rank, ranks in ((0, 1), (0, 2), (1, 2)):
        pids.append(os.fork())
        if pids[-1] == 0:
            child(rank, ranks, ports[ranks - 1], folder / f"{ranks}.pt")
            return
    ends = [os.waitpid(pid, 0)[1] for pid in pids]
    if any(ends):
        sys.exit("a rank failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
