"""Surrounds llm-compressor's `oneshot`: what a run is given, where it goes, and its end.

Modifiers are told neither where their model will be saved nor that a run has failed between two of
their events, so llm-compressor's `Oneshot` is wrapped. A run with one of our modifiers is refused
in words where its model or its data cannot be used.

Nothing heavy is imported before `oneshot` is called: this comes in while hosts are being imported.
"""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.hosts.llmcompressor.call import Call, going_on
from funcnet_plugin.recipe import MODIFIER_NAMES


def surround(entry: ModuleType) -> None:
    """Wrap `Oneshot`; calling twice is harmless.

    Args:
        entry: `llmcompressor.entrypoints.oneshot`.
    """
    from funcnet_plugin.hosts.llmcompressor.batching import Unset, left_to_us, mark_default

    oneshot = entry.Oneshot
    make, call, apply = oneshot.__init__, oneshot.__call__, oneshot.apply_recipe_modifiers
    if getattr(make, "_funcnet", False):
        return

    @wraps(make)
    def make_checked(self, *args: Any, **kwargs: Any) -> None:
        if not names_ours(kwargs.get("recipe")):
            make(self, *args, **kwargs)
            return
        from funcnet_plugin.hosts.llmcompressor.given_model import (
            check_given_model,
            take_over_offloading,
        )

        trusted = bool(kwargs.get("trust_remote_code_model", False))
        check_given_model(kwargs.get("model"), trusted)
        take_over_offloading(kwargs.get("model"))
        kwargs.setdefault("batch_size", Unset(1))
        try:
            make(self, *args, **kwargs)
        except RuntimeError as error:
            _say_no_tokenizer(error)
            raise

    @wraps(call)
    def call_checked(self, *args: Any, **kwargs: Any) -> Any:
        if not names_ours(self.recipe):
            return call(self, *args, **kwargs)
        from funcnet_plugin.hosts.llmcompressor.given_data import check_given_data
        from funcnet_plugin.hosts.llmcompressor.summary import summing_up

        check_given_data(self.dataset_args, self.processor)
        with summing_up(_out(self)) as self._funcnet_saving:
            return call(self, *args, **kwargs)

    @wraps(apply)
    def apply_to_the_end(self, *args: Any, **kwargs: Any) -> Any:
        with going_on(Call(_out(self), self.processor, left_to_us(self.dataset_args))):
            found = apply(self, *args, **kwargs)
        if names_ours(self.recipe):
            self._funcnet_saving.begins()
        return found

    make_checked._funcnet = True
    mark_default(entry)
    oneshot.__init__, oneshot.__call__ = make_checked, call_checked
    oneshot.apply_recipe_modifiers = apply_to_the_end


def _out(oneshot: Any) -> Path | None:
    return None if oneshot.output_dir is None else Path(oneshot.output_dir)


def names_ours(recipe: Any) -> bool:
    """Tell whether a recipe, in any form that `oneshot` takes, has one of our modifiers."""
    if isinstance(recipe, str | Path):
        text = str(recipe)
        if "\n" not in text and Path(text).is_file():
            text = Path(text).read_text(encoding="utf-8")
        return any(name in text for name in MODIFIER_NAMES)
    if isinstance(recipe, list | tuple):
        return any(map(names_ours, recipe))
    inner = getattr(recipe, "modifiers", None)
    return type(recipe).__name__ in MODIFIER_NAMES or (
        isinstance(inner, list) and names_ours(inner)
    )


def _say_no_tokenizer(error: RuntimeError) -> None:
    """Say what llm-compressor lacks when it cannot load the tokenizer of a model.

    Raises:
        CalibrationError: the error is of that.
    """
    if "initialize model processor" in str(error):
        raise CalibrationError(
            "the model comes without a tokenizer that can be loaded, and oneshot asks for one with "
            "its calibration data, tokenized or not; give tokenizer=."
        ) from error
