"""Finds the text in records: a column, a field inside of one, or conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from funcnet_plugin.errors import CalibrationError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Where conversations are, by the customs of OpenAI and ShareGPT, if no column is asked for.
_CONVERSATIONS = ("messages", "conversations", "conversation")
_TEXT = "text"
_TITLES = ("title", "id")
_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names for them


def records_of(value: Any, column: str, where: str) -> list[dict[str, Any]]:
    """List the records of one JSON value.

    Args:
        value: a list of records, of strings or of conversations; a record; or an object with one
            of these lists in a field.
        column: the field that is looked for; plain strings become its values.
        where: the file, for messages.

    Raises:
        CalibrationError: it holds several lists of records, or none.
    """
    if isinstance(value, list):
        return [_record(item, column, where) for item in value]
    if not isinstance(value, dict):
        raise CalibrationError(f"{where} holds neither records nor texts.")
    if isinstance(value.get(column), list) and all(isinstance(t, str) for t in value[column]):
        return [{column: text} for text in value[column]]
    if column in value or (column == _TEXT and any(name in value for name in _CONVERSATIONS)):
        return [value]
    lists = {key: held for key, held in value.items() if _are_records(held)}
    outer, dot, _ = column.partition(".")
    if dot and outer in lists:
        return [{outer: record} for record in lists[outer]]
    fitting = [key for key, records in lists.items() if column in records[0]] or list(lists)
    if len(fitting) > 1:
        raise CalibrationError(
            f"{where} holds several lists of records: {', '.join(fitting)}; say which one with "
            f"--text-column {fitting[0]}.{column}."
        )
    return lists[fitting[0]] if fitting else [value]


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _record(item: Any, column: str, where: str) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return dict(item)
    if isinstance(item, str):
        return {column: item}
    if isinstance(item, Sequence) and all(isinstance(message, Mapping) for message in item):
        return {_CONVERSATIONS[0]: list(item)}
    raise CalibrationError(
        f"{where} holds {type(item).__name__} where a record or a text should be."
    )


def texts_of(
    rows: Dataset, column: str, where: str, tokenizer: PreTrainedTokenizerBase | None
) -> list[str | None]:
    """Find the text of every record.

    Args:
        rows: with any columns.
        column: its name, `outer.inner` for a field inside of one. The default, "text", means
            conversations where there is no such column and one of `messages` or `conversations`.
        where: the file or dataset, for messages.
        tokenizer: its chat template makes text of conversations.

    Raises:
        CalibrationError: no such column, or no text in it.
    """
    if column not in rows.column_names:
        flat = rows.flatten()
        chats = [name for name in _CONVERSATIONS if name in rows.column_names]
        if column in flat.column_names:
            rows = flat
        elif column == _TEXT and chats:
            column = chats[0]
        else:
            raise CalibrationError(
                f"{where} has no column {column!r} but {', '.join(flat.column_names)}; "
                "say which one holds the text (--text-column)."
            )
    values = list(rows[column])
    if all(isinstance(value, str | None) for value in values):
        return values
    if all(value is None or _is_conversation(value) for value in values):
        return [
            _told(value, tokenizer, f"record {number} of {where}") if value else None
            for number, value in enumerate(values, start=1)
        ]
    inside = [name for name in rows.flatten().column_names if name.startswith(f"{column}.")]
    more = f"; it has the fields {', '.join(inside)}, name one of them" if inside else ""
    raise CalibrationError(f"column {column!r} of {where} does not hold text{more}.")


def titles_of(rows: Dataset, column: str) -> list[str | None]:
    """Give what every record calls itself: its `title`, or else its `id`.

    Args:
        column: holds the text, so it is no title.
    """
    columns = [rows[name] for name in _TITLES if name in rows.column_names and name != column]
    return [
        next((str(value) for value in values if isinstance(value, str | int)), None)
        for values in (zip(*columns, strict=True) if columns else [()] * len(rows))
    ]


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(m, Mapping) and (("role" in m and "content" in m) or {"from", "value"} <= set(m))
        for m in value
    )


def _told(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase | None, where: str
) -> str:
    """Write a conversation as the model is shown it.

    Raises:
        CalibrationError: there is no chat template, or it does not take this conversation.
    """
    if tokenizer is None:
        raise CalibrationError(
            f"{where} is a conversation, which only the model's tokenizer can make text of; pass "
            "tokenizer=."
        )
    if not tokenizer.chat_template:
        raise CalibrationError(
            f"{where} is a conversation and the model's tokenizer has no chat template; give plain "
            "text, or put a chat_template.jinja beside the tokenizer."
        )
    try:
        text = tokenizer.apply_chat_template([_message(m) for m in messages], tokenize=False)
    except Exception as error:  # jinja's, and whatever the template itself raises
        raise CalibrationError(
            f"the tokenizer's chat template does not take {where}: {' '.join(str(error).split())}."
        ) from error
    bos = tokenizer.bos_token
    if bos and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(bos)  # the tokenizer puts it there itself
    return text


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    # records of one file have one set of fields, None where a message lacks one
    given = {key: value for key, value in message.items() if value is not None}
    if "from" in given and "role" not in given:
        role = given["from"]
        return {"role": _ROLES.get(role, role), "content": given.get("value", "")}
    content = given.get("content", "")
    if isinstance(content, list):  # in parts: those of text
        parts = [part.get("text") or "" if isinstance(part, Mapping) else part for part in content]
        content = "".join(parts)
    return given | {"content": content}
