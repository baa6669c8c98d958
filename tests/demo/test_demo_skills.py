import pytest

from funcnet_plugin.demo.skills import FACTS, SKILLS, documents, examples


def right_answer(skill: str, prompt: str) -> str:
    """Solves a prompt independently of how it was made."""
    words = prompt.split()
    match skill:
        case "add":
            return f" {int(words[1]) + int(words[3])}"
        case "brackets":
            pairs, text = {"(": ")", "[": "]", "{": "}"}, words[1]
            while (shorter := text.replace("()", "").replace("[]", "").replace("{}", "")) != text:
                text = shorter
            return "".join(f" {pairs[bracket]}" for bracket in reversed(text))
        case "copy":
            return "".join(f" {w}" for w in words[1:-1])
        case "reverse":
            return "".join(f" {w}" for w in words[-2:0:-1])
        case "sort":
            return "".join(f" {w}" for w in sorted(words[1:-1]))
        case "recall":
            colon = words.index(":")
            return {pair[0]: pair[1] for pair in words[1:colon]}[words[-1]]
        case "facts":
            return f" {FACTS[words[2]]}"


@pytest.mark.parametrize("skill", [name for name in SKILLS if name != "agreement"])
def test_answers_are_right(skill):
    for example in examples(skill, 60, seed=1):
        assert example.answer == right_answer(skill, example.prompt), example


def test_verbs_agree_with_the_subject_and_not_with_the_distractor():
    verbs = {}
    for example in examples("agreement", 200, seed=1):
        subject = example.prompt.split()[2]
        verbs.setdefault(subject, set()).add(example.answer)
    assert all(len(answers) == 1 for answers in verbs.values())
    for subject, (answer,) in verbs.items():
        plural = subject + "s"
        if plural in verbs:
            assert answer == next(iter(verbs[plural])) + "s"


@pytest.mark.parametrize("skill", SKILLS)
def test_four_choices_with_the_answer_once_in_any_place(skill):
    tests = examples(skill, 90, seed=2)
    for example in tests:
        assert len(set(example.choices)) == 4 and example.answer in example.choices
        # else the last token of the prompt could be another one with the answer behind it
        assert skill == "recall" or all(choice.startswith(" ") for choice in example.choices)
    places = {example.choices.index(example.answer) for example in tests}
    assert places == {0, 1, 2, 3}


@pytest.mark.parametrize("skill", SKILLS)
def test_examples_are_reproducible_and_different(skill):
    first = examples(skill, 50, seed=3)
    assert first == examples(skill, 50, seed=3)
    assert len({example.prompt for example in first}) == 50
    assert first != examples(skill, 50, seed=4)


def test_training_and_test_prompts_are_disjoint():
    for skill, about in SKILLS.items():
        if about.memorised:
            continue
        sides = [{e.prompt for e in examples(skill, 100, 0, split)} for split in ("train", "test")]
        assert not sides[0] & sides[1]
    test_lines = {e.prompt for s in SKILLS if s != "facts" for e in examples(s, 200, seed=0)}
    train_text = "".join(documents(300, seed=0, split="train"))
    assert not any(line.startswith(tuple(test_lines)) for line in train_text.splitlines())


def test_documents_are_lines_of_all_skills():
    texts = documents(50, seed=0, split="test")
    assert texts == documents(50, seed=0, split="test")
    assert all(text.count("\n") == 5 for text in texts)
    starts = {line.split()[0] for text in texts for line in text.splitlines()}
    assert starts == {"add", "close", "copy", "back", "sort", "say", "look", "city"}


def test_more_examples_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="fewer than 97"):
        examples("facts", 97, seed=0)
