"""Published shapes have as many parameters as their names say, and a file of one, cut short, gives finite logits."""

import math

import numpy as np
import published
import pytest

from rocforge.load import load_model

BILLIONS = {"qwen3.6-35b-a3b": 35, "qwen3.6-27b": 27, "gemma-4-26b-a4b": 25.5, "deepseek-v2-lite": 15.7}


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_parameters(name):
    model = published.PUBLISHED[name].model()
    tied = "output.weight" if name.startswith("gemma") else None
    sizes = [math.prod(parameter.shape) for path, parameter in model.named_parameters() if path != tied]
    assert sum(sizes) / 1e9 == pytest.approx(BILLIONS[name], rel=0.03)


def short():
    whole = published.PUBLISHED["qwen3.6-35b-a3b"]
    few = {"block_count": 4, "expert_count": 8, "embedding_length": 256, "ssm.time_step_rank": 2, "ssm.group_count": 1}
    return whole._replace(keys={**whole.keys, **few, "ssm.inner_size": 256}, vocabulary=300)


def test_a_short_one():
    class File(dict):
        metadata = short().metadata(64)

    logits = load_model(File(short().random_tensors("Q4_K_M")), "cpu")([1, 2, 3])
    assert logits.shape == (3, 300) and np.isfinite(logits).all() and np.ptp(logits, axis=0).max() > 0.01


def test_states_decay():
    """Of hybrids: states that grew would end prompts of some 1,000 tokens without a finite logit."""
    decays = [values for name, values in short().random_tensors("Q4_K_M") if name.endswith("ssm_a")]
    assert len(decays) == 3 and all((each < 0).all() for each in decays)
