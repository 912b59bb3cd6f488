import http from 'node:http';
import https from 'node:https';

export interface Answer {
  readonly status: number;
  readonly headers: http.IncomingHttpHeaders;
  readonly body: string;
}

export interface Call {
  readonly port: number;
  readonly path?: string;
  readonly method?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Buffer;
  readonly agent?: http.Agent;
  readonly tls?: https.RequestOptions;
}

/** One request to a port of this machine, answered whole. */
export function call(options: Call): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const common = {
      host: '127.0.0.1',
      port: options.port,
      path: options.path ?? '/',
      method: options.method ?? 'GET',
      headers: options.headers,
      ...(options.agent ? { agent: options.agent } : {}),
    };
    const onResponse = (response: http.IncomingMessage) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks).toString('latin1') }));
      response.on('error', reject);
    };
    const request = options.tls ? https.request({ ...common, ...options.tls }, onResponse) : http.request(common, onResponse);
    request.once('error', reject);
    request.end(options.body);
  });
}

/** Asks until the answer is as wanted; the last answer explains a failure. */
export async function until<Value>(what: string, ask: () => Promise<Value>, isRight: (value: Value) => boolean, timeoutMs = 30_000): Promise<Value> {
  const deadline = Date.now() + timeoutMs;
  let last: unknown;
  for (;;) {
    try {
      const value = await ask();
      if (isRight(value)) return value;
      last = value;
    } catch (error) {
      last = error;
    }
    if (Date.now() > deadline)
      throw new Error(
        `${what}: not within ${timeoutMs} ms; last: ${typeof last === 'object' && !(last instanceof Error) ? JSON.stringify(last).slice(0, 500) : String(last)}`,
      );
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
