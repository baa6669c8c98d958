"""What vLLM makes of given tokens: their log-probabilities and what it writes greedily behind them.

Run by serving.py with the Python of an environment that has vLLM, and nothing of this project:

    python serving_vllm.py CHECKPOINT DTYPE WINDOWS.json FOUND.json
"""

import json
import os
import sys

WRITTEN = 32  # tokens


def main() -> None:
    checkpoint, dtype, windows, found = sys.argv[1:]
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import vllm

    with open(windows) as file:
        prompts = [{"prompt_token_ids": ids} for ids in json.load(file)]
    length = max(len(prompt["prompt_token_ids"]) for prompt in prompts) + WRITTEN
    model = vllm.LLM(
        checkpoint, dtype=dtype, enforce_eager=True, max_model_len=length,
        trust_remote_code=True,
    )  # fmt: skip
    asked = vllm.SamplingParams(
        max_tokens=WRITTEN, temperature=0, prompt_logprobs=0, ignore_eos=True
    )
    rows = [
        {
            "logprobs": [
                entry[token].logprob
                for entry, token in zip(
                    output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True
                )
            ],
            "written": list(output.outputs[0].token_ids),
        }
        for output in model.generate(prompts, asked)
    ]
    with open(found, "w") as file:
        json.dump({"version": vllm.__version__, "rows": rows}, file)


if __name__ == "__main__":
    main()
