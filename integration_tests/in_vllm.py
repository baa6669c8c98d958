"""Run by `test_vllm.py` in vLLM's own environment: loads checkpoints, one after the other.

A line of JSON on standard input asks for one: its `path`, the `ids` of a prompt, and `options` of
vLLM's `LLM`. The answer is a line: `logprobs` of the prompt's tokens but the first, and the
`written` tokens; or the `error` that vLLM ended in.
"""

import gc
import json
import os
import sys

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what vLLM says of itself goes with the errors

from vllm import LLM, SamplingParams  # noqa: E402

OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 128}
WRITTEN = 32


def run(path: str, ids: list[int], options: dict) -> dict:
    model = LLM(path, **OPTIONS | options)
    sampling = SamplingParams(
        temperature=0, max_tokens=WRITTEN, min_tokens=WRITTEN, ignore_eos=True, prompt_logprobs=0
    )
    (output,) = model.generate([{"prompt_token_ids": ids}], sampling, use_tqdm=False)
    pairs = zip(ids[1:], output.prompt_logprobs[1:], strict=True)
    return {
        "logprobs": [found[token].logprob for token, found in pairs],
        "written": list(output.outputs[0].token_ids),
    }


if __name__ == "__main__":
    for line in sys.stdin:
        try:
            answer = run(**json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()
        print(json.dumps(answer), file=answers, flush=True)
