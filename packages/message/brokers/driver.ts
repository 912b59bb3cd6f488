/**
 * What the message mesh asks of a broker. Everything else (envelopes, routing, retries, dead letters, order by key) is done on this side of it, once
 * for all brokers; what every driver must do is tried by e2e/message-brokers.test.ts.
 *
 * Promised by all: a message whose publishing has succeeded is delivered at least once to every group that subscribes, also over restarts of the broker
 * and of consumers; messages of one key reach one group in their order, as long as their consumer settles them in it.
 */
export interface BrokerDriver {
  /** Resolves, for each message, when it is stored: undefined, or why it is not. Never rejects. */
  publish(topic: string, messages: readonly OutgoingMessage[]): Promise<readonly (string | undefined)[]>;
  /**
   * Resolves when messages come; goes on by itself when the broker goes away and comes back. Rejects when it never can. `onEnded` is called when the broker
   * ends it for good, with the reason: `PERMISSION_DENIED: ...` when access was withdrawn.
   */
  subscribe(subscription: SubscriptionRequest, deliver: (message: Delivery) => void, onEnded?: (reason: string) => void): Promise<BrokerSubscription>;
  /** Messages of a topic that a group has not done; undefined: the broker does not tell. */
  lag(topic: string, group: string): Promise<number | undefined>;
  /** Why no topic can have this name; undefined: it can. Absent: the broker decides when it is used. */
  topicProblem?(topic: string): string | undefined;
  /** Why the broker cannot be used now; undefined: it can. */
  problem(): string | undefined;
  close(): Promise<void>;
}

export interface OutgoingMessage {
  /** '': no order among others. */
  readonly key: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Buffer;
  /** Not to be delivered before so many milliseconds have passed. */
  readonly delayMs: number;
  /** Not to be delivered after so many milliseconds; 0: however old. */
  readonly ttlMs: number;
}

export interface SubscriptionRequest {
  readonly topic: string;
  /** Each group has every message once. */
  readonly group: string;
  /** Messages that may be with the consumer at one time. */
  readonly maxInFlight: number;
  /** Where a group begins that is new. */
  readonly from: 'earliest' | 'latest';
}

export interface Delivery {
  /** Unique in the topic. */
  readonly id: string;
  readonly key: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Buffer;
  /** How often it has been given out, this time included, as far as the broker knows. */
  readonly attempt: number;
  readonly publishedAtMs: number;
  /** It is done, and not delivered again. */
  ack(): void;
  /** It is delivered again, after so long. */
  nack(delayMs: number): void;
}

export interface BrokerSubscription {
  /** Nothing more is delivered, and what has been keeps its place until it is settled. Absent: the broker has no word for it. */
  retire?(): void;
  /** Nothing more is delivered; what has been may still be settled. */
  close(): Promise<void>;
}

/** After so long without its broker a publisher is told that its message was not stored. */
export const publishTimeoutMs = 5_000;
export const ttlHeader = 'x-mizzen-expires';

/** Whether a message is too old to be delivered. */
export function isExpired(headers: Readonly<Record<string, string>>, now: number): boolean {
  const expires = headers[ttlHeader];
  return expires !== undefined && Number(expires) <= now;
}
