"""Loads the tokenizer of a run, and tells two tokenizers apart."""

import copy
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from phf_ray.config import TokenizerConfig
from phf_ray.errors import ConfigError
from phf_ray.model_folder import check_tokenizer, check_tokenizer_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(config: TokenizerConfig) -> "PreTrainedTokenizerFast":
    """Load the tokenizer and add `special_tokens`. New tokens get ids at the end of the vocabulary."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # imports torch if it is installed

    if Path(config.path_or_name).is_dir():
        check_tokenizer_files(Path(config.path_or_name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.path_or_name, revision=config.revision)
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"tokenizer.path_or_name={config.path_or_name!r} could not be loaded: {reason}; give a folder with "
            "tokenizer.json, or a hub name that is in the cache or can be downloaded"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(
            f"tokenizer.path_or_name={config.path_or_name!r} is a {type(tokenizer).__name__}, which has no "
            "character offsets; use one with a tokenizer.json"
        )
    check_tokenizer(tokenizer, config.path_or_name)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"tokenizer.path_or_name={config.path_or_name!r} has no end-of-text token, which separates documents; "
            "set eos_token in its tokenizer_config.json"
        )
    if config.special_tokens:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": list(config.special_tokens)}, replace_extra_special_tokens=False
        )
    return tokenizer


def tokenizer_hash(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Hash a tokenizer. Equal hashes mean the same tokens for every text, and the same structural tokens."""
    structure = [tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id]
    text = json.dumps([text_only_backend(tokenizer).to_str(), structure])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def text_only_backend(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer":
    """Copy the tokenizer's engine. The copy reads special tokens in a text as text, adds none, and never truncates."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.encode_special_tokens = True
    # A post-processor adds special tokens, and some trim spaces off the offsets, which are then useless for spaces.
    backend.post_processor = None
    backend.no_padding()
    backend.no_truncation()
    return backend
