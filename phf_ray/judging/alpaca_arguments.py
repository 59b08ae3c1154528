"""Arguments of AlpacaFarm's and AlpacaEval's annotators that have no place here, and what stands in for each."""

from collections.abc import Iterable

from phf_ray.errors import ConfigError

REFUSED = {
    "input_keys": "rows have the columns instruction and input; rename yours",
    "output_keys": "rows have the columns output_1 and output_2; rename yours",
    "primary_keys": "rows have the columns instruction, input, output_1 and output_2; rename yours",
    "base_dir": 'give the file itself, as annotators_config="folder/pool.yml"',
    "other_keys_to_keep": "all columns of a row come back with it, and price, seconds and raw",
    "other_output_keys_to_keep": "all columns of a row come back with it, and price, seconds and raw",
    "is_store_missing_preferences": "failures are not kept, but for those that load_() or --known reads as -1",
    "is_store_missing_annotations": "failures are not kept, but for those that load_() or --known reads as -1",
    "is_reapply_parsing": "kept answers are read anew by the parser that the pool has now",
    "is_raise_if_missing_primary_keys": "a row without one of its columns is always an error, which names the row",
    "annotation_type": "preferences are numbers from 1 to 2, or None",
    "num_procs": "in_flight=..., or max_in_flight of a judge, says how many requests are under way at once",
    "max_instances": "give fewer rows",
    "is_add_reference_methods": "docs/leaderboard.md says how published rows and other models stand beside yours",
    "decoding_kwargs": "write decoding, such as {temperature: 0.0}, into the annotators of the pool's file",
    "temperature": "write decoding: {temperature: ...} into the annotators of the pool's file",
    "max_tokens": "write decoding: {max_tokens: ...} into the annotators of the pool's file",
}


def refuse_theirs(names: Iterable[str]) -> None:
    """Raise ConfigError if one of the arguments is AlpacaFarm's or AlpacaEval's and means nothing here."""
    found = [f"{name}: {REFUSED[name]}" for name in names if name in REFUSED]
    if found:
        raise ConfigError(f"arguments of AlpacaFarm or AlpacaEval that have no place here; {'; '.join(found)}")
