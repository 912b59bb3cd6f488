import http from 'node:http';
import net from 'node:net';
import { Http2ServerConnection } from '../packages/proxy/http2/server-connection.ts';
import { defaultHttp2Settings } from '../packages/proxy/http2/settings.ts';
import { defaultHeadLimits } from '../packages/proxy/message/head-limits.ts';
import { ResponseHead } from '../packages/proxy/message/response-head.ts';

/**
 * A gRPC server that answers every unary call with the message it was sent, at as little cost as can be: what is measured is what stands
 * before it. On the same port it takes uploads and throws them away; on the next one too, for those who speak HTTP/1.1 to their upstreams.
 */
const port = Number(process.argv[2]);
const settings = {
  ...defaultHttp2Settings,
  maxConcurrentStreams: 1000,
  connectionWindowBytes: 16 * 1024 * 1024,
  streamWindowBytes: 1024 * 1024,
  headLimits: defaultHeadLimits,
};

http
  .createServer((request, response) => {
    request.resume();
    request.on('end', () => response.end());
  })
  .listen(port + 1, '127.0.0.1');

net
  .createServer({ noDelay: true }, (socket) => {
    const connection: Http2ServerConnection = new Http2ServerConnection(
      settings,
      {
        write: (bytes) => socket.write(bytes),
        get pendingBytes() {
          return socket.writableLength;
        },
        get isFull() {
          return socket.writableNeedDrain;
        },
        end: () => socket.end(),
      },
      {
        onRequest: (stream, head) => {
          let message: Buffer | undefined;
          const isGrpc = head.headers.get('content-type') === 'application/grpc';
          return {
            onStreamData: (slice) => {
              if (isGrpc) message = message === undefined ? Buffer.from(slice) : Buffer.concat([message, slice]);
              stream.consumed(slice.length);
            },
            onStreamEnd: () => {
              const answer = new ResponseHead();
              answer.status = 200;
              if (isGrpc) answer.headers.add('content-type', 'application/grpc');
              connection.respond(stream, answer, -1, false);
              if (message !== undefined) stream.data(message);
              stream.end(isGrpc ? [['grpc-status', '0']] : []);
            },
            onStreamReset: () => {},
            onStreamDrain: () => {},
          };
        },
        onViolation: ({ reason }) => console.error(reason),
        onEnd: () => {},
      },
    );
    socket.on('data', (chunk) => connection.read(chunk));
    socket.on('drain', () => connection.onWritable());
    socket.on('error', () => {});
    socket.on('close', () => connection.closed());
  })
  .listen(port, '127.0.0.1');
