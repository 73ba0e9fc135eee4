"""Checks that hold for any store's dialogue: results follow their calls, nothing is there twice, nothing is cut off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from memkit.formats.model import Item, Problem, Run, Tool, Turn

_SAID = 5
SKEW_S = 5.0
"""Writers' clocks differ; an order that is wrong by less is none."""


class Dialogue:
    """Follows one dialogue turn by turn; ``follow`` passes every item on and adds the problems it sees.

    ``loses_calls`` is for stores that drop an assistant's tool calls: a result then needs an assistant before it.
    """

    def __init__(self, *, loses_calls: bool = False) -> None:
        self._loses_calls = loses_calls
        self._names: dict[str, str | None] = {}
        self._open: dict[str, tuple[str, int]] = {}
        self._answered: set[str] = set()
        self._uids: set[str] = set()
        self._empty_at: str | None = None
        self._at_s = 0.0
        self._may_answer = False
        self._count = 0
        self._found: dict[str, list[Problem]] = {}
        self._counts: Counter[str] = Counter()

    def follow(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items as they are (a result gets its tool's name from the call), then the problems between them."""
        for item in items:
            if isinstance(item, Run):
                yield self._run(item)
            else:
                yield self._seen(item) if isinstance(item, Turn) else item
            del item  # see elements.turns
        self._end()
        for cause, found in self._found.items():
            yield from found[:_SAID]
            if len(found) > _SAID:
                yield found[_SAID]._replace(says=f"… and {self._counts[cause] - _SAID:,} more like it")

    def _run(self, run: Run) -> Run:
        calls = bool(run.tools and run.tools[0]) or not run.texts[0]
        if self._count == 0 and run.roles[0] == "assistant" and calls:
            self._begins_with_a_call(run.key)
        self._times(run)
        self._ids(run)
        tools = self._used(run, run.tools) if run.tools else None
        self._count += len(run.roles)
        spoke = next((role for role in reversed(run.roles) if role != "tool"), None)
        self._may_answer = spoke == "assistant" if spoke else self._may_answer
        self._empty_at = run.key if run.roles[-1] == "assistant" and not run.texts[-1] else None
        return run._replace(tools=tools) if tools else run

    def _ids(self, run: Run) -> None:
        uids = [uid for uid in run.uids or () if uid is not None]
        new = set(uids)
        if len(new) == len(uids) and new.isdisjoint(self._uids):
            self._uids |= new
            return
        for count, uid in enumerate(run.uids or (), self._count + 1):
            if uid is not None:
                self._once(run.key, uid, count)

    def _used(self, run: Run, tools: Iterable[tuple[Tool, ...]]) -> list[tuple[Tool, ...]]:
        """Follow the tools of a run, each of which has an id; return them with the names that their calls gave them."""
        named = []
        for count, (role, used) in enumerate(zip(run.roles, tools, strict=True), self._count + 1):
            if used and role == "tool":
                if [call_id for _, call_id in used if call_id not in self._names]:
                    self._orphan(run.key, count)
                used = self._results(run.key, used, count)
            elif used:
                self._calls(run.key, used, count)
            named.append(used)
        return named

    def _begins_with_a_call(self, key: str) -> None:
        self._add("gap", key, "the dialogue begins with a tool call: what was said before it is gone")

    def _seen(self, turn: Turn) -> Turn:
        self._count += 1
        self._in_time(turn.at_s, self._count, turn.key)
        self._empty_at = turn.key if turn.role == "assistant" and not turn.text else None
        if turn.uid is None and not turn.tools and turn.role != "tool" and self._count > 1:
            self._may_answer = turn.role == "assistant"
            return turn
        return self._turn(turn)

    def _times(self, run: Run) -> None:
        times = [at_s for at_s in run.at_s or () if at_s is not None]
        if times and times[0] >= self._at_s and times == sorted(times):
            self._at_s = times[-1]
        elif times and run.at_s:
            for count, at_s in enumerate(run.at_s, self._count + 1):
                self._in_time(at_s, count, run.key)

    def _in_time(self, at_s: float | None, count: int, key: str) -> None:
        if at_s is None:
            return
        if at_s < self._at_s - SKEW_S:
            self._add("out_of_order", key, "message {:,} was said before the one before it", count)
        self._at_s = max(self._at_s, at_s)

    def _turn(self, turn: Turn) -> Turn:
        if turn.uid is not None:
            self._once(turn.key, turn.uid, self._count)
        if turn.role == "tool":
            return self._result(turn)
        self._may_answer = turn.role == "assistant"
        if self._count == 1 and turn.role == "assistant" and (turn.tools or not turn.text):
            self._begins_with_a_call(turn.key)
        self._calls(turn.key, turn.tools, self._count)
        return turn

    def _once(self, key: str, uid: str, count: int) -> None:
        if uid in self._uids:
            self._add("duplicate", key, "message {:,} has the id of an earlier one", count)
        self._uids.add(uid)

    def _calls(self, key: str, tools: Iterable[Tool], count: int) -> None:
        for name, call_id in tools:
            if call_id is None:
                continue
            if call_id in self._names:
                self._add("duplicate", key, "message {:,} makes a tool call that an earlier one made", count)
            self._names[call_id] = name
            self._open[call_id] = key, count

    def _result(self, turn: Turn) -> Turn:
        asked = self._may_answer if self._loses_calls or not turn.tools else self._all_called(turn)
        if not asked:
            self._orphan(turn.key, self._count)
        return turn._replace(tools=self._results(turn.key, turn.tools, self._count))

    def _orphan(self, key: str, count: int) -> None:
        self._add("orphan_tool_result", key, "message {:,} is a tool's result and no call before it asks for it", count)

    def _all_called(self, turn: Turn) -> bool:
        """Return whether each result has its call; one without an id needs an assistant's turn before it."""
        return all(self._may_answer if tool.call_id is None else tool.call_id in self._names for tool in turn.tools)

    def _results(self, key: str, tools: Iterable[Tool], count: int) -> tuple[Tool, ...]:
        """Take in what tools answered; return them with the names that their calls gave them."""
        for _, call_id in tools:
            if call_id is None:
                continue
            self._open.pop(call_id, None)
            if call_id in self._answered:
                self._add("duplicate", key, "message {:,} answers a tool call that was answered before", count)
            self._answered.add(call_id)
        return tuple([tool if tool.name else Tool(self._names.get(tool.call_id or ""), tool.call_id) for tool in tools])

    def _end(self) -> None:
        for key, count in self._open.values():
            where = "the last message" if count == self._count else f"message {count:,}"
            self._add("gap", key, f"{where} calls a tool and no result is stored: still running, or lost")
        if self._loses_calls and self._empty_at is not None:
            says = "the last message is an assistant's without text, so a tool call, and no result is stored"
            self._add("gap", self._empty_at, f"{says}: still running, or lost")

    def _add(self, cause: str, key: str, says: str, count: int = 0) -> None:
        """Note a problem of message ``count``; of those that nobody will read, only how many there are."""
        self._counts[cause] += 1
        if self._counts[cause] <= _SAID + 1:
            self._found.setdefault(cause, []).append(Problem(cause, key, says.format(count)))
