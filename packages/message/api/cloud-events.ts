import { randomUUID } from 'node:crypto';

/** An event as it is published and delivered: CloudEvents 1.0 in its JSON format, with Dapr's extensions (topic, pubsubname, traceid, traceparent). */
export type CloudEvent = Readonly<Record<string, unknown>>;

export interface Wrapping {
  readonly contentType: string;
  readonly body: Buffer;
  readonly source: string;
  readonly pubsub: string;
  readonly topic: string;
  readonly traceparent: string;
  readonly tracestate: string;
  /** Query keys and metadata: `cloudevent.id` and the like override fields. */
  readonly metadata: Readonly<Record<string, string>>;
}

const jsonType = /^application\/(?:json|[\w.+-]+\+json)$/;
const overridable = ['id', 'source', 'type', 'traceid', 'traceparent', 'tracestate', 'subject', 'time', 'dataschema'];

export class InvalidEvent extends Error {}

const mediaTypeOf = (contentType: string) => contentType.split(';', 1)[0]!.trim().toLowerCase();

export const isCloudEventType = (contentType: string): boolean => mediaTypeOf(contentType) === 'application/cloudevents+json';

/** The event's JSON. What comes as a CloudEvent stays one. Throws InvalidEvent for one that is none. */
export function wrap(wrapping: Wrapping): Buffer {
  const { contentType, body, source, pubsub, topic, traceparent, tracestate, metadata } = wrapping;
  if (isCloudEventType(contentType)) {
    const event = parseEvent(body);
    return Buffer.from(
      JSON.stringify({ ...event, ...overrides(metadata), topic, pubsubname: pubsub, ...trace(String(event['traceparent'] ?? traceparent), tracestate) }),
    );
  }
  const type = mediaTypeOf(contentType);
  const head = JSON.stringify({
    specversion: '1.0',
    id: randomUUID(),
    source,
    type: 'com.dapr.event.sent',
    time: new Date().toISOString(),
    topic,
    pubsubname: pubsub,
    ...trace(traceparent, tracestate),
    ...overrides(metadata),
    datacontenttype: contentType || 'text/plain',
  });
  return Buffer.from(`${head.slice(0, -1)},${dataMember(type, body)}}`);
}

/** The data as a member of the event, written as it came where it is JSON. */
function dataMember(type: string, body: Buffer): string {
  if (jsonType.test(type)) {
    const text = body.toString('utf8');
    try {
      JSON.parse(text);
      return `"data":${text}`;
    } catch {
      return `"data":${JSON.stringify(text)}`;
    }
  }
  if (type === '' || type.startsWith('text/')) return `"data":${JSON.stringify(body.toString('utf8'))}`;
  return `"data_base64":"${body.toString('base64')}"`;
}

function overrides(metadata: Readonly<Record<string, string>>): Record<string, string> {
  const fields: Record<string, string> = {};
  for (const name of overridable) {
    const value = metadata[`cloudevent.${name}`];
    if (value !== undefined) fields[name] = value;
  }
  return fields;
}

function trace(traceparent: string, tracestate: string): Record<string, string> {
  return traceparent === '' ? {} : { traceparent, traceid: traceparent, ...(tracestate === '' ? {} : { tracestate }) };
}

function parseEvent(body: Buffer): Record<string, unknown> {
  let event: unknown;
  try {
    event = JSON.parse(body.toString('utf8'));
  } catch {
    throw new InvalidEvent('the body is no JSON, which application/cloudevents+json is');
  }
  if (typeof event !== 'object' || event === null || Array.isArray(event)) throw new InvalidEvent('a CloudEvent is a JSON object');
  for (const name of ['id', 'source', 'specversion', 'type'])
    if (typeof (event as Record<string, unknown>)[name] !== 'string')
      throw new InvalidEvent(`a CloudEvent needs "${name}" (CloudEvents 1.0, required attributes)`);
  return event as Record<string, unknown>;
}

/** What was stored, as an event: raw bytes are wrapped now, for whoever subscribes as Dapr does with `rawPayload`. */
export function readEvent(
  body: Buffer,
  isRaw: boolean,
  about: { readonly id: string; readonly pubsub: string; readonly topic: string; readonly contentType: string },
): { readonly event: CloudEvent; readonly json: Buffer } {
  if (!isRaw) {
    try {
      const event = JSON.parse(body.toString('utf8')) as unknown;
      if (typeof event === 'object' && event !== null && 'specversion' in event) return { event: event as CloudEvent, json: body };
    } catch {
      // It is no event: somebody has published bytes.
    }
  }
  const event = {
    specversion: '1.0',
    id: about.id,
    source: 'mizzen',
    type: 'com.dapr.event.sent',
    topic: about.topic,
    pubsubname: about.pubsub,
    datacontenttype: about.contentType || 'application/octet-stream',
    data_base64: body.toString('base64'),
  };
  return { event, json: Buffer.from(JSON.stringify(event)) };
}

/** The event's data as bytes. */
export function dataOf(event: CloudEvent): Buffer {
  if (typeof event['data_base64'] === 'string') return Buffer.from(event['data_base64'], 'base64');
  const data = event['data'];
  if (data === undefined) return Buffer.alloc(0);
  return typeof data === 'string' && !jsonType.test(mediaTypeOf(String(event['datacontenttype'] ?? '')))
    ? Buffer.from(data)
    : Buffer.from(JSON.stringify(data));
}
