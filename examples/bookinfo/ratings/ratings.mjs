// The ratings service of the bookinfo example: how many stars each reviewer gave. Plain Node, no dependencies.
import { createServer } from 'node:http';

const ratings = new Map();

const server = createServer(async (request, response) => {
  const answer = (status, body) => response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  const url = new URL(request.url, 'http://ratings');
  if (url.pathname === '/health') return answer(200, { status: 'Ratings is healthy' });
  const match = /^\/ratings\/(\d+)$/.exec(url.pathname);
  if (!match) return answer(404, { error: 'not found' });
  const productId = Number(match[1]);
  if (request.method === 'GET') return answer(200, ratings.get(productId) ?? { id: productId, ratings: { Reviewer1: 5, Reviewer2: 4 } });
  if (request.method !== 'POST') return answer(405, { error: 'GET or POST' });
  let text = '';
  for await (const chunk of request) {
    text += chunk;
    if (text.length > 64 * 1024) return answer(413, { error: 'too large' });
  }
  try {
    const given = { id: productId, ratings: JSON.parse(text) };
    ratings.set(productId, given);
    answer(200, given);
  } catch {
    answer(400, { error: 'please provide valid ratings JSON' });
  }
});
server.keepAliveTimeout = 75_000;
server.listen(Number(process.env.PORT ?? 9080), '127.0.0.1', () => console.log(`ratings listens on ${server.address().port}`));
process.on('SIGTERM', () => server.close(() => process.exit(0)) && server.closeAllConnections());
