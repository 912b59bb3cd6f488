import type { IncomingMessage, ServerResponse } from 'node:http';
import { isPlainObject } from '@mizzen/api';
import type { Origin } from '@mizzen/common';
import { badRequest } from '../api-error.ts';

/** What a request to the API says, and JSON in response. */

/** `mizzen apply -f` says which file and line an object came from, so that provenance is not lost on the way. */
export function originOf(request: IncomingMessage, manager: string): Origin {
  const header = request.headers['mizzen-origin'];
  if (typeof header === 'string' && header.length < 64 * 1024) {
    try {
      const value: unknown = JSON.parse(Buffer.from(header, 'base64').toString('utf8'));
      if (isPlainObject(value) && value['source'] === 'file' && typeof value['name'] === 'string') return value as unknown as Origin;
    } catch {
      throw badRequest('the mizzen-origin header is not base64-encoded JSON');
    }
  }
  return { source: 'api', name: manager };
}

export function namespaceOf(body: unknown): string {
  const metadata = isPlainObject(body) ? body['metadata'] : undefined;
  return isPlainObject(metadata) && typeof metadata['namespace'] === 'string' ? metadata['namespace'] : 'default';
}

export function nameOf(body: unknown): string {
  const metadata = isPlainObject(body) ? body['metadata'] : undefined;
  return isPlainObject(metadata) && typeof metadata['name'] === 'string' ? metadata['name'] : '';
}

export function sendJson(response: ServerResponse, status: number, body: unknown): void {
  const text = `${JSON.stringify(body)}\n`;
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text), 'x-content-type-options': 'nosniff' }).end(text);
}
