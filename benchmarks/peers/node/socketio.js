// socket.io: rooms, with Redis between processes.
//
// https://socket.io/docs/v4/redis-adapter/ with the `redis` package. Of its page on speed,
// https://socket.io/docs/v4/performance-tuning/: bufferutil, and each socket's first HTTP request is
// let go. Everything else has its default.
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const publisher = createClient({ url: process.env.REDIS_URL });
const subscriber = publisher.duplicate();
for (const client of [publisher, subscriber]) client.on("error", console.error);
await Promise.all([publisher.connect(), subscriber.connect()]);

const http = createServer();
const io = new Server(http, { adapter: createAdapter(publisher, subscriber) });

io.engine.on("connection", (socket) => {
  socket.request = null;
});

io.on("connection", (socket) => {
  socket.on("join", async (room, acknowledge) => {
    await socket.join(room);
    acknowledge();
  });
  socket.on("message", ({ room, text }) => io.to(room).emit("message", text));
});

http.listen(Number(process.env.PORT), "127.0.0.1");
