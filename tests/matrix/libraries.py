"""The libraries of the matrix: their stores, the versions that were tested, what to install, and the adapter."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Library:
    """A session store of a library: ``requirements`` are pip's (none: this environment will do), or npm's.

    ``version_of`` is the package that has the version; ``needs_modules``: RedisJSON and RediSearch.
    """

    store: str
    version_of: str
    adapter: str
    requirements: tuple[str, ...]
    needs_modules: bool = False
    npm: bool = False


_HERE = "adapters"

LIBRARIES = (
    Library("memkit", "redis-memkit", "memkit.conformance.memkit_adapter:MemkitAdapter", ()),
    Library(
        "langchain-community",
        "langchain-community",
        f"{_HERE}.langchain_community:LangchainCommunity",
        ("langchain-community==0.4.2", "redis==8.1.0"),
    ),
    Library(
        "llama-index",
        "llama-index-storage-chat-store-redis",
        f"{_HERE}.llama_index:LlamaIndex",
        ("llama-index-storage-chat-store-redis==0.8.0", "redis==8.1.0"),
    ),
    Library(
        "openai-agents",
        "openai-agents",
        f"{_HERE}.openai_agents:OpenAIAgents",
        ("openai-agents[redis]==0.24.0", "redis==8.1.0"),
    ),
    Library("agno", "agno", f"{_HERE}.agno:Agno", ("agno==3.1.10", "redis==8.1.0")),
    Library(
        "google-adk-redis",
        "google-adk-redis",
        f"{_HERE}.google_adk:GoogleAdkRedis",
        ("google-adk-redis==0.1.5", "google-adk==2.13.0", "redis==8.1.0"),
    ),
    Library("ag2", "ag2", f"{_HERE}.ag2:Ag2", ("ag2[redis]==1.2.1", "redis==8.1.0")),
    Library("redisvl", "redisvl", f"{_HERE}.redisvl:RedisVL", ("redisvl==0.28.0", "redis==8.1.0"), needs_modules=True),
    Library(
        "langchain-redis",
        "langchain-redis",
        f"{_HERE}.langchain_redis:LangchainRedis",
        ("langchain-redis==0.2.6", "redis==7.4.1"),
        needs_modules=True,
    ),
    Library(
        "langgraph-redis",
        "langgraph-checkpoint-redis",
        f"{_HERE}.langgraph_redis:LanggraphRedis",
        ("langgraph-checkpoint-redis==0.5.2", "langgraph", "redis==8.1.0"),
        needs_modules=True,
    ),
    Library(
        "langgraph-redis-shallow",
        "langgraph-checkpoint-redis",
        f"{_HERE}.langgraph_redis:LanggraphRedisShallow",
        ("langgraph-checkpoint-redis==0.5.2", "langgraph", "redis==8.1.0"),
        needs_modules=True,
    ),
    Library(
        "langchain-js",
        "@langchain/redis",
        f"{_HERE}.npm:LangchainJs",
        ("@langchain/redis@1.1.2", "@langchain/core"),
        npm=True,
    ),
    Library(
        "langgraph-js",
        "@langchain/langgraph-checkpoint-redis",
        f"{_HERE}.npm:LanggraphJs",
        ("@langchain/langgraph-checkpoint-redis@1.0.11", "@langchain/langgraph", "@langchain/core"),
        needs_modules=True,
        npm=True,
    ),
    Library(
        "langgraph-js-shallow",
        "@langchain/langgraph-checkpoint-redis",
        f"{_HERE}.npm:LanggraphJsShallow",
        ("@langchain/langgraph-checkpoint-redis@1.0.11", "@langchain/langgraph", "@langchain/core"),
        needs_modules=True,
        npm=True,
    ),
    Library(
        "vercel-chat-sdk",
        "chat",
        f"{_HERE}.npm:VercelChatSdk",
        ("chat@4.41.1", "@chat-adapter/state-redis@4.41.1"),
        npm=True,
    ),
    Library(
        "mastra-redis",
        "@mastra/redis",
        f"{_HERE}.npm:MastraRedis",
        ("@mastra/redis@1.3.1", "@mastra/core"),
        npm=True,
    ),
)
