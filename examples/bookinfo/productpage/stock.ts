// How many copies are left: asked of http://stock:9090 by gRPC. Like fetch, it goes by the HTTP_PROXY of its environment where there is one.
import http2 from 'node:http2';

const authority = 'stock:9090';
let session: http2.ClientHttp2Session | undefined;

function connect(): http2.ClientHttp2Session {
  if (session === undefined || session.closed || session.destroyed) {
    session = http2.connect(process.env['HTTP_PROXY'] ?? `http://${authority}`);
    session.on('error', () => {});
    session.unref();
  }
  return session;
}

/** A call whose request is the message Book with its id left at 0: no bytes at all. */
function start(method: 'Get' | 'Watch', headers: Readonly<Record<string, string>>): http2.ClientHttp2Stream {
  const stream = connect().request({
    ...headers,
    ':method': 'POST',
    ':path': `/bookinfo.Stock/${method}`,
    ':authority': authority,
    'content-type': 'application/grpc',
    te: 'trailers',
  });
  stream.on('error', () => {});
  stream.end(Buffer.alloc(5));
  return stream;
}

/** Field 1 of Copies, a varint. */
function copiesOf(message: Buffer): number {
  let value = 0;
  for (let at = 1, shift = 0; at < message.length; at++, shift += 7) {
    value |= (message[at]! & 0x7f) << shift;
    if ((message[at]! & 0x80) === 0) break;
  }
  return value;
}

/** Tells of each message until the stream ends. */
function onMessages(stream: http2.ClientHttp2Stream, tell: (left: number) => void): void {
  let pending = Buffer.alloc(0);
  stream.on('data', (chunk: Buffer) => {
    pending = Buffer.concat([pending, chunk]);
    while (pending.length >= 5 && pending.length >= 5 + pending.readUInt32BE(1)) {
      const end = 5 + pending.readUInt32BE(1);
      tell(copiesOf(pending.subarray(5, end)));
      pending = pending.subarray(end);
    }
  });
}

/** undefined: the service does not answer. */
export function copiesLeft(headers: Readonly<Record<string, string>>): Promise<number | undefined> {
  return new Promise((resolve) => {
    const stream = start('Get', { ...headers, 'grpc-timeout': '2S' });
    onMessages(stream, resolve);
    stream.on('close', () => resolve(undefined));
    stream.setTimeout(3_000, () => stream.close());
  });
}

/** Tells of each change until `stop` is called, or of undefined when the service has gone. */
export function watchCopies(tell: (left: number | undefined) => void): () => void {
  const stream = start('Watch', {});
  let isStopped = false;
  onMessages(stream, tell);
  stream.on('close', () => {
    if (!isStopped) tell(undefined);
  });
  return () => {
    isStopped = true;
    stream.close(http2.constants.NGHTTP2_CANCEL);
  };
}
