// ws: a text is sent to every socket of its sender's room, in this process alone.
//
// https://github.com/websockets/ws#readme, its example of a broadcast, by rooms; and bufferutil, its
// one opt-in for speed on this Node. Compression is off, as it is by default.
import { WebSocket, WebSocketServer } from "ws";

const rooms = new Map();
const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.env.PORT) });

server.on("connection", (socket, request) => {
  const room = request.url.slice("/ws/".length);
  if (!rooms.has(room)) rooms.set(room, new Set());
  const members = rooms.get(room).add(socket);

  socket.on("error", console.error);
  socket.on("close", () => {
    members.delete(socket);
    if (members.size === 0 && rooms.get(room) === members) rooms.delete(room);
  });
  socket.on("message", (text, isBinary) => {
    for (const member of members) {
      if (member.readyState === WebSocket.OPEN) member.send(text, { binary: isBinary });
    }
  });
});
