import { once } from 'node:events';
import { createServer, type Http2Server } from 'node:http2';
import { Code, ConnectError, type Interceptor, type ServiceImpl } from '@connectrpc/connect';
import { errorBoundary, PushQueue } from '@mizzen/common';
import { ConnectionGuard } from '@mizzen/common/connection-guard';
import { grpcHandler, grpcServerSettings } from '@mizzen/common/grpc-server';
import { ServerConnections } from '@mizzen/common/server-connections';
import type { Init, Subscription } from '@mizzen/envoy-api';
import { Dapr } from '@mizzen/envoy-api/gen/dapr/proto/runtime/v1/dapr_pb.js';
import type {
  BulkPublishRequest,
  BulkPublishResponseSchema,
  SubscribeTopicEventsRequestAlpha1,
  SubscribeTopicEventsResponseAlpha1Schema,
} from '@mizzen/envoy-api/gen/dapr/proto/runtime/v1/pubsub_pb.js';
import { apiTokenHeader, hasApiToken } from './api-token.ts';
import type { AppChannel, DeliveredEvent, DeliveryOutcome } from './app-channel.ts';
import { retry } from './app-channel.ts';
import { textOf } from './cloud-events.ts';
import { type DaprHttpApi, maxBulkEntries } from './dapr-http.ts';
import { outcomeOf, topicEvent } from './grpc-app-channel.ts';
import type { MessageRuntime, Publication, PublishProblem, StreamEnd } from './message-runtime.ts';

const boundary = errorBoundary('dapr.request');

const codes: Readonly<Record<number, Code>> = { 400: Code.InvalidArgument, 403: Code.PermissionDenied, 404: Code.NotFound };

/** Dapr's gRPC API, as far as it is about messages (dapr.proto): the same runtime as the HTTP one. */
export class DaprGrpcServer {
  readonly #server: Http2Server;
  readonly #connections: ServerConnections;
  readonly #port: number;

  constructor(runtime: MessageRuntime, http: DaprHttpApi, port: number, apiToken?: string) {
    this.#port = port;
    this.#server = boundary.own(
      createServer(
        grpcServerSettings,
        grpcHandler(
          { routes: (router) => router.service(Dapr, daprService(runtime, http)), interceptors: [requireApiToken(apiToken)] },
          // A subscription's response begins with its first message.
          { maxResponseDelayMs: undefined },
        ),
      ),
    );
    this.#connections = new ServerConnections(this.#server);
    const guard = new ConnectionGuard(this.#server);
    this.#server.on('stream', ({ session }) => session !== undefined && guard.prove(session.socket, 'local'));
  }

  async listen(): Promise<void> {
    this.#server.listen(this.#port, '127.0.0.1');
    await once(this.#server, 'listening');
  }

  async close(): Promise<void> {
    await this.#connections.close();
  }
}

const requireApiToken =
  (apiToken: string | undefined): Interceptor =>
  (next) =>
  async (request) => {
    if (!hasApiToken(apiToken, request.header.get(apiTokenHeader)))
      throw new ConnectError(`the metadata ${apiTokenHeader} is missing or wrong`, Code.Unauthenticated);
    return next(request);
  };

function daprService(runtime: MessageRuntime, http: DaprHttpApi): Partial<ServiceImpl<typeof Dapr>> {
  const publishAll = (publications: readonly Publication[]) =>
    new Promise<readonly (PublishProblem | undefined)[]>((resolve) => runtime.publish(publications, resolve));
  const failed = ({ status, code, message }: PublishProblem) => new ConnectError(`${code}: ${message}`, codes[status] ?? Code.Internal);
  const bulk = async (request: BulkPublishRequest, trace: Pick<Publication, 'traceparent' | 'tracestate'>): Promise<Init<typeof BulkPublishResponseSchema>> => {
    const { pubsubName: pubsub, topic, entries, metadata } = request;
    if (entries.length === 0) return {};
    const invalid = (reason: string) => failed({ status: 400, code: 'ERR_PUBSUB_EVENTS_SER', message: reason });
    if (entries.length > maxBulkEntries) throw invalid(`at most ${maxBulkEntries} entries may be published at once`);
    const seen = new Set<string>();
    for (const [i, { entryId }] of entries.entries()) {
      if (entryId === '') throw invalid(`entry ${i} has no entryId`);
      if (seen.has(entryId)) throw invalid(`two entries have the entryId ${JSON.stringify(entryId.slice(0, 100))}`);
      seen.add(entryId);
    }
    const problems = await publishAll(
      entries.map((entry) => ({
        pubsub,
        topic,
        contentType: entry.contentType,
        body: Buffer.from(entry.event),
        metadata: { ...metadata, ...entry.metadata },
        ...trace,
      })),
    );
    const first = problems.find((problem) => problem !== undefined);
    if (first !== undefined && (first.status === 403 || first.status === 404)) throw failed(first);
    if (first !== undefined && problems.every((problem) => problem?.status === 400)) throw failed(first);
    return { failedEntries: entries.flatMap(({ entryId }, i) => (problems[i] === undefined ? [] : [{ entryId, error: problems[i].message }])) };
  };
  const traceOf = (headers: Headers) => ({ traceparent: headers.get('traceparent') ?? '', tracestate: headers.get('tracestate') ?? '' });
  return {
    async publishEvent({ pubsubName: pubsub, topic, data, dataContentType, metadata }, context) {
      const [problem] = await publishAll([
        { pubsub, topic, contentType: dataContentType, body: Buffer.from(data), metadata, ...traceOf(context.requestHeader) },
      ]);
      if (problem !== undefined) throw failed(problem);
      return {};
    },
    bulkPublishEvent: (request, context) => bulk(request, traceOf(context.requestHeader)),
    bulkPublishEventAlpha1: (request, context) => bulk(request, traceOf(context.requestHeader)),
    async *subscribeTopicEventsAlpha1(requests, context) {
      yield* streamed(runtime, requests, context.signal);
    },
    async getMetadata() {
      const { id, runtimeVersion, components, subscriptions, extended } = http.metadata() as {
        id: string;
        runtimeVersion: string;
        components: { name: string; type: string; version: string }[];
        subscriptions: {
          pubsubname: string;
          topic: string;
          metadata: Record<string, string>;
          deadLetterTopic: string;
          rules: { match: string; path: string }[];
        }[];
        extended: Record<string, string>;
      };
      return {
        id,
        runtimeVersion,
        registeredComponents: components,
        extendedMetadata: extended,
        subscriptions: subscriptions.map(({ pubsubname, topic, metadata, deadLetterTopic, rules }) => ({
          pubsubName: pubsubname,
          topic,
          metadata,
          deadLetterTopic,
          rules: { rules },
        })),
      };
    },
    async setMetadata({ key, value }) {
      http.setAttribute(key, value);
      return {};
    },
  };
}

/** An event on a stream. */
interface SentEvent {
  readonly event: DeliveredEvent;
  readonly timeoutMs: number;
  readonly done: (outcome: DeliveryOutcome) => void;
  timer: NodeJS.Timeout | undefined;
}

type Answer = Init<typeof SubscribeTopicEventsResponseAlpha1Schema>;

/** A subscription that lasts as long as its stream: events go down, and what became of them comes up. */
async function* streamed(runtime: MessageRuntime, requests: AsyncIterable<SubscribeTopicEventsRequestAlpha1>, signal: AbortSignal): AsyncIterable<Answer> {
  const iterator = requests[Symbol.asyncIterator]();
  const first = await iterator.next();
  const initial = first.done ? undefined : first.value.subscribeTopicEventsRequestType;
  if (initial?.case !== 'initialRequest') throw new ConnectError('the first message must be initial_request', Code.InvalidArgument);
  const { pubsubName, topic, metadata, deadLetterTopic } = initial.value;
  const answers = new PushQueue<Answer>();
  /** Events that are not settled, by id. A publisher chooses ids: of several with the same one, the first is with the application, and the others wait. */
  const open = new Map<string, SentEvent[]>();
  const send = (id: string, sent: SentEvent) => {
    const lapsed = () => settle(id, retry(`the stream has not said within ${sent.timeoutMs} ms what became of it`));
    sent.timer = boundary.after(sent.timeoutMs, lapsed, lapsed);
    answers.push({ subscribeTopicEventsResponseType: { case: 'eventMessage', value: topicEvent(sent.event) } });
  };
  const channel: AppChannel = {
    deliver(event, timeoutMs, done) {
      const id = textOf(event.event['id']);
      const sent: SentEvent = { event, timeoutMs, done, timer: undefined };
      const others = open.get(id);
      if (others !== undefined) return void others.push(sent);
      open.set(id, [sent]);
      send(id, sent);
    },
    deliverBulk: (_path, _pubsub, _topic, events, _timeoutMs, done) =>
      done(new Map(events.map(({ entryId }) => [entryId, retry('a stream takes one event at a time')]))),
  };
  const settle = (id: string, outcome: DeliveryOutcome) => {
    const [first, ...others] = open.get(id) ?? [];
    if (first === undefined) return;
    clearTimeout(first.timer);
    if (others[0] === undefined) open.delete(id);
    else {
      open.set(id, others);
      send(id, others[0]);
    }
    first.done(outcome);
  };
  const subscription: Subscription = {
    pubsubname: pubsubName,
    topic,
    rules: [],
    defaultPath: '/',
    deadLetterTopic: deadLetterTopic ?? '',
    bulk: undefined,
    metadata,
    type: 'STREAMING',
  };
  let end: StreamEnd | undefined;
  const subscriber = await runtime.subscribeStream(subscription, channel, (reason) => {
    end = reason;
    answers.close();
  });
  if (typeof subscriber === 'string') throw new ConnectError(subscriber, subscriber.includes('not allowed') ? Code.PermissionDenied : Code.NotFound);
  answers.push({ subscribeTopicEventsResponseType: { case: 'initialResponse', value: {} } });
  const reading = (async () => {
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) {
      const { subscribeTopicEventsRequestType: type } = next.value;
      if (type.case === 'eventProcessed') settle(type.value.id, outcomeOf(type.value.status?.status ?? 0));
    }
  })().catch((error: unknown) => boundary.unexpected(error));
  const ended = () => answers.close();
  boundary.start(() => reading.finally(ended), ended);
  signal.addEventListener('abort', () => answers.close());
  try {
    yield* answers;
    // Unavailable is what clients retry.
    if (end !== undefined) throw new ConnectError(end.message, end.isDenied ? Code.PermissionDenied : Code.Unavailable);
  } finally {
    answers.close();
    for (const sent of open.values()) clearTimeout(sent[0]?.timer);
    await subscriber.close();
  }
}
