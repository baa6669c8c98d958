"""Documents, cut into token windows and put into a loader."""

import pytest

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.text import ids
from funcnet_plugin.text.documents import Document
from funcnet_plugin.text.windows import (
    document_windows,
    make_loader,
    mixed_windows,
    token_windows,
)
from tests.conftest import make_tokenizer


def test_windows_are_full_distinct_and_reproducible(texts):
    tokenizer = make_tokenizer()
    windows = token_windows(texts, tokenizer, window=50, samples=20, seed=3)
    assert len(windows) == 20 and {len(w) for w in windows} == {50}
    assert len({tuple(w) for w in windows}) == 20
    assert windows == token_windows(texts, tokenizer, window=50, samples=20, seed=3)
    assert windows != token_windows(texts, tokenizer, window=50, samples=20, seed=4)
    everything = token_windows(texts, tokenizer, window=50, samples=10_000, seed=0)
    assert len(everything) == 12 * 600 // 50


def test_too_little_text_for_one_window():
    with pytest.raises(CalibrationError, match="has 5 tokens and one sample needs 50"):
        token_windows(["abcde"], make_tokenizer(), window=50, samples=1, seed=0)


def test_the_loader_keeps_the_order():
    windows = [[i] * 4 for i in range(5)]
    batches = list(make_loader(windows, batch_size=2))
    assert [b["input_ids"][:, 0].tolist() for b in batches] == [[0, 1], [2, 3], [4]]
    assert batches[0]["attention_mask"].tolist() == [[1] * 4] * 2


def test_mixed_sources_get_their_shares_in_one_order():
    first, second = [Document("a" * 400)], [Document("b" * 400)]
    options = {"window": 10, "samples": 40, "seed": 0}
    windows = mixed_windows([(first, 0.75), (second, 0.25)], make_tokenizer(), **options)
    kinds = [len(set(window.tokens)) == 1 and window.tokens[0] for window in windows]
    assert sorted(map(kinds.count, set(kinds))) == [10, 30]
    assert len(set(kinds[:10])) == 2  # not one after the other
    with pytest.raises(CalibrationError, match=r"share of 0.001 of 40 samples is none"):
        mixed_windows([(first, 0.999), (second, 0.001)], make_tokenizer(), **options)


@pytest.mark.parametrize(("samples", "sources"), [(40, 3), (160, 3), (160, 6), (41, 2), (7, 5)])
def test_shares_that_do_not_divide_the_samples_still_give_all_of_them(samples, sources):
    documents = [Document(letter * 800) for letter in "abcdef"[:sources]]
    options = {"window": 10, "samples": samples, "seed": 0}
    shares = [(documents[i : i + 1], 1 / sources) for i in range(sources)]
    windows = mixed_windows(shares, make_tokenizer(), **options)
    assert len(windows) == samples
    found = [window.document_at(0) for window in windows]
    assert {found.count(document) for document in documents} <= {
        samples // sources,
        samples // sources + 1,
    }


def test_a_long_text_is_tokenized_in_parts(monkeypatch):
    documents = [Document(letter * n) for letter, n in (("a", 9), ("b", 30), ("c", 2), ("d", 7))]
    options = {"window": 8, "samples": 6, "seed": 0}
    whole = document_windows(documents, make_tokenizer(), **options)
    monkeypatch.setattr(ids, "_CHARACTERS", 12)
    tokenizer, calls = make_tokenizer(), []

    def counted(texts, **how):
        calls.append([len(text) for text in texts])
        return tokenizer(texts, **how)

    assert document_windows(documents, counted, **options) == whole
    assert calls == [[9], [30], [2, 7]]


def test_every_token_knows_its_document():
    documents = [Document(letter * n) for letter, n in (("a", 7), ("b", 3), ("c", 25), ("d", 5))]
    tokenizer = make_tokenizer()
    windows = document_windows(documents, tokenizer, window=10, samples=9, seed=0)
    assert len(windows) == 4
    for window in windows:
        found = [window.document_at(position).text[0] for position in range(10)]
        assert tokenizer.convert_tokens_to_ids(found) == window.tokens
    assert sorted(map(len, (window.documents for window in windows))) == [1, 1, 2, 2]


def test_a_document_without_a_token_is_of_no_window():
    documents = [Document("a" * 5), Document(""), Document("b" * 5)]
    (window,) = document_windows(documents, make_tokenizer(), window=10, samples=1, seed=0)
    assert window.documents == [documents[0], documents[2]]
