import { request as httpRequest, type IncomingHttpHeaders } from 'node:http';
import { request as httpsRequest, type RequestOptions } from 'node:https';
import type { FetchPolicy } from './fetch-policy.ts';

export interface HttpsCall extends Pick<RequestOptions, 'method' | 'headers' | 'ca' | 'checkServerIdentity' | 'agent'> {
  readonly body?: string | undefined;
  /** Where the URL may lead; undefined: it is the administrator's own, and may lead anywhere. */
  readonly policy: FetchPolicy | undefined;
  readonly signal: AbortSignal;
  readonly maxBytes: number;
}

export interface HttpsAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
}

/**
 * Sends a request to a server outside of the mesh, with roots of its own where that is wanted (which `fetch` cannot). Redirects are responses like others.
 * Rejects when there is no whole response, one that is too long, or when the URL leads where it may not.
 */
export function callHttps(url: string, { body, maxBytes, policy, ...options }: HttpsCall): Promise<HttpsAnswer> {
  return new Promise((resolve, reject) => {
    const send = url.startsWith('http:') ? httpRequest : httpsRequest;
    const lookup = policy?.lookupFor(url);
    const request = send(url, { ...options, ...(lookup === undefined ? {} : { lookup }) }, (response) => {
      const chunks: Buffer[] = [];
      let length = 0;
      response.on('error', reject);
      response.on('data', (chunk: Buffer) => {
        chunks.push(chunk);
        if ((length += chunk.length) > maxBytes) request.destroy(new Error(`the answer has more than ${maxBytes} bytes`));
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, text: Buffer.concat(chunks).toString('utf8') }));
    });
    request.on('error', reject);
    request.end(body);
  });
}
