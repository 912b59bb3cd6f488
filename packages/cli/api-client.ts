import type { IncomingMessage } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { type Kind, preferredApiVersion } from '@mizzen/api';
import { errorBoundary, MizzenError, messageOf, type Origin, usableRoots, VettedAgent, verifyServerCertificate, version } from '@mizzen/common';
import type { ControlAccess } from './home.ts';

const boundary = errorBoundary('api.client');
/** Between the end of a watch and the next. */
const rewatchMs = 500;

/** What the API answered when it was not a success: the message is Kubernetes' Status message. */
export class ApiFailure extends MizzenError {
  readonly status: number;
  readonly causes: readonly { readonly field: string; readonly message: string }[];
  constructor(status: number, message: string, causes: readonly { readonly field: string; readonly message: string }[]) {
    super('api-failure', message);
    this.status = status;
    this.causes = causes;
  }
}

export interface ApiAnswer {
  readonly status: number;
  readonly body: unknown;
  /** Texts of Warning headers. */
  readonly warnings: readonly string[];
}

interface CallOptions {
  readonly body?: unknown;
  readonly contentType?: string;
  readonly accept?: string;
  readonly origin?: Origin;
}

/** A client of the rules API, for the command line and the runner. */
export class ApiClient {
  readonly #access: ControlAccess;
  readonly #tls: { readonly ca: string[]; readonly checkServerIdentity: typeof verifyServerCertificate };
  readonly #agent: VettedAgent;

  constructor(access: ControlAccess) {
    this.#access = access;
    this.#tls = { ca: usableRoots(access.rootCertificate).roots, checkServerIdentity: verifyServerCertificate };
    this.#agent = new VettedAgent({ keepAlive: true, ...this.#tls });
  }

  close(): void {
    this.#agent.destroy();
  }

  async call(method: string, path: string, options: CallOptions = {}): Promise<ApiAnswer> {
    const response = await this.#send(method, path, options);
    const chunks: Buffer[] = [];
    for await (const chunk of response as AsyncIterable<Buffer>) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString('utf8');
    const body: unknown = text === '' ? undefined : JSON.parse(text);
    const status = response.statusCode ?? 0;
    if (status >= 400) {
      const failure = body as { message?: string; details?: { causes?: { field: string; message: string }[] } } | undefined;
      throw new ApiFailure(status, failure?.message ?? `the API answered ${status}`, failure?.details?.causes ?? []);
    }
    const header = response.headersDistinct['warning'] ?? [];
    return {
      status,
      body,
      warnings: header.flatMap((line) => [...line.matchAll(/299 - "((?:[^"\\]|\\.)*)"/g)].map((match) => match[1]!.replace(/\\(.)/g, '$1'))),
    };
  }

  /** Follows a kind: `onEvent` for each change until the returned function is called; reconnects by itself. */
  watch(kind: Kind, namespace: string | undefined, onEvent: (type: string, object: never) => void, onLost: (error: string) => void): () => void {
    let isStopped = false;
    let current: IncomingMessage | undefined;
    // Changes that met an exception are lost to its caller: the next watch begins with every object.
    const deliver = (type: string, object: never) => {
      if (!boundary.run(() => onEvent(type, object))) current?.destroy(new Error('a change could not be handled'));
    };
    const run = async () => {
      while (!isStopped) {
        try {
          current = await this.#send('GET', `${collectionPath(kind, namespace)}?watch=true`, {});
          let text = '';
          for await (const chunk of current as AsyncIterable<Buffer>) {
            text += chunk.toString('utf8');
            for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
              const event = JSON.parse(text.slice(0, end)) as { type: string; object: never };
              text = text.slice(end + 1);
              deliver(event.type, event.object);
            }
          }
        } catch (error) {
          if (!isStopped) boundary.run(() => onLost(messageOf(error)));
        }
        if (!isStopped) await new Promise((resolve) => setTimeout(resolve, rewatchMs));
      }
    };
    const start = (): void => boundary.start(run, () => isStopped || boundary.after(rewatchMs, start, start));
    start();
    return () => {
      isStopped = true;
      current?.destroy();
    };
  }

  #send(method: string, path: string, options: CallOptions, isRepeat = false): Promise<IncomingMessage> {
    const body = options.body === undefined ? undefined : JSON.stringify(options.body);
    return new Promise((resolve, reject) => {
      const request = boundary.own(
        httpsRequest(
          `${this.#access.api}${path}`,
          {
            method,
            agent: isRepeat ? new VettedAgent() : this.#agent,
            ...this.#tls,
            headers: {
              authorization: `Bearer ${this.#access.token}`,
              'user-agent': `mizzen/${version}`,
              accept: options.accept ?? 'application/json',
              ...(body === undefined ? {} : { 'content-type': options.contentType ?? 'application/json', 'content-length': Buffer.byteLength(body) }),
              ...(options.origin === undefined ? {} : { 'mizzen-origin': Buffer.from(JSON.stringify(options.origin)).toString('base64') }),
            },
          },
          resolve,
        ),
      );
      request.once('error', (error: NodeJS.ErrnoException) => {
        // A kept connection may have been closed by the server just as it was taken from the pool: the request was not seen. A GET may be seen twice.
        if ((request.reusedSocket || method === 'GET') && !isRepeat && error.code === 'ECONNRESET') return resolve(this.#send(method, path, options, true));
        const isRefused = error.code === 'ECONNREFUSED';
        reject(
          new MizzenError(
            'control-plane-unreachable',
            isRefused ? 'the control plane does not answer. Is the mesh running (`npm start` or `mizzen up DIR`)?' : messageOf(error),
            this.#access.api,
          ),
        );
      });
      // Also after an exception in a handler, which has no error event.
      request.once('close', () => reject(new MizzenError('control-plane-unreachable', 'the connection was closed before the response.', this.#access.api)));
      request.end(body);
    });
  }
}

/** `/apis/networking.istio.io/v1/namespaces/default/virtualservices`. */
export function collectionPath(kind: Kind, namespace: string | undefined): string {
  const base = kind.group ? `/apis/${preferredApiVersion(kind)}` : `/api/${preferredApiVersion(kind)}`;
  return kind.isNamespaced && namespace !== undefined ? `${base}/namespaces/${namespace}/${kind.plural}` : `${base}/${kind.plural}`;
}
