import { Backoff, errorBoundary, type Logger, messageOf, verifyServerCertificate, vetLibraryClients } from '@mizzen/common';
import {
  AckPolicy,
  type Consumer,
  type ConsumerMessages,
  DeliverPolicy,
  type JetStreamClient,
  type JetStreamManager,
  type JsMsg,
  jetstream,
  jetstreamManager,
  StorageType,
} from '@nats-io/jetstream';
import { connect, type NatsConnection, headers as newHeaders } from '@nats-io/transport-node';
import type { BrokerDriver, BrokerSubscription, Delivery, OutgoingMessage, SubscriptionRequest } from './driver.ts';
import { publishTimeoutMs } from './driver.ts';
import { failedPauseMs } from './held-messages.ts';
import { readWireHeaders, wireHeaders } from './message-headers.ts';
import { within } from './within.ts';

const boundary = errorBoundary('driver.nats');

export interface NatsDriverOptions {
  /** nats://host:port, or several with commas. */
  readonly url: string;
  readonly stream: string;
  readonly token?: string | undefined;
  readonly user?: string | undefined;
  readonly password?: string | undefined;
  /** What a consumer has neither settled nor said that it works on for so long is given to another one; 30 s. */
  readonly takeOverMs?: number;
  readonly logger: Logger;
  /** Takes the secrets of the component out of a text (./hide-secrets.ts). */
  readonly hide?: (text: string) => string;
}

const defaultTakeOverMs = 30_000;

/** NATS JetStream: one stream with a subject for each topic, one durable consumer for each group and topic. */
export class NatsDriver implements BrokerDriver {
  readonly #options: NatsDriverOptions;
  readonly #abort: AbortController;
  #connecting: Promise<{ readonly nc: NatsConnection; readonly js: JetStreamClient; readonly manager: JetStreamManager }> | undefined;
  #problem: string | undefined;

  constructor(options: NatsDriverOptions) {
    this.#options = options;
    this.#abort = new AbortController();
    this.#connecting = undefined;
    this.#problem = 'not connected yet';
    vetLibraryClients();
    this.#connected().catch(() => {});
  }

  problem(): string | undefined {
    return this.#problem;
  }

  async publish(topic: string, messages: readonly OutgoingMessage[]): Promise<readonly (string | undefined)[]> {
    let js: JetStreamClient;
    try {
      js = (await within(this.#connected(), publishTimeoutMs)).js;
    } catch (error) {
      return messages.map(() => `the message was not stored: ${messageOf(error)}`);
    }
    const now = Date.now();
    return Promise.all(
      messages.map(async (message) => {
        try {
          const fields = newHeaders();
          for (const [name, value] of Object.entries(wireHeaders(message, now))) fields.set(name, encodeURI(value));
          await js.publish(this.#subject(topic), message.body, { headers: fields, timeout: publishTimeoutMs });
          return undefined;
        } catch (error) {
          return `the message was not stored: ${messageOf(error)}`;
        }
      }),
    );
  }

  async subscribe(request: SubscriptionRequest, deliver: (message: Delivery) => void): Promise<BrokerSubscription> {
    const backoff = new Backoff(50, 2_000);
    let messages: ConsumerMessages | undefined;
    const working = new Set<NodeJS.Timeout>();
    let isClosed = false;
    const open = async () => {
      const consumer = await this.#consumer(request);
      messages = await consumer.consume({ max_messages: request.maxInFlight });
      return messages;
    };
    const follow = async (): Promise<void> => {
      while (!isClosed) {
        try {
          const opened = messages ?? (await open());
          // It may have been closed meanwhile.
          if (isClosed) opened.stop();
          backoff.reset();
          // A message that cannot be handled comes again later; those behind it go on.
          for await (const message of opened) boundary.run(() => this.#take(message, working, deliver)) || boundary.run(() => message.nak(failedPauseMs));
        } catch (error) {
          if (!isClosed) this.#options.logger.warn(`the subscription to ${request.topic} was interrupted: ${messageOf(error)}`);
        }
        messages = undefined;
        if (!isClosed) await new Promise((resolve) => setTimeout(resolve, backoff.nextMs()));
      }
    };
    await open();
    const following = follow();
    return {
      close: async () => {
        isClosed = true;
        for (const timer of working) clearInterval(timer);
        messages?.stop();
        await following;
      },
    };
  }

  async lag(topic: string, group: string): Promise<number | undefined> {
    const { manager } = await within(this.#connected(), publishTimeoutMs);
    const info = await manager.consumers.info(this.#options.stream, durableName(topic, group));
    return info.num_pending + info.num_ack_pending;
  }

  async close(): Promise<void> {
    this.#abort.abort();
    const connection = await this.#connecting?.catch(() => undefined);
    await connection?.nc.close();
  }

  #take(message: JsMsg, timers: Set<NodeJS.Timeout>, deliver: (message: Delivery) => void): void {
    const now = Date.now();
    const wire: Record<string, string> = {};
    for (const [name, values] of message.headers ?? []) wire[name.toLowerCase()] = decoded(values[0] ?? '');
    const { headers, key, publishedAtMs, deliverAtMs, isExpired } = readWireHeaders(wire, now);
    if (isExpired) return message.ack();
    if (deliverAtMs > now) return message.nak(deliverAtMs - now);
    const working = boundary.every((this.#options.takeOverMs ?? defaultTakeOverMs) / 3, () => message.working());
    timers.add(working);
    let isSettled = false;
    const settle = (then: () => void) => {
      if (isSettled) return;
      isSettled = true;
      clearInterval(working);
      timers.delete(working);
      then();
    };
    deliver({
      id: String(message.seq),
      key,
      headers,
      body: Buffer.from(message.data),
      attempt: message.info.deliveryCount,
      publishedAtMs,
      ack: () => settle(() => message.ack()),
      nack: (delayMs) => settle(() => message.nak(Math.max(1, delayMs))),
    });
  }

  async #consumer({ topic, group, maxInFlight, from }: SubscriptionRequest): Promise<Consumer> {
    const { js, manager } = await this.#connected();
    const name = durableName(topic, group);
    const { stream } = this.#options;
    try {
      await manager.consumers.info(stream, name);
      await manager.consumers.update(stream, name, { max_ack_pending: Math.max(maxInFlight, 1) });
    } catch {
      await this.#ensureStream(manager);
      await manager.consumers.add(stream, {
        durable_name: name,
        filter_subject: this.#subject(topic),
        ack_policy: AckPolicy.Explicit,
        ack_wait: (this.#options.takeOverMs ?? defaultTakeOverMs) * 1e6,
        max_ack_pending: Math.max(maxInFlight, 1),
        deliver_policy: from === 'latest' ? DeliverPolicy.New : DeliverPolicy.All,
      });
    }
    return js.consumers.get(stream, name);
  }

  #subject(topic: string): string {
    // Where NATS has characters of its own, ours are written differently.
    return `${this.#options.stream}.${encodeURIComponent(topic).replace(/[*>.%]/g, (character) => `=${character.charCodeAt(0).toString(16)}`)}`;
  }

  #connected() {
    this.#connecting ??= this.#connect();
    return this.#connecting;
  }

  async #connect(): Promise<{ nc: NatsConnection; js: JetStreamClient; manager: JetStreamManager }> {
    const { url, token, user, password, logger, hide = String } = this.#options;
    const backoff = new Backoff(50, 2_000);
    for (;;) {
      if (this.#abort.signal.aborted) throw new Error('the driver is closed');
      try {
        const nc = await connect({
          servers: url.split(','),
          maxReconnectAttempts: -1,
          reconnectTimeWait: 200,
          timeout: 3_000,
          name: 'mizzen',
          // With `tls` the client refuses a server that offers none, before it has sent any credentials.
          ...(/^(?:tls|nats\+tls|wss):/i.test(url) ? { tls: tlsOptions } : {}),
          ...(token === undefined ? {} : { token }),
          ...(user === undefined ? {} : { user }),
          ...(password === undefined ? {} : { pass: password }),
        });
        try {
          const js = jetstream(nc, { timeout: 5_000 });
          const manager = await jetstreamManager(nc, { timeout: 5_000 });
          await this.#ensureStream(manager);
          this.#problem = undefined;
          this.#watchSoon(nc, manager);
          return { nc, js, manager };
        } catch (error) {
          // Another connection is made for the next attempt.
          await nc.close().catch(() => {});
          throw error;
        }
      } catch (error) {
        const problem = hide(`NATS at ${url} cannot be used: ${messageOf(error)}`);
        if (this.#problem !== problem) logger.warn(problem);
        this.#problem = problem;
        await new Promise((resolve) => setTimeout(resolve, backoff.nextMs()));
      }
    }
  }

  /** Follows the state of the connection; after an exception it begins again. */
  #watchSoon(nc: NatsConnection, manager: JetStreamManager): void {
    boundary.start(
      () => this.#watch(nc, manager),
      () => boundary.after(failedPauseMs, () => nc.isClosed() || this.#watchSoon(nc, manager)),
    );
  }

  /** A server that came back without its data has no stream. */
  async #ensureStream(manager: JetStreamManager): Promise<void> {
    const { stream } = this.#options;
    try {
      await manager.streams.info(stream);
    } catch {
      await manager.streams.add({ name: stream, subjects: [`${stream}.>`], storage: StorageType.File });
    }
  }

  async #watch(nc: NatsConnection, manager: JetStreamManager): Promise<void> {
    for await (const status of nc.status()) {
      if (status.type === 'disconnect') {
        const { url, hide = String } = this.#options;
        this.#problem = hide(`NATS at ${url} is away`);
        this.#options.logger.warn(`${this.#problem}. Trying again.`);
      } else if (status.type === 'reconnect') {
        this.#problem = undefined;
        await this.#ensureStream(manager).catch(() => {});
      }
    }
  }
}

/** Given to Node.js' `tls.connect` as it is. */
const tlsOptions = { handshakeFirst: false, checkServerIdentity: verifyServerCertificate };

/** A header as it was published. Other programs may have written one that is not encoded. */
function decoded(value: string): string {
  try {
    return decodeURI(value);
  } catch {
    return value;
  }
}

/**
 * Names of consumers have no dots, spaces, slashes or wildcards. No two pairs of topic and group have the same name: it is their consumer's, and with it their messages.
 */
export function durableName(topic: string, group: string): string {
  return `${durablePart(group)}__${durablePart(topic)}`;
}

/** Underscores are encoded where the two that separate group and topic could not be told from them. */
function durablePart(text: string): string {
  const isClear = !text.includes('__') && !text.startsWith('_') && !text.endsWith('_');
  return text.replace(isClear ? /[^\w-]/g : /[^A-Za-z0-9-]/g, (character) => {
    const code = character.charCodeAt(0);
    return code > 0xff ? `=u${code.toString(16).padStart(4, '0')}` : `=${code.toString(16).padStart(2, '0')}`;
  });
}
