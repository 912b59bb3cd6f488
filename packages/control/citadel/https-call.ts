import type { IncomingHttpHeaders } from 'node:http';
import { request as httpsRequest, type RequestOptions } from 'node:https';

export interface HttpsCall extends Pick<RequestOptions, 'method' | 'headers' | 'ca' | 'checkServerIdentity' | 'agent'> {
  readonly body?: string | undefined;
  readonly signal: AbortSignal;
  readonly maxBytes: number;
}

export interface HttpsAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
}

/** Asks somebody outside, by roots of one's own where that is wanted (which `fetch` cannot). Rejects when there is no whole answer, or one that is too long. */
export function callHttps(url: string, { body, maxBytes, ...options }: HttpsCall): Promise<HttpsAnswer> {
  return new Promise((resolve, reject) => {
    const request = httpsRequest(url, options, (response) => {
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
