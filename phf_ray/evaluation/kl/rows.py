"""The names under which a KL is logged."""

from phf_ray.evaluation.report.records import KLInfo

_ORIGINAL = "KL/KL(GPT3, model)"
"""The original's name, in nats per sequence. Only a reference of OpenAI's has it."""


def kl_rows(info: KLInfo) -> dict[str, float]:
    begin = f"KL/{info.reference}"
    row: dict[str, float] = {f"{begin}/num_impossible": info.num_impossible}
    if info.failures:
        row[f"{begin}/num_failed"] = sum(info.failures.values())
    figures = {"per_sequence": info.per_sequence, "per_token": info.per_token, "per_byte": info.per_byte}
    for name, estimate in figures.items():
        if estimate is not None:
            row |= {f"{begin}/{name}": estimate[0], f"{begin}/{name}_error": estimate[1]}
    return row | ({_ORIGINAL: info.per_sequence[0]} if info.is_openai else {})
