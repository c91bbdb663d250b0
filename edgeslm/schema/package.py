"""The manifest of a model package (``manifest.json`` in a ``.slm``), and the lines of its ``golden.jsonl``.

A manifest names every other member with size and sha256; what it does not name is not part of the package. Its
bounds are what a hostile package is measured against before a byte of it is unpacked.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from edgeslm.schema.base import FileModel, FileName, Identifier, SemanticVersion, Sha256
from edgeslm.schema.message import Task
from edgeslm.schema.tensor import TensorName, Tensors

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1_048_576
MAX_MEMBERS = 64
MAX_LABELS = 4096
MAX_RULE_FILES = 16
MAX_RULE_FILE_BYTES = 131_072
MAX_PACKAGE_BYTES = 2**36
"""64 GiB, several times the memory of the largest edge board."""

RuntimeKind = Literal["litert", "tflite-runtime", "litert-lm"]
BUNDLE: Final[RuntimeKind] = "litert-lm"
"""Computes ``.litertlm`` bundles, which hold graphs and tokenizer, and nothing else."""


class Member(FileModel):
    """One file of the package."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0, le=MAX_PACKAGE_BYTES)]


class GraphProof(FileModel):
    """A golden vector: what the graph must compute before it is served.

    Attributes:
        tokens: prompt token ids.
        greedy: ids that greedy decoding yields after them.
        logit_ids: token ids at which the first step's logits are compared.
        logits: their values.
        atol: largest absolute difference of a logit that still counts as the same.
    """

    tokens: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=4096)]
    greedy: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=256)]
    logit_ids: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=64)]
    logits: Annotated[
        tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=1, max_length=64)
    ]
    atol: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.logit_ids) != len(self.logits):
            raise ValueError("logit_ids and logits differ in length")
        return self


class ArrayProof(FileModel):
    """A golden vector of a graph without a KV cache: arrays, and what it must compute from them.

    Attributes:
        inputs: arrays by the name of the input.
        outputs: arrays by the name of the output, all or some of them.
        atol: largest absolute difference of a number that still counts as the same.
    """

    inputs: Tensors
    outputs: Tensors
    atol: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class TextProof(FileModel):
    """A golden vector of a bundle, which tokenizes by itself: a prompt, and what greedy decoding makes of it.

    Attributes:
        prompt: as a user would write it; the bundle puts it into its own form.
        text: how the answer begins.
        max_tokens: tokens of the answer that have to be computed for that.
    """

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    text: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1, le=256)]


class GraphSpec(FileModel):
    """One TFLite graph, or bundle of them, and the runtimes that can be trusted with it, best first.

    Attributes:
        signature: which of its signatures is called; one that has a single one, or none, needs no name.
        output: the output that holds the scores or the embedding, where the graph has several.
    """

    file: FileName
    runtimes: Annotated[tuple[RuntimeKind, ...], Field(min_length=1, max_length=2)]
    quantization: Annotated[str, StringConstraints(max_length=128)]
    signature: TensorName | None = None
    output: TensorName | None = None
    proof: GraphProof | ArrayProof | TextProof


class TokenizerSpec(FileModel):
    """The tokenizer: a file of the `tokenizers` library, or a model of SentencePiece."""

    kind: Literal["tokenizers-json", "sentencepiece"]
    file: FileName


class PromptForm(FileModel):
    """How a prompt becomes the text that is tokenized.

    Attributes:
        prefix: text before the prompt; may spell special tokens, which the prompt itself must not.
        suffix: text after it; the answer follows.
        lower: fold the prompt to lower case: the model was trained without.
        collapse_whitespace: strip it, and make each run of white space one space.
    """

    prefix: Annotated[str, StringConstraints(max_length=4096)] = ""
    suffix: Annotated[str, StringConstraints(max_length=4096)] = ""
    lower: bool = False
    collapse_whitespace: bool = False


class ChatTemplateSpec(FileModel):
    """How a conversation becomes the text that is tokenized, in place of a prefix and a suffix.

    Attributes:
        file: a template in Jinja2, as tokenizers of the `transformers` library carry one.
        bos_token: what the template knows under that name; a special token of the tokenizer.
        eos_token: likewise.
        system: the first message of each conversation, of role ``system``.
    """

    file: FileName
    bos_token: Annotated[str, StringConstraints(max_length=128)] = ""
    eos_token: Annotated[str, StringConstraints(max_length=128)] = ""
    system: Annotated[str, StringConstraints(max_length=8192)] = ""


class Requirements(FileModel):
    """What a device must have."""

    ram_mb: Annotated[int, Field(ge=0, le=1_048_576)]
    cpu_features: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    agent: SemanticVersion


class License(FileModel):
    """Licence of a part, with its text as a member where it has to travel along."""

    spdx: Annotated[str, StringConstraints(max_length=64)]
    of: Annotated[str, StringConstraints(max_length=256)]
    file: FileName | None = None


class Manifest(FileModel):
    """What a package is.

    Attributes:
        labels: of task ``classify``: what the scores of the graph are for, in their order.
        context_tokens: most tokens of prompt and answer together; 0 where the model takes arrays.
        max_prompt_tokens: most tokens of the prompt, template included.
        max_answer_tokens: default limit of an answer.
        stop_tokens: ids that end an answer.
        prompt: how a prompt becomes the text that is tokenized.
        chat_template: how a conversation does, where the model is made for conversations.
        json_answers: answers are JSON objects, so a result carries them parsed as well.
        security_floor: lowest version that is still safe; stated here, acted on where versions are replaced.
        rules: files of rules that a device follows while it serves this package.
        measured: figures by board class, as measured by whoever packed it.
    """

    format: Literal[1]
    name: Identifier
    version: SemanticVersion
    task: Task
    description: Annotated[str, StringConstraints(max_length=2000)]
    graphs: Annotated[tuple[GraphSpec, ...], Field(min_length=1, max_length=8)]
    tokenizer: TokenizerSpec | None = None
    labels: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=256)], ...],
        Field(max_length=MAX_LABELS),
    ] = ()
    context_tokens: Annotated[int, Field(ge=0, le=1_048_576)] = 0
    max_prompt_tokens: Annotated[int, Field(ge=0, le=1_048_576)] = 0
    max_answer_tokens: Annotated[int, Field(ge=0, le=1_048_576)] = 0
    stop_tokens: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=16)] = ()
    prompt: PromptForm = PromptForm()
    chat_template: ChatTemplateSpec | None = None
    json_answers: bool = False
    golden: FileName | None = None
    rules: Annotated[tuple[FileName, ...], Field(max_length=MAX_RULE_FILES)] = ()
    requires: Requirements
    licenses: Annotated[tuple[License, ...], Field(min_length=1, max_length=16)]
    security_floor: SemanticVersion = "0.0.0"
    measured: dict[Identifier, dict[str, Annotated[float, Field(allow_inf_nan=False)]]] = Field(
        default_factory=dict, max_length=64
    )
    files: dict[FileName, Member] = Field(min_length=1, max_length=MAX_MEMBERS)

    @model_validator(mode="after")
    def _names_only_its_files(self) -> Self:
        named = [graph.file for graph in self.graphs]
        named += [spec.file for spec in (self.tokenizer, self.chat_template) if spec is not None]
        named += [name for name in (self.golden, *(item.file for item in self.licenses)) if name is not None]
        named += self.rules
        missing = sorted(set(named) - self.files.keys())
        if missing:
            raise ValueError(f"files named but not listed: {', '.join(missing)}")
        if MANIFEST_NAME in self.files:
            raise ValueError(f"{MANIFEST_NAME} cannot list itself")
        if len(set(self.rules)) != len(self.rules):
            raise ValueError("rules: a file is named twice")
        if self.is_bundle:
            self._check_bundle()
            return self
        if self.task in {"generate", "embed"} and self.tokenizer is None:
            raise ValueError(f"a package for task '{self.task}' needs a tokenizer")
        self._check_task()
        return self

    @property
    def is_bundle(self) -> bool:
        """Whether what it holds is a bundle with a tokenizer of its own."""
        return any(BUNDLE in graph.runtimes for graph in self.graphs)

    @property
    def takes_messages(self) -> bool:
        """Whether it says how a conversation is put together: by a chat template, or in its bundle."""
        return self.chat_template is not None or self.is_bundle

    def _check_bundle(self) -> None:
        if self.task != "generate":
            raise ValueError(f"a bundle for {BUNDLE} goes with task 'generate'")
        if any(
            graph.runtimes != (BUNDLE,) or not isinstance(graph.proof, TextProof) for graph in self.graphs
        ):
            raise ValueError(
                f"a bundle is for {BUNDLE} alone, and its proof states prompt, text and max_tokens"
            )
        if self.tokenizer or self.chat_template or self.stop_tokens or self.prompt != PromptForm():
            raise ValueError("a bundle brings its tokenizer, chat template and stop tokens itself")
        self._check_lengths()

    def _check_task(self) -> None:
        is_generative = self.task == "generate"
        if any(isinstance(graph.proof, GraphProof) != is_generative for graph in self.graphs):
            wanted = "tokens and logits" if is_generative else "inputs and outputs"
            raise ValueError(f"the proof of a graph for task '{self.task}' states {wanted}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: one is there twice")
        if bool(self.labels) != (self.task == "classify") and not is_generative:
            raise ValueError("a package for task 'classify' has labels, and no other")
        if self.golden is not None and not is_generative:
            raise ValueError(
                "golden prompts go with task 'generate'; the proof of a graph is golden elsewhere"
            )
        if self.chat_template is not None:
            if not is_generative:
                raise ValueError("a chat template goes with task 'generate'")
            if self.prompt.prefix or self.prompt.suffix:
                raise ValueError("chat_template and prompt contradict each other: a prompt has one form")
        if self.tokenizer is None:
            return
        if self.task == "tensor":
            raise ValueError("a package for task 'tensor' has no tokenizer")
        self._check_lengths()

    def _check_lengths(self) -> None:
        is_generative = self.task == "generate"
        if min(self.context_tokens, self.max_prompt_tokens) < 1 or (
            is_generative and self.max_answer_tokens < 1
        ):
            raise ValueError("context_tokens, max_prompt_tokens or max_answer_tokens is missing")
        if is_generative and self.max_prompt_tokens >= self.context_tokens:
            raise ValueError("max_prompt_tokens leaves no room for an answer in context_tokens")
        if self.max_prompt_tokens > self.context_tokens:
            raise ValueError("max_prompt_tokens exceeds context_tokens")


class GoldenCase(FileModel):
    """One line of ``golden.jsonl``: a prompt whose answer is known."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    text: str | None = None
    json_answer: dict[str, Any] | None = Field(default=None, alias="json")

    @model_validator(mode="after")
    def _one_expectation(self) -> Self:
        if (self.text is None) == (self.json_answer is None):
            raise ValueError("a golden case states either 'text' or 'json'")
        return self
