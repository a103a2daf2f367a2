"""Continuous batching for vision-language models: a fixed number of rows, advanced together by one CUDA graph.

`model.generate` launches thousands of kernels per token from Python; a graph launches them with one call. A row is
refilled when its answer ends (see shared_decoder.py), so that long answers do not delay short ones. The shared prefix
of a batch's prompts is processed once. Supports models that transformers loads with `AutoModelForImageTextToText` and
whose decoder attends to all previous tokens (no sliding windows).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STRIDE = 8  # steps between checks for ended rows; a check synchronizes with the GPU


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, padded on the right, as the processor and `with_positions` return them; CPU tensors."""

    keys: Sequence[str]  # one for each prompt, returned with its answer
    inputs: Mapping[str, Tensor]
    shared: int = 0  # length of the common prefix in tokens, which ends before the first picture
    temperature: float = 0.0  # 0: greedy
    draws: Tensor | None = None  # (b, limit) float32 in (0, 1]: uniform random numbers for sampling


@dataclass(frozen=True)
class Answer:
    key: str
    tokens: list[int]  # without the end token
    ended: bool  # False: cut off at the limit
    prompt_tokens: int


class Row(NamedTuple):
    """The prompt that a row of the decoder is answering."""

    owner: Any
    key: str
    prompt_tokens: int
    sampled: bool


class StaticKVCache(Cache):
    """Keys and values of every layer, (rows, heads, length, dim), written in place. `shared` holds those of the common
    prefix, (1, heads, n, dim) for each layer, which a prefill does not process again."""

    def __init__(self, config: Any, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(layers=[])
        shape = (rows, config.num_key_value_heads, length, _head_dim(config))
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # tokens in each row
        for keys in self.keys:
            keys.lengths = self.lengths  # type: ignore[attr-defined]  # read by row_attention
        self.shared: list[tuple[Tensor, Tensor]] = []
        self.every = torch.arange(rows, device=device)
        self.filling: Tensor | None = None  # rows that a prefill writes; None in a decoding step

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store states (b, heads, n, dim); return the states to attend to: prefix and new ones in a prefill, whole rows
        in a step."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self.filling is not None:
            if self.shared:
                before = [x.expand(len(key_states), -1, -1, -1) for x in self.shared[layer_idx]]
                key_states = torch.cat([before[0], key_states], 2)
                value_states = torch.cat([before[1], value_states], 2)
            keys[self.filling, :, : key_states.shape[2]] = key_states
            values[self.filling, :, : value_states.shape[2]] = value_states
            return key_states, value_states
        keys[self.every, :, self.lengths] = key_states[:, :, 0]
        values[self.every, :, self.lengths] = value_states[:, :, 0]
        return keys, values

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0

    def get_query_offset(self, *_: Any, **__: Any) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, *_: Any, **__: Any) -> tuple[int, int]:
        return query_length, 0


class Decoder:
    """Answers up to `rows` prompts at a time. A prompt with its answer has at most `length` tokens, an answer `limit`.

    Greedy and sampled rows can run together: one CUDA graph is captured for steps without sampled rows and one for
    steps with them. The cache takes rows * length * layers * heads * dim * 4 bytes in bf16.
    """

    def __init__(self, model: PreTrainedModel, rows: int, length: int, limit: int, ends: Sequence[int]) -> None:
        config = model.config.get_text_config(decoder=True)
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            raise ValueError(f"{type(model).__name__}: sliding-window attention is not supported by this decoder")
        self.model, self.decoder = model, model.get_decoder()
        self.rows, self.length, self.limit = rows, length, limit
        device, dtype = model.device, model.dtype
        self.cache = StaticKVCache(config, rows, length, device, dtype)
        self.grids = hasattr(model.base_model, "get_rope_index")  # positions in time, height and width (M-RoPE)
        self.shift = torch.zeros(rows, dtype=torch.long, device=device)  # position minus index; images make it negative
        self.token = torch.zeros(rows, dtype=torch.long, device=device)
        self.active = torch.zeros(rows, dtype=torch.bool, device=device)
        self.count = torch.zeros(rows, dtype=torch.long, device=device)
        self.answers = torch.zeros(rows, limit, dtype=torch.long, device=device)
        self.temperature = torch.zeros(rows, device=device)
        self.draws = torch.ones(rows, limit, device=device)
        self.ends = torch.tensor(list(ends) or [-1], device=device)
        self.shared = torch.zeros(0, dtype=torch.long)  # tokens of the prefix in `cache.shared`
        self.graphs: dict[bool, torch.cuda.CUDAGraph] = {}  # key: whether any row is sampled
        self.free = list(range(rows))
        self.running: dict[int, Row] = {}

    @torch.inference_mode()
    def fill(self, batch: Prompts, owner: Any = None) -> None:
        """Fill free rows with the prompts of a batch and generate their first tokens.

        There must be enough free rows. `owner` is returned with the answers. Raises ValueError if a prompt is too long.
        """
        rows = self.free[: len(batch.keys)]
        lengths = self._prefill(batch, rows)
        del self.free[: len(rows)]
        for row, key, length in zip(rows, batch.keys, lengths, strict=True):
            self.running[row] = Row(owner, key, length, batch.temperature > 0)

    @torch.inference_mode()
    def advance(self) -> list[tuple[Any, Answer]]:
        """Generate STRIDE tokens for the running rows; return the finished answers with their owners."""
        sampled = any(row.sampled for row in self.running.values())
        for _ in range(STRIDE):
            self._advance(sampled)
        active = self.active.tolist()
        ended = [row for row in self.running if not active[row]]
        if not ended:
            return []
        tokens, counts = self.answers[ended].tolist(), self.count[ended].tolist()
        ends, answers = set(self.ends.tolist()), []
        for index, answer, count in zip(ended, tokens, counts, strict=True):
            row = self.running.pop(index)
            generated, last = answer[:count], answer[count - 1] in ends
            answers.append((row.owner, Answer(row.key, generated[:-1] if last else generated, last, row.prompt_tokens)))
        self.free += ended
        return answers

    def _prefill(self, batch: Prompts, rows: list[int]) -> list[int]:
        longest = batch.inputs["input_ids"].shape[1]
        if longest + self.limit > self.length:
            raise ValueError(f"a prompt of {longest} tokens and {self.limit} new ones do not fit rows of {self.length}")
        at = torch.tensor(rows, device=self.token.device)
        self.temperature[at] = batch.temperature
        if batch.draws is not None:
            self.draws[at] = batch.draws.to(at.device, non_blocking=True)
        tokens = batch.inputs["input_ids"][0, : batch.shared]
        if not torch.equal(tokens, self.shared):
            self.shared, self.cache.shared = tokens, states_of(self.model, batch) if batch.shared else []
        self.cache.filling = at
        try:
            last = read(self.model, batch, self.cache)
        finally:
            self.cache.filling = None
        token = self._choose(last, at, self.draws[at, 0], batch.temperature > 0)
        lengths = batch.inputs["attention_mask"].sum(1)  # on the CPU, so that nothing waits for the GPU
        self.cache.lengths[at] = lengths.to(at.device, non_blocking=True)
        if self.grids:
            self.shift[at] = batch.inputs["rope_deltas"].view(-1).to(at.device, non_blocking=True)
        self.token[at] = token
        self.answers[at, 0] = token
        self.count[at] = 1
        self.active[at] = ~(token[:, None] == self.ends).any(1) & (self.limit > 1)
        return lengths.tolist()

    def _choose(self, logits: Tensor, rows: Tensor, draws: Tensor, sampled: bool) -> Tensor:
        """Return token ids (b,) for `logits` (b, vocabulary) of `rows`: the most probable token, or in rows with a
        temperature the first at which the cumulative probability reaches the row's draw."""
        likeliest = logits.argmax(-1)
        if not sampled:
            return likeliest
        temperature = self.temperature[rows, None]
        sums = (logits.float() / temperature.clamp(min=1e-3)).softmax(-1).cumsum(-1)
        drawn = torch.searchsorted(sums, draws[:, None] * sums[:, -1:])[:, 0].clamp(max=logits.shape[-1] - 1)
        return torch.where(temperature[:, 0] > 0, drawn, likeliest)

    def _advance(self, sampled: bool) -> None:
        if self.token.device.type != "cuda":
            self._step(sampled)
            return
        if sampled not in self.graphs:
            self._capture(sampled)
        self.graphs[sampled].replay()

    def _capture(self, sampled: bool) -> None:
        """Record a step as a CUDA graph. The warm-up runs without active rows, so that it changes no answers.

        The capture mode is "thread_local", because other threads use the GPU at the same time (to prepare prompts and
        score similarity), which would invalidate a capture in global mode.
        """
        active = self.active.clone()
        self.active.zero_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._step(sampled)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._step(sampled)
        self.graphs[sampled] = graph
        self.active.copy_(active)

    def _step(self, sampled: bool) -> None:
        """Generate one token for every active row, without waiting for the GPU."""
        lengths = self.cache.lengths
        positions = (lengths + self.shift)[:, None]
        hidden = self.decoder(
            inputs_embeds=self.model.get_input_embeddings()(self.token[:, None]),
            position_ids=positions.expand(3, -1, -1) if self.grids else positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        at = self.count.clamp(max=self.limit - 1)
        every, logits = self.cache.every, self.model.get_output_embeddings()(hidden[:, 0])
        token = self._choose(logits, every, self.draws[every, at], sampled)
        self.token.copy_(torch.where(self.active, token, self.token))
        self.answers[every, at] = torch.where(self.active, token, self.answers[every, at])
        self.count += self.active
        lengths += self.active
        self.active &= ~(token[:, None] == self.ends).any(1) & (self.count < self.limit)


@torch.inference_mode()
def read(model: PreTrainedModel, batch: Prompts, cache: StaticKVCache | None = None) -> Tensor:
    """Return the logits (b, vocabulary) of the first token after each prompt.

    Keys and values are written to `cache`, whose `shared` states replace the first `batch.shared` tokens. Prompts are
    padded on the right, where causal attention does not read, so no mask is needed and fast attention kernels apply.
    """
    tokens, begin = batch.inputs["input_ids"], 0 if cache is None else batch.shared
    inputs = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None, non_blocking=True)
        for name, value in _from(begin, batch.inputs).items()
        if name not in ("attention_mask", "rope_deltas")
    }
    for name in inputs:
        if name.endswith("grid_thw"):  # sizes of pictures, see kernels.remember_geometry
            inputs[name].on_cpu = batch.inputs[name].cpu()  # type: ignore[attr-defined]
    last = (batch.inputs["attention_mask"].sum(1) - 1 - begin).to(model.device, non_blocking=True)
    rows = torch.arange(len(tokens), device=last.device)
    hidden = model.base_model(**inputs, past_key_values=cache, use_cache=cache is not None).last_hidden_state
    return model.get_output_embeddings()(hidden[rows, last])


@torch.inference_mode()
def states_of(model: PreTrainedModel, batch: Prompts) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values, (1, heads, shared, dim) for each layer, of the common prefix of the batch's prompts."""
    cache: Any = DynamicCache()
    inputs = {
        name: batch.inputs[name][..., :1, : batch.shared].to(model.device) for name in ("input_ids", "position_ids")
    }
    model.base_model(**inputs, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _from(begin: int, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs without the first `begin` tokens of every prompt."""
    tokens = inputs["input_ids"].shape
    return {name: value[..., begin:] if value.shape[-2:] == tokens else value for name, value in inputs.items()}


def with_positions(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `inputs` with the positions of tokens.

    Models like Qwen-VL have positions in time, height and width, which their forward pass computes in a Python loop
    over pictures while the GPU waits. Here a thread computes them in advance.
    """
    base: Any = model.base_model
    if not hasattr(base, "get_rope_index"):
        tokens = inputs["input_ids"]
        return {**inputs, "position_ids": torch.arange(tokens.shape[1]).expand(tokens.shape)}
    wanted = inspect.signature(base.get_rope_index).parameters
    positions, deltas = base.get_rope_index(**{name: inputs[name] for name in wanted if name in inputs})
    return {**inputs, "position_ids": positions, "rope_deltas": deltas}


def shared_tokens(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> int:
    """Return the length of the common prefix of all prompts, before the first picture. It is 0 for models with
    bidirectional attention among the tokens of one type (PaliGemma)."""
    picture = getattr(model.config, "image_token_id", None)
    if picture is None or "token_type_ids" in inputs:
        return 0
    tokens = inputs["input_ids"]
    alike = (tokens == tokens[0]).all(0) & (tokens[0] != picture)
    return int(alike.int().cumprod(0)[:-1].sum())


def rows_that_fit(model: PreTrainedModel, length: int) -> int:
    """Return how many rows of `length` tokens fit into 70% of the GPU's free memory."""
    torch.cuda.empty_cache()  # release memory cached by an encoder in this process
    config = model.config.get_text_config(decoder=True)
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * _head_dim(config) * length
    return int(0.7 * torch.cuda.mem_get_info(model.device)[0] / (values * model.dtype.itemsize))


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
