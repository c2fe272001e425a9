"""What is kept from call to call is never stale: after every step of any sequence of writes, optimizer steps, moves,
copies, hooks and adapters, a module gives the results of a fresh copy of it, to the last bit.

`python tests/stateful/test_kept_state.py 5000` runs as many sequences, drawn anew, and prints what they did.
"""

from __future__ import annotations

import copy
import faulthandler
import pickle
import sys
import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
    run_state_machine_as_test,
)
from kept_machine import DONE, SEEN, Written, changes, which
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
from kept_subjects import GAINS, KINDS, LENGTHS, MODES, Bare, difference, results
from kept_writes import Place, changed
from torch import Tensor
from torch.nn.utils import parametrize

import m2gen

STEPS = 10

calls = st.sampled_from([LENGTHS[:1], LENGTHS[1:], LENGTHS])


class KeptState(Written):
    """What a user does to a module besides writing to its tensors, whose rules are those of `Written`."""

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
            self.module = adapters.add(self.module, "xy"[len(adapters.names)])
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

    @precondition(lambda self: filters(self.module))
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

    @precondition(lambda self: isinstance(self.module, Bare) and len(self.prepared) < 3)
    @rule()
    def prepare(self) -> None:
        m = self.module
        with torch.no_grad():
            k, others = m.k, {"mode": m.mode, "k_rev": m.k_rev, "skip": m.skip}
            prepared = m2gen.prepare_filter(k, **others)
            values = {name: x.clone() if isinstance(x, Tensor) else x for name, x in others.items()}
            self.prepared.append((prepared, k.clone(), values))
        self.done("prepare_filter")


class OfModels(KeptState):
    kinds = tuple(kind for kind in KINDS if kind.startswith("M2"))


class OfLayers(KeptState):
    kinds = tuple(kind for kind in KINDS if not kind.startswith("M2"))


# a failing sequence is shown as it was drawn: it has at most 10 steps, and to shorten it can take minutes
drawn = settings(stateful_step_count=STEPS, phases=[Phase.generate])
OfModels.TestCase.settings = settings(drawn, max_examples=50)
OfLayers.TestCase.settings = settings(drawn, max_examples=250)
TestModels = pytest.mark.slow(OfModels.TestCase)
TestLayers = pytest.mark.slow(OfLayers.TestCase)


def main(sequences: int, at_once: int = 100) -> None:
    """Run so many, drawn anew; told after each hundred, so that a run that is stopped has counted, too."""
    started = time.time()
    quick = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    options = settings(
        max_examples=min(at_once, sequences),
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=quick,
        phases=[Phase.generate],
    )
    while sequences > DONE["sequence"]:
        try:
            run_state_machine_as_test(KeptState, settings=options)
        finally:
            writes = sum(times for what, times in DONE.items() if what.startswith(("write", "step")))
            print(f"{DONE['sequence']} sequences, {writes} writes in {time.time() - started:.0f} s", flush=True)
    for what, times in sorted(DONE.items()):
        print(f"{what:60s} {times:7d} {SEEN[what]:7d} seen")


if __name__ == "__main__":
    faulthandler.enable()
    torch.set_num_threads(1)
    main(int(sys.argv[1]))
