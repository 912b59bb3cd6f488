import { randomUUID } from 'node:crypto';
import { isAlwaysOwned } from '@mizzen/proxy/message/owned-headers';
import type { Cluster } from '@mizzen/proxy/upstream/cluster';
import type { NoAnswer, OwnAnswer } from '@mizzen/proxy/upstream/own-request';
import { sendOwnRequest } from '@mizzen/proxy/upstream/own-request';
import type { AppFields } from './api-token.ts';
import { type AppChannel, type DeliveredEvent, type DeliveryOutcome, drop, outcomeOfBody, retry } from './app-channel.ts';

const maxAnswerBytes = 1024 * 1024;

/** Delivers by HTTP: POST to the subscription's path, with the event as JSON. */
export class HttpAppChannel implements AppChannel {
  readonly #cluster: () => Cluster | undefined;
  readonly #authority: string;
  readonly #ownFields: AppFields;

  /** `ownFields`: what the sidecar sends with every call (api-token.ts). */
  constructor(cluster: () => Cluster | undefined, authority: string, ownFields: AppFields = []) {
    this.#cluster = cluster;
    this.#authority = authority;
    this.#ownFields = ownFields;
  }

  deliver({ path, json, headers }: DeliveredEvent, timeoutMs: number, done: (outcome: DeliveryOutcome) => void): void {
    this.#post(path, json, headers, timeoutMs, (answer) => done(outcomeOf(answer)));
  }

  deliverBulk(
    path: string,
    pubsub: string,
    topic: string,
    events: readonly (DeliveredEvent & { readonly entryId: string })[],
    timeoutMs: number,
    done: (outcomes: ReadonlyMap<string, DeliveryOutcome>) => void,
  ): void {
    const entries = events.map(({ entryId, event }) => ({ entryId, event, contentType: 'application/cloudevents+json', metadata: {} }));
    const body = Buffer.from(JSON.stringify({ id: randomUUID(), metadata: {}, pubsubname: pubsub, topic, type: 'com.dapr.event.sent.bulk', entries }));
    this.#post(path, body, {}, timeoutMs, (answer) => {
      const whole = outcomeOf(answer);
      const outcomes = new Map<string, DeliveryOutcome>(
        events.map(({ entryId }) => [entryId, whole.status === 'SUCCESS' ? retry('the answer has no status for it') : whole]),
      );
      if (whole.status === 'SUCCESS' && !('reason' in answer)) {
        try {
          const { statuses } = JSON.parse(answer.body.toString('utf8')) as {
            readonly statuses?: readonly { readonly entryId?: string; readonly status?: string }[];
          };
          for (const { entryId = '', status = '' } of statuses ?? [])
            if (outcomes.has(entryId)) outcomes.set(entryId, outcomeOfBody(Buffer.from(JSON.stringify({ status }))));
        } catch {
          // No statuses at all: every entry is delivered again.
        }
      }
      done(outcomes);
    });
  }

  #post(path: string, body: Buffer, headers: Readonly<Record<string, string>>, timeoutMs: number, done: (answer: OwnAnswer | NoAnswer) => void): void {
    const cluster = this.#cluster();
    if (cluster === undefined) return done({ reason: 'no_endpoint', detail: 'there is no way to the application' });
    const fields: (readonly [string, string])[] = [['content-type', 'application/cloudevents+json'], ...this.#ownFields];
    for (const field of deliveredFields(headers)) fields.push(field);
    sendOwnRequest(
      cluster,
      { method: 'POST', path: path.startsWith('/') ? path : `/${path}`, authority: this.#authority, fields, body, timeoutMs, maxAnswerBytes },
      done,
    );
  }
}

const meshFields = new Set(['traceparent', 'tracestate', 'x-mizzen-publisher', 'x-mizzen-original-publisher']);

/**
 * Which headers of a message become fields of the request. A publisher chooses them: names by which a request is framed, by which a proxy says where it came
 * from, or by which the mesh speaks are not the publisher's to give.
 */
export function isDelivered(name: string): boolean {
  if (meshFields.has(name) || /^x-mizzen-dead-letter-[a-z-]+$/.test(name)) return true;
  return /^x-[a-z0-9-]+$/.test(name) && !isAlwaysOwned(name);
}

/** The headers of a message that become fields of a request. */
export const deliveredFields = (headers: Readonly<Record<string, string>>): (readonly [string, string])[] =>
  Object.entries(headers).filter(([name, value]) => isDelivered(name) && isFieldValue(value));

const isFieldValue = (value: string) => /^[\t\x20-\x7e]*$/.test(value);

function outcomeOf(answer: OwnAnswer | NoAnswer): DeliveryOutcome {
  if ('reason' in answer) return retry(answer.detail);
  const { status } = answer.head;
  if (status >= 200 && status < 300) return outcomeOfBody(answer.body);
  // Dapr: what nobody is there for is dropped with a warning; everything else is tried again.
  return status === 404 ? drop('the application has nothing at this path (404)') : retry(`the application answered ${status}`);
}
