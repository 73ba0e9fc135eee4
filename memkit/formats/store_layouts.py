"""The stores with messages of a known shape: one entry for each store.

To add one, write its entry here and put a captured session of the real library into ``captures/``. Each entry names the
library and the version that wrote the capture.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from memkit.formats import ag2, langchain, openai_agents
from memkit.formats.layout import IDS, MESSAGE, MESSAGES, Key, Layout
from memkit.formats.model import SessionValues, a_dict, one_of, seconds
from memkit.formats.parsing.any_message import read_any
from memkit.formats.parsing.documents import peek
from memkit.formats.parsing.element_shapes import SHAPES, adk_lacks, llama_index_lacks
from memkit.policy import MAX_TTL_MS
from memkit.readonly.values import RedisValue, to_name

_LIST, _SET, _ZSET, _HASH = ("list",), ("set",), ("zset",), ("hash",)
_NO_ORDER = "the messages exist, the key that lists them in their order does not"
_NO_DATES = "the messages exist, the hash with the session's dates does not"
_NO_LIST = "the hash with the session's dates exists, its list of messages does not: lost, or its last item was popped"
_LANGCHAIN4J_TYPES = frozenset({"USER", "AI", "SYSTEM", "TOOL_EXECUTION_RESULT", "CUSTOM"})
_ESCAPED_COLON = "\\:"
_MAX_SPRING_MESSAGES = 1_000
"""RedisChatMemoryRepository.findByConversationId asks the index for this many messages, the oldest first."""


def _lost_calls_note(stored: SessionValues) -> Iterable[str]:
    if any(raw and peek(raw).get("type") == "tool" for raw in stored.keys.values()):
        yield "langchain-redis does not store an assistant's tool calls, so tool results without a call are normal here"


def _spring_notes(stored: SessionValues) -> Iterable[str]:
    count = sum(raw is not None for raw in stored.keys.values())
    if count > 2:  # two messages and the counter
        yield "Spring AI gives each message a TTL of its own and never renews it: the oldest messages expire first"
    if count > _MAX_SPRING_MESSAGES:
        yield f"Spring AI reads the oldest {_MAX_SPRING_MESSAGES:,} messages of a session: the newest are not read"


def _summary_note(stored: SessionValues) -> Iterable[str]:
    if any(raw and b'"context":"' in raw.data for raw in stored.keys.values()):
        yield "messages before these were summarised into the document's context and are not stored any more"


def _cookie_written_s(document: Mapping[str, Any]) -> float | None:
    """Return when express-session wrote the session: before each write it sets the end of the cookie again."""
    cookie = a_dict(document.get("cookie"))
    age_ms, ends_s = cookie.get("originalMaxAge"), seconds(cookie.get("expires"))
    if ends_s is None or type(age_ms) is not int or not 0 < age_ms <= MAX_TTL_MS:
        return None
    return ends_s - age_ms / 1000


LAYOUTS: tuple[Layout, ...] = (
    # langchain-community 0.4.2; @langchain/redis 1.1.2 and google-memorystore 0.3.0 write no prefix. An EXPIRE after
    # each write sets the TTL; if that is lost, the session is persistent.
    Layout(
        store=langchain.STORE,
        prefix=langchain.PREFIX,
        keys=(Key("{id}", kinds=_LIST, fields=("type", "data"), holds=MESSAGES),),
        looks=SHAPES["langchain-community"],
        convert=langchain.turns,
        newest_first=langchain.is_newest_first,
        notes=langchain.notes,
        name_of=langchain.name_of,
    ),
    # langchain-redis 0.2.6: a document a message, each with a TTL of its own that nothing renews. Before 0.2 the time
    # ends the name, and no message has an id.
    Layout(
        store="langchain-redis",
        prefix="chat:",
        keys=(
            Key("{id}:{ulid}", part="message", fields=("type", "data", "message_id", "session_id"), holds=MESSAGE),
            Key("{id}:{#}.{#}", part="message", fields=("type", "data", "session_id", "timestamp"), holds=MESSAGE),
        ),
        id_field="session_id",
        convert=langchain.redis_turns,
        loses_calls=True,
        notes=_lost_calls_note,
    ),
    # llama-index-storage-chat-store-redis 0.8.0; the key is the session's id, without any prefix.
    Layout(
        store="llama-index",
        keys=(Key("{id}", kinds=_LIST, fields=("role",), holds=MESSAGES),),
        looks=SHAPES["llama-index"],
        convert=lambda value, key: llama_index_lacks(value) or read_any(value, key),
    ),
    # openai-agents 0.24.0: both keys are renewed in one MULTI. A list under another prefix may be of another store.
    Layout(
        store=openai_agents.STORE,
        prefix="agents:session:",
        keys=(
            Key("{id}", kinds=_HASH, fields=("session_id", "created_at", "updated_at"), lost=_NO_DATES),
            Key("{id}:messages", kinds=_LIST, part="messages", holds=MESSAGES, lost=_NO_LIST, popped=True),
            Key("{id}:counter", part="counter"),
        ),
        id_field="session_id",
        convert=openai_agents.turns,
        notes=openai_agents.notes,
        name_of=openai_agents.name_of,
    ),
    # google-adk-redis 0.1.5: one document a session, ``session:<app>:<user>:<id>``, renewed by each write.
    Layout(
        store="google-adk-redis",
        prefix="session:{*}:{*}:",
        keys=(Key("{id}", fields=("app_name", "events"), holds=MESSAGES),),
        default_ttl="1h",
        id_field="id",
        messages_field="events",
        convert=lambda event, key: (
            adk_lacks(event) or (read_any(event, key) if a_dict(event.get("content")).get("parts") else None)
        ),
    ),
    # ag2 1.2.1.
    Layout(
        store="ag2",
        prefix="ag2:stream:",
        keys=(Key("{id}", kinds=_LIST, fields=("__event__",), holds=MESSAGES),),
        ttl_unit="",
        convert=ag2.turns,
    ),
    # chat 4.41.1 with @chat-adapter/state-redis: PEXPIRE 7 days, the last 100 messages. The id is adapter:thread.
    Layout(
        store="vercel-chat-sdk",
        prefix="chat-sdk:",
        keys=(
            Key("list:msg-history:{id}", kinds=_LIST, part="messages", fields=("_type", "author"), holds=MESSAGES),
            Key("list:msg-history:{*}:{id}", kinds=_LIST, part="messages", fields=("_type", "author"), holds=MESSAGES),
            Key("subscriptions", kinds=_SET, part="shared subscriptions", shared=True),
        ),
        ttl_unit="milliseconds",
        default_ttl="7d",
    ),
    # @mastra/redis 1.3.1.
    Layout(
        store="mastra-redis",
        keys=(
            Key("mastra_messages:threadId:{id}:id:{*}", part="message", fields=("threadId", "content"), holds=MESSAGE),
            Key("mastra_threads:id:{id}", part="thread", fields=("id", "resourceId")),
            Key("thread:{id}:messages", kinds=_ZSET, part="order", holds=IDS, lost=_NO_ORDER),
            Key("msg-idx:{*}", part="message index"),
        ),
        ttl_unit="",
    ),
    # AgentScope 2.0.11.
    Layout(
        store="agentscope-storage",
        prefix="agentscope:user:{*}:session:",
        keys=(
            Key("{id}:messages", kinds=_LIST, part="messages", fields=("role", "content"), holds=MESSAGES),
            Key("{id}:message_ids", kinds=_SET, part="message ids"),
            Key("{id}", part="session", fields=("agent_id", "config", "state")),
        ),
        id_field="id",
    ),
    # AgentScope 1.0.21.
    Layout(
        store="agentscope-memory",
        prefix="user_id:{*}:session:",
        keys=(
            Key("{id}:messages", kinds=_LIST, part="order", holds=IDS, lost=_NO_ORDER),
            Key("{id}:msg:{*}", part="message", fields=("role", "content"), holds=MESSAGE),
            Key("{id}:mark:{*}", kinds=_LIST, part="mark"),
            Key("{id}:marks_index", kinds=_SET, part="marks"),
        ),
    ),
    # strands-valkey-session-manager 0.1.0.
    Layout(
        store="strands-valkey",
        prefix="session:",
        keys=(
            Key("{id}:agent:{*}:message:{#}", part="message", fields=("message", "message_id"), holds=MESSAGE),
            Key("{id}:agent:{*}", part="agent", fields=("agent_id", "conversation_manager_state")),
            Key("{id}:multi_agent:{*}", part="agents", fields=("id", "type")),
            Key("{id}", fields=("session_id", "session_type", "created_at")),
        ),
        ttl_unit="",
    ),
    # Redis's agent-memory-server 0.15.0: no TTL over REST, 3,600 s over MCP.
    Layout(
        store="agent-memory-server",
        prefix="working_memory:",
        keys=(Key("{id}", fields=("messages", "memories"), holds=MESSAGES),),
        id_field="session_id",
        messages_field="messages",
        ttl_field="ttl_seconds",
        notes=_summary_note,
    ),
    # Spring AI 2 (spring-ai-model-chat-memory-repository-redis); names write "a:b" as "a\\:b".
    Layout(
        store="spring-ai",
        prefix="chat-memory:",
        keys=(
            Key("{id}:{#}", part="message", fields=("type", "content", "conversation_id"), holds=MESSAGE),
            Key("counter:{id}", part="counter"),
        ),
        id_field="conversation_id",
        colon=_ESCAPED_COLON,
        notes=_spring_notes,
    ),
    # Spring AI Alibaba (spring-ai-alibaba-starter-memory-redis).
    Layout(
        store="spring-ai-alibaba",
        prefix="spring_ai_alibaba_chat_memory:",
        keys=(Key("{id}", kinds=_LIST, fields=("messageType", "text"), holds=MESSAGES),),
        ttl_unit="",
    ),
    # LangChain4j community: the prefix is empty by default, and each turn rewrites the whole array.
    Layout(
        store="langchain4j",
        keys=(Key("{id}", fields=("type",), holds=MESSAGES),),
        looks=lambda value: one_of(value.get("type"), _LANGCHAIN4J_TYPES) and not {"data", "role"} & value.keys(),
    ),
    # Rasa 3.6 RedisTrackerStore: actions and slots stand between the messages.
    Layout(
        store="rasa",
        prefix="tracker:",
        keys=(Key("{id}", fields=("events", "name"), holds=MESSAGES),),
        id_field="sender_id",
        messages_field="events",
        convert=lambda event, key: (
            read_any(event, key) if event.get("event") in ("user", "bot") and event.get("text") is not None else None
        ),
    ),
    # connect-redis 9.0.0 (Express), Flask-Session 0.8.0, django-redis 7.0.0: web sessions, which may hold a dialogue.
    Layout(
        store="connect-redis",
        prefix="sess:",
        keys=(Key("{id}", fields=("cookie",), holds=MESSAGES),),
        written_s=_cookie_written_s,
        web_session=True,
        default_ttl="1d",
    ),
    Layout(
        store="flask-session",
        prefix="session:",
        keys=(Key("{id}", fields=("_permanent",), holds=MESSAGES),),
        web_session=True,
        default_ttl="31d",
    ),
    Layout(
        store="django-session",
        prefix="django.contrib.sessions.cache",
        # django.contrib.sessions.backends.cached_db writes "cached_db" instead of "cache".
        keys=(Key("d_db{id}", holds=MESSAGES), Key("{id}", holds=MESSAGES)),
        web_session=True,
        default_ttl="14d",
    ),
)


def leads(raw: RedisValue) -> tuple[str, ...]:
    """Return the keys that show which session an order, an index, a list of messages or of sessions belongs to."""
    if raw.kind == "list" and raw.name.endswith(":messages"):  # openai-agents' hash names its session
        return (raw.name.removesuffix(":messages"),)
    of_mastra = re.fullmatch(r"((?:.*?[:/|}])??)(?:thread:(.+):messages|msg-idx:.+)", raw.name, re.DOTALL)
    if of_mastra and raw.kind == ("zset" if of_mastra[2] else "string"):
        return (f"{of_mastra[1]}mastra_threads:id:{of_mastra[2] or to_name(raw.data)}",)
    base = raw.name.removesuffix(":subscriptions")  # of the Chat SDK
    if raw.kind == "set" and base != raw.name:
        return tuple(f"{base}:list:msg-history:{each}" for each in sorted(raw.members))
    return ()
