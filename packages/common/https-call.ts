import { request as httpRequest, type IncomingHttpHeaders, type IncomingMessage } from 'node:http';
import { request as httpsRequest, type RequestOptions } from 'node:https';
import { usableRoots, VettedAgent, verifyServerCertificate } from './certificate-rules.ts';
import { errorBoundary } from './error-boundary.ts';
import type { FetchPolicy } from './fetch-policy.ts';

const boundary = errorBoundary('https.call');

export interface HttpsCall extends Pick<RequestOptions, 'method' | 'headers' | 'checkServerIdentity'> {
  /** PEM; undefined: the public web's. */
  readonly ca?: string | undefined;
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

/** Every request has a connection and a handshake of its own. */
const agent = new VettedAgent({ maxCachedSessions: 0 });

/**
 * The one place for requests to URLs that the configuration or a provider names: to a server outside of the mesh, with roots of its own where that is wanted, and to verified addresses only (which `fetch` cannot). Redirects are responses like others.
 * Rejects when there is no whole response, one that is too long, or when the URL leads where it may not.
 */
export function callHttps(url: string, { body, maxBytes, policy, ca, ...options }: HttpsCall): Promise<HttpsAnswer> {
  return new Promise((resolve, reject) => {
    const isHttps = !url.startsWith('http:');
    const send = isHttps ? httpsRequest : httpRequest;
    const lookup = policy?.lookupFor(url);
    const received = (response: IncomingMessage) => {
      const chunks: Buffer[] = [];
      let length = 0;
      response.on('error', reject);
      response.on('data', (chunk: Buffer) => {
        chunks.push(chunk);
        if ((length += chunk.length) > maxBytes) request.destroy(new Error(`the answer has more than ${maxBytes} bytes`));
      });
      boundary
        .own(response)
        .on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, text: Buffer.concat(chunks).toString('utf8') }));
    };
    const tls = { checkServerIdentity: verifyServerCertificate, agent: isHttps ? agent : false };
    const roots = ca === undefined ? {} : { ca: usableRoots(ca).roots };
    const request = boundary.own(send(url, { ...tls, ...options, ...roots, ...(lookup === undefined ? {} : { lookup }) }, received));
    request.on('error', reject);
    // Also after an exception in a handler, which has no error event.
    request.on('close', () => reject(new Error('the connection was closed before the response was complete')));
    request.end(body);
  });
}
