// The plainest HTTP/2 proxy that Node's own http2 module makes: what a sidecar in TypeScript would cost without a codec of its own.
import http2 from 'node:http2';

const [port, origin] = process.argv.slice(2).map(Number);
let upstream;
const connect = () => {
  if (upstream === undefined || upstream.closed || upstream.destroyed) {
    upstream = http2.connect(`http://127.0.0.1:${origin}`);
    upstream.on('error', () => {});
  }
  return upstream;
};
const server = http2.createServer();
server.on('stream', (incoming, headers) => {
  const outgoing = connect().request(headers, { endStream: false });
  let trailers;
  outgoing.on('trailers', (fields) => {
    trailers = fields;
  });
  outgoing.on('response', (answer) => {
    incoming.respond(answer, { waitForTrailers: true });
    incoming.on('wantTrailers', () => incoming.sendTrailers(trailers ?? {}));
    outgoing.pipe(incoming);
  });
  outgoing.on('error', () => incoming.close(http2.constants.NGHTTP2_INTERNAL_ERROR));
  incoming.on('error', () => outgoing.close(http2.constants.NGHTTP2_CANCEL));
  incoming.pipe(outgoing);
});
server.listen(port, '127.0.0.1');
// A client that goes away in the middle of many streams leaves errors that the plainest proxy does not look after.
process.on('uncaughtException', () => {});
