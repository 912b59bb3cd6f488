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
  /** The body as text that is known to be JSON: it need not be read to know that it is. */
  readonly json?: string | undefined;
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
      JSON.stringify({ ...event, ...overrides(metadata), topic, pubsubname: pubsub, ...trace(textOf(event['traceparent']) || traceparent, tracestate) }),
    );
  }
  const type = mediaTypeOf(contentType);
  const data = dataMember(type, body, wrapping.json);
  const { head, tail } = commonParts(source, pubsub, topic, contentType);
  if (traceparent === '' && !hasOverrides(metadata)) return Buffer.from(`${head}"id":"${randomUUID()}","time":"${timeText()}",${tail}${data}}`);
  const fields = JSON.stringify({ id: randomUUID(), time: timeText(), ...trace(traceparent, tracestate), ...overrides(metadata) });
  // What metadata says counts before what is common to all: a name must not stand twice.
  const common = { ...(JSON.parse(`${head}${tail.slice(0, -1)}}`) as Record<string, unknown>), ...(JSON.parse(fields) as Record<string, unknown>) };
  return Buffer.from(`${JSON.stringify(common).slice(0, -1)},${data}}`);
}

/** What all events of one application, topic and type begin and go on with, made once. */
const parts = new Map<string, { readonly head: string; readonly tail: string }>();
const maxParts = 1_000;

function commonParts(source: string, pubsub: string, topic: string, contentType: string): { readonly head: string; readonly tail: string } {
  const key = `${source}\0${pubsub}\0${topic}\0${contentType}`;
  let known = parts.get(key);
  if (known === undefined) {
    const text = JSON.stringify;
    known = {
      head: `{"specversion":"1.0","source":${text(source)},"type":"com.dapr.event.sent",`,
      tail: `"topic":${text(topic)},"pubsubname":${text(pubsub)},"datacontenttype":${text(contentType || 'text/plain')},`,
    };
    if (parts.size >= maxParts) parts.clear();
    parts.set(key, known);
  }
  return known;
}

let timeMs = 0;
let timeIso = '';

/** Now, as RFC 3339: the same text for all of a millisecond. */
function timeText(): string {
  const now = Date.now();
  if (now !== timeMs) {
    timeMs = now;
    timeIso = new Date(now).toISOString();
  }
  return timeIso;
}

function hasOverrides(metadata: Readonly<Record<string, string>>): boolean {
  for (const name in metadata) if (name.startsWith('cloudevent.')) return true;
  return false;
}

/** The data as a member of the event, written as it came where it is JSON. */
function dataMember(type: string, body: Buffer, json: string | undefined): string {
  if (type === 'application/json' || jsonType.test(type)) {
    if (json !== undefined) return `"data":${json}`;
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

/** A field of an event as text; '' for what has no text of its own, such as an object. */
export function textOf(value: unknown): string {
  return typeof value === 'string' ? value : typeof value === 'number' || typeof value === 'boolean' ? String(value) : '';
}

/** The event's data as bytes. */
export function dataOf(event: CloudEvent): Buffer {
  if (typeof event['data_base64'] === 'string') return Buffer.from(event['data_base64'], 'base64');
  const data = event['data'];
  if (data === undefined) return Buffer.alloc(0);
  return typeof data === 'string' && !jsonType.test(mediaTypeOf(textOf(event['datacontenttype']))) ? Buffer.from(data) : Buffer.from(JSON.stringify(data));
}
