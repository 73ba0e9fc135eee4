"""agno's RedisDb behind the suite's adapter, used as its agents use it: a session record, and a run a message."""

from __future__ import annotations

import uuid
from importlib import import_module
from typing import Any

from adapters.shared import whole_seconds

from memkit.conformance.adapter import Messages

AGENT = "bot"


class Agno:
    """A database as its documentation makes it: db_url, expire in whole seconds."""

    name = "agno"

    def open(self, url: str, session_id: str, ttl_s: float | None) -> AgnoHandle:
        """Return a handle with a database, and so a client, of its own."""
        redis_db = import_module("agno.db.redis").RedisDb
        return AgnoHandle(redis_db(db_url=url, expire=whole_seconds(ttl_s)), session_id)


class AgnoHandle:
    """One agent session of a database."""

    def __init__(self, db: Any, session_id: str) -> None:
        self._db = db
        self._session_id = session_id

    def _load(self) -> Any:
        kind = import_module("agno.db.base").SessionType.AGENT
        return self._db.get_session(self._session_id, session_type=kind)

    def append(self, role: str, text: str) -> None:
        """Store a run of one message: the session is loaded, the run added, then both are written."""
        run_of = import_module("agno.run.agent").RunOutput
        message = import_module("agno.models.message").Message(role=role, content=text)
        session = self._load() or import_module("agno.session").AgentSession(
            session_id=self._session_id, agent_id=AGENT
        )
        run = run_of(run_id=str(uuid.uuid4()), session_id=self._session_id, agent_id=AGENT, messages=[message])
        session.upsert_run(run)
        self._db.upsert_session(session)
        index = import_module("agno.session._utils").resolve_run_index(session, run)
        self._db.upsert_run(run=run, session_id=self._session_id, run_index=index)

    def read(self) -> Messages:
        """Return the messages of the session's runs."""
        session = self._load()
        runs = (session.runs or []) if session else []
        return [(message.role, message.content) for run in runs for message in run.messages or []]

    def clear(self) -> None:
        """Delete the session."""
        self._db.delete_session(self._session_id)

    def close(self) -> None:
        """Close the client that the database made."""
        self._db.redis_client.close()
