import { randomUUID } from 'node:crypto';
import { errorBoundary, type Logger, messageOf, verifyServerCertificate, vetLibraryClients } from '@mizzen/common';
import { Redis } from 'ioredis';
import { type BrokerDriver, type BrokerSubscription, type Delivery, type OutgoingMessage, publishTimeoutMs, type SubscriptionRequest } from './driver.ts';
import { HeldMessages } from './held-messages.ts';
import { parseHeaders, readWireHeaders, wireHeaders } from './message-headers.ts';

const boundary = errorBoundary('driver.redis');

export interface RedisDriverOptions {
  /** `host:port`, or a redis:// URL. */
  readonly address: string;
  readonly password?: string | undefined;
  /** Entries that a stream keeps, about; 0: all. */
  readonly maxLength: number;
  /** What a consumer has neither settled nor claimed again for so long is given to another one; 30 s. */
  readonly takeOverMs?: number;
  readonly logger: Logger;
  /** Takes the secrets of the component out of a text (./hide-secrets.ts). */
  readonly hide?: (text: string) => string;
}

const blockMs = 1_000;
const defaultTakeOverMs = 30_000;
const prefix = 'mizzen:topic:';

/** Redis Streams: a stream for each topic, a consumer group for each group. What is stored is as durable as the server is configured to be. */
export class RedisDriver implements BrokerDriver {
  readonly #options: RedisDriverOptions;
  readonly #redis: Redis;
  readonly #consumer: string;
  /** Why the connection was lost; its state says whether it is. */
  #reason: string | undefined;

  constructor(options: RedisDriverOptions) {
    this.#options = options;
    const { hide = String } = options;
    this.#consumer = randomUUID();
    this.#reason = undefined;
    vetLibraryClients();
    this.#redis = boundary.own(this.#connect({ commandTimeout: publishTimeoutMs, maxRetriesPerRequest: null }));
    this.#redis.on('ready', () => {
      this.#reason = undefined;
    });
    this.#redis.on('error', (error) => {
      const reason = hide(`Redis at ${options.address} cannot be used: ${error.message}`);
      if (this.#reason !== reason) options.logger.warn(reason);
      this.#reason = reason;
    });
  }

  #connect(more: object): Redis {
    const { address, password } = this.#options;
    return boundary.own(
      new Redis(address.includes('://') ? address : `redis://${address}`, {
        ...(/^rediss:/i.test(address) ? { tls: { checkServerIdentity: verifyServerCertificate } } : {}),
        retryStrategy: (attempt: number) => Math.min(1_000, 50 * attempt),
        ...(password === undefined ? {} : { password }),
        ...more,
      }),
      () => {},
    );
  }

  problem(): string | undefined {
    if (this.#redis.status === 'ready') return undefined;
    const { address, hide = String } = this.#options;
    return this.#reason ?? hide(`Redis at ${address} is away`);
  }

  async publish(topic: string, messages: readonly OutgoingMessage[]): Promise<readonly (string | undefined)[]> {
    const now = Date.now();
    const { maxLength } = this.#options;
    const limit = maxLength > 0 ? (['MAXLEN', '~', maxLength] as const) : [];
    return Promise.all(
      messages.map(async (message) => {
        try {
          await this.#redis.call('XADD', prefix + topic, ...limit, '*', 'headers', JSON.stringify(wireHeaders(message, now)), 'body', message.body);
          return undefined;
        } catch (error) {
          return `the message was not stored: ${messageOf(error)}`;
        }
      }),
    );
  }

  async subscribe(request: SubscriptionRequest, deliver: (message: Delivery) => void): Promise<BrokerSubscription> {
    const { topic, group, maxInFlight, from } = request;
    const stream = prefix + topic;
    const takeOverMs = this.#options.takeOverMs ?? defaultTakeOverMs;
    const claimEveryMs = takeOverMs / 3;
    // Reading blocks: it has a connection of its own.
    const reader = this.#connect({ maxRetriesPerRequest: null });
    const held = new HeldMessages();
    const inFlight = new Map<string, number>();
    let wake: (() => void) | undefined;
    let isClosed = false;
    const ensureGroup = async () => {
      try {
        await this.#redis.xgroup('CREATE', stream, group, from === 'latest' ? '$' : '0', 'MKSTREAM');
      } catch (error) {
        if (!messageOf(error).startsWith('BUSYGROUP')) throw error;
      }
    };
    await ensureGroup();
    const give = (id: string, fields: readonly Buffer[], attempt: number): void => {
      const now = Date.now();
      const wire = readFields(fields);
      const { headers, key, publishedAtMs, deliverAtMs, isExpired } = readWireHeaders(wire.headers, now);
      const finish = () => {
        inFlight.delete(id);
        wake?.();
      };
      const ack = () => {
        finish();
        this.#redis
          .xack(stream, group, id)
          .catch((error: unknown) => this.#options.logger.debug('a message that is done will come again', { error: messageOf(error) }));
      };
      inFlight.set(id, now);
      if (isExpired) return ack();
      let isSettled = false;
      held.hold(deliverAtMs - now, () =>
        deliver({
          id,
          key,
          headers,
          body: wire.body,
          attempt,
          publishedAtMs,
          ack: () => {
            if (isSettled) return;
            isSettled = true;
            ack();
          },
          nack: (delayMs) => {
            if (isSettled) return;
            isSettled = true;
            // It stays ours, in Redis' list of what is pending: if this process ends, another takes it over.
            held.hold(Math.max(1, delayMs), () => give(id, fields, attempt + 1));
          },
        }),
      );
    };
    // A message that cannot be handled stays pending and is claimed again later; those behind it go on.
    const giveAlone = (id: Buffer, fields: readonly Buffer[], attempt: number) => {
      const failed = () => {
        inFlight.delete(id.toString());
        wake?.();
      };
      boundary.run(() => give(id.toString(), fields, attempt)) || failed();
    };
    const read = async (): Promise<void> => {
      while (!isClosed) {
        if (inFlight.size >= maxInFlight) {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
          wake = undefined;
          continue;
        }
        try {
          const answer = await reader.callBuffer(
            'XREADGROUP',
            ...['GROUP', group, this.#consumer, 'COUNT', maxInFlight - inFlight.size, 'BLOCK', blockMs, 'STREAMS', stream, '>'],
          );
          if (isClosed) return;
          for (const [id, fields] of entriesOf(answer)) giveAlone(id, fields, 1);
        } catch (error) {
          if (isClosed) return;
          // A server that came back without its data has no groups either.
          if (messageOf(error).startsWith('NOGROUP')) await ensureGroup().catch(() => {});
          await new Promise((resolve) => setTimeout(resolve, 100));
        }
      }
    };
    const claim = async (): Promise<void> => {
      if (this.problem() !== undefined) return;
      const now = Date.now();
      // Ours are renewed, so that nobody takes them over; those that nobody renews are taken over.
      const ours = [...inFlight].filter(([, since]) => now - since > claimEveryMs / 2).map(([id]) => id);
      if (ours.length > 0) await this.#redis.call('XCLAIM', stream, group, this.#consumer, 0, ...ours, 'JUSTID');
      const room = maxInFlight - inFlight.size;
      if (room <= 0) return;
      const [, entries] = (await this.#redis.callBuffer('XAUTOCLAIM', stream, group, this.#consumer, takeOverMs, '0', 'COUNT', room)) as [
        Buffer,
        ([Buffer, Buffer[]] | null)[],
      ];
      for (const entry of entries) if (entry !== null && !inFlight.has(entry[0].toString())) giveAlone(entry[0], entry[1], 2);
    };
    const claims = boundary.every(claimEveryMs, () => claim().catch((error: unknown) => boundary.unexpected(error)));
    const reading = read();
    return {
      close: async () => {
        isClosed = true;
        clearInterval(claims);
        held.close();
        wake?.();
        reader.disconnect();
        await reading;
      },
    };
  }

  async lag(topic: string, group: string): Promise<number | undefined> {
    const groups = (await this.#redis.xinfo('GROUPS', prefix + topic)) as unknown[][];
    for (const entry of groups) {
      const fields = new Map<string, unknown>();
      for (let i = 0; i < entry.length; i += 2) fields.set(String(entry[i]), entry[i + 1]);
      if (fields.get('name') !== group) continue;
      const lag = fields.get('lag');
      return lag === null ? undefined : Number(lag) + Number(fields.get('pending'));
    }
    return undefined;
  }

  async close(): Promise<void> {
    this.#redis.disconnect();
  }
}

/** Entries of the one stream that was asked for: a pair in a list (RESP2), or the two side by side (RESP3). */
function entriesOf(answer: unknown): readonly (readonly [Buffer, Buffer[]])[] {
  if (!Array.isArray(answer)) return [];
  const [first, second] = answer as readonly unknown[];
  return ((Array.isArray(first) ? first[1] : second) ?? []) as [Buffer, Buffer[]][];
}

function readFields(fields: readonly Buffer[]): { readonly headers: Record<string, string>; readonly body: Buffer } {
  let headers: Record<string, string> = {};
  let body: Buffer = Buffer.alloc(0);
  for (let i = 0; i + 1 < fields.length; i += 2) {
    const name = fields[i]!.toString();
    if (name === 'body') body = fields[i + 1]!;
    else if (name === 'headers') headers = parseHeaders(fields[i + 1]!.toString());
  }
  return { headers, body };
}
