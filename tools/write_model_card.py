"""Write the card of a bundled model from what was measured.

    python tools/write_model_card.py RUN [RUN ...] --data DATA --table TABLE.md --samples SAMPLES.md

The RUNs trained it one after the other, each from the parameters of the one before, on DATA; runs
before them, whose folders are gone, are told by `--earlier RUNS STEPS TOKENS SECONDS`. TABLE.md is what benchmarks/held_out.py
printed, SAMPLES.md what tools/model_samples.py printed. The judgement of the samples is kept from
the card that is there, for a person writes it.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

from bluejay.checkpoints.native import seal
from bluejay.cli.status import duration
from bluejay.model.specs import decoder_specs, parameter_count
from bluejay.runs.plotting import plot_runs
from bluejay.runs.run_history import read_metrics
from bluejay.runs.train_run import read_run

BUNDLED = Path(__file__).resolve().parent.parent / "src" / "bluejay" / "bundled"
JUDGEMENT = re.compile(r"<!-- judgement -->\n(.*?)<!-- /judgement -->\n", re.S)
CARD = """# {name}

A small GPT-J ({parameters:,} parameters) that comes with Bluejay, so that there is something to try without a network. It was
trained from random numbers by `bluejay train {name}` and knows nothing but old English books.

| | |
|---|---|
| blocks | GPT-J's: one LayerNorm, attention and feed-forward in parallel, interleaved rotary positions |
| shape | {layers} layers, width {width}, {heads} heads of {head_dim}, rotary {rotary}, context {context} tokens |
| vocabulary | byte-level BPE of {vocabulary:,} tokens, trained on the same books |
| weights | bfloat16, {megabytes:.1f} MB |
| licence | Apache-2.0 |

## Data

{documents}.
Source texts are in the public domain in the United States; the editions are by Standard Ebooks. Text was cleaned (ASCII quotation marks, no notes and title pages), paragraphs that occur twice were dropped, and these whole books were held out:

{held_out_books}

## Recipe

`bluejay prepare --fetch-books --vocab-size {vocabulary} --order {order} --out books`, then `bluejay train {name} --data books`;
`src/bluejay/recipes/bluejay_models.py` holds every value. {optimizer}, {rows} x {length} tokens a step, learning rate
{learning_rate} ({matrix_learning_rate} for matrices), constant after a warm-up and falling to zero over the last
{decay_steps:,} steps; in the last run the operands of products were rounded to {products}. So far {tokens:,} tokens in {steps:,} steps, {time} on two
cores{sittings}.

![Loss and bits per byte against tokens and time{shown}](loss.svg)

## How good it is

Bits per byte on the books held out, all methods on the same text; "excerpts" are the beginnings of these books, for SmolLM2,
which is twenty-five times as large, has probably read them, and takes long:

{table}

## Samples

Prompts and seed were fixed before there was a model (`tools/model_samples.py`); none is picked. {judgement_intro}

<!-- judgement -->
{judgement}<!-- /judgement -->

{samples}
## Limits

- It writes in the manner of novels between 1800 and 1930, with their views of peoples, classes and women.
- It knows no facts, follows no instructions, and loses the thread after a sentence or two.
- English only; code, other languages and anything modern are noise to it.
- Its context is {context} tokens, about {context_words} words.
"""


def books(data: Path) -> tuple[str, str]:
    """A sentence about the training books, and the list of those held out."""
    lines = [json.loads(line) for line in (data / "documents.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["split"] == "train"]
    licences = ", ".join(sorted(Counter(line["licence"] for line in trained)))
    tokens = sum(line["tokens"] for line in trained)
    sentence = f"{len(trained)} books, {tokens:,} tokens, licence {licences}"
    held = sorted((line["authors"], line["title"]) for line in lines if line["split"] != "train")
    return sentence, "\n".join(f"- {authors}, *{title}*" for authors, title in held)


def sittings(count: int) -> str:
    if count == 1:
        return ""
    return f", in {count} runs, each from the parameters of the one before with a new warm-up"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--earlier", type=int, nargs=4, default=(0, 0, 0, 0))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--samples", type=Path, required=True)
    given = parser.parse_args()
    runs, steps, tokens, seconds = given.earlier
    run = read_run(given.runs[-1])
    curves = [read_metrics(folder).train for folder in given.runs]
    folder = BUNDLED / run.name
    old = (folder / "README.md").read_text() if (folder / "README.md").exists() else ""
    judged = JUDGEMENT.search(old)
    sentence, held_out_books = books(given.data)
    config = run.model
    card = CARD.format(
        name=run.name,
        parameters=parameter_count(decoder_specs(config)),
        layers=config.num_layers,
        width=config.embed_dim,
        heads=config.num_heads,
        head_dim=config.head_dim,
        rotary=config.position.rotary_dim,
        context=config.context_length,
        context_words=int(round(config.context_length * 0.6, -1)),
        vocabulary=config.vocab_size,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        documents=sentence,
        held_out_books=held_out_books,
        order=run.data.order,
        optimizer={"muon": "Muon and Adam", "adamw": "AdamW"}[run.optimizer.kind],
        rows=run.batch.rows,
        length=run.batch.length,
        learning_rate=run.optimizer.learning_rate,
        matrix_learning_rate=run.optimizer.matrix_learning_rate,
        products=run.products,
        decay_steps=run.schedule.decay_steps,
        tokens=tokens + sum(int(curve.tokens[-1]) for curve in curves),
        steps=steps + sum(int(curve.steps[-1]) for curve in curves),
        time=duration(seconds + sum(float(curve.seconds[-1]) for curve in curves)),
        sittings=sittings(runs + len(curves)),
        shown=", of the last run alone" if runs and len(curves) == 1 else "",
        table=given.table.read_text().strip(),
        samples=given.samples.read_text(),
        judgement_intro="What is right and wrong in them:",
        judgement=judged[1] if judged else "(not judged yet)\n",
    )
    (folder / "README.md").write_text(card)
    plot_runs(given.runs, folder / "loss.svg")
    seal(folder)
    print(f"{folder / 'README.md'}: {len(card):,} characters")


if __name__ == "__main__":
    main()
