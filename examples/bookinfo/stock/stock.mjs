// The stock service of the bookinfo example: how many copies of a book are left. gRPC by hand, in plain Node without dependencies:
// stock.proto says what is spoken, any client of gRPC understands it. It also answers gRPC's own health checks.
import http2 from 'node:http2';

const initial = 40;
let left = initial;
/** Streams that are told of each change. */
const watchers = new Set();

// Somebody buys a copy now and then; when all are sold, new ones are printed.
setInterval(
  () => {
    left = left === 0 ? initial : left - 1;
    for (const stream of watchers) stream.write(frame(copies()));
  },
  Number(process.env.SALE_EVERY_MS ?? 2_000),
).unref();

/** Field 1 of a message as a varint: all that Copies and HealthCheckResponse are. */
function fieldOne(value) {
  const bytes = [0x08];
  let rest = value;
  for (; rest >= 128; rest >>>= 7) bytes.push((rest & 0x7f) | 0x80);
  return Buffer.from([...bytes, rest]);
}

const copies = () => fieldOne(left);

/** A message of gRPC: not compressed, its length, its bytes. */
function frame(message) {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

const serving = 1;
const status = { OK: 0, UNIMPLEMENTED: 12 };

const server = http2.createServer();
server.on('session', (session) => session.on('error', () => {}));
server.on('stream', (stream, headers) => {
  stream.on('error', () => {});
  stream.resume();
  const answer = (code) => {
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': String(code) }));
  };
  switch (headers[':path']) {
    case '/bookinfo.Stock/Get':
      answer(status.OK);
      return void stream.end(frame(copies()));
    case '/bookinfo.Stock/Watch':
      answer(status.OK);
      stream.write(frame(copies()));
      watchers.add(stream);
      return void stream.on('close', () => watchers.delete(stream));
    case '/grpc.health.v1.Health/Check':
      answer(status.OK);
      return void stream.end(frame(fieldOne(serving)));
    default:
      stream.respond({ ':status': 200, 'content-type': 'application/grpc', 'grpc-status': String(status.UNIMPLEMENTED) }, { endStream: true });
  }
});
server.listen(Number(process.env.PORT ?? 9090), '127.0.0.1', () => console.log(`stock listens on ${server.address().port}`));
process.on('SIGTERM', () => process.exit(0));
