import { type Logger, messageOf, version } from '@mizzen/common';
import type { LocalService } from '@mizzen/proxy/filters/local-service';
import type { Exchange } from '@mizzen/proxy/http/exchange';
import { apiTokenHeader, hasApiToken } from './api-token.ts';
import { isCloudEventType } from './cloud-events.ts';
import type { MessageRuntime, Publication, PublishProblem } from './message-runtime.ts';

const maxBodyBytes = 16 * 1024 * 1024;
/** Of one bulk. */
export const maxBulkEntries = 10_000;
/** Of an application's metadata. */
const maxAttributes = 100;
const json = 'application/json';

/** Dapr's HTTP API, as far as it is about messages (docs.dapr.io, "Pub/sub API reference", "Health", "Metadata"). */
export class DaprHttpApi implements LocalService {
  readonly #runtime: MessageRuntime;
  readonly #appConnection: object | undefined;
  readonly #logger: Logger;
  readonly #apiToken: string | undefined;
  /** Set by the application with PUT /metadata. */
  readonly #attributes: Map<string, string>;

  constructor(runtime: MessageRuntime, appConnection: object | undefined, logger: Logger, apiToken?: string) {
    this.#runtime = runtime;
    this.#appConnection = appConnection;
    this.#logger = logger;
    this.#apiToken = apiToken;
    this.#attributes = new Map();
  }

  handle(exchange: Exchange): void {
    const { method, target, headers, authority } = exchange.head;
    // A page that has made its name point here, or that posts to us from elsewhere, is told apart by what its browser sends.
    if (headers.has('origin') || !/^(?:127\.0\.0\.1|localhost|\[::1\])(?::\d+)?$/.test(authority))
      return this.#problem(exchange, {
        status: 403,
        code: 'ERR_NOT_LOCAL',
        message: 'this API is for programs of this machine, called by 127.0.0.1 or localhost; not for web pages',
      });
    const cut = target.indexOf('?');
    const path = cut < 0 ? target : target.slice(0, cut);
    const query = cut < 0 ? '' : target.slice(cut + 1);
    // Probes carry no token, as in Dapr.
    if (!path.startsWith('/v1.0/healthz') && !hasApiToken(this.#apiToken, headers.get(apiTokenHeader)))
      return this.#problem(exchange, { status: 401, code: 'ERR_API_TOKEN', message: `the header ${apiTokenHeader} is missing or wrong` });
    const publish = /^\/v1\.0\/publish\/([^/]+)\/(.+)$/.exec(path);
    if (publish !== null && !publish[1]!.startsWith('bulk')) return this.#publish(exchange, method, decode(publish[1]!), decode(publish[2]!), query);
    const bulk = /^\/v1\.0(?:-alpha1)?\/publish\/bulk\/([^/]+)\/(.+)$/.exec(path);
    if (bulk !== null) return this.#publishBulk(exchange, method, decode(bulk[1]!), decode(bulk[2]!), query);
    if (publish !== null) return this.#publish(exchange, method, decode(publish[1]!), decode(publish[2]!), query);
    // Both wait for the Components: a client that has got 204 can publish.
    if (path === '/v1.0/healthz' || path === '/v1.0/healthz/outbound') return this.#health(exchange);
    if (path === '/v1.0/metadata' && method === 'GET') return this.#answer(exchange, 200, this.metadata());
    if (path.startsWith('/v1.0/metadata/') && method === 'PUT') return this.#setAttribute(exchange, decode(path.slice('/v1.0/metadata/'.length)));
    if (path === '/v1.0/publish' || path.startsWith('/v1.0/publish/'))
      return this.#problem(exchange, { status: 404, code: 'ERR_PUBSUB_TOPIC_EMPTY', message: 'a topic is missing: /v1.0/publish/PUBSUB/TOPIC' });
    this.#problem(exchange, {
      status: 404,
      code: 'ERR_NOT_FOUND',
      message: `${method} ${path.slice(0, 100)} is not part of this API. There is /v1.0/publish, /v1.0/publish/bulk, /v1.0/metadata and /v1.0/healthz.`,
    });
  }

  /** What GET /v1.0/metadata says. */
  metadata(): Record<string, unknown> {
    const { config } = this.#runtime;
    return {
      id: config.appId,
      runtimeVersion: `mizzen-${version}`,
      enabledFeatures: [],
      actors: [],
      extended: Object.fromEntries(this.#attributes),
      components: config.components.map(({ name, type }) => ({ name, type, version: 'v1', capabilities: [] })),
      subscriptions: this.#runtime.subscriptions().map(({ pubsubname, topic, rules, defaultPath, deadLetterTopic, metadata, type }) => ({
        pubsubname,
        topic,
        rules: [...rules, ...(defaultPath === '' ? [] : [{ match: '', path: defaultPath }])],
        metadata,
        deadLetterTopic,
        type,
      })),
      ...(this.#appConnection === undefined ? {} : { appConnectionProperties: this.#appConnection }),
      actorRuntime: { runtimeStatus: 'DISABLED', activeActors: [], hostReady: false, placement: '' },
    };
  }

  setAttribute(key: string, value: string): void {
    if (this.#attributes.size < maxAttributes || this.#attributes.has(key)) this.#attributes.set(key, value);
  }

  #publish(exchange: Exchange, method: string, pubsub: string, topic: string, query: string): void {
    if (method !== 'POST' && method !== 'PUT') return this.#wrongMethod(exchange);
    const { headers } = exchange.head;
    const contentType = headers.get('content-type') ?? '';
    const traceparent = headers.get('traceparent') ?? '';
    const tracestate = headers.get('tracestate') ?? '';
    exchange.collectRequest(maxBodyBytes, (body) => {
      this.#runtime.publish([{ pubsub, topic, contentType, body, metadata: metadataOf(query), traceparent, tracestate }], ([problem]) => {
        if (exchange.isOver) return;
        if (problem === undefined) exchange.replyContent(204, empty, '', 'published');
        else this.#problem(exchange, problem);
      });
    });
  }

  #publishBulk(exchange: Exchange, method: string, pubsub: string, topic: string, query: string): void {
    if (method !== 'POST' && method !== 'PUT') return this.#wrongMethod(exchange);
    const traceparent = exchange.head.headers.get('traceparent') ?? '';
    const tracestate = exchange.head.headers.get('tracestate') ?? '';
    const shared = metadataOf(query);
    exchange.collectRequest(maxBodyBytes, (body) => {
      let entries: readonly { readonly entryId: string; readonly publication: Publication }[];
      try {
        entries = readEntries(body, (contentType, event, metadata, text) => ({
          pubsub,
          topic,
          contentType,
          body: event,
          metadata: shared === noMetadata ? metadata : { ...shared, ...metadata },
          traceparent,
          tracestate,
          json: text,
        }));
      } catch (error) {
        return this.#problem(exchange, { status: 400, code: 'ERR_PUBSUB_EVENTS_SER', message: messageOf(error) });
      }
      if (entries.length === 0) return exchange.replyContent(204, empty, '', 'published');
      this.#runtime.publish(
        entries.map(({ publication }) => publication),
        (problems) => {
          if (exchange.isOver) return;
          const failed = entries.flatMap(({ entryId }, i) => (problems[i] === undefined ? [] : [{ entryId, error: problems[i].message }]));
          if (failed.length === 0) return exchange.replyContent(204, empty, '', 'published');
          const first = problems.find((problem) => problem !== undefined)!;
          // Refused as a whole, it is one answer; failed in part, it is a list.
          if (first.status === 403 || first.status === 404) return this.#problem(exchange, first);
          const isInvalid = problems.every((problem) => problem === undefined || problem.status === 400);
          this.#answer(exchange, isInvalid ? 400 : 500, { errorCode: first.code, failedEntries: failed });
        },
      );
    });
  }

  #health(exchange: Exchange): void {
    const problems = this.#runtime.problems();
    if (problems.length === 0) return exchange.replyContent(204, empty, '', 'healthy');
    this.#problem(exchange, { status: 500, code: 'ERR_HEALTH_NOT_READY', message: problems.join('; ') });
  }

  #setAttribute(exchange: Exchange, key: string): void {
    exchange.collectRequest(4_096, (body) => {
      this.setAttribute(key, body.toString('utf8'));
      exchange.replyContent(204, empty, '', 'metadata_set');
    });
  }

  #wrongMethod(exchange: Exchange): void {
    exchange.replyContent(
      405,
      Buffer.from(`${JSON.stringify({ errorCode: 'ERR_METHOD_NOT_ALLOWED', message: 'messages are published with POST or PUT' })}\n`),
      json,
      'wrong_method',
      [['allow', 'POST, PUT']],
    );
  }

  #problem(exchange: Exchange, { status, code, message }: PublishProblem): void {
    if (status >= 500) this.#logger.warn(message, { code });
    this.#answer(exchange, status, { errorCode: code, message });
  }

  #answer(exchange: Exchange, status: number, value: unknown): void {
    exchange.replyContent(status, Buffer.from(`${JSON.stringify(value)}\n`), json, 'message_api');
  }
}

const empty = Buffer.alloc(0);
const noMetadata: Readonly<Record<string, string>> = {};

/** `metadata.NAME=VALUE` */
function metadataOf(query: string): Readonly<Record<string, string>> {
  if (query === '') return noMetadata;
  const metadata: Record<string, string> = {};
  for (const [name, value] of new URLSearchParams(query)) if (name.startsWith('metadata.')) metadata[name.slice('metadata.'.length)] = value;
  return metadata;
}

function readEntries(
  body: Buffer,
  make: (contentType: string, event: Buffer, metadata: Readonly<Record<string, string>>, text: string | undefined) => Publication,
): { entryId: string; publication: Publication }[] {
  const list = JSON.parse(body.toString('utf8')) as unknown;
  if (!Array.isArray(list)) throw new Error('the body must be a list of entries');
  if (list.length > maxBulkEntries) throw new Error(`at most ${maxBulkEntries} entries may be published at once`);
  const seen = new Set<string>();
  return list.map((entry: unknown, i) => {
    const { entryId, entryID, event, contentType, metadata } = (entry ?? {}) as Record<string, unknown>;
    const id = entryId ?? entryID;
    if (typeof id !== 'string' || id === '') throw new Error(`entry ${i} has no entryId`);
    if (seen.has(id)) throw new Error(`two entries have the entryId ${JSON.stringify(id)}`);
    seen.add(id);
    if (event === undefined || event === null) throw new Error(`entry ${id} has no event`);
    const type = typeof contentType === 'string' && contentType !== '' ? contentType : typeof event === 'string' ? 'text/plain' : json;
    // What was JSON in the list is JSON.
    const text = typeof event !== 'string' && (type === json || /json/.test(type)) && !isCloudEventType(type) ? JSON.stringify(event) : undefined;
    const bytes =
      text !== undefined
        ? empty
        : typeof event === 'string' && !/json/.test(type)
          ? Buffer.from(event, /^text\/|^$/.test(type) ? 'utf8' : 'base64')
          : Buffer.from(typeof event === 'string' ? event : JSON.stringify(event));
    const own =
      metadata === undefined || metadata === null
        ? noMetadata
        : Object.fromEntries(Object.entries(metadata as Record<string, unknown>).map(([name, value]) => [name, String(value)]));
    return { entryId: id, publication: make(type, bytes, own, text) };
  });
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
