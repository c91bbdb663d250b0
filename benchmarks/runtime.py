"""Figures of the runtime: ``python -m benchmarks.runtime [--json] [--quick] [--only KEY,...]``.

Gemma 3 270M, int8, on this runtime; on llama.cpp (Q8_0) and on LiteRT-LM beside it, in the same run: the same weights,
the same tokens, the same number of threads, each engine a process of its own, all in paired turns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import runtime_schema
from benchmarks.report import Benchmark, Found, Group, run
from benchmarks.runtime_rig import Models, middle, paired, ratio_of
from edgeslm.runtime.tokenizer import JsonTokenizer

BARS = {
    "decode_vs_llamacpp_min": (">=", 1.0),
    "copy_decode_vs_llamacpp": (">=", 1.3),
    "prefill_vs_llamacpp": (">=", 2.0),
    "rss_vs_llamacpp": ("<=", 0.65),
    "load_vs_llamacpp": ("<=", 0.3),
    "decode_vs_litert_lm": (">=", 1.0),
    "schema_valid": (">=", 1.0),
    "schema_vs_llamacpp": (">=", 3.0),
    "prefix_ttft_ratio": ("<=", 0.1),
    "top1_agreement": (">=", 0.95),
}
FILLS = (8, 240, 500, 740, 960)
"""Tokens before the first that is decoded; the context is 1,024."""
COUNT = 32
PREFILL_TOKENS = 512
FOLLOWED_TOKENS = 1000
"""Of each page that is read along with; the caches hold them."""
THREADS = (1, 2)
BEGIN = "<bos>"

DEVICES = (
    ("kitchen ceiling light", "kitchen", 17), ("garage door north", "garage", 81),
    ("boiler supply pump", "cellar", 44),
    ("greenhouse vent three", "garden", 63), ("attic humidity probe", "attic", 92),
    ("hallway motion sensor", "hall", 35),
)  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {
        "device": {"type": "string", "maxLength": 40},
        "action": {"enum": ["turn_on", "turn_off", "set_level", "report"]},
        "area": {"enum": ["kitchen", "garage", "cellar", "garden", "attic", "hall"]},
        "level_percent": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["device", "action", "area", "level_percent"],
    "additionalProperties": False,
}


def prose() -> str:
    """Some thousand words that are on every machine: this project's own pages."""
    return "\n".join(pages())


def pages() -> list[str]:
    """Of these pages; `benchmarks.gemma.convert` looks at none of them."""
    docs = Path(__file__).parents[1] / "docs"
    return [(docs / name).read_text("utf-8") for name in ("updates.md", "power.md", "agent.md")]


def copy_prompt() -> str:
    """Asks to say again, in another form, what it says."""
    lines = [f"- the {name} in the {area} reports {level} percent" for name, area, level in DEVICES]
    entries = [
        f'{{"device": "{name}", "area": "{area}", "percent": {level}}}' for name, area, level in DEVICES
    ]
    return "Readings:\n" + "\n".join(lines) + "\n\nAs JSON lines:\n" + "\n".join(entries[:2]) + "\n"


def schema_prompts() -> list[str]:
    """What is asked for, once for each device."""
    return [
        f"Command: set the {name} in the {area} to {level} percent.\nJSON: " for name, area, level in DEVICES
    ]


class Figures:
    """The measurements; each takes what it needs from the same models."""

    def __init__(self) -> None:
        self.models = Models()

    def tokens(self, text: str) -> list[int]:
        """Ids of `text`, which begin a sequence."""
        self.models.package()
        return JsonTokenizer(self.models.folder / "tokenizer.json").encode(BEGIN + text)

    def decode(self, quick: bool) -> Found:
        """Tokens a second at several fills, and prefill, against llama.cpp."""
        tokens = self.tokens(prose())
        pairs = 2 if quick else 5
        by_case: dict[str, float] = {}
        prefill: dict[str, float] = {}
        by_work: dict[str, float] = {}
        ours_raw: dict[str, float] = {}
        peer_raw: dict[str, float] = {}
        for threads in THREADS:
            with self.models.pair("llama", threads) as (ours, other):
                for fill in FILLS:
                    found = paired(
                        ours, other, pairs, ("generate", "generate"), tokens=tokens[:fill], count=COUNT
                    )
                    case = f"decode_{fill}_threads_{threads}"
                    by_case[case] = ratio_of(found, "decode")
                    by_work[case] = ratio_of(found, "decode_cpu_s")
                    ours_raw[case], peer_raw[case] = (middle(found, side, "decode") for side in (0, 1))
                found = paired(
                    ours, other, pairs, ("generate", "generate"), tokens=tokens[:PREFILL_TOKENS], count=1
                )
                case = f"prefill_{PREFILL_TOKENS}_threads_{threads}"
                prefill[case] = ratio_of(found, "first_s")
                by_work[case] = ratio_of(found, "first_cpu_s")
                ours_raw[case], peer_raw[case] = (
                    PREFILL_TOKENS / middle(found, side, "first_s") for side in (0, 1)
                )
        return {
            "decode_vs_llamacpp_min": min(by_case.values()),
            "prefill_vs_llamacpp": min(prefill.values()),
            "decode_detail": by_case | prefill,
            "processor_time_detail": by_work,
            "engines": {"edgeslm": ours_raw, "llama.cpp": peer_raw},
        }

    def copying(self, quick: bool) -> Found:
        """Tokens a second where the answer copies from the prompt: our generation loop against llama.cpp's steps."""
        tokens = self.tokens(copy_prompt())
        by_threads, detail = {}, {}
        for threads in THREADS:
            with self.models.pair("llama", threads) as (ours, other):
                found = paired(ours, other, 2 if quick else 5, ("write", "generate"), tokens=tokens, count=96)
                by_threads[f"threads_{threads}"] = ratio_of(found, "decode")
                last = found[-1]
                detail[f"threads_{threads}"] = {
                    "edgeslm_tps": middle(found, 0, "decode"),
                    "llamacpp_tps": middle(found, 1, "decode"),
                    "guessed": last[0]["guessed"],
                    "confirmed": last[0]["confirmed"],
                    "same_tokens": sum(
                        a == b for a, b in zip(last[0]["tokens"], last[1]["tokens"], strict=False)
                    ),
                }
        return {"copy_decode_vs_llamacpp": min(by_threads.values()), "copy_detail": detail}

    def memory(self, quick: bool) -> Found:
        """Peak of a process that loads, reads 512 tokens and writes 64, and the time of a load with warm caches."""
        tokens = self.tokens(prose())[:PREFILL_TOKENS]
        self.models.ours(1).close()  # packs the weights, once
        loads, peaks = [], []
        raw: dict[str, dict[str, float]] = {}
        for number in range(3 if quick else 5):
            row: dict[str, tuple[float, float]] = {}
            starts: list[Callable[[int], Any]] = [self.models.ours, self.models.llama]
            for start in reversed(starts) if number % 2 else starts:
                engine = start(1)
                try:
                    engine.ask("generate", tokens=tokens, count=64)
                    row[engine.name] = (engine.ready["load_s"], engine.ask("memory")["peak_mb"])
                finally:
                    engine.close()
            loads.append(row["edgeslm"][0] / row["llama.cpp"][0])
            peaks.append(row["edgeslm"][1] / row["llama.cpp"][1])
            raw = {name: {"load_s": load, "peak_mb": peak} for name, (load, peak) in row.items()}
        return {
            "rss_vs_llamacpp": median(peaks),
            "load_vs_llamacpp": median(loads),
            "memory_detail": raw,
        }

    def litert_lm(self, quick: bool) -> Found:
        """Tokens a second against LiteRT-LM, by its own benchmark."""
        tokens = self.tokens(prose())
        by_case, detail = {}, {}
        for threads in THREADS:
            with self.models.pair("litert_lm", threads) as (ours, other):
                for fill in (128, 740):
                    found = paired(
                        ours,
                        other,
                        2 if quick else 5,
                        ("generate", "generate"),
                        tokens=tokens[:fill],
                        count=COUNT,
                    )
                    case = f"decode_{fill}_threads_{threads}"
                    by_case[case] = ratio_of(found, "decode")
                    detail[case] = {
                        "edgeslm_tps": middle(found, 0, "decode"),
                        "litert_lm_tps": middle(found, 1, "decode"),
                        "prefill_ratio": ratio_of(found, "first_s"),
                    }
        return {"decode_vs_litert_lm": min(by_case.values()), "litert_lm_detail": detail}

    def schema(self, quick: bool) -> Found:
        """Answers a second held to one schema, against llama.cpp's own."""
        prompts = schema_prompts()[: 3 if quick else 6]
        with self.models.pair("llama", 1) as (ours, other):
            found = paired(
                ours,
                other,
                2 if quick else 5,
                ("schema", "schema"),
                prompts=prompts,
                schema=SCHEMA,
                max_tokens=96,
            )
        return {
            "schema_vs_llamacpp": ratio_of(found, "took_s"),
            "schema_detail": {
                "edgeslm_answers_per_s": len(prompts) / middle(found, 0, "took_s"),
                "llamacpp_answers_per_s": len(prompts) / middle(found, 1, "took_s"),
                "edgeslm_tokens": found[-1][0]["tokens"],
                "edgeslm_forced": found[-1][0]["forced"],
                "llamacpp_tokens": found[-1][1]["tokens"],
            },
        }

    def valid(self, quick: bool) -> Found:
        """Share of answers to random schemas that follow them, by the model that ships."""
        notes: dict[str, str] = {}
        found = runtime_schema.measure(notes, count=100 if quick else runtime_schema.ANSWERS)
        return {"schema_valid": found["schema_valid"], "schema_valid_detail": found["schema"], "notes": notes}

    def prefix(self, quick: bool) -> Found:
        """Time to the first token of prompts that begin with the same 400 tokens."""
        prefix = self.tokens(prose())[:400]
        endings = [
            self.tokens(f"\nQuestion {number}: what is {name} doing?\n")[1:]
            for number, (name, _, _) in enumerate(DEVICES)
        ]
        ours = self.models.ours(1)
        try:
            ratios = []
            for _ in range(2 if quick else 5):
                taken = ours.ask("prefix", prefix=prefix, suffixes=endings)["first_s"]
                ratios.append(median(taken[1:]) / taken[0])
        finally:
            ours.close()
        return {"prefix_ttft_ratio": median(ratios), "prefix_detail": {"last_first_s": taken}}

    def agreement(self, quick: bool) -> Found:
        """Share of places in a text at which the int8 graph would say what the weights say in float32."""
        from benchmarks.gemma import reference, weights  # noqa: PLC0415 - needs what only conversion needs

        texts = [self.tokens(text)[:FOLLOWED_TOKENS] for text in pages()[: 1 if quick else None]]
        reader = weights.open_gguf(weights.assemble(self.models.folder))
        shape, tensors = weights.read_shape(reader), weights.read_tensors(reader)
        ours = self.models.ours(max(THREADS))
        try:
            same = [
                [
                    one == other
                    for one, other in zip(
                        ours.ask("follow", tokens=text)["tokens"],
                        reference.likeliest(tensors, reference.hidden(shape, tensors, text)),
                        strict=True,
                    )
                ]
                for text in texts
            ]
        finally:
            ours.close()
        return {
            "top1_agreement": sum(map(sum, same)) / sum(map(len, same)),
            "agreement_detail": {
                "tokens": sum(map(len, same)),
                "by_page": [sum(one) / len(one) for one in same],
            },
        }


def groups() -> tuple[Group, ...]:
    """All figures."""
    figures = Figures()
    return (
        Group(("decode_vs_llamacpp_min", "prefill_vs_llamacpp"), figures.decode),
        Group(("copy_decode_vs_llamacpp",), figures.copying),
        Group(("rss_vs_llamacpp", "load_vs_llamacpp"), figures.memory),
        Group(("decode_vs_litert_lm",), figures.litert_lm),
        Group(("schema_valid",), figures.valid),
        Group(("schema_vs_llamacpp",), figures.schema),
        Group(("prefix_ttft_ratio",), figures.prefix),
        Group(("top1_agreement",), figures.agreement),
    )


if __name__ == "__main__":
    run(Benchmark("runtime", __doc__ or "", groups(), BARS))
