import http from 'node:http';
import net from 'node:net';
import { Http2ServerConnection } from '../packages/proxy/http2/server-connection.ts';
import { defaultHttp2Settings } from '../packages/proxy/http2/settings.ts';
import { defaultHeadLimits } from '../packages/proxy/message/head-limits.ts';
import { ResponseHead } from '../packages/proxy/message/response-head.ts';

/**
 * A server that costs as little as can be, and answers all that one read brings with one write, so that what is measured is what stands
 * before it: GET is answered with 1 KiB, a unary call of gRPC with the message it was sent. Uploads are thrown away; on the next port too, for those who speak HTTP/1.1 to
 * their upstreams.
 */
const port = Number(process.argv[2]);
const settings = {
  ...defaultHttp2Settings,
  maxConcurrentStreams: 1000,
  connectionWindowBytes: 16 * 1024 * 1024,
  streamWindowBytes: 1024 * 1024,
  headLimits: defaultHeadLimits,
};

const kibibyte = Buffer.alloc(1024, 'x');
const kibibyteHead = new ResponseHead();
kibibyteHead.status = 200;
kibibyteHead.headers.add('content-type', 'text/plain');
kibibyteHead.headers.add('content-length', '1024');

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
        onRequest: (stream, head, endsStream) => {
          if (endsStream) {
            connection.respond(stream, kibibyteHead, -1, false);
            stream.data(kibibyte);
            stream.end([]);
          }
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
