"""Makes a fast tokenizer of ChatGLM3's SentencePiece one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from funcnet_plugin.checkpoints.block import update_json

# In the order of their ids, which follow those of the pieces.
SPECIAL_TOKENS = (
    "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
)  # fmt: skip


class ChatGLMTokenizer(TokenizersBackend):
    """Reads BPE with byte fallback from `tokenizer.model`, or the `tokenizer.json` it was saved as.

    Every text starts with `[gMASK] sop`; padding is on the left. Special tokens are not looked for
    in the text, as in the original: `split_special_tokens=False` does.
    """

    vocab_files_names = {  # noqa: RUF012, the form that transformers has it in
        "vocab_file": "tokenizer.model",
        "tokenizer_file": "tokenizer.json",
    }
    model_input_names = ("input_ids", "attention_mask")
    model = BPE

    def __init__(
        self,
        vocab: dict[str, int] | None = None,
        merges: list[tuple[str, str]] | None = None,
        *,
        unk_token: str = "<unk>",
        pad_token: str = "<unk>",
        eos_token: str = "</s>",
        padding_side: str = "left",
        split_special_tokens: bool = True,
        **kwargs: Any,
    ) -> None:
        pieces = vocab or {str(unk_token): 0, str(eos_token): 1}
        self._tokenizer = Tokenizer(
            BPE(vocab=pieces, merges=merges or [], unk_token=str(unk_token), fuse_unk=True,
                byte_fallback=True)
        )  # fmt: skip
        self._tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        self._tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(content=" ", left=1),
            ]
        )
        self._tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        for unused in ("additional_special_tokens", "extra_special_tokens", "post_processor"):
            kwargs.pop(unused, None)
        super().__init__(
            unk_token=unk_token,
            pad_token=pad_token,
            eos_token=eos_token,
            extra_special_tokens=list(SPECIAL_TOKENS),
            # given, so that they are saved: other classes have other defaults
            padding_side=padding_side,
            split_special_tokens=split_special_tokens,
            **kwargs,
        )
        self.update_post_processor()

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        """Save tokenizer.json for any transformers, tokenizer.model for readers of the original.

        What is saved names a class that every transformers has, and no remote code: that runs
        under none that reads the rest.
        """
        files = super().save_pretrained(save_directory, *args, **kwargs)
        update_json(
            Path(save_directory) / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": None},
        )
        if not os.path.isfile(getattr(self, "vocab_file", None) or ""):
            return files
        return (*files, *self.save_vocabulary(str(save_directory)))

    def update_post_processor(self) -> None:
        """Put `[gMASK] sop` before every text, and `</s>` behind a pair."""
        special = ("[gMASK]", "sop", str(self.eos_token))
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single="[gMASK] sop $A",
            pair=f"[gMASK] sop $A $B:0 {self.eos_token}:0",
            special_tokens=[(token, self._tokenizer.token_to_id(token)) for token in special],
        )
