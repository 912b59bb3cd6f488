// A shop that says which of its versions answers, and can be made to fail or to be slow. With VISITOR set it calls others instead.
import { createServer } from 'node:http';

const { PORT, NAME = 'shop', VERSION = 'v1' } = process.env;
let isBroken = false;
let requests = 0;
let mirrored = 0;

createServer(async (request, response) => {
  const url = new URL(request.url!, 'http://shop');
  const say = (status: number, value: object) => response.writeHead(status, { 'content-type': 'application/json' }).end(`${JSON.stringify(value)}\n`);
  switch (url.pathname) {
    case '/health':
      return void response.end('ok');
    case '/admin/break':
    case '/admin/mend':
      isBroken = url.pathname === '/admin/break';
      return void say(200, { version: VERSION, isBroken });
    case '/admin/counts':
      return void say(200, { version: VERSION, requests, mirrored });
    case '/visit': {
      // HTTP_PROXY leads through the sidecar: this process knows nothing of it.
      const answer = await fetch(`http://${url.searchParams.get('host')}/`).catch((error: Error) => error);
      return void (answer instanceof Error ? say(502, { error: answer.message }) : say(answer.status, { said: (await answer.text()).trim() }));
    }
  }
  requests++;
  if (request.headers.host?.includes('-shadow')) mirrored++;
  if (url.pathname === '/slow') await new Promise((resolve) => setTimeout(resolve, 300));
  say(isBroken ? 503 : 200, { name: NAME, version: VERSION, path: url.pathname });
}).listen(Number(PORT), '127.0.0.1');
