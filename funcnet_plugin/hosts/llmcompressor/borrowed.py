"""What a run borrows from its user, given back when it ends, however it ends.

A run fixes the order of a loader that is the user's, draws random numbers, leaves hooks on modules
while it calibrates, and llm-compressor's passes set one mode for all modules. When a run fails
between two of our events nobody tells us, so the end of llm-compressor's own `Oneshot` is watched;
where a session is driven by hand, the last of our modifiers to finish, or one that fails, ends it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

import numpy as np
import torch
from llmcompressor.core import State
from llmcompressor.modifiers import Modifier
from torch import nn
from torch.utils.data import DataLoader

from funcnet_plugin.text.order import restore_order


class _Run:
    """Attributes:
    watched: inside `oneshot`, whose end is the end of the run: it puts things back itself first.
    borrowers: our modifiers that have not finished, by id.
    """

    def __init__(self) -> None:
        self.watched = False
        self.borrowers: dict[int, Modifier] = {}
        self._debts = ExitStack()

    def borrow(self, modifier: Modifier, model: Any, calibration: Any) -> None:
        if not self.borrowers:
            self._debts.callback(_remember_randomness(calibration))
            self._debts.callback(restore_order, calibration)
            if isinstance(model, nn.Module):
                self._debts.callback(_remember_modes(model))
        self.borrowers[id(modifier)] = modifier

    def owe(self, restore: Callable[[], None]) -> None:
        self._debts.callback(restore)

    def give_back(self) -> None:
        for modifier in self.borrowers.values():
            modifier.remove_hooks()
        self.borrowers.clear()
        self._debts.close()


_run = _Run()  # llm-compressor's session is global as well


class GivesBack:
    """For modifiers: borrows when initialized, gives back when all have finished or one fails."""

    def _when_the_run_ends(self, restore: Callable[[], None]) -> None:
        _run.owe(restore)

    def initialize(self, state: State, **kwargs: Any) -> None:
        # the state holds a copy of the loader; the one that will be read comes as an argument
        calibration = kwargs.get("calib_data", state.data.calib)
        _run.borrow(self, state.model, calibration)
        with _given_back_on_failure():
            super().initialize(state=state, **kwargs)

    def update_event(self, state: State, event: Any, **kwargs: Any) -> None:
        with _given_back_on_failure():
            super().update_event(state=state, event=event, **kwargs)

    def finalize(self, state: State, **kwargs: Any) -> None:
        with _given_back_on_failure():
            super().finalize(state=state, **kwargs)
        _run.borrowers.pop(id(self), None)
        if not _run.borrowers and not _run.watched:
            _run.give_back()


@contextmanager
def _given_back_on_failure() -> Iterator[None]:
    try:
        yield
    except BaseException:
        if not _run.watched:
            _run.give_back()
        raise


def watch_runs(oneshot_module: ModuleType) -> None:
    """Give back at the end of every `oneshot`, also one that failed in another's code.

    Args:
        oneshot_module: `llmcompressor.entrypoints.oneshot`.
    """
    cls = oneshot_module.Oneshot
    inner = cls.apply_recipe_modifiers
    if getattr(inner, "_funcnet", False):
        return

    @wraps(inner)
    def apply_recipe_modifiers(self, *args: Any, **kwargs: Any) -> Any:
        _run.watched = True
        try:
            return inner(self, *args, **kwargs)
        finally:
            _run.watched = False
            _run.give_back()

    apply_recipe_modifiers._funcnet = True
    cls.apply_recipe_modifiers = apply_recipe_modifiers


def _remember_modes(model: nn.Module) -> Callable[[], None]:
    """llm-compressor restores the model's own mode in every module, also in those that had another
    (a frozen part in evaluation mode)."""
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
    """The user's own generators that reading a loader draws from."""
    if not isinstance(calibration, DataLoader):
        return []
    batches = calibration.batch_sampler
    holders = (calibration, calibration.sampler, batches, getattr(batches, "sampler", None))
    found = {
        id(g): g for holder in holders if (g := getattr(holder, "generator", None)) is not None
    }
    return [g for g in found.values() if isinstance(g, torch.Generator)]
