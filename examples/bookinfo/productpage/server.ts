// The product page of the bookinfo example: a web page that asks three services what to show. It calls http://details:9080 and
// http://reviews:9080 with plain fetch, and stock:9090 by gRPC; the HTTP_PROXY in its environment, which it need not know of, leads through
// its sidecar. A WebSocket tells open pages how many copies are left.
import { randomBytes } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { openFeed } from './feed.ts';
import { feedScript, renderPage } from './page.ts';
import { copiesLeft, watchCopies } from './stock.ts';

const product = {
  id: 0,
  title: 'The Comedy of Errors',
  description:
    'The Comedy of Errors is one of William Shakespeare’s early plays. It is his shortest and one of his most farcical comedies, with a major part of the humour coming from slapstick and mistaken identity, in addition to puns and word play.',
};

/** Headers that a request keeps on its way, so that routes and traces can follow it. */
const forwarded = ['x-request-id', 'traceparent', 'tracestate', 'x-b3-traceid', 'x-b3-spanid', 'x-b3-parentspanid', 'x-b3-sampled', 'user-agent'];
const sessions = new Map<string, string>();
const maxSessions = 10_000;

export interface Answer {
  readonly status: number;
  readonly body: unknown;
}

function userOf(request: IncomingMessage): string | undefined {
  const id = /(?:^|;\s*)session=([a-f0-9]{32})/.exec(request.headers.cookie ?? '')?.[1];
  return id === undefined ? undefined : sessions.get(id);
}

function headersOf(request: IncomingMessage): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const name of forwarded) {
    const value = request.headers[name];
    if (typeof value === 'string') headers[name] = value;
  }
  const user = userOf(request) ?? request.headers['end-user'];
  if (typeof user === 'string') headers['end-user'] = user;
  return headers;
}

async function call(url: string, request: IncomingMessage, attempts: number): Promise<Answer> {
  const headers = headersOf(request);
  for (let attempt = 1; ; attempt++) {
    try {
      const response = await fetch(url, { headers, signal: AbortSignal.timeout(3_000) });
      const body: unknown = await response.json().catch(() => undefined);
      if (response.ok) return { status: 200, body };
      return { status: response.status, body: undefined };
    } catch (error) {
      console.log(`${url}: ${error instanceof Error ? error.message : String(error)} (attempt ${attempt})`);
      if (attempt >= attempts) return { status: 503, body: undefined };
    }
  }
}

const details = (request: IncomingMessage) => call(`http://details:9080/details/${product.id}`, request, 1);
const reviews = (request: IncomingMessage) => call(`http://reviews:9080/reviews/${product.id}`, request, 2);

async function readForm(request: IncomingMessage): Promise<URLSearchParams> {
  let text = '';
  for await (const chunk of request) {
    text += String(chunk);
    if (text.length > 8192) break;
  }
  return new URLSearchParams(text);
}

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { pathname } = new URL(request.url ?? '/', 'http://productpage');
  const json = (status: number, body: unknown) => response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  switch (pathname) {
    case '/health':
      return void response.writeHead(200).end('Product page is healthy\n');
    case '/productpage': {
      const [detailsAnswer, reviewsAnswer, copies] = await Promise.all([details(request), reviews(request), copiesLeft(headersOf(request))]);
      response.writeHead(200, {
        'content-type': 'text/html; charset=utf-8',
        'content-security-policy': "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; form-action 'self'",
        'cache-control': 'no-store',
      });
      return void response.end(renderPage(product, detailsAnswer, reviewsAnswer, copies, userOf(request)));
    }
    case '/login': {
      const name =
        (await readForm(request))
          .get('username')
          ?.slice(0, 64)
          .replace(/[^\w@.-]/g, '') ?? '';
      const id = randomBytes(16).toString('hex');
      if (sessions.size >= maxSessions) sessions.clear();
      if (name !== '') sessions.set(id, name);
      return void response
        .writeHead(302, { location: '/productpage', ...(name === '' ? {} : { 'set-cookie': `session=${id}; HttpOnly; SameSite=Lax; Path=/` }) })
        .end();
    }
    case '/logout':
      return void response.writeHead(302, { location: '/productpage', 'set-cookie': 'session=; Max-Age=0; Path=/' }).end();
    case '/static/feed.js':
      return void response.writeHead(200, { 'content-type': 'text/javascript' }).end(feedScript);
    case '/api/v1/products':
      return void json(200, [product]);
    case `/api/v1/products/${product.id}`: {
      const found = await details(request);
      return void json(found.status, found.body ?? { error: 'Sorry, product details are currently unavailable for this book.' });
    }
    case `/api/v1/products/${product.id}/reviews`: {
      const found = await reviews(request);
      return void json(found.status, found.body ?? { error: 'Sorry, product reviews are currently unavailable for this book.' });
    }
    default:
      return void json(404, { error: 'not found' });
  }
}

const server = createServer((request, response) => {
  answer(request, response).catch((error: unknown) => {
    console.error(error);
    if (!response.headersSent) response.writeHead(500).end();
  });
});
server.on('upgrade', (request, socket) => {
  if (request.url !== `/api/v1/products/${product.id}/feed`) return void socket.end('HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n');
  let stop = () => {};
  const feed = openFeed(request, socket, () => stop());
  if (feed === undefined) return;
  stop = watchCopies((left) => {
    if (left === undefined) feed.close();
    else feed.send(JSON.stringify({ left }));
  });
});
server.keepAliveTimeout = 75_000;
server.listen(Number(process.env['PORT'] ?? 9080), '127.0.0.1', () => console.log('productpage listens'));
process.on('SIGTERM', () => process.exit(0));
