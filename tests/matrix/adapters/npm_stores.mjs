// Stores of npm packages: reads one call a line, [number, method, ...arguments], and writes one answer a line.
// It runs as a copy in the folder in which the packages are installed.

import { randomUUID } from "node:crypto";
import { createInterface } from "node:readline";

const CLASSES = { user: "HumanMessage", assistant: "AIMessage", system: "SystemMessage", tool: "ToolMessage" };
const ROLES = { human: "user", ai: "assistant", system: "system", tool: "tool" };

async function messageOf(role, text) {
  const fields = role === "tool" ? { content: text, tool_call_id: "call-1" } : { content: text };
  return new (await import("@langchain/core/messages"))[CLASSES[role]](fields);
}

function pairs(messages) {
  return messages.map((one) => [ROLES[one.getType()] ?? one.getType(), one.content]);
}

// node-redis asks for a listener of errors: without one an error ends the process. Its quit() waits for a server that
// may not be there any more, so the connection is ended without it.
function prepared(client) {
  client.on("error", () => {});
  return () => (client.destroy ?? client.disconnect).call(client);
}

async function langchain(url, sessionId, ttlS) {
  const { RedisChatMessageHistory } = await import("@langchain/redis");
  const own = new RedisChatMessageHistory({ sessionId, sessionTTL: ttlS ?? undefined, config: { url } });
  return {
    append: async (role, text) => own.addMessage(await messageOf(role, text)),
    read: async () => pairs(await own.getMessages()),
    clear: () => own.clear(),
    close: prepared(own.client),
  };
}

async function langgraph(module, name, url, threadId, ttlS) {
  const { MessagesAnnotation, START, StateGraph } = await import("@langchain/langgraph");
  const minutes = ttlS === null ? undefined : { defaultTTL: ttlS / 60, refreshOnRead: false };
  const saver = await (await import(module))[name].fromUrl(url, minutes);
  const builder = new StateGraph(MessagesAnnotation).addNode("talk", () => ({})).addEdge(START, "talk");
  const own = builder.compile({ checkpointer: saver });
  const config = { configurable: { thread_id: threadId } };
  return {
    append: async (role, text) => own.invoke({ messages: [await messageOf(role, text)] }, config),
    read: async () => pairs((await own.getState(config)).values.messages ?? []),
    clear: () => saver.deleteThread(threadId),
    close: prepared(saver.client),
  };
}

async function vercel(url, threadId, ttlS) {
  const { Message, ThreadHistoryCache } = await import("chat");
  const state = (await import("@chat-adapter/state-redis")).createRedisState({ url });
  const close = prepared(state.getClient());
  await state.connect();
  const own = new ThreadHistoryCache(state, { ttlMs: 1000 * (ttlS ?? 0) });
  const message = (role, text) => ({
    id: randomUUID(),
    threadId,
    text,
    formatted: { type: "root", children: [] },
    raw: {},
    author: { userId: role, userName: role, fullName: role, isBot: role === "assistant", isMe: role === "assistant" },
    metadata: { dateSent: new Date(), edited: false },
    attachments: [],
  });
  return {
    append: (role, text) => own.append(threadId, new Message(message(role, text))),
    read: async () => (await own.getMessages(threadId)).map((one) => [one.author.isMe ? "assistant" : "user", one.text]),
    clear: () => state.getClient().del(`chat-sdk:list:msg-history:${threadId}`), // the SDK has no method for it
    close,
  };
}

async function mastra(url, threadId) {
  const store = new (await import("@mastra/redis")).RedisStore({ id: "memory", connectionString: url });
  const close = prepared(store.getClient());
  await store.init();
  const own = await store.getStore("memory");
  const resourceId = "user-1";
  return {
    append: async (role, text) => {
      const createdAt = new Date();
      if (!(await own.getThreadById({ threadId }))) {
        const thread = { id: threadId, resourceId, title: "", metadata: {}, createdAt, updatedAt: createdAt };
        await own.saveThread({ thread });
      }
      const content = { format: 2, parts: [{ type: "text", text }] };
      await own.saveMessages({ messages: [{ id: randomUUID(), threadId, resourceId, role, createdAt, content }] });
    },
    read: async () => {
      const { messages } = await own.listMessages({ threadId, perPage: false });
      return messages.map((one) => [one.role, one.content.parts[0].text]);
    },
    clear: () => own.deleteThread({ threadId }),
    close,
  };
}

const SAVERS = "@langchain/langgraph-checkpoint-redis";
const STORES = {
  "langchain-js": langchain,
  "langgraph-js": (...given) => langgraph(SAVERS, "RedisSaver", ...given),
  "langgraph-js-shallow": (...given) => langgraph(`${SAVERS}/shallow`, "ShallowRedisSaver", ...given),
  "vercel-chat-sdk": vercel,
  "mastra-redis": mastra,
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
