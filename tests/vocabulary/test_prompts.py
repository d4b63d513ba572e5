import json
from pathlib import Path

import numpy as np
import pytest

from fcclip_jax.vocabulary import TEMPLATES, fill_templates

ORACLE = Path(__file__).parents[3] / "shared" / "oracle"


def test_word_by_word_template_by_template():
    prompts = fill_templates(["cat", "dog"])
    assert len(TEMPLATES) == 14
    assert len(prompts) == 28
    assert prompts[0] == "a photo of a cat."
    assert prompts[13] == "There is a large cat in the scene."
    assert prompts[14] == "a photo of a dog."


def test_braces_in_a_word_stay():
    assert fill_templates(["{0} {}"])[0] == "a photo of a {0} {}."


@pytest.mark.skipif(not ORACLE.exists(), reason="the oracle's files are not beside this checkout")
def test_equal_to_the_oracle():
    lists = json.loads((ORACLE / "vocabularies.json").read_text(encoding="utf-8"))
    assert list(TEMPLATES) == lists["ade"]["prompt_templates"] == lists["coco"]["prompt_templates"]
    texts = np.load(ORACLE / "text_convnext_large_d_320.npz")
    assert fill_templates(["wall", "walls"]) == texts["ade_first28_prompts"].tolist()
