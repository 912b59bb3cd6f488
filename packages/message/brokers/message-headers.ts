import { type OutgoingMessage, ttlHeader } from './driver.ts';
import { deliverAtHeader, keyHeader, publishedAtHeader } from './held-messages.ts';

const own = [deliverAtHeader, keyHeader, publishedAtHeader, ttlHeader];

/** A message's headers with what brokers have no field for. */
export function wireHeaders(message: OutgoingMessage, now: number): Record<string, string> {
  return {
    ...message.headers,
    [publishedAtHeader]: String(now),
    ...(message.key === '' ? {} : { [keyHeader]: message.key }),
    ...(message.delayMs > 0 ? { [deliverAtHeader]: String(now + message.delayMs) } : {}),
    ...(message.ttlMs > 0 ? { [ttlHeader]: String(now + message.ttlMs) } : {}),
  };
}

/** Headers as a JSON object of strings. Members that are not strings, and text that is not such an object, are left out: other programs write to brokers too. */
export function parseHeaders(text: string): Record<string, string> {
  try {
    const value = JSON.parse(text) as unknown;
    if (typeof value !== 'object' || value === null) return {};
    return Object.fromEntries(Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === 'string'));
  } catch {
    return {};
  }
}

export interface ReceivedHeaders {
  readonly headers: Readonly<Record<string, string>>;
  readonly key: string;
  readonly publishedAtMs: number;
  readonly deliverAtMs: number;
  readonly isExpired: boolean;
}

export function readWireHeaders(wire: Readonly<Record<string, string>>, now: number): ReceivedHeaders {
  const expires = wire[ttlHeader];
  const deliverAtMs = numberOf(wire[deliverAtHeader], 0);
  return {
    headers: Object.fromEntries(Object.entries(wire).filter(([name]) => !own.includes(name))),
    key: wire[keyHeader] ?? '',
    publishedAtMs: numberOf(wire[publishedAtHeader], now),
    deliverAtMs,
    // When its time has come, not now: it may be held until then.
    isExpired: expires !== undefined && Number(expires) <= Math.max(now, deliverAtMs),
  };
}

function numberOf(text: string | undefined, otherwise: number): number {
  const value = Number(text ?? otherwise);
  return Number.isFinite(value) ? value : otherwise;
}
