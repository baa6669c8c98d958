"""Gives back what a run borrows from its user when it ends, however it ends.

A run fixes the order of a loader that is the user's, draws random numbers, leaves hooks on modules
while it calibrates, and llm-compressor's passes set one mode for all modules. The end of `oneshot`
is the end of its run, also of one that failed in another's code; where a session is driven by hand,
the last of our modifiers to finish, or one that fails, ends it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from llmcompressor.core import State
from llmcompressor.modifiers import Modifier
from torch import nn
from torch.utils.data import DataLoader

from funcnet_plugin.hosts.llmcompressor.call import Call, running
from funcnet_plugin.text.order import restore_order


class _Debts:
    """Keeps what the modifiers of one run have to give back.

    Attributes:
        borrowers: our modifiers that have not finished, by id.
    """

    def __init__(self) -> None:
        self.borrowers: dict[int, Modifier] = {}
        self._call: Call | None = None
        self._restores = ExitStack()

    def borrow(self, modifier: Modifier, model: Any, calibration: Any) -> None:
        """Remember what a run starts with, once."""
        if self._call is not running():
            self.give_back()  # a run that was begun by hand and left
        if not self.borrowers:
            self._call = running()
            if self._call is not None:
                self._call.when_it_ends(self.give_back)
            self.owe(_remember_randomness(calibration))
            self.owe(partial(restore_order, calibration))
            if isinstance(model, nn.Module):
                self.owe(_remember_modes(model))
        self.borrowers[id(modifier)] = modifier

    def owe(self, restore: Callable[[], None]) -> None:
        """Have something restored when the run ends."""
        self._restores.callback(restore)

    def finished(self, modifier: Modifier) -> None:
        """Take a modifier off the list; the last one ends the run."""
        self.borrowers.pop(id(modifier), None)
        if not self.borrowers:
            self.ended()

    def ended(self) -> None:
        """Give back now, unless `oneshot` will tell the end of its run."""
        if running() is None:
            self.give_back()

    def give_back(self) -> None:
        """Restore everything, the last first."""
        for modifier in self.borrowers.values():
            modifier.remove_hooks()
        self.borrowers.clear()
        self._call = None
        self._restores.close()


_debts = _Debts()  # llm-compressor's session is global as well


class GivesBack:
    """Lets a modifier borrow when it is initialized, and give back what is said above."""

    def _when_the_run_ends(self, restore: Callable[[], None]) -> None:
        _debts.owe(restore)

    def initialize(self, state: State, **kwargs: Any) -> None:
        # the state holds a copy of the loader; the one that will be read comes as an argument
        calibration = kwargs.get("calib_data", state.data.calib)
        _debts.borrow(self, state.model, calibration)
        with _given_back_on_failure():
            super().initialize(state=state, **kwargs)

    def update_event(self, state: State, event: Any, **kwargs: Any) -> None:
        with _given_back_on_failure():
            super().update_event(state=state, event=event, **kwargs)

    def finalize(self, state: State, **kwargs: Any) -> None:
        with _given_back_on_failure():
            super().finalize(state=state, **kwargs)
        _debts.finished(self)


@contextmanager
def _given_back_on_failure() -> Iterator[None]:
    try:
        yield
    except BaseException:
        _debts.ended()
        raise


def _remember_modes(model: nn.Module) -> Callable[[], None]:
    """Remember the mode of every module.

    llm-compressor restores the model's own in all of them, also in a frozen part that had another.
    """
    before = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, training in before:
            module.training = training

    return restore


def _remember_randomness(calibration: Any) -> Callable[[], None]:
    numbers, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    generators = [(g, g.get_state()) for g in _generators(calibration)]

    def restore() -> None:
        random.setstate(numbers)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)
        for generator, state in generators:
            generator.set_state(state)

    return restore


def _generators(calibration: Any) -> list[torch.Generator]:
    """List the user's own generators that reading a loader draws from."""
    if not isinstance(calibration, DataLoader):
        return []
    batches = calibration.batch_sampler
    holders = (calibration, calibration.sampler, batches, getattr(batches, "sampler", None))
    found = {
        id(g): g for holder in holders if (g := getattr(holder, "generator", None)) is not None
    }
    return [g for g in found.values() if isinstance(g, torch.Generator)]
