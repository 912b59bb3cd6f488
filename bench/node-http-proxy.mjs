// The plainest proxy that Node's own http module makes: what a sidecar in TypeScript would cost without a codec of its own.
import { Agent, createServer, request } from 'node:http';

const [port, origin] = process.argv.slice(2).map(Number);
const agent = new Agent({ keepAlive: true, maxSockets: 256 });
createServer((incoming, outgoing) => {
  const upstream = request({ host: '127.0.0.1', port: origin, method: incoming.method, path: incoming.url, headers: incoming.headers, agent }, (response) => {
    outgoing.writeHead(response.statusCode, response.headers);
    response.pipe(outgoing);
  });
  upstream.on('error', () => outgoing.writeHead(502).end());
  incoming.pipe(upstream);
}).listen(port, '127.0.0.1');
