// One person with wukongimjssdk, driven over pipes: commands come as lines of JSON, and what happens
// goes out the same way. tests/support/javascript.py bundles this with the SDK, since Node alone
// cannot load a package whose imports have no file extensions.

import { createInterface } from "node:readline";
import { WebSocket } from "ws";
import { Channel, MessageContent, WKSDK } from "wukongimjssdk/lib/sdk.js";

const tell = (event, said) => process.stdout.write(JSON.stringify({ event, ...said }) + "\n");
const fail = (error) => tell("error", { message: String(error?.message ?? error) });

// The SDK prints every packet; and what throws in its listeners must not end the process, as it
// would not in a browser.
console.log = () => {};
process.on("uncaughtException", fail);
process.on("unhandledRejection", fail);

let socket;

/** The browser's WebSocket, which tells of every frame. When `deaf`, what comes is lost. */
globalThis.WebSocket = class extends WebSocket {
  constructor(address) {
    super(address);
    socket = this;
  }

  emit(name, ...said) {
    if (name === "message") {
      if (this.deaf) return false;
      const [data, binary] = said;
      tell("frame", { way: "in", binary, bytes: Buffer.from(data).toString("hex") });
    }
    return super.emit(name, ...said);
  }

  send(data) {
    super.send(data);
    const binary = typeof data !== "string";
    tell("frame", { way: "out", binary, bytes: Buffer.from(data).toString("hex") });
  }
};

/** A content of any type: a plain object. */
class AnyContent extends MessageContent {
  constructor(content) {
    super();
    this.content = content;
    this.contentType = content.type;
  }

  encodeJSON() {
    return { ...this.content };
  }
}

const sdk = WKSDK.shared();

const told = (message) => ({
  header: message.header,
  messageId: message.messageID,
  messageSeq: message.messageSeq,
  clientMsgNo: message.clientMsgNo,
  fromUid: message.fromUID,
  channelId: message.channel.channelID,
  channelType: message.channel.channelType,
  timestamp: message.timestamp,
  contentType: message.contentType,
  payload: message.content.contentObj,
});

sdk.connectManager.addConnectStatusListener((status, reason) => tell("status", { status, reason }));
sdk.chatManager.addMessageListener((message) => {
  if (message.messageID !== undefined) tell("message", told(message)); // else it is one's own
});
sdk.chatManager.addCMDListener((message) => tell("command", told(message)));
sdk.chatManager.addMessageStatusListener((ack) =>
  tell("sendack", {
    clientSeq: ack.clientSeq,
    messageId: ack.messageID.toString(),
    messageSeq: ack.messageSeq,
    reasonCode: ack.reasonCode,
  }),
);

const commands = {
  connect({ config }) {
    Object.assign(sdk.config, config);
    sdk.connectManager.connect();
  },
  send({ channel, kind, content }) {
    sdk.chatManager.send(new AnyContent(content), new Channel(channel, kind)).catch(fail);
  },
  cut() {
    socket.terminate();
  },
  deafen() {
    socket.deaf = true;
    tell("deaf");
  },
};

const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const { command, ...given } = JSON.parse(line);
  commands[command](given);
});
lines.on("close", () => process.exit()); // the SDK's timers would keep the process alive
