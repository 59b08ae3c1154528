"""The value head without bound, beside AWR's."""

import pytest
import torch
from model_kinds import pretrained, save

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import parse_config
from phf_ray.errors import ConfigError, DataError
from phf_ray.models.build import build_model
from phf_ray.models.heads import ValueHead
from phf_ray.models.loading import load_checkpoint
from phf_ray.models.saving import save_checkpoint


def test_a_value_head_without_bound_starts_at_0_and_says_any_number(tmp_path):
    unbounded = {"value_head_config": {"is_bounded": False}}
    model, tokenizer = save(tmp_path / "unbounded", model_kwargs=unbounded)
    hidden = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ValueHead(32, is_bounded=False)(hidden), torch.zeros(1, 3))
    torch.nn.init.constant_(model.value_head.head.weight, 3.0)
    assert torch.allclose(model.values(hidden), 3 * hidden.sum(-1))
    save_checkpoint(tmp_path / "unbounded", model, tokenizer, CheckpointInfo(task="pep8", step=7))
    loaded = load_checkpoint(tmp_path / "unbounded").model
    assert torch.equal(loaded.values(hidden), model.values(hidden))
    start = pretrained(tmp_path / "unbounded", model_kwargs=unbounded)
    assert torch.equal(build_model(start, tokenizer=tokenizer, seed=0).values(hidden), model.values(hidden))


@pytest.mark.parametrize("is_bounded", [True, False])
def test_a_value_head_of_the_other_kind_is_refused(tmp_path, is_bounded):
    _, tokenizer = save(tmp_path, model_kwargs={"value_head_config": {"is_bounded": not is_bounded}})
    other = pretrained(tmp_path, model_kwargs={"value_head_config": {"is_bounded": is_bounded}})
    with pytest.raises(DataError, match=f"is_bounded: {str(not is_bounded).lower()}, or start from a copy without"):
        build_model(other, tokenizer=tokenizer, seed=0)


def test_awr_takes_no_value_head_without_bound():
    with pytest.raises(ConfigError, match="between -1 and 0; remove value_head_config"):
        parse_config(
            {
                "objective": {"name": "AWR"},
                "model": {"model_kwargs": {"value_head_config": {"is_bounded": False}}},
            }
        )
