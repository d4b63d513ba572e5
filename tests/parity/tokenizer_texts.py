"""Texts that a tokenizer may get wrong: a list written by hand, and a seeded generator of as many as wanted."""

import random
import string
from collections.abc import Iterator

from fcclip_jax.vocabulary import TEMPLATES, Vocabulary, builtin_names

NASTY = [
    "",
    " ",
    "\n\t \r\n",
    "a",
    "A",
    "I",
    "cat",
    "  two   blanks  ",
    "a photo of a cat.",
    "This is a photo of a LARGE potted plant.",
    "<start_of_text>",
    "<end_of_text>",
    "<START_OF_TEXT> Cat <End_Of_Text>",
    "a<start_of_text>b",
    "<<start_of_text>>",
    "<start_of_text",
    "start_of_text",
    "<start_of_text><end_of_text>",
    "&lt;start_of_text&gt;",
    "<ſtart_of_text>",
    "<ﬆart_of_text>",
    "<|startoftext|> cat <|endoftext|>",
    "<s_t>",
    "_under_score_",
    "it's we're I've he'll she'd I'm don't",
    "IT'S WE'RE I'VE",
    "it’s ‘quoted’ “double”",
    "'s's's",
    "''s",
    "s'",
    "it'ſ",
    "'K'",
    "rock'n'roll",
    "1234567890",
    "3.14 + 2,718 = 5%",
    "x²+½ ¾ Ⅷ ① ٣ ३ 𝟘",
    "!?!?...---***",
    "#hashtag @user http://example.org/a?b=c&d=e#f",
    "C:\\path\\to",
    "{} {0} %s",
    "[stuff]",
    "wall,walls,brick wall",
    "doll's house",
    "windshield wiper (for windshield/screen)",
    "&amp;",
    "&amp;amp;amp;",
    "&amp;lt;b&amp;gt;",
    "&lt;p&gt;bread &amp; butter&lt;/p&gt;",
    "<b>bread &amp; butter</b>",
    "&eacute;&#233;&#xE9;&#XE9",
    "&notit; &not; &ampcat &copy",
    "&#0; &#x80; &#xD800; &#x110000; &#13;",
    "&nbsp;cat&nbsp;",
    "&NotAnEntity;",
    "caf\u00e9 cafe\u0301 na\u00efve Ångström",
    "ﬁsh ﬂower oﬃce ĳ ŉ Ǆ",
    "ＦＵＬＬ　ｗｉｄｔｈ　１２３",
    "ΟΔΟΣ Σ ΣΑΣ ς",
    "İstanbul I ı ŞİŞ",
    "Straße STRASSE ẞ",
    "Ǆ ǅ ǆ",
    "Привет, мир",
    "猫と犬がいる",
    "고양이 강아지 각",
    "แมว กับ หมา",
    "قطة وكلب ـــ",
    "חָתוּל",
    "बिल्ली और कुत्ता",
    "ᏣᎳᎩ Ꭰꭰ",
    "😀",
    "👩‍👩‍👧‍👦 👍🏽 🇨🇦 ❤️",
    "a😀b",
    "𝒞𝒶𝓉 𝕯𝖔𝖌",
    "𐐀𐐨",
    "\ud800",
    "a\udcffb",
    "\ud83d\ude00",
    "\ude00\ud83d",
    "\ud800cat\udfff",
    "\x00",
    "a\x00b\x07c\x7fd",
    "\x1b[31mred\x1b[0m",
    "a\x0bb\x0cc\x1cd\x1ee\x85f",
    "a\u00a0b\u2003c\u2028d\u2029e\u3000f\u180eg",
    "zero\u200bwidth\u200djoiner\ufeff\u2060",
    "\ufeffbom",
    "soft\u00adhyphen",
    "\u202eright to left\u202c",
    "\ufffd\ufffe\uffff",
    "\ue000\U000f0000",
    "\U0010ffff",
    "schÃ¶n cafÃ© âœ” â€œquotedâ€\x9d",
    "ÃƒÂ© l\u2019humanitÃ©",
    "1 × 2 ÷ 3 ± µ",
    "a\u0300\u0301\u0302\u0303b",
    "\u0301",
    "a" * 76,
    "ab " * 40,
    "a " * 74,
    "a " * 75,
    "a " * 76,
    "supercalifragilisticexpialidocious" * 3,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "hahahahahahahahahahahaha",
    "-" * 200,
    "!" * 33 + "?" * 31,
    "ééééééééééééééééé",
    "猫" * 50,
    "very long prompt " * 60,
]

_WORDS = [
    "cat",
    "Dog",
    "tree",
    "the",
    "DON'T",
    "größer",
    "naïve",
    "мир",
    "Собака",
    "猫",
    "東京",
    "고양이",
    "γάτα",
]
_WORDS += [
    "ΟΔΟΣ",
    "قطة",
    "חתול",
    "แมว",
    "बिल्ली",
    "İzmir",
    "😀",
    "👍🏽",
    "ﬁsh",
    "２０",
    "x²",
    "o’clock",
    "3rd",
    "ſ's",
]
_MARKUP = [
    "&amp;",
    "&amp;amp;",
    "&lt;",
    "&gt;",
    "&quot;",
    "&#39;",
    "&#x27;",
    "&nbsp;",
    "&eacute",
    "&Aacute;",
    "&#233;",
]
_MARKUP += [
    "&#x1F600;",
    "&#xD83D;",
    "&#0;",
    "&bogus;",
    "&",
    ";",
    "#",
    "<b>",
    "</i>",
    "<br/>",
    "<!-- x -->",
    "&fjlig;",
]
_CONTROLS = [chr(n) for n in range(0x21)] + [
    "\x7f",
    "\x85",
    "\xa0",
    "\xad",
    "\u200b",
    "\u200d",
    "\u2028",
    "\ufeff",
]
_SPECIALS = [
    "<start_of_text>",
    "<end_of_text>",
    "<START_of_text>",
    "<|endoftext|>",
    "<ſtart_of_text>",
    "start_of_text",
]


def _letters(rng: random.Random, alphabet: str, least: int, most: int) -> str:
    return "".join(rng.choices(alphabet, k=rng.randint(least, most)))


def _prompt(rng, names):
    return rng.choice(TEMPLATES).format(rng.choice(names))


def _block(rng, names):
    start = rng.choice([rng.randrange(0, 0x3000), rng.randrange(0, 0x10000), rng.randrange(0, 0x20000)]) & ~0x7F
    return "".join(chr(start + rng.randrange(128)) + " " * (rng.random() < 0.15) for _ in range(rng.randint(1, 20)))


def _punctuation(rng, names):
    return _letters(rng, string.punctuation * 2 + string.ascii_letters + string.digits + "   '''", 1, 40)


def _markup(rng, names):
    return "".join(rng.choice([*_MARKUP, *_MARKUP, " ", rng.choice(names)]) for _ in range(rng.randint(1, 10)))


def _mixed(rng, names):
    return "".join(rng.choice(_WORDS) + rng.choice(["", " ", " ", "-", "'s ", ", "]) for _ in range(rng.randint(1, 10)))


def _long_word(rng, names):
    alphabet = rng.choice(
        [string.ascii_letters, "etaoinshrdlu", "ab", "aeiouáéíóú", "абвгдежз", "猫犬東京人", "'sdtrelvm"]
    )
    return _letters(rng, alphabet, 20, 200)


def _long_text(rng, names):
    return " ".join(_ANY_KIND[rng.randrange(4)](rng, names) for _ in range(rng.randint(10, 40)))


def _control(rng, names):
    return "".join(rng.choice([rng.choice(_CONTROLS), rng.choice(_WORDS), " "]) for _ in range(rng.randint(1, 12)))


def _any_code_point(rng, names):
    return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randint(1, 12)))


def _any_short(rng, names):
    return "".join(chr(rng.randrange(0x250)) for _ in range(rng.randint(1, 20)))


def _special(rng, names):
    return "".join(rng.choice([*_SPECIALS, " ", rng.choice(names), "<", ">"]) for _ in range(rng.randint(1, 6)))


def _mojibake(rng, names):
    wrong = rng.choice(["latin-1", "cp1252", "cp437", "mac_roman"])
    return _mixed(rng, names).encode("utf-8").decode(wrong, errors="replace")


def _nasty_pieces(rng, names):
    text = rng.choice(NASTY) + rng.choice(["", " "]) + rng.choice(NASTY)
    cut = rng.randrange(len(text) + 1)
    return text[:cut] + rng.choice(_WORDS) * (rng.random() < 0.3) + text[cut:]


_ANY_KIND = [
    _prompt,
    _mixed,
    _markup,
    _punctuation,
    _block,
    _long_word,
    _control,
    _any_code_point,
    _any_short,
]
_ANY_KIND += [_special, _mojibake, _nasty_pieces, _prompt, _block, _mixed]


def generate(count: int, seed: int = 0) -> Iterator[str]:
    """`count` texts of all kinds in turn; one in a hundred is very long."""
    rng = random.Random(seed)
    names = [word for name in builtin_names() for word in Vocabulary.builtin(name).synonyms]
    for n in range(count):
        yield (_long_text if n % 100 == 99 else _ANY_KIND[n % len(_ANY_KIND)])(rng, names)
