"""An exported model in vLLM for real, where it is installed: nothing of Caravan between the two."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import vllm

from caravan.data.records import Message
from caravan.data.template import encode_prompt
from caravan.inference import load_engine
from caravan.recipe import Sampling
from caravan.training.models import load_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHATS = [
    [{"role": "user", "content": "How many bags does the camel carry?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Orsa?"}],
    [
        {"role": "user", "content": "Salt?"},
        {"role": "assistant", "content": "12 bags."},
        {"role": "user", "content": "More?"},
    ],
]
TOKENS = 12


@pytest.fixture
def llm(exported):
    """As in vLLM's own examples, told nothing but where the model is."""
    llm = vllm.LLM(str(exported), dtype="float32", enforce_eager=True, disable_log_stats=True)
    yield llm
    llm.llm_engine.engine_core.shutdown()  # or the end of the process may wait for it


def test_vllm_chats_with_an_export_as_transformers_does(exported, llm):
    greedy = vllm.SamplingParams(temperature=0.0, max_tokens=TOKENS)
    theirs = llm.chat(CHATS, greedy, use_tqdm=False)

    prompts = [tuple(Message(**message) for message in chat) for chat in CHATS]
    tokenizer = load_tokenizer(exported)
    read = [list(output.prompt_token_ids) for output in theirs]
    assert read == [list(encode_prompt(tokenizer, prompt)) for prompt in prompts]

    sampling = Sampling(temperature=0.0, max_completion_length=TOKENS)
    ours = load_engine(exported).generate(prompts, sampling, seed=1)
    written = [tuple(output.outputs[0].token_ids) for output in theirs]
    assert written == [reply.token_ids for (reply,) in ours]

    defaults = llm.get_default_sampling_params()
    assert (defaults.temperature, defaults.max_tokens) == (1.0, vllm.SamplingParams().max_tokens)
