"""Chooses the network's weights among a file's entries, and drops entries that are known not to be weights."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fastdfkd_jax.errors import UserError, listed, shortened

# A file with several of the first five uses the first in this order; of the others there must be only one.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
OTHER_CONTAINERS = ("network", "params", "weights", "state", "module", "teacher", "student")
WEIGHTS = ("raw", "ema")
_AVERAGED = {"ema", "swa", "averaged", "shadow"}  # words of names of averaged weights, as in model_ema, swa_model
_DEPTH = 8  # nesting depth of containers
# Entries that PyTorch's averaging, profilers and training loops add to the weights; not part of a network.
_BOOKKEEPING = (
    r"(.*\.)?(n_averaged|total_ops|total_params)",
    r"((.*\.)?)(criterion|criterions|loss_fn|loss_func)\..*",
    r"(train|val|valid|test)_?(acc|accuracy|metrics?|loss|auroc|f1|top1|top5|confmat)\w*\..*",
    r"(module\.)?(attacker|lpips|perceptual_loss)\..*",
    r"(module\.)?(normali[sz]er?|normali[sz]ation|norm_layer)\.(new_)?(mean|std)",
    r"0\.(mean|std)",
)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Choice:
    """The user's choice among a file's entries.

    Attributes:
      weights: 'raw' or 'ema' if a file has both; None takes raw weights if there are any.
      key: dotted path to the dictionary that holds the weights; '' searches the usual places.
      prefix: prefix of the network's entries; other entries are dropped. '' drops only known extras.
      ignore: patterns of names to drop; `*` matches anything.
    """

    weights: str | None = None
    key: str = ""
    prefix: str = ""
    ignore: tuple[str, ...] = ()


ALL = Choice()  # the default choice


class Chosen(NamedTuple):
    """The entries that were taken, and notes for the user.

    Attributes:
      entries: the values by name.
      taken: the keys that lead to them, '' for the file itself.
      notes: one line each on alternatives and on dropped entries.
    """

    entries: dict[str, Any]
    taken: str
    notes: tuple[str, ...]


class _Candidate(NamedTuple):
    path: tuple[str, ...]
    content: Mapping[str, Any]

    @property
    def title(self) -> str:
        return ".".join(self.path)

    @property
    def averaged(self) -> bool:
        return any(is_averaged(part) for part in self.path)


def is_averaged(name: str) -> bool:
    """Returns True for a key of averaged weights: state_dict_ema, model_ema, swa_model."""
    return not _AVERAGED.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def find_weights(content: Any, choice: Choice, is_tensor: Callable[[Any], bool]) -> Chosen:
    """Finds the dictionary of tensors that holds the weights.

    Args:
      content: the content of a PyTorch file.
      choice: `weights` and `key` are followed.
      is_tensor: returns True for tensors; only they are taken.

    Raises:
      UserError: there is no such dictionary, or several and no choice; the message explains how to choose.
    """
    if choice.key:
        content = _under(content, choice.key)
    if not isinstance(content, Mapping):
        raise UserError(f"expected a dictionary of tensors, found {type(content).__name__}: save model.state_dict()")
    start = _Candidate(tuple(filter(None, (choice.key,))), content)
    candidates = list(_candidates(start, is_tensor, set()))
    if not candidates:
        raise UserError(_nothing_found(content, is_tensor))
    chosen, notes = _one_of(candidates, choice.weights, len(start.path))
    entries = {str(name): value for name, value in chosen.content.items() if is_tensor(value)}
    others = {
        str(name): value
        for name, value in chosen.content.items()
        if not is_tensor(value) and not (isinstance(value, Mapping) and _is_container(name))
    }
    strangers = [name for name, value in others.items() if not isinstance(value, (bool, int, float, str, type(None)))]
    if strangers:
        raise UserError(_strangers(strangers, others, is_tensor))
    if others:
        notes += (f"ignored {listed(list(others))}, which are not tensors",)
    return Chosen(entries, chosen.title, notes)


def _under(content: Any, key: str) -> Any:
    if isinstance(content, Mapping) and key in content:
        return content[key]
    for part in key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            keys = listed([str(k) for k in content]) if isinstance(content, Mapping) else "no keys"
            raise UserError(f"--key {shortened(key, 60)} does not exist: expected one of the file's keys, found {keys}")
        content = content[part]
    return content


def _candidates(found: _Candidate, is_tensor: Callable[[Any], bool], seen: set[int]) -> Iterable[_Candidate]:
    """Finds dictionaries with tensors under the usual keys, or this one itself if there are none."""
    if id(found.content) in seen or len(found.path) > _DEPTH:
        return
    seen.add(id(found.content))
    inner: list[_Candidate] = []
    for key, value in found.content.items():
        if isinstance(value, Mapping) and _is_container(key):
            inner += _candidates(_Candidate((*found.path, key), value), is_tensor, seen)
    yield from inner
    names = [str(name) for name, value in found.content.items() if is_tensor(value)]
    # Bare weights may have averaged ones beside them. A tensor without dots, such as an accuracy, is not a weight.
    beside = all(candidate.averaged for candidate in inner) and any("." in name for name in names)
    if beside or (not inner and (names or not found.content)):
        yield found


def _is_container(key: Any) -> bool:
    return isinstance(key, str) and (key in CONTAINERS or key in OTHER_CONTAINERS or is_averaged(key))


def _one_of(candidates: list[_Candidate], wanted: str | None, start: int) -> tuple[_Candidate, tuple[str, ...]]:
    """Returns the candidate to take, and notes on the alternatives."""
    filled = [c for c in candidates if c.content] or candidates[:1]
    groups = {"raw": [c for c in filled if not c.averaged], "ema": [c for c in filled if c.averaged]}
    if wanted == "ema" and not groups["ema"] and any(_averaged_names(c.content) for c in filled):
        groups = {"raw": [], "ema": filled}  # one dictionary holds both kinds; `trim` takes the averaged ones
    if wanted and not groups[wanted]:
        found = listed([c.title or "bare tensors" for c in filled])
        raise UserError(f"it has no {wanted} weights, found {found}: leave --weights out")
    kind = wanted or ("raw" if groups["raw"] else "ema")
    chosen = _first(groups[kind], start)
    notes = []
    if both := [c.title for c in groups["raw" if kind == "ema" else "ema"]]:
        other = "raw" if kind == "ema" else "averaged (EMA or SWA)"
        flag = "raw" if kind == "ema" else "ema"
        notes.append(
            f"took the {'raw' if kind == 'raw' else 'averaged'} weights under {chosen.title or 'no key'}; there are "
            f"{other} ones too, under {listed(both)}: import with --weights {flag} to take those"
        )
    elif kind == "ema" and chosen.averaged:
        notes.append(f"took averaged weights (EMA or SWA), under {chosen.title}: there are no raw ones")
    rest = [c.title for c in groups[kind] if c is not chosen]
    if rest:
        notes.append(
            f"took the weights under {chosen.title}; others are under {listed(rest)}: import with --key to take those"
        )
    return chosen, tuple(notes)


def _averaged_names(names: Iterable[Any]) -> list[str]:
    """Returns entries whose first component marks them as averaged: 'ema_model.conv1.weight'."""
    return [name for name in map(str, names) if "." in name and is_averaged(name.split(".")[0])]


def _first(group: list[_Candidate], start: int) -> _Candidate:
    if len(group) == 1:
        return group[0]
    for key in CONTAINERS:
        for candidate in group:
            if key in candidate.path[start : start + 1]:
                return candidate
    titles = [candidate.title for candidate in group]
    raise UserError(f"it has several networks, under {listed(titles)}: choose one with --key, as in --key {titles[0]}")


def _nothing_found(content: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> str:
    hint = _key_hint(content, is_tensor)
    names = listed([str(name) for name in content]) or "nothing"
    expected = "tensors, bare or under state_dict, model, net, network, weights, ..."
    return f"not a state dictionary: expected {expected}; these entries are not tensors: {names}{hint}"


def _strangers(names: list[str], others: Mapping[str, Any], is_tensor: Callable[[Any], bool]) -> str:
    if any("_packed_params" in name for name in names):
        return f"the network is quantised (it has {listed(names, 1)}): expected the weights before quantisation"
    hint = _key_hint(others, is_tensor)
    return f"not a state dictionary: expected tensors; these entries are not tensors: {listed(names)}{hint}"


def _key_hint(content: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> str:
    def has_tensors(value: Any) -> bool:
        return isinstance(value, Mapping) and any(is_tensor(v) for v in value.values())

    keys = [str(key) for key, value in content.items() if has_tensors(value)]
    return f"; there are tensors under {listed(keys)}: take them with --key {shortened(keys[0], 40)}" if keys else ""


def trim(
    state: Mapping[str, np.ndarray], choice: Choice, known: Collection[str] = (), taken: str = ""
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Drops entries that are not part of the network.

    Args:
      state: arrays by the file's names.
      choice: `prefix`, `ignore` and `weights` are followed; names keep their prefix.
      known: names of the network's entries, if known. They are never dropped by default.
      taken: the keys that led to the state in its file.

    Returns:
      The remaining entries, and one line for each kind of dropped entry.

    Raises:
      UserError: an option matches no entry, or nothing is left.
    """
    names, notes = list(state), []
    for pattern in choice.ignore:
        dropped = set(fnmatch.filter(names, pattern))
        if not dropped:
            raise UserError(f"--ignore {shortened(pattern, 60)} matches no entry: the file has {listed(names)}")
        names = [name for name in names if name not in dropped]
    if choice.prefix:
        kept = [name for name in names if name.startswith(choice.prefix)]
        if not kept:
            raise UserError(f"--prefix {shortened(choice.prefix, 60)} matches no entry: the file has {listed(names)}")
        names = kept
    if choice.weights == "ema" and not _averaged_names(names) and not is_averaged(taken):
        raise UserError("there are no averaged (EMA or SWA) weights: leave --weights out")
    names, averaged = _of_one_kind(names, choice.weights, known)
    notes += averaged
    strange = [name for name in names if is_bookkeeping(name) and not _belongs(name, known)]
    if strange:
        names = [name for name in names if name not in set(strange)]
        notes.append(f"ignored {len(strange)} entries that do not belong to a network: {listed(strange, 3, 60)}")
        notes += _normalisation(state, strange)
    if not names:
        raise UserError("no entries are left: check --ignore and --prefix")
    return {name: state[name] for name in names}, tuple(notes)


def is_bookkeeping(name: str) -> bool:
    """Returns True for an entry that training tools add to a network's weights."""
    return any(re.fullmatch(pattern, name) for pattern in _BOOKKEEPING)


def _belongs(name: str, known: Collection[str]) -> bool:
    """Returns True if the name, without any leading components, is one of the network's."""
    parts = name.split(".")
    return any(".".join(parts[start:]) in known for start in range(len(parts)))


def _of_one_kind(names: list[str], wanted: str | None, known: Collection[str]) -> tuple[list[str], list[str]]:
    """Selects the raw or the averaged entries, by the first part of their names, if there are both."""
    averaged = [n for n in _averaged_names(names) if not _belongs(n, known)]
    raw = [n for n in names if n not in set(averaged)]
    if not averaged or not any("." in n and not is_bookkeeping(n) for n in raw):
        return names, []
    start = averaged[0].split(".")[0]
    if wanted == "ema":
        return averaged, [f"took the {len(averaged)} averaged entries {shortened(start, 40)}.*, not the raw ones"]
    return raw, [
        f"took the raw weights; there are averaged (EMA or SWA) ones too, {shortened(start, 40)}.*: import with "
        "--weights ema to take those"
    ]


def _normalisation(state: Mapping[str, np.ndarray], names: Iterable[str]) -> list[str]:
    """Reports the numbers of a dropped normalising layer, because --mean and --std must match them."""
    found = {
        part: np.asarray(state[name]).ravel()
        for name in names
        for part in ("mean", "std")
        if name.endswith(part) and "attacker" not in name and 0 < state[name].size <= 4
    }
    if found.keys() != {"mean", "std"}:
        return []
    texts = (f"--{part} {','.join(f'{number:g}' for number in numbers)}" for part, numbers in found.items())
    return [f"the file's network normalises images itself, as {' '.join(texts)}: check that yours are the same"]
