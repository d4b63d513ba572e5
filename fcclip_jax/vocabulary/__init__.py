"""Words: classes, synonyms, prompts, tokens. No jax here."""

from fcclip_jax.vocabulary.class_names import ClassName
from fcclip_jax.vocabulary.prompts import TEMPLATES, fill_templates
from fcclip_jax.vocabulary.tokenizer import CONTEXT_LENGTH, Tokenizer, encode, token_count, tokenize
from fcclip_jax.vocabulary.vocabulary import Vocabulary, builtin_names

__all__ = [
    "CONTEXT_LENGTH",
    "TEMPLATES",
    "ClassName",
    "Tokenizer",
    "Vocabulary",
    "builtin_names",
    "encode",
    "fill_templates",
    "token_count",
    "tokenize",
]
