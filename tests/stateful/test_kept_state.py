"""What is kept from call to call is never stale: after every step of any sequence of writes, optimizer steps, moves,
copies, hooks and adapters, a module gives the results of a fresh copy of it, to the last bit.

`python tests/stateful/test_kept_state.py 5000` runs as many sequences, drawn anew, and prints what they did.
"""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import time
from collections import Counter
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from kept_structure import (
    Adapters,
    add_gain,
    can_be_parametrized,
    filters,
    hook,
    layers,
    parametrized,
    take_window,
    turn_sines,
    unhook,
)
from kept_subjects import GAINS, KINDS, LENGTHS, MODES, Bare, build, call, difference, fresh, results, signal
from kept_writes import CHANGES, OPTIMIZERS, WAYS, Place, changed
from torch import Tensor, nn
from torch.nn.utils import parametrize

import m2gen

DONE: Counter[str] = Counter()  # what was done, by kind
SEEN: Counter[str] = Counter()  # of those, how often a result was another one after it

# what torch allows on tensors that were made in inference mode, inside of it
IN_INFERENCE = ("in place", "data.copy_", "data[...] =", "detach().copy_", "foreach_copy_ of data", "numpy view")
IN_INFERENCE = (*IN_INFERENCE, "memmove", "dlpack", "setattr", "load_state_dict", "load_state_dict, assign")

STEPS = 12

which = st.integers(0, 999)
changes, lengths = st.sampled_from(CHANGES), st.sampled_from(LENGTHS)
calls = st.sampled_from([LENGTHS[:1], LENGTHS[1:], LENGTHS])
HAS_KEEP, HAS_PREPARE = hasattr(m2gen, "keep_filters"), hasattr(m2gen, "prepare_filter")


class KeptState(RuleBasedStateMachine):
    """`module` is the subject; `agree` holds it against a fresh copy after every rule."""

    @initialize(kind=st.sampled_from(list(KINDS)), seed=which, born=st.sampled_from(["usual"] * 5 + ["inference"]))
    def begin(self, kind: str, seed: int, born: str) -> None:
        self.kind, self.at, self.count = kind, LENGTHS[:1], 0
        self.mode = self.made = "no_grad"
        self.adapters = Adapters(wrapped="Bert" in kind)
        self.saved: dict[str, Tensor] | None = None
        self.prepared: list[tuple[Any, Bare]] = []
        self.declared = False
        self.before: dict[int, list[Tensor]] | None = None
        GAINS.update(hook=1.5, parametrization=1.5)
        with torch.inference_mode(born == "inference"):
            self.module = build(kind, seed)
        self.done("sequence")
        DONE[f"sequence of {kind}, born in {born}"] += 1

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
        for prepared, snapshot in self.prepared:
            self.agree_prepared(prepared, snapshot)
        SEEN[self.what] += self.before is not None and any(
            len(found[n]) != len(y) or difference(found[n], y) > 1e-3 for n, y in self.before.items()
        )
        self.before, self.at = found, self.at[::-1]  # what was called last is called again first

    def agree_prepared(self, prepared: Any, snapshot: Bare) -> None:
        for length in self.at:
            u = signal(length, snapshot.k.dtype, last=True)
            with torch.no_grad():
                got, want = m2gen.fftconv(u, prepared, post_gate=u.roll(1, 0)), snapshot(u)
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

    # -- the state of the module -----------------------------------------------------------------------------------

    @rule(mode=st.sampled_from(list(MODES)), made=st.sampled_from(["no_grad", "inference_mode"]), at=calls)
    def call_in(self, mode: str, made: str, at: tuple[int, ...]) -> None:
        self.mode, self.made = "no_grad" if mode == "grad" and self.of_inference() else mode, made
        self.at, self.before = at, None
        self.done(f"calls in {self.mode}")

    @rule(training=st.booleans())
    def train_or_eval(self, training: bool) -> None:
        self.module.train(training)
        self.done("train()" if training else "eval()")

    @rule()
    def call_from_two_threads(self) -> None:
        found: dict[int, list[Tensor]] = {}

        def one(length: int) -> None:
            found[length] = results(self.module, self.kind, length, "no_grad")

        if self.module.training:  # dropout draws from one generator
            return
        threads = [threading.Thread(target=one, args=(length,)) for length in LENGTHS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        twin = self.fresh()
        for length in LENGTHS:
            assert difference(found[length], results(twin, self.kind, length, "no_grad")) == 0
        self.done("called from two threads")

    @rule(dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    def cast(self, dtype: torch.dtype) -> None:
        with torch.inference_mode(self.of_inference()):
            self.module = self.module.to(dtype)
        self.done(f"to({str(dtype).removeprefix('torch.')})")

    @precondition(lambda self: not self.of_inference())
    @rule()
    def through_meta(self) -> None:
        """Away from its device and back, with the values in a state_dict meanwhile."""
        state = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.module = self.module.to("meta")
        self.module.load_state_dict(state, assign=True)
        self.done("through meta")

    @rule(pickled=st.booleans(), how=changes, index=which)
    def copied(self, pickled: bool, how: str, index: int) -> None:
        """The copy goes on; what is written to the original afterwards is not the copy's."""
        if parametrized(self.module):  # torch refuses to pickle those
            pickled = False
        old = self.module
        self.module = pickle.loads(pickle.dumps(old)) if pickled else copy.deepcopy(old)
        names = self.tensors()
        tensor = Place(old, names[index % len(names)]).tensor
        with torch.inference_mode(tensor.is_inference()):
            tensor.data.copy_(changed(tensor, how, self.count))
        self.done("pickle" if pickled else "deepcopy")

    @rule()
    def save(self) -> None:
        self.saved = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.done("state_dict")

    @precondition(lambda self: self.saved is not None and self.saved.keys() == self.module.state_dict().keys())
    @rule(assign=st.booleans())
    def load(self, assign: bool) -> None:
        state = {name: value.clone() for name, value in self.saved.items()}
        with torch.inference_mode(self.of_inference()):
            self.module.load_state_dict(state, assign=assign)
        self.done(f"load_state_dict of all, assign={assign}")

    # -- what stands around its layers -----------------------------------------------------------------------------

    @rule(index=which, before=st.booleans())
    def add_hook(self, index: int, before: bool) -> None:
        self.end_declaration(index)
        candidates = layers(self.module)
        hook(candidates[index % len(candidates)], before)
        self.done("forward pre-hook" if before else "forward hook")

    @rule()
    def remove_hooks(self) -> None:
        self.end_declaration(0)
        unhook(self.module)
        self.done("hooks removed")

    @rule(what=st.sampled_from(list(GAINS)))
    def turn(self, what: str) -> None:
        """What a hook reads becomes another value; no tensor of the module is touched."""
        self.end_declaration(0)
        GAINS[what] = 3.0 - GAINS[what] + 0.25
        self.done(f"a {what}'s own state")

    @precondition(lambda self: not self.adapters.names and not self.of_inference() and not parametrized(self.module))
    @rule(index=which)
    def add_parametrization(self, index: int) -> None:
        self.end_declaration(index)
        places = can_be_parametrized(self.module)
        add_gain(*places[index % len(places)])
        self.done("parametrization")

    @precondition(lambda self: parametrized(self.module))
    @rule(leave=st.booleans())
    def remove_parametrization(self, leave: bool) -> None:
        self.end_declaration(0)
        parametrize.remove_parametrizations(*parametrized(self.module)[0], leave_parametrized=leave)
        self.done("parametrization removed")

    @precondition(lambda self: filters(self.module))
    @rule(window=st.booleans())
    def attribute(self, window: bool) -> None:
        self.end_declaration(0)
        if window:
            take_window(self.module)
        else:
            turn_sines(self.module, 1.25)
        self.done("modulation = None" if window else "w_mod *=")

    @precondition(lambda self: filters(self.module) and not parametrized(self.module) and not self.of_inference())
    @rule(choice=st.sampled_from(["add", "switch", "on or off", "merge", "unload", "for a call"]))
    def adapt(self, choice: str) -> None:
        """LoRA on every linear layer, the filter networks' among them."""
        self.end_declaration(0)
        adapters = self.adapters
        if not adapters.names or (choice == "add" and len(adapters.names) < 2 and not adapters.merged):
            choice = "add"
            adapters.enabled = True
            self.module = adapters.add(self.module, "ab"[len(adapters.names)])
        elif choice == "switch" and not adapters.merged:
            adapters.active = adapters.names[adapters.names.index(adapters.active) - 1]
            adapters.switch(self.module)
        elif choice == "on or off" and not adapters.merged:
            adapters.enabled = not adapters.enabled
            adapters.switch(self.module)
        elif choice == "merge" and adapters.enabled:
            (adapters.unmerge if adapters.merged else adapters.merge)(self.module)
            adapters.merged = not adapters.merged
        elif choice == "unload" and adapters.wrapped:
            self.module = self.module.merge_and_unload()
            self.adapters = Adapters(wrapped=True)
        elif choice == "for a call" and adapters.wrapped and adapters.enabled and not adapters.merged:
            twin = self.fresh()
            with self.module.disable_adapter(), twin.disable_adapter():
                got = results(self.module, self.kind, self.at[0], self.mode)
                assert difference(got, results(twin, self.kind, self.at[0], self.mode)) == 0
        else:
            return
        self.done(f"adapters: {choice}")

    # -- the user's own acts ---------------------------------------------------------------------------------------

    @precondition(lambda self: HAS_KEEP and filters(self.module))
    @rule(at=st.sampled_from([(), LENGTHS[:1], LENGTHS]))
    def keep(self, at: tuple[int, ...]) -> None:
        m2gen.keep_filters(self.module, *at)
        self.declared = True
        self.done("keep_filters")

    @precondition(lambda self: self.declared)
    @rule()
    def forget(self) -> None:
        m2gen.forget_filters(self.module)
        self.declared = False
        self.done("forget_filters")

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

    @precondition(lambda self: HAS_PREPARE and isinstance(self.module, Bare) and len(self.prepared) < 3)
    @rule()
    def prepare(self) -> None:
        m, (snapshot,) = self.module, [self.fresh()]
        self.prepared.append((m2gen.prepare_filter(m.k, mode=m.mode, k_rev=m.k_rev, skip=m.skip), snapshot))
        self.done("prepare_filter")


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

        def write(self: KeptState, how: str, index: int, anywhere: bool, way: str = way) -> None:
            self.write(way, how, index, anywhere)

        write.__name__ = "write_" + "".join(c if c.isalnum() else "_" for c in way)
        setattr(KeptState, write.__name__, rule(how=changes, index=which, anywhere=st.booleans())(write))
    for optimizer in OPTIMIZERS:

        def step(self: KeptState, optimizer: str = optimizer) -> None:
            self.step(optimizer)

        step.__name__ = "step_" + optimizer.replace(" ", "_")
        setattr(KeptState, step.__name__, precondition(lambda self: not self.of_inference())(rule()(step)))


_add_rules()
KeptState.TestCase.settings = settings(max_examples=300, stateful_step_count=STEPS)
TestKeptState = KeptState.TestCase


def main(sequences: int, phases: tuple[Phase, ...] = (Phase.generate, Phase.shrink)) -> None:
    started = time.time()
    quick = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    options = settings(
        max_examples=sequences,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=quick,
        phases=phases,
    )
    try:
        run_state_machine_as_test(KeptState, settings=options)
    finally:
        for what, times in sorted(DONE.items()):
            print(f"{what:60s} {times:7d} {SEEN[what]:7d} seen")
        writes = sum(times for what, times in DONE.items() if what.startswith(("write", "step")))
        print(f"{DONE['sequence']} sequences, {writes} writes in {time.time() - started:.0f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]))
