"""Our tokenizer against open_clip's own, where torch and open_clip are installed.

`python tests/parity/test_tokenizer_open_clip.py` (needs them too) writes tests/golden/tokenizer.json anew.
"""

import importlib.util
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizer_texts import NASTY, generate

from fcclip_jax.vocabulary import encode, tokenize

pytestmark = pytest.mark.parity
GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer.json"
COUNT = 100_000


def open_clip_tokenizer():
    """open_clip's SimpleTokenizer; its module is loaded alone, the rest of open_clip needs torchvision and timm."""
    package = importlib.util.find_spec("open_clip")
    path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer(clean="lower")


@pytest.fixture(scope="module")
def reference():
    for package in ("torch", "open_clip"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (the extra `parity` holds it)")
    return open_clip_tokenizer()


def test_the_golden_is_what_open_clip_says(reference):
    golden = json.loads(GOLDEN.read_text(encoding="ascii"))
    assert [reference.encode(text) for text, _ in golden] == [ids for _, ids in golden]


def test_equal_on_generated_texts(reference):
    texts = [*NASTY, *generate(COUNT)]
    different = [text for text in texts if encode(text) != reference.encode(text)]
    assert len(set(texts)) > 0.8 * COUNT
    assert not different, f"{len(different)} of {len(texts)} differ, the first: {different[0]!a}"


@pytest.mark.parametrize("context_length", [2, 16, 77])
def test_equal_rows(reference, context_length):
    texts = [*NASTY, *generate(2000, seed=1)]
    np.testing.assert_array_equal(tokenize(texts, context_length), reference(texts, context_length).numpy())


if __name__ == "__main__":
    tokenizer = open_clip_tokenizer()
    # Without unassigned code points: those become letters in later versions of Unicode, and the ids change with them.
    settled = [text for text in generate(400, seed=2) if "Cn" not in map(unicodedata.category, text)]
    pairs = [[text, tokenizer.encode(text)] for text in [*NASTY, *settled]]
    GOLDEN.write_text("[\n" + ",\n".join(json.dumps(pair) for pair in pairs) + "\n]\n", encoding="ascii")
