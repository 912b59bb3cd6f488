// Takes orders over HTTP and tells the world of them. It knows its sidecar's port, and no broker.
import { createServer } from 'node:http';

const { PORT, DAPR_HTTP_PORT } = process.env;
let last = 0;

createServer((request, response) => {
  if (request.url === '/health') return void response.end('ok');
  if (request.method !== 'POST' || request.url !== '/orders') return void response.writeHead(404).end();
  let text = '';
  request.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  request.on('end', async () => {
    const order = { id: ++last, ...(JSON.parse(text || '{}') as object) };
    const { customer = 'guest' } = order as { customer?: string };
    // Orders of one customer stay in their order; what the caller says about canaries goes with the message.
    const query = new URLSearchParams({ 'metadata.partitionKey': customer });
    const canary = request.headers['x-canary'];
    if (typeof canary === 'string') query.set('metadata.x-canary', canary);
    const trace = request.headers['traceparent'];
    const answer = await fetch(`http://127.0.0.1:${DAPR_HTTP_PORT}/v1.0/publish/orders-broker/orders?${query}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...(typeof trace === 'string' ? { traceparent: trace } : {}) },
      body: JSON.stringify(order),
    });
    // Whoever is told 202 can rely on it: the message is on disk.
    if (answer.ok) response.writeHead(202, { 'content-type': 'application/json' }).end(`${JSON.stringify(order)}\n`);
    else response.writeHead(503, { 'content-type': 'application/json' }).end(await answer.text());
  });
}).listen(Number(PORT), '127.0.0.1');
