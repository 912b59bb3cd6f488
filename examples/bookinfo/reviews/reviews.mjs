// The reviews service for machines without Go: the same answers as main.go, in plain Node.
import { createServer } from 'node:http';

const version = process.env.SERVICE_VERSION ?? 'v1';
const color = { v2: 'black', v3: 'red' }[version];
const forwarded = [
  'x-request-id',
  'traceparent',
  'tracestate',
  'x-b3-traceid',
  'x-b3-spanid',
  'x-b3-parentspanid',
  'x-b3-sampled',
  'end-user',
  'cookie',
  'user-agent',
];

async function ratingsOf(request, id) {
  const headers = Object.fromEntries(forwarded.filter((name) => request.headers[name]).map((name) => [name, request.headers[name]]));
  const response = await fetch(`http://ratings:9080/ratings/${id}`, { headers, signal: AbortSignal.timeout(10_000) });
  if (!response.ok) throw new Error(`ratings answered ${response.status}`);
  return (await response.json()).ratings;
}

const server = createServer(async (request, response) => {
  const answer = (status, body) => response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  const path = request.url.split('?')[0];
  if (path === '/health') return answer(200, { status: 'Reviews is healthy' });
  const match = /^\/reviews\/([\w-]+)$/.exec(path);
  if (!match) return answer(404, { error: 'not found' });
  const reviews = [
    { reviewer: 'Reviewer1', text: 'An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!' },
    { reviewer: 'Reviewer2', text: 'Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare.' },
  ];
  if (color) {
    const stars = await ratingsOf(request, match[1]).catch((error) => console.log(`ratings: ${error.message}`));
    for (const review of reviews) review.rating = stars ? { stars: stars[review.reviewer], color } : { error: 'Ratings service is currently unavailable' };
  }
  answer(200, { id: match[1], version, reviews });
});
server.keepAliveTimeout = 75_000;
server.listen(Number(process.env.PORT ?? 9080), '127.0.0.1', () => console.log(`reviews ${version} listens on ${server.address().port}`));
process.on('SIGTERM', () => process.exit(0));
