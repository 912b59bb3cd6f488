// Decides about requests for others, by rules in a file: the part that a policy engine such as OPA plays. It speaks the HTTP form of Envoy's external authorization: the request as it
// came, and 200 for yes.
import { readFileSync } from 'node:fs';
import http from 'node:http';
import { join } from 'node:path';

interface Rule {
  readonly path: string;
  readonly methods: readonly string[];
  /** Values of the header x-department. */
  readonly departments: readonly string[];
}

const file = join(import.meta.dirname, 'rules.json');

http
  .createServer((request, response) => {
    const department = String(request.headers['x-department'] ?? '');
    // Read each time: whoever changes the rules need restart nothing.
    const rules = JSON.parse(readFileSync(file, 'utf8')) as readonly Rule[];
    const rule = rules.find(({ path, methods }) => request.url?.startsWith(path) && methods.includes(request.method ?? ''));
    if (rule?.departments.includes(department)) response.writeHead(200, { 'x-user': `somebody of ${department}` }).end();
    else response.writeHead(403, { 'content-type': 'text/plain' }).end(`the department ${department || '(none)'} may not ${request.method} ${request.url}\n`);
  })
  .listen(Number(process.env['PORT']), '127.0.0.1');
