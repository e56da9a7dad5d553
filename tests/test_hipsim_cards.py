"""A model on four simulated cards gives the logits and the text of one."""

import pytest
from simulated_program import needs_wheel, output_of

pytestmark = [needs_wheel, pytest.mark.slow]

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from golden import models, relative_error
import rocforge as rf
models.build({path!r}, "llama", "Q8_0")
def outputs(model):
    logits = model([5, 6, 7]).get()
    with rf.Engine(model, max_requests=2, max_batch_tokens=16, cache_tokens=64) as engine:
        request = engine.add([5, 6, 7], rf.SamplingParams(max_tokens=4, temperature=0))
        while engine.busy:
            engine.step()
    return logits, request.output
logits, text = outputs(rf.load({path!r}, device="gpu:0")[0])
theirs, same = outputs(rf.load({path!r}, devices=4)[0])
assert relative_error(theirs, logits) < 1e-3 and same == text, (theirs, logits, same, text)
print("the same")
"""


def test_four_cards(tmp_path, request):
    program = PROGRAM.format(tests=str(request.path.parent), path=str(tmp_path / "model.gguf"))
    settings = {"HIPSIM_DEVICES": "4", "HIPSIM_RCCL_SECONDS": "120", "ROCFORGE_PEER_MEMORY": "1"}
    assert output_of(program, "gfx1100", **settings) == "the same"
