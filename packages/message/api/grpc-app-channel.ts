import { randomUUID } from 'node:crypto';
import { create, fromBinary, type JsonObject, toBinary } from '@bufbuild/protobuf';
import type { Subscription } from '@mizzen/envoy-api';
import {
  type ListTopicSubscriptionsResponse,
  ListTopicSubscriptionsResponseSchema,
  TopicEventResponse_TopicEventResponseStatus as Status,
  TopicEventBulkRequestSchema,
  TopicEventBulkResponseSchema,
  type TopicEventRequest,
  TopicEventRequestSchema,
  TopicEventResponseSchema,
} from '@mizzen/envoy-api/gen/dapr/proto/runtime/v1/appcallback_pb.js';
import type { Cluster } from '@mizzen/proxy/upstream/cluster';
import { type UnaryResult, unaryCall } from '@mizzen/proxy/upstream/unary-call';
import type { AppFields } from './api-token.ts';
import { type AppChannel, type DeliveredEvent, type DeliveryOutcome, drop, emptyPath, retry, success } from './app-channel.ts';
import { type CloudEvent, dataOf, textOf } from './cloud-events.ts';
import { routing } from './event-router.ts';
import { deliveredFields } from './http-app-channel.ts';

const service = 'dapr.proto.runtime.v1.AppCallback';
const unimplemented = 12;
const known = new Set(['specversion', 'id', 'source', 'type', 'datacontenttype', 'data', 'data_base64', 'topic', 'pubsubname']);

/** Delivers by gRPC: AppCallback.OnTopicEvent (dapr appcallback.proto). */
export class GrpcAppChannel implements AppChannel {
  readonly #cluster: () => Cluster | undefined;
  readonly #ownFields: AppFields;

  /** `ownFields`: metadata that the sidecar sends with every call (api-token.ts). */
  constructor(cluster: () => Cluster | undefined, ownFields: AppFields = []) {
    this.#cluster = cluster;
    this.#ownFields = ownFields;
  }

  deliver(event: DeliveredEvent, timeoutMs: number, done: (outcome: DeliveryOutcome) => void): void {
    const cluster = this.#cluster();
    if (cluster === undefined) return done(retry('there is no way to the application'));
    // Metadata whose name ends in -bin is base64 (grpc PROTOCOL-HTTP2.md), which a publisher's header need not be.
    const fields = deliveredFields(event.headers).filter(([name]) => !name.endsWith('-bin'));
    const over = (result: UnaryResult) => {
      if (result.message === undefined)
        // Dapr drops the message where there is no handler. It is kept: a new version of the application may have one.
        return done(
          retry(
            result.status === unimplemented ? `no handler for this path (UNIMPLEMENTED): ${result.detail}` : `gRPC status ${result.status}: ${result.detail}`,
          ),
        );
      done(outcomeOfMessage(result.message));
    };
    this.#call(cluster, 'OnTopicEvent', toBinary(TopicEventRequestSchema, topicEvent(event)), timeoutMs, over, fields);
  }

  deliverBulk(
    path: string,
    pubsub: string,
    topic: string,
    events: readonly (DeliveredEvent & { readonly entryId: string })[],
    timeoutMs: number,
    done: (outcomes: ReadonlyMap<string, DeliveryOutcome>) => void,
  ): void {
    const all = (outcome: DeliveryOutcome) => done(new Map(events.map(({ entryId }) => [entryId, outcome])));
    const cluster = this.#cluster();
    if (cluster === undefined) return all(retry('there is no way to the application'));
    const request = create(TopicEventBulkRequestSchema, {
      id: randomUUID(),
      topic,
      pubsubName: pubsub,
      type: 'com.dapr.event.sent.bulk',
      path: path === emptyPath ? '' : path,
      entries: events.map(({ entryId, event }) => ({
        entryId,
        contentType: 'application/cloudevents+json',
        event: {
          case: 'cloudEvent' as const,
          value: {
            id: textOf(event['id']),
            source: textOf(event['source']),
            type: textOf(event['type']),
            specVersion: textOf(event['specversion']),
            dataContentType: textOf(event['datacontenttype']),
            data: dataOf(event),
            extensions: extensionsOf(event),
          },
        },
      })),
    });
    this.#call(cluster, 'OnBulkTopicEvent', toBinary(TopicEventBulkRequestSchema, request), timeoutMs, (result) => {
      if (result.message === undefined) return all(retry(`gRPC status ${result.status}: ${result.detail}`));
      const outcomes = new Map<string, DeliveryOutcome>(events.map(({ entryId }) => [entryId, retry('the answer has no status for it')]));
      try {
        for (const { entryId, status } of fromBinary(TopicEventBulkResponseSchema, result.message).statuses)
          if (outcomes.has(entryId)) outcomes.set(entryId, outcomeOf(status));
      } catch {
        return all(retry('the response is not a TopicEventBulkResponse'));
      }
      done(outcomes);
    });
  }

  #call(cluster: Cluster, method: string, message: Uint8Array, timeoutMs: number, done: (result: UnaryResult) => void, fields: AppFields = []): void {
    unaryCall(cluster, 'app', `${service}/${method}`, message, timeoutMs, done, fields.length === 0 ? this.#ownFields : [...this.#ownFields, ...fields]);
  }

  /** What the application declares (ListTopicSubscriptions); undefined: it does not answer. */
  subscriptions(timeoutMs: number): Promise<Subscription[] | undefined> {
    return new Promise((resolve) => {
      const cluster = this.#cluster();
      if (cluster === undefined) return resolve(undefined);
      this.#call(cluster, 'ListTopicSubscriptions', new Uint8Array(), timeoutMs, (result) => {
        if (result.message === undefined) return resolve(result.status === unimplemented ? [] : undefined);
        const declared = listedIn(result.message);
        resolve(
          declared?.subscriptions.map(({ pubsubName, topic, metadata, routes, deadLetterTopic, bulkSubscribe }) => ({
            pubsubname: pubsubName,
            topic,
            // Without a route there still is a handler: its path is empty.
            ...routing(routes?.rules ?? [], routes?.default || emptyPath),
            deadLetterTopic,
            bulk: bulkSubscribe?.enabled
              ? { maxMessagesCount: bulkSubscribe.maxMessagesCount || 100, maxAwaitDurationMs: bulkSubscribe.maxAwaitDurationMs || 1_000 }
              : undefined,
            metadata,
            type: 'PROGRAMMATIC' as const,
          })),
        );
      });
    });
  }
}

/** undefined: it cannot be read. */
function listedIn(message: Uint8Array): ListTopicSubscriptionsResponse | undefined {
  try {
    return fromBinary(ListTopicSubscriptionsResponseSchema, message);
  } catch {
    return undefined;
  }
}

export function topicEvent({ path, pubsub, topic, event }: DeliveredEvent): TopicEventRequest {
  return create(TopicEventRequestSchema, {
    id: textOf(event['id']),
    source: textOf(event['source']),
    type: textOf(event['type']),
    specVersion: textOf(event['specversion']) || '1.0',
    dataContentType: textOf(event['datacontenttype']),
    data: dataOf(event),
    topic,
    pubsubName: pubsub,
    path: path === emptyPath ? '' : path,
    extensions: extensionsOf(event),
  });
}

function extensionsOf(event: CloudEvent): JsonObject {
  return Object.fromEntries(Object.entries(event).filter(([name]) => !known.has(name))) as JsonObject;
}

export function outcomeOf(status: Status): DeliveryOutcome {
  return status === Status.SUCCESS ? success : status === Status.DROP ? drop('the application asked for it') : retry('the application asked for it');
}

function outcomeOfMessage(message: Uint8Array): DeliveryOutcome {
  try {
    return outcomeOf(fromBinary(TopicEventResponseSchema, message).status);
  } catch {
    return retry('the response is not a TopicEventResponse');
  }
}
