"""What a stream keeps when it cannot keep everything: rules that choose frames, and tokens of frames.

A rule is a frozen dataclass and sees numbers only: which frames there are, what they cost, and one *prototype* for each
of them, the direction of its mean key in the first global block. Prototypes hardly depend on what is held (RetrieveVGGT
chooses by them too), so that one choice serves all layers, the camera head's caches and the point tracks. Keys and
values are the business of :mod:`streamvggt.cache`; attention knows no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

DEFAULT_FRAMES = 24  # held by rules that are given neither a count nor a memory
_SPREAD = 4  # frames of which tokens are held, over those that would fit whole
_POOL = 16  # patch queries that are averaged, as in XStreamVGGT
_MOST_FRAMES = 2**15 - 1  # of which single tokens are held: their labels are 16-bit


class Costs(NamedTuple):
    """What held frames cost in bytes, and what there is to spend."""

    tokens: int  # tokens of a frame, P
    special: int  # camera and register tokens among them
    token: int  # bytes of one token in all layers
    label: int  # bytes to say whose token it is, where frames are not kept whole
    frame: int  # bytes of one frame beside its tokens
    room: int | None  # bytes for all frames; None for no limit

    def whole_frames(self) -> int | None:
        """How many whole frames there is room for; None for no limit."""
        return None if self.room is None else self.room // (self.tokens * self.token + self.frame)


class CachePolicy(Protocol):
    """Decides which frames a stream keeps. Rules inherit from this and are frozen dataclasses."""

    @property
    def capacity(self) -> int | None:
        """The most frames held at once, the newest among them; None for no limit."""

    def keep(self, frames: Sequence[int], prototypes: Tensor) -> Sequence[int]:
        """Choose :attr:`capacity` of more frames than that.

        Args:
            frames: numbers of the frames, ascending; the last one has just come in and must stay.
            prototypes: ``[n, B, E]`` for these n frames of B streams, each of length 1: the mean key of a frame's
                patches in the first global block, all heads joined.

        Returns:
            Numbers of the frames that stay.
        """

    def fit(self, costs: Costs) -> CachePolicy:
        """Return this rule with counts that there is room for, those that were left open filled in.

        Raises:
            ValueError: there is no room for the least that this rule needs.
        """
        most = costs.whole_frames()
        if self.capacity is not None and most is not None and most < self.capacity:
            raise too_little_room(self, costs, self.capacity)
        return self

    def holds_less(self, other: CachePolicy) -> bool:
        """Whether this is a smaller version of ``other``, the same rule with other counts."""
        return self.capacity is not None and (other.capacity is None or self.capacity < other.capacity)


def require_policy(policy: object) -> None:
    """Raise ValueError for what is no policy; a class in place of an instance is the usual slip."""
    if not hasattr(policy, "keep") or isinstance(policy, type):
        raise ValueError(f"policy must be an instance such as KeepAll() or AnchorWindow(1, 15), got {policy!r}")


def too_little_room(policy: CachePolicy, costs: Costs, frames: int) -> ValueError:
    """Say what ``frames`` whole frames would take."""
    needed = frames * (costs.tokens * costs.token + costs.frame)
    return ValueError(
        f"{policy} needs room for {frames} frames, {needed:,} bytes beside what every stream takes, and has "
        f"{costs.room:,}; give it more memory, smaller frames, or another policy"
    )


@dataclass(frozen=True)
class KeepAll(CachePolicy):
    """Keep every frame: exact, with memory and time that grow with the stream.

    With a limit of memory, a stream that reaches it goes on as :class:`TokenBudget`, and says so once; with
    ``compile=True``, which single tokens do not allow, as :class:`Keyframes`.
    """

    @property
    def capacity(self) -> None:
        """No limit."""
        return None

    def keep(self, frames: Sequence[int], prototypes: Tensor) -> Sequence[int]:
        """Keep them all."""
        return frames


@dataclass(frozen=True)
class AnchorWindow(CachePolicy):
    """Keep the first frames, which define world and scale, and the most recent ones.

    Attributes:
        anchors: frames kept from the start of the stream, at least 1.
        recent: most recent frames kept, the newest among them, at least 1; fewer where memory is short.
    """

    anchors: int = 1
    recent: int = 15

    def __post_init__(self) -> None:
        _check_count(self, "anchors")
        _check_count(self, "recent")

    @property
    def capacity(self) -> int:
        """Anchors and recent frames together."""
        return self.anchors + self.recent

    def keep(self, frames: Sequence[int], prototypes: Tensor) -> Sequence[int]:
        """Drop the oldest that are no anchors."""
        return [*frames[: self.anchors], *frames[-self.recent :]]

    def fit(self, costs: Costs) -> AnchorWindow:
        """Hold fewer recent frames where memory is short."""
        most = costs.whole_frames()
        if most is not None and most <= self.anchors:
            raise too_little_room(self, costs, self.anchors + 1)
        return self if most is None else replace(self, recent=min(self.recent, most - self.anchors))


@dataclass(frozen=True)
class Keyframes(CachePolicy):
    """Keep the first frames, the most recent ones, and between them those that differ most.

    A bank of frames is chosen farthest first (greedy k-centre): beginning with the frames that stay anyway, always the
    one whose prototype is least like any chosen so far. So memory goes to places, not to the time spent at them. In the
    manner of FrameVGGT, which compares frames layer by layer.

    Attributes:
        anchors: frames kept from the start of the stream, at least 1.
        bank: frames kept between, at least 0; fewer where memory is short. None fills the memory of the stream, or
            makes up 24 frames in all where no limit was given.
        recent: most recent frames kept, the newest among them, at least 1; where memory is short no more than a third
            of what it holds beside the anchors.
    """

    anchors: int = 1
    bank: int | None = None
    recent: int = 8

    def __post_init__(self) -> None:
        _check_count(self, "anchors")
        _check_count(self, "recent")
        if self.bank is not None:
            _check_count(self, "bank", least=0)

    @property
    def capacity(self) -> int:
        """Anchors, bank and recent frames together."""
        bank = max(0, DEFAULT_FRAMES - self.anchors - self.recent) if self.bank is None else self.bank
        return self.anchors + bank + self.recent

    def keep(self, frames: Sequence[int], prototypes: Tensor) -> Sequence[int]:
        """Drop those of the frames between that are most like others."""
        likeness = torch.einsum("nbe,mbe->nm", prototypes, prototypes).div(prototypes.shape[1]).cpu()
        first, last = self.anchors, len(frames) - self.recent
        stay = [*range(first), *range(last, len(frames))]
        chosen = _farthest_first(likeness, stay, range(first, last), self.capacity - len(stay))
        return [frames[i] for i in sorted([*stay, *chosen])]

    def fit(self, costs: Costs) -> Keyframes:
        """Hold fewer frames where memory is short; fill it where the bank is open."""
        most = costs.whole_frames()
        if most is None:
            return replace(self, bank=self.capacity - self.anchors - self.recent)
        if most <= self.anchors:
            raise too_little_room(self, costs, self.anchors + 1)
        free = most - self.anchors
        recent = self.recent if most >= self.capacity else min(self.recent, (free + 2) // 3)
        room = free - recent
        return replace(self, recent=recent, bank=room if self.bank is None else min(self.bank, room))


class LayerTokens(NamedTuple):
    """What is known of the n tokens that a layer holds when some have to go; each head has tokens of its own."""

    # Some heads at a time, which and their keys [B, some, n, D]; good until the next ones are taken.
    head_keys: Callable[[], Iterator[tuple[slice, Tensor]]]
    candidates: Tensor  # which of them may go, [B, heads, n]
    queries: Tensor  # of the coming frame, [B, heads, P, D], special tokens first; P is 0 between frames
    keys: Tensor  # likewise
    special: int  # camera and register tokens of a frame


class TokenScore(Protocol):
    """Says how much each token of a layer is worth; those with the lowest score go. A frozen dataclass."""

    def __call__(self, tokens: LayerTokens) -> Tensor:
        """Score tokens, ``[B, heads, n]``."""


@dataclass(frozen=True)
class KeyDiversity:
    """Keep tokens whose key points away from the mean direction of the keys that may go and of the coming patches.

    As in InfiniteVGGT, for each layer and head. As there, layers whose keys are less alike hold more tokens, with one
    difference: what each layer is to hold is settled once, when the first tokens have to go.

    Attributes:
        temperature: how evenly layers share what all of them hold, above 0; higher is more even. None gives every layer
            the same.
    """

    temperature: float | None = 0.5

    def __post_init__(self) -> None:
        if self.temperature is None:
            return
        if not self.temperature > 0:
            raise ValueError(f"KeyDiversity needs a temperature above 0, or None, got {self.temperature!r}")
        object.__setattr__(self, "temperature", float(self.temperature))  # of NumPy, it could not be saved

    def __call__(self, tokens: LayerTokens) -> Tensor:
        """Score tokens by the negative cosine to the mean direction."""
        scores = []
        for heads, keys in tokens.head_keys():
            held, lengths = _sum_of_directions(keys, tokens.candidates[:, heads])
            coming = normalize(tokens.keys[:, heads, tokens.special :].float(), dim=-1).sum(2)
            mean = normalize(coming + held, dim=-1)[:, :, None]
            # A row times keys as columns; the other way round takes a CPU twice as long.
            scores.append(-(mean.to(keys.dtype) @ keys.mT)[:, :, 0].float() / lengths)
        return torch.cat(scores, dim=1)

    def likeness(self, tokens: LayerTokens) -> Tensor:
        """Say how alike the keys that may go are, from 0 to 1: their mean cosine to one another, over all heads."""
        sums = [_sum_of_directions(keys, tokens.candidates[:, heads])[0] for heads, keys in tokens.head_keys()]
        mean = torch.cat(sums, dim=1) / tokens.candidates.sum(2, keepdim=True)
        return mean.square().sum(-1).mean()

    def shares(self, likeness: Sequence[float]) -> list[float]:
        """What part of the tokens that may go each layer holds, from :meth:`likeness` of all.

        The same for every layer where keys that are not finite have no likeness.
        """
        alike = torch.tensor(likeness, dtype=torch.float64)
        if self.temperature is None or not alike.isfinite().all():
            return [1 / len(likeness)] * len(likeness)
        return ((1 - alike) / self.temperature).softmax(0).tolist()


@dataclass(frozen=True)
class QueryImportance:
    """Keep tokens that the coming frame asks for: the mean product of their keys with its pooled queries.

    As in XStreamVGGT: the queries of special tokens and the means of 16 patch queries each, against keys, both averaged
    over heads, so that all heads keep the same tokens.
    """

    def __call__(self, tokens: LayerTokens) -> Tensor:
        """Score tokens by the mean product with pooled queries."""
        queries = tokens.queries.float().mean(1)
        groups = queries[:, tokens.special :].split(_POOL, dim=1)
        pooled = torch.cat([queries[:, : tokens.special], *(group.mean(1, keepdim=True) for group in groups)], dim=1)
        mean = pooled.mean(1)[:, None, None]  # a mean of products is the product with the mean
        products = [(mean.to(keys.dtype) @ keys.mT)[:, :, 0].float() for _, keys in tokens.head_keys()]
        return torch.cat(products, dim=1).mean(1, keepdim=True).expand_as(tokens.candidates)


@dataclass(frozen=True)
class TokenBudget(CachePolicy):
    """Keep single tokens, so many a layer: all of the first frame and the newest, and of others those that score best.

    Camera and register tokens stay for as long as their frame is held. Where more frames have tokens left than may be
    held, one goes as with :class:`Keyframes`, and all its tokens with it.

    Attributes:
        tokens: held in each layer, or with :class:`KeyDiversity` in the mean of all layers; at least two whole frames,
            fewer than asked for where memory is short. None fills the memory of the stream, or holds as many as 24
            frames have where no limit was given.
        score: says which tokens are worth most.
        frames: of which tokens are held, 2 to 32,767; None for four times as many as would fit whole, or fewer where
            the memory must also hold large features of each for point tracks.
    """

    tokens: int | None = None
    score: TokenScore = KeyDiversity()
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None:
            _check_count(self, "tokens")
        if self.frames is not None:
            _check_count(self, "frames", least=2)
        if self.frames is not None and self.frames > _MOST_FRAMES:
            raise ValueError(f"TokenBudget holds tokens of at most {_MOST_FRAMES:,} frames, got frames={self.frames:,}")
        if isinstance(self.score, type) or not callable(self.score):
            raise ValueError(f"score must be an instance such as KeyDiversity(), got {self.score!r}")

    @property
    def capacity(self) -> int:
        """The most frames of which tokens are held."""
        return _SPREAD * DEFAULT_FRAMES if self.frames is None else self.frames

    @property
    def budget(self) -> int:
        """Tokens held in each layer, once they are known."""
        if self.tokens is None:
            raise ValueError(f"{self} is filled in by the first frame of a stream")
        return self.tokens

    def keep(self, frames: Sequence[int], prototypes: Tensor) -> Sequence[int]:
        """Drop the frame that is most like others."""
        return Keyframes(1, self.capacity - 2, 1).keep(frames, prototypes)

    def fit(self, costs: Costs) -> TokenBudget:
        """Hold fewer tokens where memory is short; fill it where the number is open."""
        whole, asked, spread = costs.tokens, self.tokens, _SPREAD
        if costs.room is None:
            tokens = DEFAULT_FRAMES * whole if asked is None else asked
        else:
            of_frame = whole * (costs.token + costs.label)
            # Features of point tracks, which no single token has, are not to take more than tokens.
            spread = max(1, min(spread, of_frame // costs.frame))
            room = costs.room - (self.frames or 0) * costs.frame
            most = whole * room // (of_frame + (spread if self.frames is None else 0) * costs.frame)
            tokens = most if asked is None else min(asked, most)
        frames = spread * tokens // whole if self.frames is None else self.frames
        # The first and the newest frame stay whole, and of the others the special tokens.
        frames = min(frames, 2 + (tokens - 2 * whole) // costs.special, _MOST_FRAMES)
        if frames < 2:
            raise ValueError(
                f"{self} needs at least the {2 * whole} tokens of two frames of this size in each layer, and has "
                f"{max(0, tokens)}; give it more tokens or memory, or smaller frames"
            )
        return replace(self, tokens=min(tokens, frames * whole), frames=frames)

    def holds_less(self, other: CachePolicy) -> bool:
        """Whether this is a smaller version of ``other``."""
        return isinstance(other, TokenBudget) and self.budget < other.budget

    def layer_budgets(self, shares: Sequence[float], frame_tokens: int, special: int) -> list[int]:
        """How many tokens each layer holds, :attr:`budget` in the mean.

        Every layer holds what must stay: two whole frames and the special tokens of the others. The rest goes by
        shares, and no layer gets more than its frames have.

        Args:
            shares: of the layers; they add up to 1.
            frame_tokens: P.
            special: camera and register tokens of a frame.
        """
        least = 2 * frame_tokens + (self.capacity - 2) * special
        most = self.capacity * frame_tokens - least
        free, budgets = (self.budget - least) * len(shares), [0] * len(shares)
        # The largest first: what one of them cannot take is left to the others.
        left = sorted(range(len(shares)), key=lambda i: -shares[i])
        while left:
            weight = sum(shares[i] for i in left)
            share = shares[left[0]] / weight if weight else 1 / len(left)
            part = min(most, round(free * share))
            budgets[left.pop(0)], free = least + part, free - part
        return budgets


def _sum_of_directions(keys: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Add up the directions of the keys that may go, ``[B, heads, D]``; beside it lengths of all, ``[B, heads, n]``."""
    lengths = torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32).clamp_min(1e-12)
    weight = (candidates / lengths).to(keys.dtype)[:, :, None]
    return (weight @ keys)[:, :, 0].float(), lengths


def _farthest_first(likeness: Tensor, chosen: Iterable[int], candidates: Iterable[int], count: int) -> list[int]:
    """Choose ``count`` candidates, always the one least like all that are chosen; of equals the first.

    Args:
        likeness: of all pairs, ``[n, n]``.
        chosen: indices that are chosen already.
        candidates: indices to choose from.
        count: how many to choose.
    """
    left = list(candidates)
    nearest = likeness[left][:, list(chosen)].amax(1)
    picked: list[int] = []
    for _ in range(count):
        best = int(nearest.argmin())
        picked.append(left[best])
        nearest = torch.maximum(nearest, likeness[left, left[best]])
        nearest[best] = torch.inf
    return picked


def _check_count(policy: object, name: str, least: int = 1) -> None:
    """Make a count of a policy ``int``, NumPy's whole numbers too; raise ValueError for others, or below ``least``."""
    given = getattr(policy, name)
    try:
        count = None if isinstance(given, bool) else index(given)
    except TypeError:
        count = None
    if count is None or count < least:
        raise ValueError(
            f"{type(policy).__name__} needs whole numbers, {name} of at least {least}, got {name}={given!r} "
            f"({type(given).__name__}); the first frame defines the world and the newest must be seen"
        )
    object.__setattr__(policy, name, count)
