// Stores of npm packages: reads one call a line, [number, method, ...arguments], and writes one answer a line.
// The packages are those of the folder that MEMKIT_NPM names.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const load = createRequire(`${process.env.MEMKIT_NPM}/package.json`);
const CLASSES = { user: "HumanMessage", assistant: "AIMessage", system: "SystemMessage", tool: "ToolMessage" };
const ROLES = { human: "user", ai: "assistant", system: "system", tool: "tool" };

function message(role, text) {
  const fields = role === "tool" ? { content: text, tool_call_id: "call-1" } : { content: text };
  return new (load("@langchain/core/messages")[CLASSES[role]])(fields);
}

function pairs(messages) {
  return messages.map((one) => [ROLES[one.getType()] ?? one.getType(), one.content]);
}

function history(url, sessionId, ttlS) {
  const { RedisChatMessageHistory } = load("@langchain/redis");
  const own = new RedisChatMessageHistory({ sessionId, sessionTTL: ttlS ?? undefined, config: { url } });
  own.client.on("error", () => {}); // node-redis asks for a listener: without one an error ends the process
  return {
    append: (role, text) => own.addMessage(message(role, text)),
    read: async () => pairs(await own.getMessages()),
    clear: () => own.clear(),
    close: () => own.client.disconnect(), // quit() waits for a server that may not be there any more
  };
}

async function graph(saver, threadId) {
  const { MessagesAnnotation, START, StateGraph } = load("@langchain/langgraph");
  saver.client.on("error", () => {});
  const builder = new StateGraph(MessagesAnnotation).addNode("talk", () => ({})).addEdge(START, "talk");
  const own = builder.compile({ checkpointer: saver });
  const config = { configurable: { thread_id: threadId } };
  return {
    append: (role, text) => own.invoke({ messages: [message(role, text)] }, config),
    read: async () => pairs((await own.getState(config)).values.messages ?? []),
    clear: () => saver.deleteThread(threadId),
    close: () => saver.client.disconnect(),
  };
}

// The savers take minutes.
const ttlOf = (ttlS) => (ttlS === null ? undefined : { defaultTTL: ttlS / 60, refreshOnRead: false });

const STORES = {
  "langchain-js": history,
  "langgraph-js": async (url, id, ttlS) => {
    const { RedisSaver } = load("@langchain/langgraph-checkpoint-redis");
    return graph(await RedisSaver.fromUrl(url, ttlOf(ttlS)), id);
  },
  "langgraph-js-shallow": async (url, id, ttlS) => {
    const { ShallowRedisSaver } = load("@langchain/langgraph-checkpoint-redis/shallow");
    return graph(await ShallowRedisSaver.fromUrl(url, ttlOf(ttlS)), id);
  },
};

const sessions = [];

async function call(method, given) {
  if (method === "open") {
    const [store, ...own] = given;
    return sessions.push(await STORES[store](...own)) - 1;
  }
  const [number, ...own] = given;
  const result = await sessions[number][method](...own);
  return Array.isArray(result) ? result : null;
}

// An error outside of a call is one of a connection: the call that waits for it reports it.
process.on("uncaughtException", () => {});
const lines = createInterface({ input: process.stdin });
lines.on("close", () => process.exit());
lines.on("line", async (line) => {
  const [number, method, ...given] = JSON.parse(line);
  const answer = await call(method, given).then(
    (result) => ({ result }),
    (error) => ({ error: `${error?.name ?? "Error"}: ${error?.message ?? error}` }),
  );
  process.stdout.write(`${JSON.stringify([number, answer])}\n`);
});
