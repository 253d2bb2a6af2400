"""langchain-openai, litellm and llm: each writes, greedy, what the model in this process writes."""

import json
import tempfile
from pathlib import Path

from bluejay.runs.language_model import LanguageModel
from real_clients.servers import Server, require, run_quietly

PROMPT = "Once upon a time"
NUM_TOKENS = 12

LANGCHAIN = """
import sys
from langchain_openai import OpenAI
url, model, prompt, count = sys.argv[1:]
client = OpenAI(model=model, base_url=url, api_key="none", max_tokens=int(count), temperature=0)
print(client.invoke(prompt) + "|" + "".join(client.stream(prompt)), end="")
"""

LITELLM = """
import sys, litellm
url, model, prompt, count = sys.argv[1:]
def ask(**more):
    return litellm.text_completion(
        model="text-completion-openai/" + model, prompt=prompt, max_tokens=int(count),
        temperature=0, api_base=url, api_key="none", **more)
pieces = [event.choices[0].text or "" for event in ask(stream=True)]
print(ask().choices[0].text + "|" + "".join(pieces), end="")
"""


def check_packages(server: Server, model: LanguageModel, programs: Path) -> None:
    """Whole and streamed. Miss where a text differs."""
    expected = model.generate(PROMPT, max_tokens=NUM_TOKENS, temperature=0)
    url = f"{server.url}/v1"
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package, code in (("langchain-openai", LANGCHAIN), ("litellm", LITELLM)):
            given = [url, server.model, PROMPT, str(NUM_TOKENS)]
            said = run_quietly([str(programs / "python"), "-c", code, *given], folder, **offline)
            _require_text(package, server, said.split("|"), [expected] * 2)
        settings = [{"model_id": "own", "model_name": server.model, "api_base": url,
                     "completion": True}]  # fmt: skip
        (folder / "extra-openai-models.yaml").write_text(json.dumps(settings))
        asked = ["-m", "own", "-o", "max_tokens", str(NUM_TOKENS), "-o", "temperature", "0"]
        said = run_quietly(
            [str(programs / "llm"), *asked, PROMPT, "--key", "none", "--no-log"],
            folder, LLM_USER_PATH=str(folder),
        )  # fmt: skip
        _require_text("llm", server, [said.strip()], [expected.strip()])


def _require_text(package: str, server: Server, found: list[str], expected: list[str]) -> None:
    promise = f"{package} on {server.model} writes {found[0]!r}, as the model here"
    require(found == expected, promise, (found, expected))
