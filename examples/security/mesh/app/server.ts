// What every service here does: it says who it is, who called, and whom it has called in turn with /call?host=HOST&path=PATH.
import http from 'node:http';

const name = process.env['SERVICE'] ?? 'service';
const proxy = new URL(process.env['HTTP_PROXY'] ?? 'http://127.0.0.1:1');

function send(response: http.ServerResponse, status: number, value: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(`${JSON.stringify(value)}\n`);
}

/** Calls another service by its name, through the sidecar. */
function call(host: string, path: string, authorization: string | undefined, done: (status: number, text: string) => void): void {
  const headers = { host, ...(authorization === undefined ? {} : { authorization }) };
  const request = http.get({ host: proxy.hostname, port: proxy.port, path: `http://${host}${path}`, headers }, (response) => {
    let text = '';
    response.on('data', (chunk: Buffer) => (text += chunk));
    response.on('end', () => done(response.statusCode ?? 0, text));
  });
  request.on('error', (error) => done(502, error.message));
}

http
  .createServer((request, response) => {
    const url = new URL(request.url ?? '/', 'http://service');
    const host = url.searchParams.get('host');
    const caller = /URI=([^;,]+)/.exec(String(request.headers['x-forwarded-client-cert'] ?? ''))?.[1];
    if (url.pathname !== '/call' || host === null) return send(response, 200, { service: name, path: request.url, caller, user: request.headers['x-user'] });
    call(host, url.searchParams.get('path') ?? '/', request.headers.authorization, (status, text) =>
      send(response, 200, { service: name, called: host, status, said: text.trim() }),
    );
  })
  .listen(Number(process.env['PORT']), '127.0.0.1');
