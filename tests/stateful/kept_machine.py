"""The machine of the stateful test: a subject, the property held after every step, and all writes to tensors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kept_structure import Adapters, add_gain, can_be_parametrized, filters, hook, layers, tie_again
from kept_subjects import GAINS, KINDS, LENGTHS, MODES, build, call, difference, fresh, results, signal
from kept_writes import CHANGES, OPTIMIZERS, WAYS, Place, changed
from torch import Tensor, nn

import m2gen

DONE: Counter[str] = Counter()  # what was done, by kind
SEEN: Counter[str] = Counter()  # of those, how often a result was another one after it

# what torch allows on tensors that were made in inference mode, inside of it
IN_INFERENCE = ("in place", "data.copy_", "data[...] =", "detach().copy_", "foreach_copy_ of data", "numpy view")
IN_INFERENCE = (*IN_INFERENCE, "memmove", "dlpack", "setattr", "load_state_dict", "load_state_dict, assign")

which = st.integers(0, 999)
changes, lengths = st.sampled_from(CHANGES), st.sampled_from(LENGTHS)


class Written(RuleBasedStateMachine):
    """`module` is the subject, one of `kinds`; `agree` holds it against a fresh copy after every rule."""

    kinds = tuple(KINDS)

    @initialize(
        index=which,
        seed=which,
        born=st.sampled_from(["usual"] * 7 + ["inference"]),
        dtype=st.sampled_from([torch.float32] * 3 + [torch.float64, torch.bfloat16, torch.float16]),
        around=st.sampled_from(["nothing"] * 5 + ["hook", "parametrization", "adapters"]),
    )
    def begin(self, index: int, seed: int, born: str, dtype: torch.dtype, around: str) -> None:
        kind = self.kinds[index % len(self.kinds)]
        self.kind, self.at, self.count = kind, LENGTHS[:1], 0
        self.mode = self.made = "no_grad"
        self.adapters = Adapters(wrapped="Bert" in kind)
        self.saved: dict[str, Tensor] | None = None
        self.prepared: list[tuple[Any, Tensor, dict[str, Any]]] = []
        self.declared = False
        self.before: dict[int, list[Tensor]] | None = None
        GAINS.update(hook=1.5, parametrization=1.5)
        with torch.inference_mode(born == "inference"):
            self.module = build(kind, seed).to(dtype)
        if around == "hook":
            candidates = layers(self.module)
            hook(candidates[seed % len(candidates)], before=seed % 2 == 0)
        elif around == "parametrization" and born == "usual":
            places = can_be_parametrized(self.module)
            add_gain(*places[seed % len(places)])
        elif around == "adapters" and born == "usual" and filters(self.module):
            self.module = self.adapters.add(self.module, "x")
        self.done("sequence")
        DONE[f"sequence: {kind}"] += 1
        DONE[f"sequence: born in {born} mode"] += 1
        DONE[f"sequence: begun in {str(dtype).removeprefix('torch.')}"] += 1
        DONE[f"sequence: begun with {around}"] += 1

    def done(self, what: str) -> None:
        self.what = what
        self.count += 1
        DONE[what] += 1

    # -- the property ----------------------------------------------------------------------------------------------

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "kind"):
            return
        twin = self.fresh()
        found: dict[int, list[Tensor]] = {}
        for length in self.at:
            got = results(self.module, self.kind, length, self.mode, self.made)
            want = results(twin, self.kind, length, self.mode, self.made)
            assert difference(got, want) == 0, f"{self.what}, {self.mode}, length {length}: {difference(got, want)}"
            found[length] = want
        for prepared, k, others in self.prepared:
            self.agree_prepared(prepared, k, others)
        SEEN[self.what] += self.before is not None and any(
            len(found[n]) != len(y) or difference(found[n], y) > 1e-3 for n, y in self.before.items()
        )
        self.before, self.at = found, self.at[::-1]  # what was called last is called again first

    def agree_prepared(self, prepared: Any, k: Tensor, others: dict[str, Any]) -> None:
        """A prepared filter is what it was made of, whatever has been written there since."""
        for length in self.at:
            u = signal(length, k.dtype, last=True)
            with torch.no_grad():
                got = m2gen.fftconv(u, prepared, post_gate=u.roll(1, 0))
                want = m2gen.fftconv(u, k, post_gate=u.roll(1, 0), **others)
            assert difference([got], [want]) == 0, f"prepared, {self.what}: {difference([got], [want])}"

    def fresh(self) -> nn.Module:
        return fresh(self.module, self.kind, self.adapters.put)

    def look(self) -> None:
        """A call in between, so that there is something to be kept."""
        results(self.module, self.kind, self.at[0], self.mode, self.made)

    def of_inference(self) -> bool:
        return any(t.is_inference() for t in [*self.module.parameters(), *self.module.buffers()])

    def tensors(self) -> list[str]:
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        return [name for name, t in named if t.is_floating_point() and t.numel()]

    # -- writes ----------------------------------------------------------------------------------------------------

    def write(self, way: str, how: str, index: int, anywhere: bool) -> None:
        """A rule for each way, see below: to a parameter or buffer of a filter, where there is one, or `anywhere`."""
        names = self.tensors()
        if not anywhere:
            names = [n for n in names if "filter_fn" in n or "monarch" in n] or names
        place = Place(self.module, names[index % len(names)])
        inside = self.of_inference()
        if inside and way not in IN_INFERENCE:
            way = IN_INFERENCE[index % len(IN_INFERENCE)]
        with torch.inference_mode(inside):
            new = changed(place.tensor, how, self.count)
            WAYS[way](place, new, self.look)
            if tie_again(self.module):
                DONE["tie_head after a write"] += 1
        self.end_declaration(index)
        DONE[f"change: {how}"] += 1
        self.done(f"write: {way}")

    def step(self, optimizer: str) -> None:
        """A rule for each optimizer: one step on gradients whose size is that of the parameters."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        if not parameters:  # adapters that are switched off
            return
        with torch.enable_grad():
            loss = call(self.module, self.kind, self.at[0]).square().mean()
            if not loss.requires_grad:  # all that is trained are adapters, and these are merged
                return
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        moved = [p for p, g in zip(parameters, grads, strict=True) if g is not None]
        for p, g in zip(parameters, grads, strict=True):
            if g is not None:
                p.grad = g * (p.detach().norm() / g.norm().clamp(min=1e-30))
        OPTIMIZERS[optimizer](moved)
        for p in moved:
            p.grad = None
        self.end_declaration(len(moved))
        self.done(f"step: {optimizer}")

    @rule(how=changes, index=which)
    def functional_call(self, how: str, index: int) -> None:
        """Other values for one call: that call sees them, the module keeps its own."""
        self.end_declaration(0)
        names = [n for n, _ in self.module.named_parameters()]
        names = [n for n in names if "filter_fn" in n] or names
        name = names[index % len(names)]
        twin = self.fresh()
        with torch.inference_mode(self.of_inference()):
            new = changed(Place(twin, name).tensor, how, self.count)
            Place(twin, name).tensor.data.copy_(new)
        with MODES[self.mode]():
            got = torch.func.functional_call(
                _Calls(self.module, self.kind), {f"module.{name}": new}, (self.at[0],)
            ).detach()
            want = call(twin, self.kind, self.at[0]).detach()
        assert difference([got], [want]) == 0, f"functional_call: {difference([got], [want])}"
        self.done("functional_call")

    @rule(length=lengths)
    def spoil_what_was_returned(self, length: int) -> None:
        with MODES[self.mode]():
            for part in filters(self.module):
                for k in part(length):
                    if k is not None:
                        k.detach().zero_()
        for y in results(self.module, self.kind, length, self.mode, self.made):
            y.zero_()
        self.done("returned tensors zeroed")

    def end_declaration(self, index: int) -> None:
        """Who has declared that the weights stay, and changes them, says so: in one of the documented ways."""
        if not self.declared:
            return
        if index % 3 == 0:
            m2gen.forget_filters(self.module)
            self.declared = False
        elif index % 3 == 1:
            training = self.module.training
            self.module.train().train(training)
        else:
            with torch.inference_mode(self.of_inference()):
                self.module.load_state_dict({}, strict=False)


class _Calls(nn.Module):
    """`call`, as a module whose tensors `functional_call` can replace."""

    def __init__(self, module: nn.Module, kind: str) -> None:
        super().__init__()
        self.module, self.kind = module, kind

    def forward(self, length: int) -> Tensor:
        return call(self.module, self.kind, length)


def _add_rules() -> None:
    """Each way of writing and each optimizer as a rule of its own, so that most steps write."""
    for way in WAYS:

        def write(self: Written, how: str, index: int, anywhere: bool, way: str = way) -> None:
            self.write(way, how, index, anywhere)

        write.__name__ = "write_" + "".join(c if c.isalnum() else "_" for c in way)
        setattr(Written, write.__name__, rule(how=changes, index=which, anywhere=st.booleans())(write))
    for optimizer in OPTIMIZERS:

        def step(self: Written, optimizer: str = optimizer) -> None:
            self.step(optimizer)

        step.__name__ = "step_" + optimizer.replace(" ", "_")
        setattr(Written, step.__name__, precondition(lambda self: not self.of_inference())(rule()(step)))


_add_rules()
