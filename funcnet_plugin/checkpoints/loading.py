"""Reads what a checkpoint says of its model, without its weights: config, tokenizer, shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from funcnet_plugin.checkpoints.wrapped import refuse_adapter_files
from funcnet_plugin.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Classes whose names do not say what they are: ChatGLM's language model.
_LANGUAGE_MODELS = ("chatglmmodel", "chatglmforconditionalgeneration")


def model_without_weights(source: str | Path) -> PreTrainedModel:
    """Build the model of a full-precision checkpoint on the meta device.

    Raises:
        CheckpointError: nothing to load there, or it is quantized already.
    """
    return build_on_meta(load_config(source), source)


def build_on_meta(config: PretrainedConfig, source: str | Path) -> PreTrainedModel:
    """Build the model that a config describes, on the meta device.

    Args:
        source: where the config is from, for the message.

    Raises:
        CheckpointError: it describes none.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (TypeError, RuntimeError, ValueError) as error:
        _refuse_other_class(config, source, None)
        raise CheckpointError(
            f"{source}: no causal language model can be built from its config.json "
            f"({type(error).__name__}: {_first_line(error)[:200]}); check the widths in it."
        ) from error
    _refuse_other_class(config, source, type(model).__name__)
    model.tie_weights()
    return model


def _refuse_other_class(config: PretrainedConfig, source: str | Path, built: str | None) -> None:
    """Refuse a checkpoint of another class, which would be given a head made up at random.

    Args:
        built: the causal language model that transformers makes of it, if any.

    Raises:
        CheckpointError: it was saved as something else than a causal language model.
    """
    saved = getattr(config, "architectures", None) or []
    known = {str(built).lower(), *_LANGUAGE_MODELS}
    if not saved or any(name.lower() in known for name in saved):
        return
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in saved):
        return  # a language model under another name: the weights decide
    other = "" if built is None else f" and would be loaded as a {built} with another head"
    mend = "" if built is None else f", or, if it is one, name {built} in its config.json"
    raise CheckpointError(
        f"{source} was saved as a {saved[0]}, which is no causal language model{other}; give the "
        f"language model that it was made from{mend}."
    )


def max_length(model: PreTrainedModel) -> int | None:
    """Say how many positions a model was made for; None if its config does not."""
    return getattr(model.config, "max_position_embeddings", None)


def load_config(source: str | Path) -> PretrainedConfig:
    """Read the config of a full-precision checkpoint.

    Raises:
        CheckpointError: nothing to load there, or it is quantized already.
    """
    config = read_model_config(source)
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"{source} is already quantized; prune the full-precision checkpoint and quantize "
            "after it."
        )
    return config


def check_is_there(source: str | Path) -> None:
    """Refuse a path that leads nowhere: as the name of a model on the hub it has no sense.

    Raises:
        CheckpointError: it does.
    """
    if not Path(source).exists() and _is_a_path(str(source)):
        raise CheckpointError(f"there is no {source}; give a checkpoint directory or a hub name.")


def read_model_config(source: str | Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read the config of any checkpoint.

    Args:
        trust_remote_code: whether code of the checkpoint may run. Nobody is asked: transformers
            would, at the terminal.

    Raises:
        CheckpointError: nothing to load there, an adapter, code that may not run, or the config
            contradicts itself.
    """
    from transformers import AutoConfig

    path = Path(source)
    refuse_adapter_files(source)
    if path.is_dir() and not (path / "config.json").exists():
        raise CheckpointError(f"{source} is not a checkpoint: it has no config.json.")
    check_is_there(source)
    try:
        return AutoConfig.from_pretrained(str(source), trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a file that is no config makes of it
        if _asks_for_trust(error):
            raise CheckpointError(_UNTRUSTED.format(source=source, what="model")) from error
        raise CheckpointError(
            f"no model can be loaded from {source} ({_first_line(error)})."
        ) from error


def _is_a_path(source: str) -> bool:
    """Tell what cannot be a hub name, which is NAME or OWNER/NAME."""
    return source.startswith(("/", ".", "~")) or source.count("/") > 1


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        CheckpointError: it has none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError) as error:
        if _asks_for_trust(error):
            raise CheckpointError(_UNTRUSTED.format(source=source, what="tokenizer")) from error
        raise CheckpointError(
            f"no tokenizer can be loaded from {source} ({_first_line(error)})."
        ) from error


_UNTRUSTED = (
    "the {what} of {source} needs code of its own, which is not run here; convert it to a class of "
    "transformers first."
)


def _asks_for_trust(error: Exception) -> bool:
    return "trust_remote_code" in str(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
