// The live feed of the page: a WebSocket (RFC 6455) on which the server alone speaks, in short texts.
import { createHash } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';

const opcodes = { text: 0x1, close: 0x8, ping: 0x9, pong: 0xa } as const;
const maxFrameBytes = 125;

export interface Feed {
  send(text: string): void;
  close(): void;
}

function frame(opcode: number, payload: Buffer): Buffer {
  return Buffer.concat([Buffer.from([0x80 | opcode, payload.length]), payload]);
}

/** Agrees to the upgrade. `onClose` is called once, whoever ends it. undefined: the request is none for a WebSocket. */
export function openFeed(request: IncomingMessage, socket: Duplex, onClose: () => void): Feed | undefined {
  const key = request.headers['sec-websocket-key'];
  if (request.headers.upgrade?.toLowerCase() !== 'websocket' || key === undefined) {
    socket.end('HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n');
    return undefined;
  }
  const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: ${accept}\r\n\r\n`);
  let pending = Buffer.alloc(0);
  socket.on('data', (chunk: Buffer) => {
    pending = Buffer.concat([pending, chunk]);
    // What a client says is not listened to, but for pings and goodbyes; its frames are masked and short.
    while (pending.length >= 6) {
      const length = pending[1]! & 0x7f;
      if (length > maxFrameBytes || (pending[1]! & 0x80) === 0) return void socket.destroy();
      if (pending.length < 6 + length) return;
      const payload = Buffer.from(pending.subarray(6, 6 + length).map((byte, i) => byte ^ pending[2 + (i % 4)]!));
      const opcode = pending[0]! & 0x0f;
      pending = pending.subarray(6 + length);
      if (opcode === opcodes.ping) socket.write(frame(opcodes.pong, payload));
      if (opcode === opcodes.close) socket.end(frame(opcodes.close, payload));
    }
  });
  socket.on('error', () => socket.destroy());
  socket.on('end', () => socket.end());
  socket.on('close', onClose);
  return {
    send: (text) => socket.write(frame(opcodes.text, Buffer.from(text))),
    close: () => socket.end(frame(opcodes.close, Buffer.from([0x03, 0xe9]))),
  };
}
