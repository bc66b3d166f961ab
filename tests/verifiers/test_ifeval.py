"""Each IFEval constraint: texts that keep it and texts that do not, and the reference's opinion."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caravan.errors import DataError
from caravan.verifiers import verify
from caravan.verifiers.ifeval import CONSTRAINTS, check, loose_variants

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PROMPTS = Path(os.environ.get("CARAVAN_TEST_DATA", SHARED)) / "eval/ifeval/input_data.jsonl"

CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    # id, kwargs, texts that keep it, texts that do not
    ("keywords:existence", {"keywords": ["fox", "river"]}, ["Foxes by the RIVER"], ["a fox"]),
    (
        "keywords:frequency",
        {"keyword": "no", "frequency": 2, "relation": "at least"},
        ["No, I know."],
        ["no."],
    ),
    (
        "keywords:frequency",
        {"keyword": "no", "frequency": 2, "relation": "less than"},
        ["no."],
        ["No, no."],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["cat"]},
        ["A category.", "Concatenate"],
        ["The Cat!"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "A", "let_frequency": 3, "let_relation": "at least"},
        ["Banana"],
        ["Anna"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist ein schöner Tag, und wir gehen heute in den Wald."],
        ["This is a beautiful day and we walk into the forest."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ["One here. Two there! Three?", "Dr. Smith came. He sat. He left."],
        ["Dr. Smith came at 3.5 p.m. today. He sat.", "No full stop at all"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        ["Only Mr. Jones came."],
        ["One here. Two there."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "***\none\n***\ntwo\n***"],
        ["one\n\ntwo", "one\n***\n***\ntwo", "a *** b *** c"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        ["one two, three", "don't stop"],
        ["one two"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Well"},
        ['First.\n\n"Well, then."', "a\n\nwell"],
        ["First.\n\nGood.", "Well.", "a\n\nb\n\nwell"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["Dear [name] of [town]"],
        ["Dear [name]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. Write!", "P. s. also"],
        ["Bye. PS"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S. Write!", "p. p. s"],
        ["P.S. Bye."],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  * b"],
        ["* a", "* a\n* b\n- c", "** bold **\n* a"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["I think. My answer is no."],
        ["My answer is no"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and *two*", "**one** *two*"],
        ["*one*", "* * **"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1 a Section 2 b"],
        ["Section 1", "Section one Section two"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', "[]"],
        ["{a: 1}", "Here: {}"],
    ),
    ("detectable_format:title", {}, ["<<A day>>\ntext"], ["<A day>", "<< >>", "<<\n>>"]),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "******a******b******"],
        ["a", "a******a", "a******b******c", "a************b"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say Hi. "},
        ["say hi. Hi!"],
        ["Hi! Say hi."],
    ),
    ("startend:end_checker", {"end_phrase": "The end."}, ['so "the END."'], ["The end. Bye"]),
    ("startend:quotation", {}, ['"quoted"', ' "q" '], ['"open', '"']),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["I AM here", "I'M", "A WELL-KNOWN one"],
        ["I am", "Well OK"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["NASA's rocket"],
        ["NASA and ESA"],
    ),
    (
        "change_case:english_capital",
        {},
        ["THE DOG RUNS OVER THE HILL AND INTO THE RIVER"],
        ["The dog runs over the hill", "DER HUND LÄUFT ÜBER DEN HÜGEL IN DEN FLUSS HINEIN"],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["the dog runs over the hill and into the river", "the end of the day"],
        ["The dog runs over the hill", "der hund läuft über den hügel in den fluss hinein"],
    ),
    ("punctuation:no_comma", {}, ["no commas; none"], ["one, two"]),
]


def test_every_constraint_of_the_benchmark_is_there() -> None:
    assert {case[0] for case in CASES} | {"change_case:lowercase", "change_case:uppercase"} == set(
        CONSTRAINTS
    )
    assert len({case[0] for case in CASES}) == 25


@pytest.mark.parametrize(("name", "kwargs", "kept", "broken"), CASES)
def test_constraint(name: str, kwargs: dict[str, Any], kept: list[str], broken: list[str]) -> None:
    constraint = {"id": name, "kwargs": kwargs}
    assert [text for text in kept if not check(text, constraint)] == []
    assert [text for text in broken if check(text, constraint)] == []
    assert not check(" \n", constraint)


def test_score_is_the_share_kept_and_correct_means_all() -> None:
    truth = [
        {"id": "punctuation:no_comma", "kwargs": {}},
        {"id": "change_case:lowercase"},
        {"id": "keywords:existence", "kwargs": {"keywords": ["fox"]}},
    ]
    verdict = verify("ifeval", "a fox, a dog", truth)
    assert (verdict.correct, verdict.score, verdict.extracted) == (False, 2 / 3, "2 of 3")
    assert verify("ifeval", "a fox", truth).correct


def test_loose_forgives_an_introduction_a_closing_line_and_asterisks() -> None:
    quoted = [{"id": "startend:quotation", "kwargs": {}}]
    for text in ('Sure:\n"text"', '"text"\nBye', 'Sure:\n"text"\nBye', '**"text"**'):
        assert not verify("ifeval", text, quoted).correct
        assert verify("ifeval_loose", text, quoted).correct
    assert len(loose_variants("a\nb\nc")) == 8
    comma = [{"id": "punctuation:no_comma", "kwargs": {}}]
    assert not verify("ifeval_loose", "a, b", comma).correct  # empty variants do not count


def test_a_wrong_ground_truth_is_an_error_and_not_a_wrong_answer() -> None:
    with pytest.raises(DataError, match="unknown constraint 'keywords:none'"):
        verify("ifeval", "x", [{"id": "keywords:none", "kwargs": {}}])
    with pytest.raises(DataError, match="num_bullets"):
        verify("ifeval", "x", [{"id": "detectable_format:number_bullet_lists", "kwargs": {}}])
    with pytest.raises(DataError, match="no constraint"):
        verify("ifeval", "x", [])


def test_a_keyword_that_is_no_pattern_is_taken_literally() -> None:
    keyword = {"id": "keywords:existence", "kwargs": {"keywords": ["c++ ("]}}
    assert check("in C++ (2020)", keyword)


def test_short_plain_english_is_english_and_other_languages_are_not() -> None:
    lower = {"id": "change_case:english_lowercase", "kwargs": {}}
    for text in (
        "xenia got a lemon in elsk.",
        "in esker, karin found a net.",
        "is it on the hill?",
    ):
        assert check(text, lower), text  # langdetect alone takes the first for Slovenian
    for text in (
        "das was in der stadt war, war so gut wie in wien.",
        "en la casa de un amigo no hay no, a veces.",
        "in de stad was er is een man in het huis.",
        "la casa in cui ho visto la donna, no, a roma.",
    ):
        assert not check(text, lower), text


def test_cheap_constraints_import_nothing_heavy_and_are_fast() -> None:
    program = """
import sys
from caravan.verifiers import verify
truth = [{"id": "change_case:english_lowercase", "kwargs": {}},
         {"id": "keywords:existence", "kwargs": {"keywords": ["fox", "river"]}},
         {"id": "length_constraints:number_sentences",
          "kwargs": {"relation": "at least", "num_sentences": 1}}]
verify("ifeval", "the fox swims over the river.", truth)
verify("gsm8k", "so it is 7", "7")
print([m for m in ("torch", "numpy", "nltk", "langdetect", "sympy") if m in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr

    truth = [
        {"id": "punctuation:no_comma", "kwargs": {}},
        {"id": "change_case:lowercase", "kwargs": {}},
        {
            "id": "length_constraints:number_words",
            "kwargs": {"relation": "at least", "num_words": 5},
        },
        {"id": "detectable_format:number_bullet_lists", "kwargs": {"num_bullets": 2}},
    ]
    start = time.process_time()
    for i in range(2000):
        verify("ifeval", f"the fox swims over the river and sings number {i}.", truth)
    assert 2000 * len(truth) / (time.process_time() - start) > 20_000


# --- against the implementation of lm-evaluation-harness ----------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """lm-eval's IFEval module alone, on NLTK data found in `NLTK_DATA` or llama-index-core."""
    for package in ("nltk", "immutabledict", "langdetect"):
        pytest.importorskip(package)
    roots = {}
    for package in ("lm_eval", "llama_index"):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            pytest.skip(
                f"{package} is not installed (pip install --no-deps lm-eval llama-index-core)"
            )
        roots[package] = Path(next(iter(spec.submodule_search_locations)))
    # NLTK refuses hard links, which is how uv installs files
    data = tmp_path_factory.mktemp("nltk_data")
    punkt = roots["llama_index"] / "core/_static/nltk_cache/tokenizers/punkt_tab"
    if not punkt.exists():
        pytest.skip("this llama-index-core brings no punkt_tab")
    shutil.copytree(punkt, data / "tokenizers/punkt_tab")
    import langdetect
    import nltk

    nltk.data.path.insert(0, str(data))
    langdetect.DetectorFactory.seed = 0
    names = {"lm_eval": "", "lm_eval.tasks": "tasks", "lm_eval.tasks.ifeval": "tasks/ifeval"}
    before = {name: sys.modules.get(name) for name in names}
    for name, folder in names.items():  # without their __init__, which imports the whole harness
        package_module = types.ModuleType(name)
        package_module.__path__ = [str(roots["lm_eval"] / folder)]
        sys.modules[name] = package_module
    yield importlib.import_module("lm_eval.tasks.ifeval.utils")
    for name, module in before.items():
        if module is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = module


def _opinions(reference: Any, prompt: str, constraints: list[dict[str, Any]], text: str) -> Any:
    row = reference.InputExample(
        0, [c["id"] for c in constraints], prompt, [c["kwargs"] for c in constraints]
    )
    strict = reference.test_instruction_following_strict(row, text).follow_instruction_list
    loose = reference.test_instruction_following_loose(row, text).follow_instruction_list
    return strict, loose


@pytest.mark.parametrize(("name", "kwargs", "kept", "broken"), CASES)
def test_reference_agrees(
    reference: Any, name: str, kwargs: dict[str, Any], kept: list[str], broken: list[str]
) -> None:
    for text in (*kept, *broken):
        strict, loose = _opinions(reference, "", [{"id": name, "kwargs": kwargs}], text)
        assert check(text, {"id": name, "kwargs": kwargs}) == strict[0], text
        variants = loose_variants(text)
        assert any(check(v, {"id": name, "kwargs": kwargs}) for v in variants) == loose[0], text


def _responses(row: dict[str, Any], rng: random.Random) -> list[str]:
    prompt = row["prompt"]
    values = [v for kwargs in row["kwargs"] for v in kwargs.values()]
    words = [w for v in values for w in (v if isinstance(v, list) else [v]) if isinstance(w, str)]
    sentences = [f"Then {w} came to town." for w in words] + ["Dr. Lee said so!", "Why not?"]
    return [
        prompt,
        prompt.upper(),
        f'Sure:\n"{prompt}"\nBye',
        f"<<Title>>\nSection 1\n* one\n- two [a] [b]\n***\nSECTION 2 **b** *c*\n{' '.join(words)}",
        " ".join(rng.choices(sentences, k=rng.randint(1, 20))) + "\nP.S. Done",
        f"{words[-1] if words else 'a'}\n\nb\n******\nc\n\nMy answer is yes.",
    ]


@pytest.mark.skipif(not PROMPTS.exists(), reason=f"{PROMPTS} is not here")
def test_reference_agrees_on_all_prompts_of_the_benchmark(reference: Any) -> None:
    rng = random.Random(0)
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    assert len(rows) == 541
    compared: Counter[str] = Counter()
    different: Counter[str] = Counter()
    for row in rows:
        ids = row["instruction_id_list"]
        constraints = [{"id": i, "kwargs": k} for i, k in zip(ids, row["kwargs"], strict=True)]
        for text in _responses(row, rng):
            strict, loose = _opinions(reference, row["prompt"], constraints, text)
            variants = loose_variants(text)
            for constraint, s, lo in zip(constraints, strict, loose, strict=True):
                letter = constraint["kwargs"].get("letter", "a")
                if not letter.isalpha():
                    continue  # the reference replaces "#" by a random letter
                ours = check(text, constraint), any(check(v, constraint) for v in variants)
                compared[constraint["id"]] += 2
                different[constraint["id"]] += (ours[0] != s) + (ours[1] != lo)
    assert len(compared) == 25
    sentences = "length_constraints:number_sentences"
    assert different.pop(sentences) <= 0.02 * compared[sentences]  # Punkt against our splitter
    assert {name: count for name, count in different.items() if count} == {}
