"""Checks that hold for any store's dialogue: results follow their calls, no message occurs twice, none is cut off."""

from collections.abc import Iterable, Iterator

from memkit.formats.model import Item, LikeProblems, Tool, Turn

SKEW_S = 5.0
"""Clocks of several writers differ: an order that is wrong by less than this is not reported."""


class Dialogue:
    """Follows one dialogue message by message; ``follow`` passes every item on and adds the problems.

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
        self._found = LikeProblems()

    def follow(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items (a result gets its tool's name from the call), then the problems between them."""
        for item in items:
            yield self._seen(item) if isinstance(item, Turn) else item
            del item  # a text may have 10 MB: release it before the next one is parsed
        lost = "no result is stored: it is still running, or the result was lost"
        for key, count in self._open.values():
            place = "the last message" if count == self._count else f"message {count:,}"
            self._found.add("gap", key, f"{place} calls a tool, and {lost}")
        if self._loses_calls and self._empty_at is not None:
            reason = "the last message is the assistant's and has no text, so it is probably a tool call, and"
            self._found.add("gap", self._empty_at, f"{reason} {lost}")
        yield from self._found.report()

    def _seen(self, turn: Turn) -> Turn:
        self._count += 1
        if turn.at_s is not None:
            if turn.at_s < self._at_s - SKEW_S:
                self._add("out_of_order", turn.key, "is older than the one before it")
            self._at_s = max(self._at_s, turn.at_s)
        self._empty_at = turn.key if turn.role == "assistant" and not turn.text else None
        if turn.uid is not None:
            if turn.uid in self._uids:
                self._add("duplicate", turn.key, "has the id of an earlier one")
            self._uids.add(turn.uid)
        if turn.role == "tool":
            return self._result(turn)
        self._may_answer = turn.role == "assistant"
        if self._count == 1 and self._may_answer and (turn.tools or not turn.text):
            reason = "the dialogue begins with a tool call: the messages before it no longer exist"
            self._found.add("gap", turn.key, reason)
        if turn.tools:
            self._calls(turn.key, turn.tools)
        return turn

    def _calls(self, key: str, tools: Iterable[Tool]) -> None:
        for name, call_id in tools:
            if call_id is None:
                continue
            if call_id in self._names:
                self._add("duplicate", key, "makes a tool call that an earlier one made")
            self._names[call_id] = name
            self._open[call_id] = key, self._count

    def _result(self, turn: Turn) -> Turn:
        if self._loses_calls or not turn.tools or not self._names:
            asked = self._may_answer
        else:  # a result without an id needs an assistant's message before it; so does each if no call is stored at all
            asked = all(self._may_answer if uid is None else uid in self._names for _, uid in turn.tools)
        if not asked:
            self._add("orphan_tool_result", turn.key, "is a tool's result, and no call before it asks for it")
        for _, call_id in turn.tools:
            if call_id is None:
                continue
            self._open.pop(call_id, None)
            if call_id in self._answered:
                self._add("duplicate", turn.key, "answers a tool call that was answered before")
            self._answered.add(call_id)
        named = tuple([tool if tool.name else Tool(self._names.get(tool[1] or ""), tool[1]) for tool in turn.tools])
        return turn._replace(tools=named)

    def _add(self, cause: str, key: str, reason: str) -> None:
        self._found.add(cause, key, f"message {self._count:,} {reason}")
